"""Colours of 50,000 tokens: t-SNE, UMAP and M-space against ncut_pytorch 3.2.0's, time and trustworthiness.

    python -m benchmarks.palettes [--quick] [--only tsne umap mspace] [--sets mixture] [--seeds 0 1 2]

Rows of other methods, sets and seeds that benchmarks/results/palettes.json holds are kept.

Both get the same 20 eigenvectors (vlascope's cut of an imbalanced mixture, and of mini-vla's 43,000
patch tokens) in one
process and one thread. Time is fitting and colouring all tokens: of the wall, and of the processor (which another
job on the machine disturbs less; the ratio is of these). Trustworthiness (scikit-learn, 15 neighbours, 2,500
tokens) compares neighbours among colours with neighbours among eigenvectors: by angle, which is the metric that both
libraries embed by, and also by raw Euclidean distance. vlascope's colours are taken as the bytes that are shown, the
peer's as the float32 values that it returns. The peer's M-space takes minutes per row of the table; `--quick` gives
it a tenth of its default training steps and says so.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from benchmarks import _spectral_data as data
from benchmarks._measure import Cost, cost
from benchmarks._record import RESULTS, environment, save
from vlascope.files import read_json
from vlascope.palette import Palette
from vlascope.spectral import NystromNCut

Row = dict[str, Any]
METHODS = ("tsne", "umap", "mspace")
SEEDS = (0, 1, 2)
N_TOKENS = 50_000
N_JUDGED = 2_500
N_WARM = 4_000
PEER_STEPS = 3_000  # its default
RATIO = 3.0
"""How many times faster vlascope must be."""

SETS: dict[str, Callable[[int, int], np.ndarray]] = {
    "mixture": data.mixture,
    "mini-vla patches": lambda n, seed: data.robot_tokens(
        min(n, 43_000), seed
    ),  # its six episodes hold no more
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, the mixture, 20,000 tokens")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    env = environment()
    name = "palettes-quick" if args.quick else "palettes"
    for row in rows(args.quick, methods=args.only, seeds=args.seeds, sets=args.sets):
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        path = RESULTS / f"{name}.json"
        found = read_json(path)["results"]["rows"] if path.exists() else []
        order = {_key(one): one for one in [*found, row]}
        save(name, environment=env, results={"rows": [order[key] for key in sorted(order)]})


def _key(row: Row) -> tuple[int, int, int]:
    return METHODS.index(row["method"]), list(SETS).index(row["set"]), row["seed"]


def rows(
    quick: bool, *, methods: Sequence[str] = METHODS, seeds: Sequence[int] = SEEDS, sets: Sequence[str] = ()
) -> Iterator[Row]:
    """Yield one row per method, token set and seed; a set or peer method that is not installed is left out, aloud."""
    n_tokens = 20_000 if quick else N_TOKENS
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, make in SETS.items():
            if (quick and name != "mixture") or (sets and name not in sets):
                continue
            for seed in seeds[: 1 if quick else None]:
                try:
                    tokens = make(n_tokens, seed)
                except data.Missing as why:
                    print(f"  skipped: {name}: {why}", flush=True)
                    break
                eigvecs = NystromNCut(20, seed=seed).fit_transform(tokens)
                eigvecs = np.ascontiguousarray(eigvecs, dtype=np.float32)
                del tokens
                for method in methods:
                    steps = PEER_STEPS // 10 if quick else PEER_STEPS
                    yield _row(eigvecs, method, name=name, seed=seed, peer_steps=steps)
    finally:
        torch.set_num_threads(n_threads)


def _row(eigvecs: np.ndarray, method: str, *, name: str, seed: int, peer_steps: int) -> Row:
    few = eigvecs[:N_WARM]  # compilers and imports run on the first call
    Palette.fit(few, method=method, seed=seed).apply(few)
    _peer(few, method, seed=seed, n_steps=10)
    start = time.process_time()
    ours = cost(lambda: Palette.fit(eigvecs, method=method, seed=seed).apply(eigvecs))
    ours_cpu = time.process_time() - start
    start = time.process_time()
    peer = _peer(eigvecs, method, seed=seed, n_steps=peer_steps)
    peer_cpu = time.process_time() - start
    row: Row = {
        "method": method,
        "set": name,
        "n": len(eigvecs),
        "seed": seed,
        "seconds": round(ours.seconds, 2),
        "cpu_seconds": round(ours_cpu, 2),
        "trust": _trust(eigvecs, ours.value, seed=seed, by_angle=True),
        "trust_euclid": _trust(eigvecs, ours.value, seed=seed, by_angle=False),
    }
    if peer is None:
        return row | {"peer": "not installed"}
    row |= {
        "peer_seconds": round(peer.seconds, 2),
        "peer_cpu_seconds": round(peer_cpu, 2),
        "peer_trust": _trust(eigvecs, peer.value, seed=seed, by_angle=True),
        "peer_trust_euclid": _trust(eigvecs, peer.value, seed=seed, by_angle=False),
        "ratio": round(peer_cpu / ours_cpu, 1),
    }
    if method == "mspace":
        row["peer_steps"] = peer_steps
    row["holds"] = bool(row["ratio"] >= RATIO and row["trust"] >= row["peer_trust"])
    return row


def _peer(eigvecs: np.ndarray, method: str, *, seed: int, n_steps: int) -> Cost | None:
    """Return the peer's colours, float32 in [0, 1], and their cost; None when it or a package of its is absent."""
    needed = {"tsne": "sklearn", "umap": "umap", "mspace": "torch"}[method]
    if find_spec("ncut_pytorch") is None or find_spec(needed) is None:
        print(f"  the peer's {method} is not installed", flush=True)
        return None
    from ncut_pytorch.color.coloring import mspace_color, tsne_color, umap_color

    x = torch.from_numpy(eigvecs)
    calls = {
        "tsne": lambda: tsne_color(x, seed=seed),
        "umap": lambda: umap_color(x, seed=seed),
        "mspace": lambda: mspace_color(x, encoder_training_steps=n_steps),
    }
    torch.manual_seed(seed)  # noqa: TID251
    np.random.seed(seed)  # noqa: NPY002 (its sampling draws from the global generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cost(calls[method])
    return Cost(found.value.detach().cpu().numpy(), found.seconds, found.gigabytes)


def _trust(eigvecs: np.ndarray, colors: np.ndarray, *, seed: int, by_angle: bool) -> float:
    from sklearn.manifold import trustworthiness

    chosen = np.random.default_rng(seed).choice(len(eigvecs), min(N_JUDGED, len(eigvecs)), replace=False)
    x = eigvecs[chosen].astype(np.float64)
    if by_angle:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return round(float(trustworthiness(x, colors[chosen].astype(np.float64), n_neighbors=15)), 4)


if __name__ == "__main__":
    main()
