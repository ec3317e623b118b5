"""The house keeps its order: imports go one way, heavy packages stay lazy, public names say what they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "vlascope"

# A room may import rooms of a lower level only (and itself). Models read items, never the other way round.
LEVELS = {
    "card": 0,
    "errors": 0,
    "_version": 0,
    "files": 1,
    "progress": 1,
    "threads": 1,
    "processes": 1,
    "sim": 2,
    "doctor": 2,
    "items": 3,
    "models": 4,
    "runs": 5,
    "palette": 6,
    "spectral": 7,
    "measure": 8,
    "sae": 8,
    "act": 9,  # tests by doing what those two found
    "views": 10,
    "api": 11,
    "app": 12,
    "cli": 12,
    "__main__": 13,
    "__init__": 13,
}
# Named exceptions, each with its reason: (file below the package, room that it imports).
EXCEPTIONS = {
    ("cli/app.py", "app"): "the verb that serves the page",
    ("sim/record.py", "items"): "the recorder hands its episodes to the LeRobot writer",
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports, absolute or relative, anywhere in it (annotations' imports excepted)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    package = ["vlascope", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {p[1] for p in parts if p[0] == "vlascope" and len(p) > 1 and p[1] in LEVELS}
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room, name = room_of(path), path.relative_to(PACKAGE).as_posix()
    assert room in LEVELS, f"give the new room '{room}' its level in this test and its line in the docs"
    for other in imported_rooms(path) - {room}:
        allowed = LEVELS[other] < LEVELS[room] or (name, other) in EXCEPTIONS
        assert allowed, f"{name} imports '{other}', which stands beside or above '{room}'"


def test_the_check_sees_a_wrong_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "runs").mkdir()
    wrong = tmp_path / "runs" / "wrong.py"
    for text in (
        "from ..views import grid",
        "from vlascope import views",
        "import vlascope.views.grid",
        "from .. import views",
    ):
        wrong.write_text(f"def f():\n    {text}\n")
        assert imported_rooms(wrong) == {"views"}, text
    wrong.write_text("from .lock import write_lock\nimport numpy\n")
    assert imported_rooms(wrong) <= {"runs"}


PUBLIC = [
    "vlascope",
    *(f"vlascope.{entry.name}" for entry in sorted(PACKAGE.iterdir()) if (entry / "__init__.py").is_file()),
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is"
    assert getattr(module, "__all__", None), f"{name} does not list what it offers"
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import vlascope", ("torch", "transformers", "sklearn", "matplotlib", "av", "pybullet")),
        (
            "import vlascope.cli",
            ("torch", "transformers", "numpy", "sklearn", "matplotlib", "av", "pybullet"),
        ),
    ],
)
def test_importing_stays_light(statement, heavy):
    code = f"import sys\n{statement}\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == []


def test_no_source_names_a_machine():
    pattern = re.compile(r"/(home|work|Users)/\w+|https?://(localhost|127\.0\.0\.1):\d+")
    for path in SOURCES:
        assert not pattern.search(path.read_text(encoding="utf-8")), path
