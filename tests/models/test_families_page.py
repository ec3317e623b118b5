"""docs/families.md says what the families can do today."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import families as script
from vlascope.models import families


def test_the_page_is_up_to_date():
    """When this fails: `python -m benchmarks.families` writes the page anew."""
    assert script.PAGE.read_text(encoding="utf-8") == script.page()


def test_a_family_without_a_row_is_an_error(monkeypatch):
    monkeypatch.setattr(script, "tiny_models", lambda: {"clip": (None, False)})
    with pytest.raises(RuntimeError, match="no row for .*'dino'"):
        script.table()


def test_ticks_are_measured(make):
    """A model that cannot do a thing has no tick for it."""
    found = script.measure(make("clip-vision"))
    assert found["attention weights"] == found["q, k, v"] == found["edits"] == "yes"
    assert found["text"] == found["answers"] == found["actions"] == found["crops"] == ""


def test_the_program_lists_every_family(capsys):
    from vlascope.cli import main

    assert main(["models", "--json"]) == 0
    listed = {row["family"]: row for row in json.loads(capsys.readouterr().out)["families"]}
    assert set(listed) == set(families())
    assert all(row["summary"] for row in listed.values())
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert "vlascope sites openvla/openvla-7b --trust-remote-code" in text
    assert "docs/families.md" in text


@pytest.mark.parametrize(
    "name", sorted(set(families()) - {"wrapped", "openpi", "openvla", "smolvla", "timm"})
)
def test_sites_of_every_family_from_its_configuration_alone(name, tmp_path, capsys):
    """The others come with a library of their own, or with code: transformers cannot build them by their name."""
    from vlascope.cli import main

    model = script.tiny_models()[name][0]()
    config = copy.deepcopy(model.module.config)
    config.architectures = [type(model.module).__name__]
    config.save_pretrained(tmp_path)
    assert main(["sites", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["sites"]
    assert [(row["site"], row["width"], row["module"]) for row in listed] == [
        (site.name, site.width, site.module_path) for site in model.sites
    ]
