"""Train mini-vla: `python -m training.mini_vla.train --data DIR --out DIR [--minutes 75] [--resume]`.

Two processes average their gradients over gloo; each uses one thread, bfloat16 autocast and float32 weights.
The learning rate follows the clock, so the run ends on time whatever the machine. `--smoke` makes a little data,
trains for under a minute and fails unless the loss falls clearly.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from training.mini_vla.batches import Frames, make_batch
from training.mini_vla.losses import run_batch, total_loss
from training.mini_vla.network import AuxiliaryHeads, build_model
from training.mini_vla.optimizer import Optimizer, learning_rate_factor
from training.mini_vla.settings import DEFAULT_PATH, Settings, read_settings
from training.mini_vla.validate import collect, summarise
from training.mini_vla.vocabulary import make_processor

log = logging.getLogger("mini_vla")


class Trainer:
    """One process of a training run.

    Args:
        settings: All settings.
        data: Folders with shards (searched again every two minutes).
        held_out: Folder with validation shards.
        out: Where checkpoints, logs and exports go.
        rank: This process, 0 writes.
        world: Number of processes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        data: list[Path],
        held_out: Path | None,
        out: Path,
        rank: int,
        world: int,
        correlated: bool = False,
        resume: bool = False,
        start_from: Path | None = None,
    ) -> None:
        self.settings, self.out, self.rank, self.world = settings, out, rank, world
        seed = settings.run.seed
        self.model = build_model(settings.network, seed=seed)
        self.heads = AuxiliaryHeads(settings.network, seed=seed + 2)
        named = {f"model.{n}": p for n, p in self.model.named_parameters() if "post_layernorm" not in n}
        named |= {f"heads.{n}": p for n, p in self.heads.named_parameters()}
        self.named = named
        # One flat gradient, with room for the clock, so that one all-reduce serves everything.
        sizes = [p.numel() for p in named.values()]
        self.flat = torch.zeros(sum(sizes) + 1)
        for p, piece in zip(named.values(), self.flat[:-1].split(sizes), strict=True):
            p.grad = piece.view_as(p)
        self.optimizer = Optimizer(named, settings.optimizer)
        self.frames = Frames(data, patch_px=settings.network.patch_px, correlated=correlated)
        self.held_out = Frames([held_out], patch_px=settings.network.patch_px) if held_out else None
        self.update, self.elapsed, self.images = 0, 0.0, 0
        self._began = -time.perf_counter()
        self.milestones_done: list[float] = []
        if start_from is not None:
            self._load_weights(start_from)
        if resume:
            self._load_checkpoint()

    # -- saving -------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Weights, moments and counters, written beside and renamed."""
        tensors = {f"p.{n}": p.detach() for n, p in self.named.items()}
        tensors |= {f"o.{n}": t for n, t in self.optimizer.state().items()}
        counters = {
            "update": self.update,
            "elapsed": self.elapsed,
            "images": self.images,
            "milestones_done": self.milestones_done,
            "settings": self.settings.to_dict(),
        }
        temporary = self.out / "checkpoint.safetensors.tmp"
        save_file(tensors, temporary, metadata={"counters": json.dumps(counters)})
        os.replace(temporary, self.out / "checkpoint.safetensors")

    def _load_checkpoint(self) -> None:
        from safetensors import safe_open

        path = self.out / "checkpoint.safetensors"
        with safe_open(path, "pt") as file:
            counters = json.loads(file.metadata()["counters"])
        tensors = self._load_weights(path)
        self.optimizer.load_state({n[2:]: t for n, t in tensors.items() if n.startswith("o.")})
        self.update, self.elapsed, self.images = (counters[k] for k in ("update", "elapsed", "images"))
        self.milestones_done = counters["milestones_done"]

    def _load_weights(self, path: Path) -> dict[str, torch.Tensor]:
        tensors = load_file(path)
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(tensors[f"p.{name}"])
        return tensors

    def export(self, folder: Path) -> None:
        """The model in bfloat16 with tokenizer and processor, as `from_pretrained` reads it."""
        export_model(self.model, self.settings, folder)

    # -- training -----------------------------------------------------------------------------------------

    def one_update(self) -> dict[str, float]:
        """One forward, backward, average and step; returns loss parts and timing."""
        s = self.settings
        started = time.perf_counter()
        rng = np.random.default_rng([s.run.seed, self.update, self.rank])
        share = self.elapsed / (60 * s.run.minutes)
        n_keep = s.batch.keep_patches if share < s.batch.keep_until else None
        rows = self.frames.sample(
            s.run.batch,
            physics_share=s.batch.physics_share,
            held_share=s.batch.held_share,
            own_share=s.batch.own_share,
            rng=rng,
        )
        batch = make_batch([self.frames.frame(i) for i in rows], settings=s.batch, rng=rng, n_keep=n_keep)
        loaded = time.perf_counter()
        self.flat.zero_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run_batch(self.model, self.heads, batch)
        loss, parts = total_loss(out, batch, s.loss)
        loss.backward()
        computed = time.perf_counter()
        self.flat[-1] = self._began + time.perf_counter()  # the clock that all processes will share
        if self.world > 1:
            dist.all_reduce(self.flat)
            self.flat /= self.world
        averaged = time.perf_counter()
        gradient = self.flat[:-1]
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at update {self.update}: {parts}")
        gradient *= min(1.0, s.optimizer.clip / (norm + 1e-6))
        factor = learning_rate_factor(share, self.update, s.optimizer)
        self.optimizer.step(factor)
        self.elapsed = float(self.flat[-1])
        self.update += 1
        self.images += s.run.batch * self.world
        return {
            **parts,
            "loss": float(loss.detach()),
            "norm": norm,
            "lr": factor * s.optimizer.lr,
            "load_ms": 1e3 * (loaded - started),
            "compute_ms": 1e3 * (computed - loaded),
            "wait_ms": 1e3 * (averaged - computed),
            "segments": len(batch.notes) / s.run.batch,
        }

    def validate(self, *, n: int = 512) -> dict[str, float]:
        """Teacher-forced numbers on `n` held-out frames, shared between the processes."""
        assert self.held_out is not None
        rows = np.arange(min(n, len(self.held_out)))[self.rank :: self.world]
        found = collect(self.model, self.heads, self.held_out, rows, settings=self.settings)
        if self.world > 1:
            parts: list[Any] = [None] * self.world
            dist.all_gather_object(parts, found)
            found = {k: np.concatenate([p[k] for p in parts]) for k in found}
        return summarise(found)

    def run(self) -> None:
        """Train until the planned time is used."""
        s = self.settings.run
        next_save = self.elapsed + 60 * s.checkpoint_minutes
        next_check = self.elapsed + 60 * s.validate_minutes
        next_scan = self.elapsed + 60
        recent: list[dict[str, float]] = []
        self._began = self.elapsed - time.perf_counter()
        while self.elapsed < 60 * s.minutes:
            recent.append(self.one_update())
            if self.update % 20 == 0 and self.rank == 0:
                self._write({k: float(np.mean([r[k] for r in recent])) for k in recent[0]})
                recent = []
            if self.elapsed >= next_scan:
                next_scan = self.elapsed + 120
                if self.frames.scan() and self.rank == 0:
                    log.info("now %d frames", len(self.frames))
            due = [m for m in s.milestones if self.elapsed >= 60 * m and m not in self.milestones_done]
            if due:
                self.milestones_done += due
                if self.rank == 0:
                    self.export(self.out / f"minute-{due[-1]:04.0f}")
            if self.elapsed >= next_save:
                next_save = self.elapsed + 60 * s.checkpoint_minutes
                if self.rank == 0:
                    self.save_checkpoint()
            if self.held_out is not None and self.elapsed >= next_check:
                next_check = self.elapsed + 60 * s.validate_minutes
                self._write({"validation": self.validate()})
        if self.held_out is not None:
            self._write({"validation": self.validate(n=2000)})
        if self.rank == 0:
            self.save_checkpoint()
            self.export(self.out / "final")
            draw_curve(self.out / "log.jsonl", self.out / "curve.png")

    def _write(self, values: dict[str, Any]) -> None:
        if self.rank != 0:
            return
        row = {"update": self.update, "minutes": self.elapsed / 60, "images": self.images, **values}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if "validation" in values or self.update % 100 == 0:
            kind = "validation" if "validation" in values else "training"
            shown = json.dumps({k: round(v, 3) for k, v in values.get("validation", values).items()})
            log.info("minute %.1f update %d %s %s", self.elapsed / 60, self.update, kind, shown)


