"""Training nested dictionaries: throughput beside peers, loss after equal tokens, dead latents, memory.

    python -m benchmarks.sae                     # throughput and loss on planted tokens, 256 -> 2048, k 16, batch 4096
    python -m benchmarks.sae --run RUN --site language.4      # the same on a run's patch tokens
    python -m benchmarks.sae --only quality --run RUN --site vision.5 --steps 400       # the same without times
    python -m benchmarks.sae --only rates --run RUN --site vision.5 --steps 400 --latents 512   # several step sizes
    python -m benchmarks.sae --only memory       # peak memory of training on 400,000 x 2048 tokens
    python -m benchmarks.sae --only planted      # 512 true directions in superposition
    python -m benchmarks.sae --only dead --tokens 5000000
    python -m benchmarks.sae --only discovery    # power, and false discoveries over 200 null runs

Each call adds its section to benchmarks/results/sae.json. For --run, see `benchmarks/monitor.py
--folder FOLDER`, which lets the embedded model act and captures what it computes, in FOLDER/run.

Peers that are installed are measured too (`pip install --no-deps --target peers overcomplete dictionary-learning
sae-lens einops`, then `PYTHONPATH=peers`). Systems take turns step by step, so that all see the same load of the
machine; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measure import cost
from benchmarks._record import RESULTS, environment
from benchmarks._sae_peers import AS_PEERS, MATRYOSHKA, SWEPT, SYSTEMS
from vlascope.files import read_json, write_json
from vlascope.sim import wilson_interval

LEVELS = (64, 256, 1024, 2048)
RATES = (1.0, 2.0, 3.0, 5.0, 8.0)


def planted(n_true: int, d: int, n_active: int, *, zipf: float, noise: float, seed: int = 0):
    """Return true directions [n_true, d] and a function that draws tokens made of a few of them."""
    draw = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(n_true, d, generator=draw), dim=1)
    log_p = -zipf * torch.arange(1, n_true + 1).log()

    def tokens(n: int) -> Tensor:
        # Gumbel noise: the largest keys are a draw without replacement with these odds.
        keys = log_p - torch.rand(n, n_true, generator=draw).clamp_min(1e-9).log().neg().log()
        index = keys.topk(n_active, 1).indices
        weights = torch.rand(n, n_active, generator=draw) + 0.5
        out = F.embedding_bag(index, atoms, per_sample_weights=weights, mode="sum")
        return out + 0.3 * atoms[0] + noise * torch.randn(n, d, generator=draw)

    return atoms, tokens


def run_tokens(path: str, site: str) -> tuple[Tensor, Tensor]:
    """Return shuffled training and held-out patch tokens of a run."""
    from vlascope.runs import Run
    from vlascope.sae import TokenStream, split_items

    run = Run.open(path)
    split = split_items(run, held_out=0.1, seed=0)
    out = []
    for items in (split.train, split.held_out):
        stream = TokenStream(run, [site], items=items, batch=4096)
        values = torch.from_numpy(stream.sample(400_000)[site])
        out.append(values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))])
    return out[0], out[1]


def data(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return training and held-out tokens, centred and scaled."""
    if args.run:
        train, held = run_tokens(args.run, args.site)
        held = held[: 4 * args.batch]
    else:
        _, draw = planted(1024, 256, 12, zipf=0.6, noise=0.02)
        train = torch.cat([draw(args.batch) for _ in range(32)])
        held = draw(2 * args.batch)
    mean = train.mean(0)
    scale = (train - mean).square().mean().sqrt()
    return (train - mean) / scale, (held - mean) / scale


