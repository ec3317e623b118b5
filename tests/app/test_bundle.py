"""The committed page is the one that its sources make, and it is small."""

from __future__ import annotations

import gzip
import hashlib
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
    if shutil.which("node") is None or not (WEB / "node_modules" / "esbuild").exists():
        pytest.skip("no Node.js with esbuild here; `npm install` in web/ gets it")
    env = {**os.environ, "VLASCOPE_WEB_OUT": str(tmp_path)}
    subprocess.run(["node", "build.mjs"], cwd=WEB, env=env, check=True, timeout=60)
    assert {p.name: digest(p) for p in tmp_path.iterdir()} == {p.name: digest(p) for p in STATIC.iterdir()}


def test_bundle_is_small_and_asks_nobody():
    texts = {p.name: p.read_text() for p in STATIC.iterdir() if p.suffix in (".js", ".css", ".html")}
    size = sum(len(gzip.compress(text.encode(), mtime=0)) for text in texts.values())
    assert size < 80_000
    for name, text in texts.items():
        assert not re.search(r"https?://(?!www\.w3\.org)", text), name
        assert "innerHTML" not in text and "eval(" not in text, name
