"""Capturing: overhead over the bare forward loop, against other ways, memory, reading, and Ray.

    python -m benchmarks.capture [--quick] [--only overhead memory reading ray] [--resume]

Prints a table and saves benchmarks/results/capture.json (with --quick: capture-quick.json, small sizes that show that
everything runs, not how fast), row by row as they are done: --only measures some rows and leaves the others as they
are, --resume measures those that the file lacks. About 20 minutes of two cores that have nothing else to do.

Every timing is end to end, on files of one temporary folder (--folder), and the ways that are compared take turns, so
that a slow minute of the machine hits all of them; a ratio is the median of those of the rounds. Beside the time on
the clock stands that of the processor: where other programs compute as well, only the latter means anything. The
model has random weights: the time of a forward pass does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlascope as vs
from benchmarks._capture_docs import write_page
from benchmarks._record import RESULTS, environment, save
from vlascope.files import read_json
from vlascope.items import Item, ItemSource
from vlascope.models import Grid
from vlascope.runs import RayEngine, Run

ROWS = ("overhead", "overhead_wide", "memory", "reading", "ray")


class Pictures(ItemSource):
    """Noise pictures that take `secs` to read, as from a slow disk or network."""

    name = "pictures"

    def __init__(self, n_items: int, *, height: int, width: int, secs: float = 0.0) -> None:
        self.n_items, self.height, self.width, self.secs = n_items, height, width, secs

    def __len__(self) -> int:
        return self.n_items

    def read(self, index: int) -> Item:
        time.sleep(self.secs)
        pixels = np.random.default_rng(index % 7).integers(0, 256, (self.height, self.width, 3), np.uint8)
        return Item(item_id=f"{index:07d}", images=(pixels,))

    def fingerprint(self) -> str:
        return f"pictures-{self.n_items}-{self.height}-{self.width}"


def as_pixels(item: Item) -> torch.Tensor:
    """float32 [3, h, w] in -1..1."""
    return torch.from_numpy(item.image).permute(2, 0, 1).float() / 127.5 - 1


def tower(*, width: int, n_layers: int, image_px: int) -> tuple[torch.nn.Module, dict[str, str], Grid]:
    """A ViT with random weights, {site: module path} of its residual stream, and its grid."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=width // 64,
        image_size=image_px,
        patch_size=16,
    )
    module = ViTModel(config, add_pooling_layer=False).eval()
    layers = next(
        name
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == n_layers
    )
    sites = {f"vision.{i}": f"{layers}.{i}" for i in range(n_layers)}
    side = image_px // 16
    return module, sites, Grid(side, side, prefix=1)


