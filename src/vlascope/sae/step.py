"""One training step after another, on batches from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .config import SAEConfig, TrainConfig
from .module import MatryoshkaSAE
from .team import ALONE, Team

BIAS_LEAK = 0.9
"""Share of a negative bias that a dead latent keeps at each step."""


def check_team(config: SAEConfig) -> None:
    """Refuse what workers that each see a share of the batch cannot train as one process would.

    Raises:
        InputError: an activation that is chosen over the whole batch.
    """
    if config.activation != "topk":
        raise InputError(
            f"got activation '{config.activation}' and several workers: it is set by the whole batch, of which a "
            "worker sees a share only. Use topk, or the engine 'local'."
        )


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: Number of the step, from 1 on.
        loss: The loss that was minimised.
        level_fvu: Share of variance that each level leaves unexplained, on this batch.
        l0: Active latents per token.
        n_dead: Latents that count as dead.
    """

    step: int
    loss: float
    level_fvu: tuple[float, ...]
    l0: float
    n_dead: int


class SAETrainer:
    """Trains one dictionary: `step(x)` on raw tokens, `state()` and `load_state()` for an exact continuation.

    Args of the constructor:
        config: Shape of the dictionary.
        train: Settings.
        n_steps: Steps in all (the step size follows it).
        sample_td: Raw tokens, a few thousand or more, from which centring, scale and first directions are taken.
        device: Where to train.
        team: Workers that train together; each gives `step` its share of the batch.

    Raises:
        InputError: the sample is empty, constant, or not finite; or a team for an activation that is chosen over the
            whole batch.
    """

    def __init__(
        self,
        config: SAEConfig,
        train: TrainConfig,
        *,
        n_steps: int,
        sample_td: Tensor,
        device: str | torch.device = "cpu",
        team: Team = ALONE,
    ) -> None:
        self.config, self.train, self.n_steps, self.team = config, train, max(1, n_steps), team
        if team.size > 1:
            check_team(config)
        self.device = torch.device(device)
        self.sae = MatryoshkaSAE(config, seed=train.seed).to(self.device)
        self.n_done = 0
        self.since_fired = torch.zeros(config.n_latents, dtype=torch.int64, device=self.device)
        precision = train.precision
        if precision == "auto":
            precision = "bfloat16" if self.device.type == "cuda" else "float32"
        self._screen = torch.bfloat16 if precision == "bfloat16" else None
        self._start(sample_td.to(self.device, torch.float32))
        self.lr = train.lr or 6e-4 / (config.n_latents / 2**14) ** 0.5
        self._optimizer = torch.optim.Adam(
            [p for p in self.sae.parameters() if p.requires_grad], lr=self.lr, fused=True
        )

    @torch.no_grad()
    def _start(self, sample: Tensor) -> None:
        sae = self.sae
        if sample.ndim != 2 or sample.shape[1] != self.config.d_in or len(sample) < 2:
            raise InputError(
                f"got a sample of shape {tuple(sample.shape)}; need at least 2 tokens of {self.config.d_in} channels."
            )
        if not torch.isfinite(sample).all():
            raise InputError(
                "the tokens hold NaN or infinite values; capture them again, or leave those rows out."
            )
        sae.mean.copy_(sample.double().mean(0).float())
        centred = sample - sae.mean
        variance = float(centred.double().square().mean())
        if variance <= 1e-12 * max(float(sample.double().square().mean()), 1e-30):
            raise InputError("all tokens are the same; there is nothing to decompose.")
        sae.scale.fill_(variance**0.5)
        centred = centred / sae.scale
        draw = torch.Generator().manual_seed(self.train.seed)
        if self.train.init == "data":
            n = self.config.n_latents
            order = torch.randperm(len(centred), generator=draw)[:n].to(self.device)
            rows = F.normalize(centred[order], dim=1)
            # Half data, half chance: directions that start where tokens are, but not all in the same few.
            sae.decoder[: len(rows)] = F.normalize(rows + sae.decoder[: len(rows)], dim=1)
            sae.encoder.copy_(sae.decoder)
        if self.config.activation == "jumprelu":
            some = centred[: min(len(centred), 4096)]
            pre = some @ sae.encoder.t()
            n_above = min(len(some) * self.config.k, pre.numel())
            sae.threshold.fill_(float(pre.flatten().topk(n_above).values[-1].clamp_min(1e-3)))

    @property
    def dead(self) -> Tensor:
        """Latents that have been silent for longer than the settings allow, int64."""
        limit = max(self.train.dead_share * self.n_steps, 4) * self.train.batch
        return (self.since_fired >= limit).nonzero()[:, 0]

    def _step_size(self) -> float:
        done, t = self.n_done + 1, self.train
        up = min(1.0, done / max(1.0, t.warmup * self.n_steps))
        down = min(1.0, (self.n_steps - self.n_done) / max(1.0, t.decay * self.n_steps)) if t.decay else 1.0
        return self.lr * up * down

    def step(self, x_td: Tensor) -> StepReport:
        """Train on one batch of raw tokens [b, d_in], or on this worker's share of it.

        Raises:
            InputError: wrong width, or NaN; the weights are then as they were before.
        """
        sae, train, team = self.sae, self.train, self.team
        u = sae.normalize(x_td.to(self.device))
        levels, weights = self._levels()
        dead = self.dead
        n_all = len(u) if team.size == 1 else int(team.sum(torch.tensor(len(u), device=self.device)))
        weight = len(u) / n_all
        n_aux = team.part(int(n_all * train.aux_share)) if train.aux and len(dead) and levels is None else 0
        found = sae.losses(
            u,
            levels=levels,
            weights=weights,
            l1=train.l1,
            jump_width=train.jump_width,
            jump_weight=train.jump_weight,
            screen=self._screen,
            n_keep=n_aux,
        )
        total = found.total * weight
        if n_aux:
            total = total + train.aux * sae.aux_loss(
                found, u[:n_aux], dead=dead, k=2 * self.config.k, whole=team.sum
            )
        told = team.sum(
            torch.cat([total.detach()[None], found.level_fvu * weight, total.new_tensor([found.l0 * weight])])
        )
        loss = float(told[0])
        if not np.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {self.n_done + 1}: the tokens hold NaN or infinite values, or the step "
                "size is too large. The weights are as they were before this step."
            )
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        params = [p for p in sae.parameters() if p.requires_grad]
        team.add_gradients(params)
        sae.project_gradient()
        _to_unit_norm([p.grad for p in params if p.grad is not None])
        for group in self._optimizer.param_groups:
            group["lr"] = self._step_size()
        self._optimizer.step()
        sae.normalize_decoder()
        if n_aux:
            # A latent whose bias keeps it below zero everywhere gets no gradient: its bias is let go bit by bit.
            sae.b_enc.data[dead] = torch.where(
                sae.b_enc.data[dead] < 0, sae.b_enc.data[dead] * BIAS_LEAK, sae.b_enc.data[dead]
            )
        if self.config.activation == "jumprelu":
            sae.threshold.data.clamp_(min=0)
        fired = torch.zeros_like(self.since_fired)
        fired[found.codes.cols[found.codes.vals > 0]] = 1
        self.since_fired += n_all
        self.since_fired[team.sum(fired) > 0] = 0
        self.n_done += 1
        return StepReport(self.n_done, loss, tuple(told[1:-1].tolist()), float(told[-1]), len(dead))

    def _levels(self) -> tuple[Tensor | None, tuple[float, ...] | None]:
        n_random = self.config.random_prefixes
        if not n_random:
            return None, None
        # A function of seed and step only, so that a continued run draws the same.
        rng = np.random.default_rng([self.train.seed, 17, self.n_done])
        n = self.config.n_latents
        widths = np.unique(np.append(np.floor(n ** rng.random(n_random - 1)).astype(np.int64), n))
        return torch.from_numpy(widths).to(self.device), (1 / len(widths),) * len(widths)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next step depends on, as tensors by name.

        On CPUs these are views: the next step changes them.
        """
        out = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                out[f"adam.{name}.{key}"] = value
        out["since_fired"] = self.since_fired
        out["n_done"] = torch.tensor(self.n_done)
        return {name: value.detach().cpu().contiguous() for name, value in out.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self.sae.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("sae.")})
        for name, parameter in self.sae.named_parameters():
            start = f"adam.{name}."
            found: dict[str, Any] = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
            if found:
                self._optimizer.state[parameter] = {
                    k: v.clone() if k == "step" else v.to(self.device).clone() for k, v in found.items()
                }
        self.since_fired = state["since_fired"].to(self.device).clone()
        self.n_done = int(state["n_done"])


@torch.no_grad()
def _to_unit_norm(gradients: list[Tensor]) -> None:
    """Scale gradients, in place, so that all of them together have norm one.

    Adam divides by a mean over the last thousand squares. Those of the first steps are so much larger that without
    this they hold back all the others of a short training: 400 steps on a robot model's patches then leave a third
    more of the variance.
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    for gradient in gradients:
        gradient.div_(norm.clamp_min(1e-30))