def usual_rate(n: int) -> float:
    """Return the step size that peers take for n latents when none is given (L. Gao et al., 2024); ours is triple."""
    return 2e-4 / (n / 2**14) ** 0.5


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second and FVU after equal tokens for each system."""
    train, held = data(args)
    d = train.shape[1]
    n = args.latents or 8 * d
    levels = tuple(level for level in LEVELS if level < n) + (n,)
    lr = args.lr or usual_rate(n)
    systems, missing = {}, {}
    for name in args.systems:
        try:
            systems[name] = SYSTEMS[name](
                d=d, n=n, k=args.k, levels=levels, n_steps=args.steps, batch=args.batch, sample=train, lr=lr
            )
        except ImportError as error:
            missing[name] = str(error)
    order = torch.Generator().manual_seed(1)
    secs: dict[str, list[float]] = {name: [] for name in systems}
    for step in range(args.steps):
        rows = torch.randint(0, len(train), (args.batch,), generator=order)
        x = train[rows]
        for name in sorted(systems, key=lambda name: hash((name, step)) if args.mix else 0):
            start = time.perf_counter()
            systems[name].step(x)
            secs[name].append(time.perf_counter() - start)
    results: dict[str, Any] = {"missing": missing}
    parts = held.split(args.batch)
    for name, system in systems.items():
        warm = secs[name][min(3, args.steps - 1) :]
        fired = torch.cat([system.fired(part) for part in parts]).unique()
        results[name] = {
            "tokens_per_sec_best": round(args.batch / min(warm)),
            "tokens_per_sec_median": round(args.batch / statistics.median(warm)),
            "held_out_fvu": float(np.mean([system.fvu(part) for part in parts])),
            "l0": float(np.mean([system.n_active(part) for part in parts])),
            "silent_on_held_out": 1 - len(fired) / n,
        }
    ours = secs["vlascope"]
    for name in systems:
        ratio = [a / b for a, b in zip(secs[name][3:], ours[3:], strict=True)]
        if ratio:
            results[name]["vlascope_is_faster_by_median"] = round(statistics.median(ratio), 2)
    fastest = min((statistics.median(secs[n]), n) for n in systems if n in MATRYOSHKA)[1]
    results["fastest_matryoshka_peer"] = fastest
    results["setting"] = {
        "d": d, "latents": n, "k": args.k, "batch": args.batch, "steps": args.steps, "levels": levels, "lr": lr,
        "threads": torch.get_num_threads(), "held_out_tokens": len(held), "data": args.site if args.run else "planted",
    }  # fmt: skip
    return results


def quality(args: argparse.Namespace) -> dict[str, Any]:
    """Return FVU, L0 and silent latents of `throughput` alone: these do not depend on what else the machine does."""
    found = throughput(args)
    timed = ("tokens_per_sec_best", "tokens_per_sec_median", "vlascope_is_faster_by_median")
    for name in SYSTEMS:
        for key in timed:
            found.get(name, {}).pop(key, None)
    found.pop("fastest_matryoshka_peer")
    nested = {n: found[n]["held_out_fvu"] for n in MATRYOSHKA if n in found}
    found["best_nested_peer"] = min(nested, key=lambda n: nested[n])
    return found


def rates(args: argparse.Namespace) -> dict[str, Any]:
    """Return the held-out FVU of each system at several step sizes, and the best of each."""
    train, held = data(args)
    d = train.shape[1]
    n = args.latents or 8 * d
    levels = tuple(level for level in LEVELS if level < n) + (n,)
    parts, out = held.split(args.batch), {}
    for name, make in SWEPT.items():
        rows = []
        for factor in RATES:
            try:
                system = make(
                    d=d, n=n, k=args.k, levels=levels, n_steps=args.steps, batch=args.batch, sample=train,
                    lr=factor * usual_rate(n),
                )  # fmt: skip
            except ImportError as error:
                out.setdefault("missing", {})[name] = str(error)
                break
            order = torch.Generator().manual_seed(1)
            for _ in range(args.steps):
                system.step(train[torch.randint(0, len(train), (args.batch,), generator=order)])
            rows.append(
                {
                    "rate": factor,
                    "held_out_fvu": float(np.mean([system.fvu(part) for part in parts])),
                    "l0": float(np.mean([system.n_active(part) for part in parts])),
                }
            )
            print(name, rows[-1], flush=True)
        if rows:
            out[name] = {"rows": rows, "best": min(rows, key=lambda row: row["held_out_fvu"])}
    peers = {name: out[name]["best"]["held_out_fvu"] for name in SWEPT if name in out and name in MATRYOSHKA}
    out["best_peer"] = min(peers, key=lambda name: peers[name])
    out["at_most_the_best_peer"] = out[AS_PEERS]["best"]["held_out_fvu"] <= min(peers.values())
    out["setting"] = {
        "d": d, "latents": n, "k": args.k, "batch": args.batch, "steps": args.steps, "levels": levels,
        "lr": usual_rate(n), "held_out_tokens": len(held), "data": args.site if args.run else "planted",
    }  # fmt: skip
    return out


def recover(args: argparse.Namespace) -> dict[str, Any]:
    """Return the share of planted directions that are found."""
    from vlascope.sae import SAEConfig, SAETrainer, TrainConfig

    out = {}
    for seed in range(args.seeds):
        atoms, draw = planted(512, 128, 8, zipf=0.0, noise=0.01, seed=seed)
        for activation in ("topk", "batchtopk", "jumprelu"):
            sample = draw(8192)
            trainer = SAETrainer(
                SAEConfig(d_in=128, n_latents=1024, k=8, activation=activation),
                TrainConfig(batch=1024, seed=seed),
                n_steps=800,
                sample_td=sample,
            )
            start = time.perf_counter()
            for _ in range(800):
                trainer.step(draw(1024))
            cosine = (atoms @ trainer.sae.decoder.detach().T).max(1).values
            out[f"{activation}, seed {seed}"] = {
                "recovered_at_cosine_0.9": float((cosine >= 0.9).float().mean()),
                "mean_best_cosine": float(cosine.mean()),
                "secs": time.perf_counter() - start,
            }
    return out


def dead(args: argparse.Namespace) -> dict[str, Any]:
    """Return dead latents of ours after many tokens."""
    from vlascope.sae import SAEConfig, SAETrainer, TrainConfig

    if args.run:
        train, held = run_tokens(args.run, args.site)
    else:
        _, draw = planted(1024, 256, 12, zipf=0.6, noise=0.02)
        train, held = torch.cat([draw(4096) for _ in range(64)]), torch.cat([draw(4096) for _ in range(16)])
    d, n = train.shape[1], args.latents or 4 * train.shape[1]
    n_steps = args.tokens // args.batch
    trainer = SAETrainer(
        SAEConfig(d_in=d, n_latents=n, k=args.k),
        TrainConfig(batch=args.batch),
        n_steps=n_steps,
        sample_td=train,
    )
    order = torch.Generator().manual_seed(1)
    start = time.perf_counter()
    for _ in range(n_steps):
        trainer.step(train[torch.randint(0, len(train), (args.batch,), generator=order)])
    from vlascope.sae import evaluate

    found = evaluate(trainer.sae, [train[-1_000_000:].numpy(), held.numpy()])
    return {
        "tokens": n_steps * args.batch, "different_tokens": len(train), "latents": n, "d": d,
        "secs": time.perf_counter() - start, "dead_over_tokens": found.n_tokens, "dead_share": found.dead_share,
        "fvu": evaluate(trainer.sae, [held.numpy()]).fvu,
    }  # fmt: skip


def discovery(args: argparse.Namespace) -> dict[str, Any]:
    """Return the power of the search for latents of one factor, and its false discoveries where there is none.

    160 units in four cells (fragile x red), 512 latents: skewed, silent in 60 % of the units, alike in groups of
    eight. "null": nothing follows fragility, but 16 latents follow colour, which must not be called fragility.
    "planted": latent 3 follows fragility by one or more standard deviations, on top of that.
    """
    from vlascope.sae import discover_arrays

    labels: dict[str, list[object]] = {
        "fragile": [a for a in ("no", "yes") for _ in range(80)],
        "colour": [b for _ in range(2) for b in ("red", "blue") for _ in range(40)],
    }
    yes, red = np.array(labels["fragile"]) == "yes", np.array(labels["colour"]) == "red"

    def draw(seed: int, effect: float) -> np.ndarray:
        rng = np.random.default_rng([seed, 29])
        common = np.repeat(rng.gamma(2.0, 1.0, (160, 64)), 8, axis=1)
        x = 0.5 * common + rng.gamma(2.0, 1.0, (160, 512))
        spread = x.std(0)
        x *= rng.random(x.shape) < 0.4
        x[:, 16:32] += 1.5 * spread[16:32] * red[:, None]
        full = 0.5 * common[:, 3] + rng.gamma(2.0, 1.0, 160)  # the planted latent is never silent
        x[:, 3] = full + effect * full.std() * yes
        return x

    def search(seed: int, effect: float) -> set[int]:
        found = discover_arrays(draw(seed, effect), labels, n_permutations=99, seed=seed, n_shuffles=0)
        return {one.latent for one in found.found}

    out: dict[str, Any] = {}
    finds = [search(seed, 0.0) for seed in range(args.runs)]
    wrong = sum(bool(one) for one in finds)
    out["null"] = {
        "runs": args.runs, "runs_with_a_false_discovery": wrong, "share": wrong / args.runs,
        "interval": wilson_interval(wrong, args.runs), "false_discoveries": sum(len(one) for one in finds),
    }  # fmt: skip
    for effect in (0.75, 1.0, 1.5):
        finds = [search(10_000 + seed, effect) for seed in range(args.runs // 2)]
        hits = sum(3 in one for one in finds)
        shares = [len(one - {3}) / max(1, len(one)) for one in finds]
        out[f"planted, {effect} sd"] = {
            "runs": len(finds), "power": hits / len(finds), "interval": wilson_interval(hits, len(finds)),
            "false_discovery_rate": float(np.mean(shares)),
        }  # fmt: skip
    return out


class _DiskRun:
    """Looks like a run with one site of n x d tokens kept in one memory-mapped file, 100 patches an item."""

    def __init__(self, path: Path, *, n: int, d: int) -> None:
        from vlascope.models.layout import grid_tokens
        from vlascope.runs.run import RunSite
        from vlascope.runs.tables import ItemRow, TokenTable, table_from_layouts

        draw, values = np.random.default_rng(0), np.lib.format.open_memmap(path, "w+", np.float16, (n, d))
        basis = draw.standard_normal((64, d)).astype(np.float32)
        for start in range(0, n, 4096):
            rows = min(4096, n - start)
            values[start : start + rows] = draw.standard_normal((rows, 64)).astype(np.float32) @ basis
        values.flush()
        del values
        self.path, self._acts = path.parent, np.load(path, mmap_mode="r")
        self.items = [
            ItemRow(index=i, source_index=i, item_id=str(i), cameras=(), image_sizes=())
            for i in range(n // 100)
        ]
        self._site = RunSite(name="site", layout="vision", width=d, dtype="float16")
        layout = grid_tokens(10, 10, frame=(0, 0, 10, 10))
        self._table = TokenTable(table_from_layouts([layout] * (n // 100), first_item=0))
        self.info, self.config = (
            {"content_sha256": str(n)},
            {"model": {"name": "none", "fingerprint": "none"}},
        )

    def site(self, name: str) -> Any:
        return self._site

    def acts(self, name: str) -> Any:
        return self._acts

    def tokens(self, layout: str) -> Any:
        return self._table

    def derived_dir(self, verb: str, params: dict) -> Path:
        return self.path / verb


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Return the growth of resident memory while training on tokens from disk, for several numbers of tokens."""
    from vlascope.sae import TrainConfig, train_sae

    out = {}
    for n in (100_000, 400_000):
        with tempfile.TemporaryDirectory() as folder:
            run: Any = _DiskRun(Path(folder) / "x.npy", n=n, d=2048)
            used = cost(
                lambda run=run: train_sae(
                    run, sites="site", config={"n_latents": args.latents or 8192},
                    train=TrainConfig(batch=args.batch, tokens=10 * args.batch, save_every=5, eval_every=5), force=True,
                )
            )  # fmt: skip
            out[f"{n} x 2048"] = {"gigabytes": used.gigabytes, "secs": used.seconds}
    return out


SECTIONS = {
    "throughput": throughput,
    "quality": quality,
    "rates": rates,
    "planted": recover,
    "dead": dead,
    "memory": memory,
    "discovery": discovery,
}


def main() -> None:
    """Parse, measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=tuple(SECTIONS), default="throughput")
    parser.add_argument("--run")
    parser.add_argument("--site", default="language.4")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--latents", type=int, default=0)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mix", action="store_true", help="shuffle the order of systems at each step")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts = environment()
    found = SECTIONS[args.only](args)
    print(json.dumps(found, indent=2))
    if not args.no_save:
        name = f"{args.only}, {args.site} of mini-vla" if args.run else args.only
        path = RESULTS / "sae.json"
        sections = read_json(path) if path.is_file() else {}
        sections[name] = {"environment": facts, "results": found}
        print(write_json(path, sections))


if __name__ == "__main__":
    main()
