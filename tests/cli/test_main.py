"""From words to exit codes: help pages, usage errors, errors on purpose, interruptions, bugs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from vlascope.cli import VERBS, _main, main
from vlascope.cli._common import Common, give, size_text, table
from vlascope.errors import RunNotFoundError


@pytest.fixture
def verb(monkeypatch):
    """Put a verb of the test's own into the list; returns a function that sets what it does."""

    @dataclass(frozen=True, kw_only=True)
    class Args(Common):
        """Do what the test says."""

        n: int = 3

    class Module:
        pass

    module = Module()
    module.Args = Args

    def does(action):
        module.run = action
        monkeypatch.setattr(_main.importlib, "import_module", lambda name, package: module)
        monkeypatch.setattr(_main, "VERBS", (_main.Verb("try", "try it", "try"),))

    return does


def test_help_lists_the_verbs_in_the_order_of_the_main_job(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    places = [
        page.index(f"  {name}") for name in ("demo", "capture", "cut", "report", "models", "sites", "doctor")
    ]
    assert places == sorted(places)
    assert main([]) == 0
    assert capsys.readouterr().out == page


def test_help_comes_at_once():
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vlascope", "--help"], check=True, capture_output=True, timeout=60
        )
        times.append(time.perf_counter() - started)
    assert min(times) < 0.6


ALL_VERBS = [[verb.name, *sub] for verb in VERBS for sub in ([[s.name] for s in verb.verbs] or [[]])]


@pytest.mark.parametrize("words", ALL_VERBS, ids=" ".join)
def test_every_verb_explains_itself(words, capsys):
    assert main([*words, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"usage: vlascope {' '.join(words)}" in page
    assert "--json" in page
    assert "default: False" not in page and "default: None" not in page


@pytest.mark.parametrize("words", [v.example.split()[1:] for v in VERBS if v.example], ids=" ".join)
def test_examples_on_the_help_pages_parse(words, monkeypatch):
    seen = []
    name = next(v.module for v in VERBS if v.name == words[0])
    module = _main.importlib.import_module(f"vlascope.cli.{name}")
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    assert main(words) == 0
    assert seen


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vlascope 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cpture"], "there is no verb 'cpture'. Nearest: 'capture'"),
        (["--cut"], "there is no option '--cut'"),
        (["sim", "rolout"], "Nearest: 'rollout'"),
        (["capture", "mini-vla"], "DATA"),
        (["cut", "run", "--k", "five"], "--k"),
        (["cut", "run", "--kk", "5"], "--k"),
    ],
)
def test_usage_errors_exit_2_and_say_what_is_wrong(words, said, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""


def test_errors_on_purpose_are_one_message(verb, capsys):
    def action(args):
        raise RunNotFoundError("'x' is not a run; make one with `vlascope capture`.")

    verb(action)
    assert main(["try"]) == 2
    out, err = capsys.readouterr()
    assert err == "vlascope try: 'x' is not a run; make one with `vlascope capture`.\n"
    assert out == ""


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_the_stack_can_be_asked_for(verb, monkeypatch, how):
    def action(args):
        raise RunNotFoundError("gone")

    verb(action)
    if how == "environment":
        monkeypatch.setenv("VLASCOPE_DEBUG", "1")
    with pytest.raises(RunNotFoundError):
        main(["try", "--traceback"] if how == "flag" else ["try"])


def test_an_interruption_prints_how_to_go_on(verb, capsys):
    def action(args):
        raise KeyboardInterrupt("stopped; go on with: vlascope capture a b -o c --resume")

    verb(action)
    assert main(["try"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_a_bug_keeps_its_stack(verb, capsys):
    def action(args):
        raise ZeroDivisionError("oops")

    verb(action)
    with pytest.raises(ZeroDivisionError):
        main(["try"])
    assert "bug in vlascope" in capsys.readouterr().err


def test_exit_code_of_the_verb_is_passed_on(verb):
    verb(lambda args: 3)
    assert main(["try"]) == 3


def test_json_is_the_only_thing_on_stdout(verb, capsys):
    def action(args):
        give(args, {"n": args.n, "path": "ü"}, text="three")
        return 0

    verb(action)
    assert main(["try", "--n", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"n": 7, "path": "ü"}
    assert main(["try"]) == 0
    assert capsys.readouterr().out == "three\n"


def test_a_closed_pipe_is_no_error():
    run = subprocess.run(
        f"{sys.executable} -m vlascope --help | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in run.stderr


def test_table_lines_up():
    assert table([("a", "1"), ("bbb", "22")], head=("x", "n")) == "x    n\na    1\nbbb  22"


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e13, "30.0 TB")]
)
def test_sizes_for_people(n, text):
    assert size_text(n) == text