def small_model() -> Any:
    """A model of one convolution, 4 x 6 tokens of width 16."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 8, stride=8))
    with torch.no_grad():
        for number, value in enumerate(module.parameters()):
            value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape) * (number + 1))
    return vs.wrap(
        module,
        sites={"conv": "0"},
        layout=Grid(4, 6, channels_first=True),
        preprocess=as_pixels,
        device="cpu",
    )


# --- 1 and 2: overhead, and other ways


def overhead(folder: Path, *, quick: bool) -> dict[str, Any]:
    """A ViT-B: 7 MB to store for 33 GFLOP of an image."""
    shape = {"width": 768, "n_layers": 12, "image_px": 224}
    return _overhead(folder, quick=quick, shape=shape, n_items=96)


def overhead_wide(folder: Path, *, quick: bool) -> dict[str, Any]:
    """The width of the language models in robot policies: 6 MB to store for 80 GFLOP of an image."""
    shape = {"width": 2048, "n_layers": 4, "image_px": 224}
    return _overhead(folder, quick=quick, shape=shape, n_items=40)


def _overhead(folder: Path, *, quick: bool, shape: dict[str, int], n_items: int) -> dict[str, Any]:
    batch, repeats = 8, 3
    if quick:
        n_items, batch, repeats, shape = 16, 4, 1, {"width": 64, "n_layers": 3, "image_px": 64}
    module, sites, grid = tower(**shape)
    model = vs.wrap(module, sites=sites, layout=grid, preprocess=as_pixels, device="cpu")
    items = _photos(folder / "photos", Pictures(n_items, height=shape["image_px"], width=shape["image_px"]))
    starts = range(0, n_items, batch)
    prepared = [
        torch.stack([as_pixels(items[i]) for i in range(at, min(at + batch, n_items))]) for at in starts
    ]

    def bare() -> None:
        with torch.no_grad():
            for pixels in prepared:
                module(pixels)

    def ours() -> None:
        run = vs.capture(
            model, items, sites="*", out=folder / "run", batch_size=batch, block_items=2 * batch, quiet=True
        )
        assert len(run.sites) == shape["n_layers"]

    def hidden_states() -> None:
        (folder / "torch").mkdir()
        for at in starts:
            some = [items[i] for i in range(at, min(at + batch, n_items))]
            with torch.no_grad():
                out = module(torch.stack([as_pixels(item) for item in some]), output_hidden_states=True)
            torch.save(torch.stack(out.hidden_states[1:]), folder / "torch" / f"{at}.pt")

    def nnsight() -> None:
        from nnsight import NNsight  # type: ignore[import-not-found]

        (folder / "nnsight").mkdir()
        traced = NNsight(module)
        for at in starts:
            some = [items[i] for i in range(at, min(at + batch, n_items))]
            pixels = torch.stack([as_pixels(item) for item in some])
            kept = []
            with torch.no_grad(), traced.trace(pixels):
                for path in sites.values():
                    kept.append(_at(traced, path).output.save())
            values = [x[0] if isinstance(x, tuple) else x for x in kept]
            torch.save(torch.stack(values), folder / "nnsight" / f"{at}.pt")

    ways: dict[str, Callable[[], None]] = {
        "bare forward loop": bare,
        "vlascope capture": ours,
        "output_hidden_states + torch.save": hidden_states,
    }
    missing = {"TransformerLens": "reads language models of its own code only, not a vision tower"}
    try:
        __import__("nnsight")
    except ImportError as error:
        missing["nnsight + torch.save"] = f"cannot be imported here ({type(error).__name__})"
    else:
        ways["nnsight + torch.save"] = nnsight
    secs: dict[str, list[float]] = {name: [] for name in ways}
    cpu_secs: dict[str, list[float]] = {name: [] for name in ways}
    bare()  # warm
    for _ in range(repeats):
        for name, way in ways.items():
            for leaf in ("run", "torch", "nnsight"):
                shutil.rmtree(folder / leaf, ignore_errors=True)
            before = time.process_time()
            secs[name].append(_secs(way))
            cpu_secs[name].append(time.process_time() - before)
    stored = n_items * (grid.rows * grid.cols + 1) * shape["width"] * 4 * shape["n_layers"]
    median = {name: statistics.median(values) for name, values in secs.items()}
    base, ours_name = "bare forward loop", "vlascope capture"
    others = [name for name in ways if "torch.save" in name]
    return {
        **shape,
        "n_items": n_items,
        "batch_size": batch,
        "stored_mb": round(stored / 1e6, 1),
        "disk_write_mb_per_sec": round(_disk_speed(folder, 16 if quick else 512), 1),
        "secs": {name: [round(x, 3) for x in values] for name, values in secs.items()},
        "cpu_secs": {name: [round(x, 3) for x in values] for name, values in cpu_secs.items()},
        "items_per_sec": {name: round(n_items / x, 3) for name, x in median.items()},
        "share_of_bare_loop": _ratio(secs, base, ours_name),
        "share_of_bare_loop_cpu": _ratio(cpu_secs, base, ours_name),
        "times_faster_than": {name: _ratio(secs, name, ours_name) for name in others},
        "times_faster_than_cpu": {name: _ratio(cpu_secs, name, ours_name) for name in others},
        "most_that_is_possible": {name: _ratio(secs, name, base) for name in others},
        "not_compared": missing,
    }


def _photos(folder: Path, pictures: Pictures) -> ItemSource:
    """Write pictures as JPEG files, which most photographs are, and open them."""
    from PIL import Image

    folder.mkdir()
    for i in range(len(pictures)):
        Image.fromarray(pictures[i].image).save(folder / f"{i:05d}.jpg", quality=90)
    return vs.items(str(folder))


def _ratio(secs: dict[str, list[float]], of: str, to: str) -> float:
    """Median over the rounds of the time of one way over that of another."""
    return round(statistics.median(x / y for x, y in zip(secs[of], secs[to], strict=True)), 3)


def _at(traced: Any, path: str) -> Any:
    for part in path.split("."):
        traced = traced[int(part)] if part.isdigit() else getattr(traced, part)
    return traced


def _disk_speed(folder: Path, n_mb: int) -> float:
    """MB/s of writing one file, without waiting for the disk, as all the ways here do."""
    data = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8).tobytes()
    path = folder / "speed"

    def write() -> None:
        with path.open("wb") as handle:
            for _ in range(n_mb):
                handle.write(data)

    secs = _secs(write)
    path.unlink()
    return n_mb * 1.048576 / secs


# --- 3: memory


def memory(folder: Path, *, quick: bool) -> dict[str, Any]:
    sizes = (50, 500) if quick else (100, 10_000)
    peaks = {}
    for n_items in sizes:
        out = folder / f"memory-{n_items}"
        words = [sys.executable, "-m", "benchmarks.capture", "--child", str(n_items), str(out)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks[n_items] = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
        shutil.rmtree(out)
    few, many = (peaks[n] for n in sizes)
    return {"peak_mb": {str(n): round(mb, 1) for n, mb in peaks.items()}, "ratio": round(many / few, 3)}


def _child(n_items: int, out: Path) -> None:
    """Capture in this process and print its peak memory."""
    items = Pictures(n_items, height=32, width=48)
    vs.capture(small_model(), items, sites="*", out=out, quiet=True, respond=False)
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


# --- 4: reading


def reading(folder: Path, *, quick: bool) -> dict[str, Any]:
    n_items, n_tokens, width, repeats = (64, 65, 64, 3) if quick else (1024, 257, 384, 15)
    run = _random_run(folder / "reading", n_items=n_items, n_tokens=n_tokens, width=width)
    acts = run.acts("conv")
    whole = acts[:]
    np.save(folder / "layer.npy", whole)
    secs: dict[str, list[float]] = {".npy memory map": [], "run.acts": []}
    for _ in range(repeats + 1):
        secs[".npy memory map"].append(_secs(lambda: np.array(np.load(folder / "layer.npy", mmap_mode="r"))))
        secs["run.acts"].append(_secs(lambda: Run.open(run.path).acts("conv")[:]))
    np.testing.assert_array_equal(Run.open(run.path).acts("conv")[:], np.load(folder / "layer.npy"))
    median = {name: statistics.median(values[1:]) for name, values in secs.items()}
    return {
        "size_mb": round(whole.nbytes / 1e6, 1),
        "n_blocks": acts.n_blocks,
        "cache": "warm",
        "ms": {name: round(1e3 * x, 2) for name, x in median.items()},
        "p95_ms": {name: round(1e3 * float(np.quantile(x[1:], 0.95)), 2) for name, x in secs.items()},
        "ratio": round(median["run.acts"] / median[".npy memory map"], 3),
    }


def _random_run(out: Path, *, n_items: int, n_tokens: int, width: int) -> Run:
    """A run of n_items x n_tokens tokens, quickly made: one linear layer over rows of pixels."""
    model = vs.wrap(
        torch.nn.Sequential(_Rows(width)),
        sites={"conv": "0"},
        layout=Grid(1, n_tokens),
        preprocess=as_pixels,
        device="cpu",
    )
    items = Pictures(n_items, height=1, width=n_tokens)
    return vs.capture(
        model, items, sites="*", out=out, batch_size=32, block_items=32, quiet=True, respond=False
    )


class _Rows(torch.nn.Module):
    """[b, 3, 1, t] pixels to [b, t, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels[:, :, 0].transpose(1, 2))