def export_model(model: Any, settings: Settings, folder: Path) -> None:
    """Save the model in bfloat16 with tokenizer, processor and configuration, as `from_pretrained` reads it."""
    small = copy.deepcopy(model).to(torch.bfloat16)
    small.config.dtype = torch.bfloat16
    folder.mkdir(parents=True, exist_ok=True)
    small.save_pretrained(folder)
    size = settings.network
    make_processor(image_px=size.image_px, patch_px=size.patch_px).save_pretrained(folder)


def draw_curve(log_path: Path, out: Path) -> None:
    """Training loss and validation error over time, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in log_path.read_text().splitlines()]
    train = [r for r in rows if "loss" in r]
    held = [r for r in rows if "validation" in r]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    for name in ("bins", "answer", "patch_class", "pointer"):
        axes[0].plot([r["minutes"] for r in train], [r[name] for r in train], label=name, linewidth=1)
    axes[0].set(title="training loss, parts", xlabel="minutes", yscale="log")
    for axis in ("dx", "dy", "dz"):
        values = [r["validation"][f"pick_{axis}_cm"] for r in held]
        axes[1].plot([r["minutes"] for r in held], values, marker=".", label=axis)
    axes[1].set(title="held-out error, pick up (cm)", xlabel="minutes", yscale="log")
    for name in ("swap_slope", "swap_side", "answers", "pointer_hit"):
        axes[2].plot(
            [r["minutes"] for r in held], [r["validation"][name] for r in held], marker=".", label=name
        )
    axes[2].set(title="held-out shares and slope", xlabel="minutes", ylim=(0, 1.05))
    for ax in axes:
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", help="folders with training shards")
    parser.add_argument("--held-out", type=Path, help="folder with validation shards")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=DEFAULT_PATH)
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="change settings")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--start-from", type=Path, help="begin with the weights of another checkpoint")
    parser.add_argument("--filter", choices=["correlated"], help="train on frames with a planted correlation")
    parser.add_argument("--smoke", action="store_true", help="a one-minute check on a little fresh data")
    return parser.parse_args(argv)


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for text in args.set:
        name, value = text.split("=", 1)
        changes[name] = value if name == "optimizer.kind" else json.loads(value)
    if args.minutes is not None:
        changes["run.minutes"] = args.minutes
    return changes


def _process(rank: int, world: int, meeting: str, args: argparse.Namespace, settings: Settings) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity") and world == os.cpu_count():
        os.sched_setaffinity(0, {rank})  # else both may end up on one core while other work runs
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    trainer = Trainer(
        settings,
        data=args.data,
        held_out=args.held_out,
        out=args.out,
        rank=rank,
        world=world,
        correlated=args.filter == "correlated",
        resume=args.resume,
        start_from=args.start_from,
    )
    if rank == 0:
        log.info(
            "%d frames, %d parameters",
            len(trainer.frames),
            sum(p.numel() for p in trainer.model.parameters()),
        )
    trainer.run()
    if world > 1:
        dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    args = _parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.smoke:
        from training.mini_vla.smoke import smoke

        smoke(args.out, settings_path=args.settings)
        return
    if not args.data:
        raise SystemExit(
            "got no training data; give --data FOLDER (made by training/mini_vla/data.py) or --smoke"
        )
    settings = read_settings(args.settings, changes=_changes(args))
    (args.out / "settings.json").write_text(json.dumps(settings.to_dict(), indent=1))
    world = settings.run.processes
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        if world == 1:
            _process(0, 1, meeting, args, settings)
        else:
            os.environ["OMP_NUM_THREADS"] = "1"
            torch.multiprocessing.spawn(_process, args=(world, meeting, args, settings), nprocs=world)


if __name__ == "__main__":
    main()
