"""How quick the app is: first picture, click, slider, memory; measured in a real browser against a server process.

    python -m benchmarks.app                                    # 300 frames x 256 patches, 12 layers x 384: a minute
    python -m benchmarks.app --items 300 --rows 20 --cols 25 --width 768 --sites 12       # 150,000 tokens a layer
    python -m benchmarks.app --items 600 --rows 16 --cols 16 --width 64 --sites 27        # 4 M tokens in all
    python -m benchmarks.app --items 300 --rows 20 --cols 25 --width 768 --sites 2 --gb 20 --clicks 3     # memory
    python -m benchmarks.app --fuzz 5000                        # odd requests (needs the program `schemathesis`)

`--save NAME` keeps the numbers as the row NAME of benchmarks/results/app.json.

The activations are random with a few directions in common, and so are the eigenvectors (time does not depend on
their values; the rank correlation of the sketch does, and is taken from a real run with `--run RUN`).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import _app_docs, _app_fuzz, _browser, _record
from vlascope.files import write_json

ROOT = Path(__file__).resolve().parent.parent
PAGE = os.sysconf("SC_PAGE_SIZE")


def add_hollow_sites(path: Path, *, gb: float) -> int:
    """Add sites whose files have their full size and no content (they take no room on the disk), up to `gb` in all."""
    facts = json.loads((path / "run.json").read_text())
    first = next(iter(facts["sites"]))
    files = [p for p in (path / "acts.zarr" / first).rglob("*") if p.is_file()]
    per_site = sum(p.stat().st_size for p in files)
    n = max(0, round(gb * 1e9 / per_site) - len(facts["sites"]))
    for _ in range(n):
        name = f"vision.{len(facts['sites'])}"
        for source in files:
            target = path / "acts.zarr" / name / source.relative_to(path / "acts.zarr" / first)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.name == "zarr.json":
                target.write_text(source.read_text().replace(f'"{first}"', f'"{name}"'))
            else:
                with target.open("wb") as file:
                    file.truncate(source.stat().st_size)
        facts["sites"][name] = facts["sites"][first]
    write_json(path / "run.json", facts)
    return n


def make_run(
    path: Path, *, items: int, rows: int, cols: int, width: int, sites: int, seed: int, hollow_gb: float = 0
) -> None:
    """Write a run of random activations and a cut of random eigenvectors; hollow sites are zeros in both."""
    import torch

    from vlascope.items.item import Item, ItemSource
    from vlascope.models.layout import grid_tokens
    from vlascope.models.sites import Site
    from vlascope.palette import Palette
    from vlascope.runs import Run, capture
    from vlascope.spectral.health import Health

    rng = np.random.default_rng(seed)
    shared = torch.from_numpy(rng.standard_normal((8, width)).astype(np.float32))
    image = np.kron(rng.integers(0, 255, (12, 15, 3)), np.ones((16, 16, 1))).astype(np.uint8)

    class Source(ItemSource):
        name = "benchmark"

        def __len__(self) -> int:
            return items

        def read(self, index: int) -> Item:
            turned = np.roll(image, index, axis=1)
            return Item(item_id=f"ep0000/{index:06d}", images=(turned,), episode=0, step=index, time_secs=index / 10,
                        action=np.array([np.sin(index / 9), np.cos(index / 7), 0, 1], np.float32))  # fmt: skip

        def fingerprint(self) -> str:
            return f"benchmark {items} {seed}"

    class Model:
        name, family, revision = "benchmark", "benchmark", None
        device, dtype = torch.device("cpu"), torch.bfloat16
        edited = ()

        def reads(self, item: Any) -> str:
            return self.fingerprint()

        def fingerprint(self) -> str:
            return f"{rows} {cols} {width} {sites} {seed}"

        def resolve(self, patterns: Any) -> tuple[Site, ...]:
            names = [f"vision.{i}" for i in range(sites)]
            return tuple(Site(name=n, module_path=n, layout="vision", width=width) for n in names)

        def prepare(self, batch: Any, *, answers: Any = None) -> Any:
            frame = (0, 0, image.shape[1], image.shape[0])
            return SimpleNamespace(
                items=list(batch), layouts={"vision": [grid_tokens(rows, cols, frame=frame) for _ in batch]}
            )

        def capture(self, batch: Any, names: Any, **_: Any) -> dict[str, list[torch.Tensor]]:
            generator = torch.Generator().manual_seed(seed)
            n = rows * cols
            noise = torch.randn(n, width, generator=generator)
            return {
                str(name): [
                    (torch.randn(n, 8, generator=generator) @ shared + noise).bfloat16() for _ in batch.items
                ]
                for name in names
            }

    run = capture(Model(), Source(), sites="*", out=path, quiet=True, respond=False)  # type: ignore[arg-type]
    if hollow_gb:
        add_hollow_sites(path, gb=hollow_gb)
        run = Run.open(path)
    n, k = items * rows * cols, 20
    params = {"sites": list(run.sites), "n_eig": k, "k": [5, 10, 25], "kinds": ["patch"], "seed": seed, "color": "pca",
              "affinity": "rbf", "density": 0.05, "n_anchors": 256}  # fmt: skip
    folder = path / "derived" / "cut-benchmark"
    folder.mkdir(parents=True)
    total = n * len(run.sites)
    vectors = np.lib.format.open_memmap(folder / "eigvecs.npy", mode="w+", dtype=np.float32, shape=(total, k))
    rgb = np.lib.format.open_memmap(folder / "rgb.npy", mode="w+", dtype=np.uint8, shape=(total, 3))
    palette = None
    for start in range(0, n * sites, n):
        part = rng.standard_normal((n, k), np.float32)
        palette = palette or Palette.fit(part[:8192], method="pca", seed=seed)
        vectors[start : start + n], rgb[start : start + n] = part, palette.apply(part)
    assert palette is not None
    vectors.flush(), rgb.flush()
    np.save(folder / "eigenvalues.npy", np.linspace(1, 0.5, k))
    for level in (5, 10, 25):
        np.save(folder / f"labels-{level}.npy", rng.integers(0, level, total).astype(np.int16))
    np.save(folder / "tokens-vision.npy", np.arange(n))
    palette.save(folder / "palette.npz")
    health = dict.fromkeys(Health.__dataclass_fields__) | {
        "notes": [],
        "n": total,
        "n_landmarks": 4096,
    }
    write_json(folder / "params.json", {"schema": 1, "params": params, "sites": list(run.sites),
               "layouts": dict.fromkeys(run.sites, "vision"), "parents": {}, "health": health})  # fmt: skip


def resident(pid: int) -> float:
    """Return resident megabytes of a process without file-backed pages (memory maps count as page cache)."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * PAGE / 1e6