# --- 5: Ray


def ray(folder: Path, *, quick: bool) -> dict[str, Any]:
    try:
        import ray as ray_package
    except ImportError:
        return {"skipped": "Ray is not installed"}
    n_items, secs_per_item = (160, 0.02) if quick else (2400, 0.05)
    items = Pictures(n_items, height=32, width=48, secs=secs_per_item)
    model = small_model()

    def job(name: str, **engine: Any) -> float:
        out = folder / name
        secs = _secs(
            lambda: vs.capture(
                model,
                items,
                sites="*",
                out=out,
                batch_size=8,
                block_items=16,
                quiet=True,
                respond=False,
                **engine,
            )
        )
        return secs

    found = {"local": job("local")}
    for n_workers in (1, 2):
        # Everything counts: starting the cluster and the workers, and stopping them.
        found[f"ray, {n_workers} workers"] = job(f"ray-{n_workers}", engine=RayEngine(n_workers=n_workers))
    contents = {name: Run.open(folder / name).info["content_sha256"] for name in ("local", "ray-1", "ray-2")}
    assert len(set(contents.values())) == 1, "every engine gives the same bits"
    return {
        "n_items": n_items,
        "io_secs_per_item": secs_per_item,
        "secs": {name: round(x, 2) for name, x in found.items()},
        "two_workers_faster": round(found["ray, 1 workers"] / found["ray, 2 workers"], 3),
        "overhead_of_ray": round(found["ray, 1 workers"] / found["local"] - 1, 3),
        "ray": ray_package.__version__,
    }


