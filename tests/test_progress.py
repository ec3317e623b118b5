"""Bars are shown to who watches, with rate and time left, and to nobody else."""

from __future__ import annotations

import re

import pytest

from vlascope import progress
from vlascope.progress import stepper, watch, watched


@pytest.fixture
def watching(monkeypatch):
    monkeypatch.delenv("VLASCOPE_PROGRESS", raising=False)
    monkeypatch.setattr(progress, "DELAY_SECS", 0)
    watch()
    yield
    watch(False)


def test_nobody_watches_until_told(capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_SECS", 0)
    assert list(watched([3, 1, 2], desc="layers")) == [3, 1, 2]
    step = stepper("cut", 2)
    step("one"), step(None)
    assert capsys.readouterr().err == ""


def test_a_bar_tells_how_many_how_fast_and_how_long(watching, capsys):
    assert list(watched(iter("abc"), desc="layers", unit="layer", total=3)) == ["a", "b", "c"]
    said = capsys.readouterr().err
    assert re.search(r"layers: 100%.* 3/3 \[\d\d:\d\d<\d\d:\d\d, .* layer/s\]", said)
    assert [*watched({"x": 1}, desc="known")] == [
        "x"
    ] and "1/1" in capsys.readouterr().err  # its length is found


def test_steps_are_named_and_counted(watching, capsys):
    step = stepper("cut", 2)
    step("eigenvectors")
    step("groups")
    step(None)
    said = capsys.readouterr().err
    assert "2/2" in said and "groups" in said


def test_what_is_quick_shows_nothing(watching, capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY_SECS", 2)
    list(watched(range(5), desc="quick"))
    assert capsys.readouterr().err == ""


def test_it_can_be_turned_off(watching, capsys, monkeypatch):
    monkeypatch.setenv("VLASCOPE_PROGRESS", "0")
    list(watched(range(5), desc="quick"))
    assert capsys.readouterr().err == ""


def test_the_command_line_watches_unless_quiet(monkeypatch):
    from vlascope.cli import main

    seen = []
    monkeypatch.setattr(progress, "watch", seen.append)
    for words in (["models"], ["models", "-q"]):
        assert main(words) == 0
    assert seen == [True, False, False, False]  # each ends with nobody watching