def summary(values: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and number of some milliseconds."""
    return {"median_ms": round(float(np.median(values)), 1), "p95_ms": round(float(np.percentile(values, 95)), 1),
            "n": len(values)}  # fmt: skip


class Server:
    """`vlascope app` in a process of its own."""

    def __init__(self, run: Path, table: Path, *, reading: Path | None = None) -> None:
        self.started = time.perf_counter()
        program = ["-m", "vlascope", "app"]
        if reading is not None:  # one that only reads, see there
            program = [str(Path(__file__).with_name("_app_reading.py")), str(reading)]
        words = [sys.executable, *program, str(run), "--json", "-q", "--table", str(table)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.most_mb = 0.0
        assert self.process.stdout
        text = ""
        while not text.rstrip().endswith("}"):
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            text += line
        self.ready_secs = time.perf_counter() - self.started
        self.url = json.loads(text)["url"]
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.most_mb = max(self.most_mb, resident(self.process.pid))
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)


def in_browser(
    run: Path, table: Path, *, n_starts: int, n_clicks: int, n_slides: int, n_fuzz: int
) -> dict[str, Any]:
    """Drive the page as a person would and return what it took."""
    from playwright.sync_api import sync_playwright

    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    with sync_playwright() as driver:
        browser = _browser.launch(driver)
        page = browser.new_page(viewport={"width": 1280, "height": 800})

        def until(condition: str, secs: float = 300, *, every_ms: int = 5) -> None:
            # The page takes its own times. Asking it often keeps two cores busy that the server needs.
            end = time.perf_counter() + secs
            while not page.evaluate(f"Boolean({condition})"):
                if time.perf_counter() > end:
                    raise SystemExit(
                        f"not within {secs} s: {condition}; {page.locator('#status').inner_text()}"
                    )
                page.wait_for_timeout(every_ms)

        starts: list[dict[str, float]] = []
        for number in range(n_starts):  # the last server is kept for the rest
            server = Server(run, table)
            page.goto(server.url, wait_until="commit")
            until("window.vlascope && window.vlascope.firstPicture > 0")
            starts.append({"from_process_start": round(time.perf_counter() - server.started, 2),
                           "server_ready": round(server.ready_secs, 2),
                           "page": round(page.evaluate("window.vlascope.firstPicture") / 1000, 2)})  # fmt: skip
            if number + 1 < n_starts:
                server.stop()
                page.goto("about:blank")
        out["first_picture_secs"] = {"median": round(float(np.median([s["from_process_start"] for s in starts])), 2),
                                     "starts": starts}  # fmt: skip
        until("window.vlascope.waiting === 0")
        page.wait_for_timeout(
            2500
        )  # what is measured in the background begins a second after the first picture
        for method in ("concepts", "features"):
            if method == "features":
                page.keyboard.press("m")
            out[method] = clicks(page, until, n=n_clicks, rng=rng)
        page.keyboard.press("Escape")
        for name, keys in (
            ("layer_slider", ("ArrowUp", "ArrowDown")),
            ("time_slider", ("ArrowRight", "ArrowLeft")),
        ):
            values = []
            for i in range(n_slides + 4):
                # From the key to the frame in which everything is there, measured inside the page.
                values.append(page.evaluate(STEP, keys[i % 2]))
            out[name] = summary(values[4:])
        # The bound of an exact answer: the same clicks, for which the same threads only read the layer.
        times = table.with_name("reading.txt")
        reader = Server(run, table, reading=times)
        page.goto("about:blank")
        page.goto(reader.url, wait_until="commit")
        until("window.vlascope && window.vlascope.firstPicture > 0 && window.vlascope.waiting === 0")
        page.wait_for_timeout(2500)
        page.keyboard.press("m")
        clicks(page, until, n=n_clicks, rng=rng)
        reader.stop()
        # The second pass of a click, if any, is of other layers; the first click warms the page cache.
        passes = [float(line) for line in times.read_text().split()]
        out["layer_read_at_a_click"] = summary(passes[1:])
        browser.close()
    try:
        out["server_anonymous_mb"] = {
            "now": round(resident(server.process.pid)),
            "most": round(server.most_mb),
        }
        if n_fuzz:
            out["fuzz"] = _app_fuzz.fuzz(server.url, n=n_fuzz, run=run)
            out["fuzz"]["server_anonymous_mb"] = round(resident(server.process.pid))
    finally:
        server.stop()
    return out


def clicks(page: Any, until: Any, *, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Click n times somewhere in the image and return what it took until the layer, and all layers, were shown."""
    box = page.locator("#stage canvas").nth(1).bounding_box()
    assert box
    shown, servers, alls, rank = [], [], [], None
    for i in range(n + 1):
        page.keyboard.press("Escape")
        page.wait_for_timeout(30)
        until("window.vlascope.allMs === 0")
        x, y = rng.uniform(0.02, 0.98, 2)
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        page.wait_for_timeout(150)  # nobody clicks in the millisecond in which the pointer arrives
        page.mouse.down(), page.mouse.up()
        until("window.vlascope.clickMs > 0 && window.vlascope.allMs > 0", every_ms=50)
        until("!/more layers/.test(document.querySelector('#status').innerText)")
        got = page.evaluate("window.vlascope")
        if i:  # the first one measures the site and warms the page cache
            shown.append(got["clickMs"]), servers.append(got["serverMs"]), alls.append(got["allMs"])
        text = page.locator("#status").inner_text()
        said = re.search(r"rank correlation with the exact one ≥ (-?[0-9.]+)", text)
        rank = None if said is None else float(said[1])
    return {"click_to_shown_layer": summary(shown), "of_which_server": summary(servers),
            "click_to_all_layers": summary(alls), "sketch_rank_correlation": rank}  # fmt: skip


STEP = """(key) => new Promise((done) => {
  const start = performance.now(), draws = window.vlascope.draws;
  window.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const wait = () => {
    const now = window.vlascope;
    if (now.draws > draws && now.waiting === 0) requestAnimationFrame(() => done(performance.now() - start));
    else setTimeout(wait, 1);
  };
  wait();
})"""
# `keydown` handlers ask their target what it is; the window is none.
STEP = STEP.replace("window.dispatchEvent", "document.body.dispatchEvent")


def shape_of(run: Path) -> dict[str, Any]:
    """Return the size of a run."""
    from vlascope.runs import Run

    opened = Run.open(run)
    shapes = [opened.acts(name).shape for name in opened.sites]
    return {"items": opened.n_items, "sites": len(shapes), "tokens": sum(n for n, _ in shapes), "width": shapes[0][1],
            "gb": round(sum(n * d for n, d in shapes) * 2e-9, 2)}  # fmt: skip


def read_once(run: Path) -> dict[str, Any]:
    """Return how long one layer takes to be read once (the bound of an exact answer)."""
    from vlascope.runs import Run

    opened = Run.open(run)
    site = next(iter(opened.sites))
    values = []
    for _ in range(7):
        start = time.perf_counter()
        sum(int(block.view(np.uint64).max()) for block in opened.acts(site).stored_blocks())
        values.append(1000 * (time.perf_counter() - start))
    acts = opened.acts(site)
    return {
        "tokens": acts.shape[0],
        "width": acts.shape[1],
        "dtype": opened.site(site).dtype,
        **summary(values[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = {
        "items": 300,
        "rows": 16,
        "cols": 16,
        "width": 384,
        "sites": 12,
        "clicks": 20,
        "slides": 40,
        "fuzz": 0,
        "starts": 3,
    }
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--gb", type=float, default=0, help="add hollow sites up to so many GB of activations"
    )
    parser.add_argument("--run", type=Path, help="an existing run instead of a made one")
    parser.add_argument("--save", help="name of the row in benchmarks/results/app.json", default=None)
    parser.add_argument("--docs", action="store_true", help="only write the tables of docs/results.md")
    args = parser.parse_args()
    if args.docs:
        print(_app_docs.write_results())
        return
    environment = _record.environment()
    with tempfile.TemporaryDirectory() as scratch:
        run = args.run or Path(scratch) / "run"
        if args.run is None:
            make_run(run, items=args.items, rows=args.rows, cols=args.cols, width=args.width, sites=args.sites,
                     seed=0, hollow_gb=args.gb)  # fmt: skip
        results: dict[str, Any] = {"run": shape_of(run), "layer_read_once": read_once(run)}
        results |= in_browser(run, Path(scratch) / "labels.csv", n_starts=args.starts, n_clicks=args.clicks,
                              n_slides=args.slides, n_fuzz=args.fuzz)  # fmt: skip
    static = ROOT / "src" / "vlascope" / "app" / "static"
    sizes = [
        len(gzip.compress(p.read_bytes(), mtime=0))
        for p in static.iterdir()
        if p.suffix in (".js", ".css", ".html")
    ]
    results["bundle_gzip_bytes"] = sum(sizes)
    print(json.dumps(results, indent=2))
    if args.save:
        path = _record.RESULTS / "app.json"
        known = json.loads(path.read_text())["results"] if path.is_file() else {}
        # Rows are measured one by one: each says at which commit and by which command.
        results["measured"] = {
            key: environment[key] for key in ("date", "commit", "command", "load_at_start")
        }
        _record.save("app", environment=environment, results={**known, args.save: results})


if __name__ == "__main__":
    main()
