"""How quick the report is in a real browser, opened from the disk: as one file, and as a folder.

    python -m benchmarks.report --run runs/demo             # of `vlascope demo`, or any captured run
    python -m benchmarks.report --run runs/demo --save      # keeps the row "report" of results/app.json

"open" is from the start of the navigation until a click is answered (the script has run); "click" from the click until
the answer is computed and painted into the panels in sight; "shown" until the end of the frame that shows it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _browser, _record


def measure(path: Path, *, n_opens: int, n_clicks: int) -> dict[str, Any]:
    """Open a page several times, then click its panels at random places."""
    from playwright.sync_api import sync_playwright

    rng = np.random.default_rng(0)
    with sync_playwright() as driver:
        browser = _browser.launch(driver)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))

        def until(condition: str) -> None:
            for _ in range(2000):
                if page.evaluate(f"Boolean({condition})"):
                    return
                page.wait_for_timeout(5)
            raise SystemExit(f"never: {condition}")

        opens = []
        for _ in range(n_opens + 1):  # the first one warms the browser
            page.goto("about:blank")
            page.goto(path.as_uri(), wait_until="commit")
            until("window.vlascopeTimes && window.vlascopeTimes.readyMs > 0")
            opens.append(page.evaluate("window.vlascopeTimes.readyMs"))
        n_tokens = page.evaluate("window.vlascopeTimes.n")
        panels = page.locator("#concepts .grid")
        clicks, shown = [], []
        for i in range(n_clicks + 1):
            panel = panels.nth(int(rng.integers(panels.count())))
            panel.scroll_into_view_if_needed()
            box = panel.bounding_box()
            assert box
            x, y = rng.uniform(0.05, 0.95, 2)
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            page.wait_for_timeout(150)  # nobody clicks in the millisecond in which the pointer arrives
            page.mouse.down(), page.mouse.up()
            page.wait_for_timeout(100)  # the page takes its own times; asking it meanwhile takes time from it
            until("window.vlascopeTimes.paintMs > 0")
            times = page.evaluate("window.vlascopeTimes")
            if i:
                clicks.append(times["clickMs"]), shown.append(times["paintMs"])
        browser.close()
    beside = path.parent.as_uri()
    away = [url for url in asked if not url.startswith((beside, "data:", "blob:", "about:"))]
    return {"tokens": n_tokens, "open_ms": _summary(opens[1:]), "click_ms": _summary(clicks),
            "shown_ms": _summary(shown),
            "requests_elsewhere": len(away)}  # fmt: skip


def _summary(values: list[float]) -> dict[str, float]:
    return {"median": round(float(np.median(values)), 1), "p95": round(float(np.quantile(values, 0.95)), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a captured run")
    parser.add_argument("--opens", type=int, default=7)
    parser.add_argument("--clicks", type=int, default=40)
    parser.add_argument("--save", action="store_true", help='keep the numbers as the row "report"')
    args = parser.parse_args()
    environment = _record.environment()
    import vlascope as vs

    with tempfile.TemporaryDirectory() as scratch:
        made = vs.report(args.run)
        pages = {"file": made.save(Path(scratch) / "file" / "report.html")}
        results: dict[str, Any] = {"megabytes": round(made.size_bytes / 1e6, 1)}
        if not made.files:
            room: Any = sys.modules["vlascope.views.report"]
            room.MAX_BYTES = 1  # as if the page were too large for one file
            pages["folder"] = vs.report(args.run).save(Path(scratch) / "folder" / "report.html")
        for name, path in pages.items():
            results[name] = measure(path, n_opens=args.opens, n_clicks=args.clicks)
    print(json.dumps(results, indent=2))
    if args.save:
        path = _record.RESULTS / "app.json"
        known = json.loads(path.read_text())["results"] if path.is_file() else {}
        results["measured"] = {
            key: environment[key] for key in ("date", "commit", "command", "load_at_start")
        }
        _record.save("app", environment=environment, results={**known, "report": results})


if __name__ == "__main__":
    main()