def _secs(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (measure, value, must reach)."""
    lines: list[tuple[str, str, str]] = []
    for row in ("overhead", "overhead_wide"):
        if not (found := results.get(row)):
            continue
        what = f"{found['n_layers']} layers of width {found['width']}"
        lines.append((f"{what}: capture / bare forward loop", str(found["share_of_bare_loop"]), ">= 0.9"))
        lines.append((f"{what}: the same, processor time", str(found["share_of_bare_loop_cpu"]), ">= 0.9"))
        for name, times in found["times_faster_than"].items():
            limit = found["most_that_is_possible"][name]
            lines.append(
                (
                    f"{what}: times faster than {name}",
                    f"{times} (bare forward: {limit})",
                    ">= 1.5 or the limit",
                )
            )
        lines += [(name, reason, "-") for name, reason in found["not_compared"].items()]
    if found := results.get("memory"):
        lines.append(
            (f"peak memory, {' vs '.join(found['peak_mb'])} items", str(found["ratio"]), "0.9 .. 1.1")
        )
    if found := results.get("reading"):
        lines.append(("reading one layer / .npy memory map", str(found["ratio"]), "<= 1.3"))
    if found := results.get("ray"):
        if "skipped" in found:
            lines.append(("Ray", found["skipped"], "-"))
        else:
            lines.append(("Ray, 1 -> 2 workers on slow reads", f"{found['two_workers_faster']} x", ">= 1.8"))
            lines.append(
                ("overhead of Ray with one worker", f"{100 * found['overhead_of_ray']:.1f} %", "<= 15 %")
            )
    return lines


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--resume", action="store_true", help="measure only what the saved file lacks")
    parser.add_argument("--folder", type=Path, help="disk to write to (default: the temporary folder)")
    parser.add_argument(
        "--docs", action="store_true", help="write the saved numbers into the documentation and stop"
    )
    parser.add_argument("--child", nargs=2, metavar=("N", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["VLASCOPE_PROGRESS"] = "0"
    if args.child:
        _child(int(args.child[0]), Path(args.child[1]))
        return
    if args.docs:
        print(f"wrote {write_page(RESULTS / 'capture.json', table(_saved('capture')))}")
        return
    name = "capture-quick" if args.quick else "capture"
    results = _saved(name)
    if not args.resume:
        results = {row: found for row, found in results.items() if row not in args.only}
    rows = {
        "overhead": overhead,
        "overhead_wide": overhead_wide,
        "memory": memory,
        "reading": reading,
        "ray": ray,
    }
    with tempfile.TemporaryDirectory(prefix="vlascope-capture-", dir=args.folder) as scratch:
        for row in args.only:
            if row not in results:
                env = environment()
                folder = Path(scratch) / row
                folder.mkdir()
                started = time.perf_counter()
                found = rows[row](folder, quick=args.quick)
                found |= {"total_secs": round(time.perf_counter() - started, 1), "environment": env}
                shutil.rmtree(folder)
                results[row] = found
                save(name, environment=env, results=results)
            for measure, value, wanted in table({row: results[row]}):
                print(f"{measure:<60} {value:<36} {wanted}", flush=True)
    print(f"saved {RESULTS / name}.json")


def _saved(name: str) -> dict[str, Any]:
    """Rows that were measured before."""
    path = RESULTS / f"{name}.json"
    return (
        {row: found for row, found in read_json(path)["results"].items() if row in ROWS}
        if path.exists()
        else {}
    )


if __name__ == "__main__":
    main()
