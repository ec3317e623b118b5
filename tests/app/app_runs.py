"""Runs for these tests, those of the model of known numbers in tests/runs, and a driver of the page."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"


def make_run(
    path: Path, *, n_items: int = 9, weights: str = "w1", version: str = "a", sees_wrist: bool = False
):
    from vlascope.models.layout import concat, grid_tokens
    from vlascope.runs import capture

    spec = importlib.util.spec_from_file_location("run_fakes", ROOT / "tests" / "runs" / "fakes.py")
    assert spec and spec.loader
    fakes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakes)

    class Model(fakes.FakeModel):
        def prepare(self, items, **how):
            batch = super().prepare(items, **how)
            if sees_wrist:  # patches of the second image follow those of the first
                wrist = grid_tokens(2, 1, frame=(0, 0, 3, 4), camera=1)
                batch.layouts["vision"] = [concat([one, wrist]) for one in batch.layouts["vision"]]
            return batch

    return capture(
        Model(weights=weights),
        fakes.ArraySource(n_items, version=version),
        sites="*",
        out=path,
        quiet=True,
        block_items=4,
        with_answer=True,
    )


def cut_of(run):
    from vlascope.spectral.cut import cut_run

    return cut_run(run, sites=tuple(run.sites), n_eig=6, k=(3, 5), color="pca", seed=0)


def client_of(app, **options):
    from starlette.testclient import TestClient

    return TestClient(app, base_url="http://127.0.0.1:8899", raise_server_exceptions=False, **options)


class Driver:
    """A page, and what it complained about or asked for."""

    def __init__(self, page, url):
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on(
            "console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on("request", lambda r: self.asked.append(r.url))
        page.on("dialog", lambda d: self.complaints.append(f"dialog {d.message}"))
        self.open(url)

    def open(self, url):
        self.page.goto(url)
        self.until("window.vlascope && window.vlascope.firstPicture > 0")
        self.settle()

    def until(self, condition, secs=20):
        for _ in range(int(secs * 20)):
            if self.page.evaluate(f"Boolean({condition})"):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"not within {secs} s: {condition}; status: {self.status()}; {self.complaints}")

    def settle(self):
        """Wait until everything asked for has arrived and is drawn."""
        self.page.wait_for_timeout(60)
        self.until("window.vlascope.waiting === 0")
        self.page.wait_for_timeout(60)

    def check(self):
        """Nothing was complained about, and nobody else was asked."""
        assert self.complaints == []
        assert all(url.startswith((self.url, "data:", "blob:")) for url in self.asked)

    def axe(self):
        """Return what axe-core finds serious on the page as it is."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        return [
            (v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")
        ]

    def status(self):
        return self.page.locator("#status").inner_text()

    def address(self):
        """Return the address once it says what is shown: it follows a moment later."""
        self.until("window.vlascope.isSaved")
        return self.page.evaluate("location.href")

    def value(self, name):
        return (re.search(rf"[#&]{name}=([^&]*)", self.address()) or ["", ""])[1]

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def pane(self, number=1):
        return self.page.locator("#stage canvas").nth(number)

    def click(self, x, y, *, number=1, **how):
        box = self.pane(number).bounding_box()
        self.pane(number).click(position={"x": box["width"] * x, "y": box["height"] * y}, **how)
        self.settle()

    def pixel(self, x, y, *, number=1):
        """Red, green, blue of a pane at a place in shares of its size."""
        return self.pane(number).evaluate(READ_PIXEL, [x, y])


READ_PIXEL = """(pane, [x, y]) => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [pane.width, pane.height];
  const ctx = copy.getContext("2d", { willReadFrequently: true });
  ctx.drawImage(pane, 0, 0);
  return [...ctx.getImageData(x * pane.width, y * pane.height, 1, 1).data].slice(0, 3);
}"""
