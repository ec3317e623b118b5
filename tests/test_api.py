from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import vlascope as vs
from vlascope import api
from vlascope.errors import InputError, SiteNotFoundError


def test_importing_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; t = time.process_time(); import vlascope; dt = time.process_time() - t;"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'matplotlib', 'sklearn') if m in sys.modules];"
        "assert not heavy, heavy; assert dt < 0.3, dt"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_verbs_are_there_and_unknown_names_say_what_is():
    for name in vs.__all__:
        assert getattr(vs, name) is not None
    with pytest.raises(AttributeError, match="capture"):
        _ = vs.captrue  # type: ignore[attr-defined]


def test_items_is_a_verb_and_a_room(tmp_path):
    from PIL import Image

    from vlascope.items import Item

    Image.new("RGB", (7, 5), (1, 2, 3)).save(tmp_path / "a.png")
    items = vs.items(str(tmp_path))
    assert len(items) == 1 and isinstance(items[0], Item) and items[0].image.shape == (5, 7, 3)
    assert vs.items.Item is Item


def fake_run(*names: str) -> SimpleNamespace:
    return SimpleNamespace(path="run", sites={n: SimpleNamespace(layout=n.split(".")[0]) for n in names})


def test_sites_of_a_run_by_pattern():
    run = fake_run("vision.0", "vision.0.q", "vision.1", "projector", "language.0")
    assert api.run_sites(run, None) == ("vision.0", "vision.1", "projector", "language.0")  # type: ignore[arg-type]
    assert api.run_sites(run, "vision.*") == ("vision.0", "vision.1")  # type: ignore[arg-type]
    assert api.run_sites(run, ["language.*", "vision.0.q"]) == ("vision.0.q", "language.0")  # type: ignore[arg-type]
    with pytest.raises(SiteNotFoundError, match=r"vision\.1"):
        api.run_sites(run, "vison.1")  # type: ignore[arg-type]


def test_cut_refuses_both_ways_to_name_sites():
    with pytest.raises(InputError, match="both"):
        vs.cut(fake_run("vision.0"), site="vision.0", sites=["vision.0"])  # type: ignore[arg-type]


def test_report_refuses_an_empty_list():
    with pytest.raises(InputError, match="empty"):
        vs.report(fake_run("vision.0"), [])  # type: ignore[arg-type]
