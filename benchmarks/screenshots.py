"""Draw the pictures of app and report that the documentation shows, in light and dark, to be looked at.

    python -m benchmarks.screenshots [--run runs/demo] [--out docs/img] [--only report]

Runs `vlascope demo` where no run is given. The two runs that are compared are those of mini-vla and of the same network
with random weights, on the same frames. Needs a Chromium and playwright.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import vlascope as vs
from benchmarks import _browser
from benchmarks._report_pictures import make_report, shoot_report
from benchmarks.measure import randomized
from vlascope.app import create_app, open_books

ROOT = Path(__file__).resolve().parent.parent
SMALL, LARGE = (1280, 800), (1920, 1080)


def main() -> None:
    """Parse, serve, look, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", choices=("app", "report"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = args.run or Path(scratch) / "demo"
        if args.run is None:
            subprocess.run([sys.executable, "-m", "vlascope", "demo", "-q", "-o", str(run)], check=True)
        if args.only != "app":
            measured = make_report(Path(scratch))
            in_both_themes(
                lambda page, keep: shoot_report(page, demo=run / "report.html", measured=measured, keep=keep),
                args.out,
            )
        if args.only == "report":
            return
        blank = Path(scratch) / "random-weights"
        sites = list(vs.open_run(run).sites)
        vs.capture(
            randomized(vs.load("mini-vla"), seed=0), vs.items("demo:pick"), sites=sites, out=blank, quiet=True
        )
        vs.cut(vs.open_run(blank), sites=sites, k=(5, 10, 25), seed=0)
        shoot(serve([run], Path(scratch)), serve([run, blank], Path(scratch)), args.out)


def serve(runs: list[Path], scratch: Path) -> str:
    """Serve runs from a thread of this process and return the address."""
    import uvicorn

    from vlascope.app.serve import _bind

    app = create_app(open_books(runs), table=scratch / "labels.csv")
    sock = _bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True).start()
    return f"http://127.0.0.1:{sock.getsockname()[1]}/"


def in_both_themes(draw: Callable[[Any, Callable[[str], None]], None], out: Path) -> None:
    """Let `draw(page, keep)` draw in the light and in the dark theme."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = _browser.launch(driver)
        for scheme, suffix in (("light", ""), ("dark", "-dark")):
            width, height = SMALL
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.on("pageerror", _fail)
            draw(
                page,
                lambda name, page=page, suffix=suffix: save(page.screenshot(), out / f"{name}{suffix}.png"),
            )
        browser.close()


def shoot(one: str, two: str, out: Path) -> None:
    """Open every view in both themes and save what is seen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = _browser.launch(driver)
        for scheme, suffix in (("light", ""), ("dark", "-dark")):
            for size in (SMALL, LARGE):
                width, height = size
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page = context.new_page()
                page.on("pageerror", _fail)

                def go(url: str, page: Any = page) -> None:
                    page.goto("about:blank")
                    page.goto(url)
                    settle(page)

                def keep(name: str, page: Any = page, suffix: str = suffix) -> None:
                    save(page.screenshot(), out / f"{name}{suffix}.png")

                go(one + "#item=20&site=language.3&color=palette")
                if size == LARGE:
                    point(page, 0.62, 0.42)
                    keep("app-large")
                    continue
                keep("app")
                go(one + "#item=45&site=vision.5&color=groups&k=10")
                page.locator(".review input").fill("clean grasp")
                page.evaluate("document.activeElement.blur()")
                page.keyboard.press("1")
                page.wait_for_timeout(400)
                keep("app-label")
                go(one + "#item=20&site=language.2&color=groups&k=10&panel=edit&edit.kind=group&edit.group=8"
                   "&edit.strength=1&edit.frames=8&edit.curve=true")  # fmt: skip
                page.locator("#try").click()
                page.wait_for_selector("#edits .result:not([hidden])", timeout=180_000)
                settle(page)
                keep("app-edit")
                go(two + "#item=5&site=vision.5&color=palette")
                keep("app-compare")
                context.close()
        browser.close()


def point(page: Any, x: float, y: float) -> None:
    """Click on the picture of the concepts, at shares of its width and height."""
    box = page.locator("#stage canvas").nth(1).bounding_box()
    page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    until(page, "window.vlascope.allMs > 0")
    page.wait_for_timeout(300)


def settle(page: Any) -> None:
    """Wait until the page has drawn everything."""
    until(page, "window.vlascope && window.vlascope.firstPicture > 0")
    page.wait_for_timeout(200)
    until(page, "window.vlascope.waiting === 0")
    page.wait_for_timeout(300)


def until(page: Any, condition: str, *, secs: float = 180) -> None:
    """Ask until it is so. (Playwright's own way evaluates a string in the page, which its security policy forbids.)"""
    end = time.monotonic() + secs
    while not page.evaluate(f"Boolean({condition})"):
        if time.monotonic() > end:
            raise SystemExit(f"not within {secs} s: {condition}")
        page.wait_for_timeout(50)


def save(png: bytes, path: Path) -> None:
    """Save a screenshot, at most 1280 pixels wide. (A palette of 256 colours would change those of the data.)"""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > SMALL[0]:
        image = image.resize(
            (SMALL[0], round(image.height * SMALL[0] / image.width)), Image.Resampling.LANCZOS
        )
    image.save(path, optimize=True)


def _fail(error: Any) -> None:
    raise SystemExit(f"the page failed: {error}")


if __name__ == "__main__":
    main()
