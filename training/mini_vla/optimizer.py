"""AdamW, optionally with Muon for the matrices inside the blocks, and a learning rate that follows the clock."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from training.mini_vla.settings import OptimizerSettings

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def learning_rate_factor(share: float, update: int, settings: OptimizerSettings) -> float:
    """Factor on the learning rate: warm-up by updates, flat, then cosine by the share of the planned time."""
    warm = min(1.0, (update + 1) / settings.warmup_updates)
    past = (min(max(share, 0.0), 1.0) - settings.flat_until) / (1 - settings.flat_until)
    cosine = (
        1.0 if past <= 0 else settings.final + (1 - settings.final) * 0.5 * (1 + math.cos(math.pi * past))
    )
    return warm * cosine


@torch.no_grad()
def orthogonalise(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of the given ones; [n, rows, columns], bfloat16.

    Newton-Schulz iteration as in Muon (Jordan and others, 2024), over a stack of equal shapes at once.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Optimizer:
    """AdamW for everything, or Muon for matrices of the blocks and AdamW for the rest.

    Args:
        named: Parameters by name.
        settings: Learning rates, decay, clipping.
    """

    def __init__(self, named: dict[str, nn.Parameter], settings: OptimizerSettings) -> None:
        self.settings, self.named = settings, named
        in_block = {n for n, p in named.items() if p.ndim == 2 and ".layers." in n}
        self.muon_names = sorted(in_block) if settings.kind == "muon" else []
        if settings.kind not in ("adamw", "muon"):
            raise ValueError(f"got optimizer kind {settings.kind!r}; known are 'adamw' and 'muon'.")
        rest = {n: p for n, p in named.items() if n not in set(self.muon_names)}
        decayed = [p for n, p in rest.items() if p.ndim >= 2 and "embed" not in n]
        plain = [p for n, p in rest.items() if p.ndim < 2 or "embed" in n]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
        self.momentum = {n: torch.zeros_like(named[n]) for n in self.muon_names}
        self._stacks: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name in self.muon_names:
            self._stacks[tuple(named[name].shape)].append(name)

    def step(self, factor: float) -> None:
        """One update with the gradients that are in place; `factor` scales every learning rate."""
        for group in self.adam.param_groups:
            group["lr"] = self.settings.lr * factor
        self.adam.step()
        self._muon_step(self.settings.muon_lr * factor)

    @torch.no_grad()
    def _muon_step(self, lr: float) -> None:
        for shape, names in self._stacks.items():
            grads = [self.named[n].grad for n in names]
            moments = [self.momentum[n] for n in names]
            torch._foreach_lerp_(moments, grads, 0.05)
            looked_ahead = torch.stack(torch._foreach_lerp(grads, moments, 0.95))
            update = orthogonalise(looked_ahead).float() * (0.2 * math.sqrt(max(shape)))
            params = [self.named[n] for n in names]
            torch._foreach_mul_(params, 1 - lr * self.settings.weight_decay)
            torch._foreach_add_(params, list(update.unbind(0)), alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """All moments as named tensors (for safetensors)."""
        name_of = {id(p): n for n, p in self.named.items()}
        found = {f"muon.{n}": t for n, t in self.momentum.items()}
        for p, state in self.adam.state.items():
            for key, value in state.items():
                found[f"adam.{key}.{name_of[id(p)]}"] = torch.as_tensor(value)
        return found

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, tensor in tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "muon":
                self.momentum[rest].copy_(tensor)
            else:
                key, parameter = rest.split(".", 1)
                self.adam.state[self.named[parameter]][key] = tensor.clone()
