"""`vlascope sae train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from ._common import Common, Device, Flag, OptionalInt, OutPath, RunPath, give, say, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Train a nested sparse dictionary on the tokens of a site; given again, an interrupted training goes on."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...")]
    """layers, as names or patterns: one dictionary each, the run is read once"""
    out: OutPath = None
    """folder for the dictionary (default: in the run; with several sites one folder each)"""
    latents: int = 0
    """latents in all (0: four per channel)"""
    k: int = 16
    """active latents per token"""
    levels: Annotated[tuple[int, ...], arg(metavar="N...")] = (64, 256, 1024, 4096)
    """widths of the nested dictionaries; the whole is always the last"""
    activation: Literal["topk", "batchtopk", "jumprelu"] = "topk"
    """how active latents are chosen"""
    random_prefixes: int = 0
    """train that many random widths per batch instead, so that any cut is allowed"""
    kind: Literal["auto", "all", "patch", "text", "state", "action", "class", "register", "special"] = "auto"
    """which tokens (auto: patches where there are any)"""
    epochs: float = 1.0
    """passes over the tokens"""
    tokens: int = 0
    """tokens to train on, instead of passes"""
    batch: int = 4096
    """tokens per step"""
    lr: float = 0.0
    """step size (0: 6e-4 / sqrt(latents / 16384))"""
    l1: float = 1e-4
    """weight of the mean absolute activation"""
    held_out: float = 0.1
    """share of the episodes that are never trained on"""
    patience: int = 0
    """stop after that many evaluations without progress (0: never)"""
    eval_every: int = 200
    """steps between evaluations on held-out tokens"""
    save_every: int = 200
    """steps between saved states"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """type in which candidates are searched (auto: bfloat16 on a GPU)"""
    device: Device = "auto"
    """where to train"""
    engine: Literal["local", "ray"] = "local"
    """who trains: this process, or workers of a Ray cluster that share every batch (topk only)"""
    workers: OptionalInt = None
    """ray: number of workers (default: one per GPU or node)"""
    seed: int = 0
    """seed of weights, order and split"""
    force: Flag = False
    """train anew even if there is a dictionary or a state (interrupted, the same command still goes on)"""


def run(args: Args) -> int:
    """Train and print the metrics of each level."""
    import torch

    from .. import api
    from ..runs import Run
    from ..sae import TrainConfig, train_sae
    from ..sae.metrics import LEVEL_HEAD

    captured = Run.open(args.run)
    sites = api.run_sites(captured, args.site)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    say(args, f"training on {len(sites)} sites of {captured.n_items} items, on {device}")
    found = train_sae(
        captured,
        sites=sites,
        config={
            "n_latents": args.latents,
            "k": args.k,
            "levels": args.levels,
            "activation": args.activation,
            "random_prefixes": args.random_prefixes,
        },
        train=TrainConfig(
            batch=args.batch,
            tokens=args.tokens,
            epochs=args.epochs,
            lr=args.lr,
            l1=args.l1,
            held_out=args.held_out,
            patience=args.patience,
            eval_every=args.eval_every,
            save_every=args.save_every,
            precision=args.precision,
            seed=args.seed,
        ),
        tokens=args.kind,
        out=args.out,
        device=device,
        force=args.force,
        engine=args.engine,
        n_workers=args.workers,
        quiet=args.quiet,
    )
    facts, texts = [], []
    for one in found:
        facts.append(
            {
                "site": one.site,
                "path": str(one.path),
                "was_there": one.was_there,
                "n_steps": one.n_steps,
                "n_tokens": one.n_tokens,
                "history": list(one.history),
                "evaluation": one.evaluation.to_json() if one.evaluation else None,
            }
        )
        if one.evaluation is None:
            texts.append(f"{one.site}: trained before ({one.n_tokens} tokens)\n{one.path}")
        else:
            rows = table(one.evaluation.table(), head=LEVEL_HEAD)
            texts.append(
                f"{one.site}: {one.n_tokens} tokens in {one.n_steps} steps; on {one.evaluation.n_tokens} held-out "
                f"tokens\n{rows}\n{one.path}"
            )
    give(args, {"run": str(captured.path), "dictionaries": facts}, text="\n\n".join(texts))
    return OK
