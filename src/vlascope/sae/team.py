"""Workers that train one dictionary together: each has a share of every batch, and gradients are added up.

Every worker keeps the whole state (weights, Adam, which latents have been silent) and takes the same step, so that the
state of any of them is the state of all: the workers of a team and a single process with the same batches differ by
rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """The workers of one training; one alone by default.

    Attributes:
        rank: Number of this worker, 0 for the one that evaluates and saves.
        size: Workers.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Team:
        """Return the team of this process's default group of `torch.distributed`."""
        import torch.distributed as dist

        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this worker evaluates and saves."""
        return self.rank == 0

    def share(self, rows: Any) -> Any:
        """Return this worker's rows of a batch: every `size`-th, so that the first rows are shared out as well."""
        return rows[self.rank :: self.size] if self.size > 1 else rows

    def part(self, n_rows: int) -> int:
        """Return how many of a batch's first rows are among this worker's; at least one."""
        return max(1, -(-(n_rows - self.rank) // self.size))

    @torch.no_grad()
    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over workers, the same bits for all of them, without gradient."""
        if self.size == 1:
            return value.detach()
        import torch.distributed as dist

        out = value.detach().clone()
        dist.all_reduce(out)
        return out

    @torch.no_grad()
    def add_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Put the sum over workers in place of each gradient."""
        if self.size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        total = self.sum(torch.cat([g.reshape(-1) for g in grads]))
        for p, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def agree(self, flag: bool, *, device: torch.device) -> bool:
        """Return the first worker's answer."""
        return bool(self.sum(torch.tensor(float(flag and self.is_first), device=device)))


ALONE = Team()
