"""The documentation says what the program does: verbs, errors, examples and links."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from vlascope.cli import VERBS, _main, main

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of that language."""
    return [
        (page.relative_to(ROOT).as_posix(), text)
        for page in PAGES
        for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    ]


def test_every_error_has_its_paragraph():
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and "VlascopeError" in [
                ast.unparse(base) for base in node.bases
            ]:
                named.add(node.name)
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M))
    assert len(named) >= 12
    assert named <= set(sections), f"no paragraph for {sorted(named - set(sections))}"
    for name in sections:
        assert all(word in sections[name] for word in ("*Symptom.*", "*Cause.*", "*Fix.*")), name


def test_the_list_of_verbs_is_the_programs_own():
    ((_, text),) = [block for block in blocks("text") if "command-line" in block[0]]
    lines = [re.fullmatch(r"vlascope (\w+) +(.+)", line) for line in text.strip().splitlines()]
    assert [match and match.groups() for match in lines] == [(verb.name, verb.summary) for verb in VERBS]


def shell_lines() -> list[str]:
    lines = "\n".join(text for _, text in blocks("sh")).splitlines()
    return sorted({line.split(" #")[0].strip() for line in lines if line.startswith("vlascope ")})


@pytest.mark.parametrize("line", shell_lines())
def test_shell_examples_parse(line, monkeypatch):
    words = shlex.split(line)[1:]
    verb = next(v for v in VERBS if v.name == words[0])
    verb = next((v for v in verb.verbs if v.name == words[1]), verb) if verb.verbs else verb
    module = _main.importlib.import_module(f"vlascope.cli.{verb.module}")
    monkeypatch.setattr(module, "run", lambda args: 0)
    assert main(words) == 0


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_examples_are_python_and_use_what_is_offered(page, text):
    import vlascope

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vs":
            assert node.attr in vlascope.__all__, f"{page}: vlascope offers no '{node.attr}'"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_in_the_docs_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"^make (\w+)|`make (\w+)`", page.read_text(encoding="utf-8"), flags=re.M):
            name = "".join(target)
            assert re.search(rf"^{name}:", makefile, flags=re.M), f"{page.name}: no target '{name}'"


def test_the_how_to_for_an_own_model_runs_as_written(tmp_path, capsys):
    import numpy as np

    import vlascope as vs

    names: dict = {}
    texts = [text for page, text in blocks("python") if "own-model" in page]
    texts = [text for text in texts if not text.startswith("# Needs a checkpoint")]
    assert len(texts) == 4
    for text in texts:  # one after another, as a reader would
        exec(compile(text, "own-model.md", "exec"), names)
    assert "share on the image" in capsys.readouterr().out
    image = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    run = vs.capture(names["model"], vs.items([image]), sites="*", out=tmp_path / "run", quiet=True)
    assert {name: run.acts(name).shape for name in run.sites} == {"0": (784, 16), "2": (784, 32)}


def test_the_how_to_for_own_data_runs_as_written(capsys):
    texts = [text for page, text in blocks("python") if "own-data" in page]
    assert len(texts) == 2
    for text in texts:
        exec(compile(text, "own-data.md", "exec"), {})
    clips, skipped = capsys.readouterr().out.splitlines()
    assert clips.split()[1].startswith("ep") and skipped.endswith("[]")
