"""Other trainers of nested dictionaries behind one face: step(x) trains, loss(x) tells the FVU on held-out tokens.

All read the same centred and scaled tokens, train where these lie, and follow the same step sizes. Two are written
here: `Dense`, our own mathematics by dense matrices and autograd, and `Bussmann`, the recipe of arXiv 2503.17547 (top-k
over the batch, equal weights, a level of the bias alone, revival on the last residual). The others come from their
packages, which import much that training does not use; what is missing is replaced by empty modules.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlascope.sae import MatryoshkaSAE, SAEConfig, SAETrainer, TrainConfig
from vlascope.sae.codes import Codes
from vlascope.sae.config import Activation

Schedule = Callable[[int], float]


class Ours:
    """vlascope."""

    def __init__(
        self, *, d: int, n: int, k: int, levels: tuple[int, ...], n_steps: int, batch: int, sample: Tensor, lr: float,
        precision: Literal["float32", "bfloat16"] = "float32", activation: Activation = "topk",
        weights: tuple[float, ...] = (),
    ) -> None:  # fmt: skip
        self.trainer = SAETrainer(
            SAEConfig(d_in=d, n_latents=n, k=k, levels=levels, level_weights=weights, activation=activation),
            TrainConfig(batch=batch, precision=precision, lr=lr, warmup=0.05, decay=0.2),
            n_steps=n_steps,
            sample_td=sample,
            device=sample.device,
        )

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)

    def codes(self, x: Tensor) -> Codes:
        return self.trainer.sae.encode(x)

    def fvu(self, x: Tensor) -> float:
        return fvu(x, self.trainer.sae.decode(self.codes(x)))

    def n_active(self, x: Tensor) -> float:
        return len(self.codes(x).cols) / len(x)

    def fired(self, x: Tensor) -> Tensor:
        return self.codes(x).cols.unique()


class OursAsPeers(Ours):
    """vlascope with what the peers do: top-k over the batch (in held-out batches too) and equal weights of levels."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape, activation="batchtopk", weights=(1.0,) * len(shape["levels"]))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Codes:
        sae = self.trainer.sae
        return sae._chosen(sae.normalize(x) - sae.b_dec, training=True, screen=None).active()


class Dense:
    """The same mathematics as ours without revival, by dense matrices and autograd."""

    def __init__(
        self,
        *,
        d: int,
        n: int,
        k: int,
        levels: tuple[int, ...],
        n_steps: int,
        batch: int,
        sample: Tensor,
        lr: float,
    ) -> None:
        self.sae = MatryoshkaSAE(SAEConfig(d_in=d, n_latents=n, k=k, levels=levels)).to(sample.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr)
        self.schedule, self.n = schedule(lr, n_steps), 0

    def codes(self, x: Tensor) -> Tensor:
        s = self.sae
        pre = F.relu((x - s.b_dec) @ s.encoder.T + s.b_enc)
        best = pre.topk(s.config.k, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, best.indices, best.values)

    def step(self, x: Tensor) -> None:
        s = self.sae
        z, out, low, loss = self.codes(x), s.b_dec, 0, x.new_zeros(())
        for level, weight in zip(s.levels, s.config.level_weights, strict=True):
            out = out + z[:, low:level] @ s.decoder[low:level]
            loss = loss + weight * (x - out).square().mean()
            low = level
        loss = loss + 1e-4 * z.sum() / (len(x) * s.config.d_in**0.5)
        self.optimizer.zero_grad()
        loss.backward()
        s.project_gradient()
        _set_lr(self.optimizer, self.schedule(self.n))
        self.optimizer.step()
        s.normalize_decoder()
        self.n += 1

    @torch.no_grad()
    def fvu(self, x: Tensor) -> float:
        return fvu(x, self.codes(x) @ self.sae.decoder + self.sae.b_dec)

    @torch.no_grad()
    def fired(self, x: Tensor) -> Tensor:
        return self.codes(x).any(0).nonzero()[:, 0]

    @torch.no_grad()
    def n_active(self, x: Tensor) -> float:
        return float((self.codes(x) > 0).sum() / len(x))


class Bussmann(Dense):
    """Top-k over the batch, equal weights for all levels and the bias, revival of latents silent for 5 batches."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self.silent = torch.zeros(shape["n"], device=shape["sample"].device)

    def codes(self, x: Tensor) -> Tensor:
        return self._codes(x)[0]

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = self.sae
        pre = F.relu((x - s.b_dec) @ s.encoder.T)
        best = pre.flatten().topk(s.config.k * len(x), dim=-1)
        return torch.zeros_like(pre.flatten()).scatter(-1, best.indices, best.values).view_as(pre), pre

    def step(self, x: Tensor) -> None:
        s = self.sae
        z, pre = self._codes(x)
        out = s.b_dec.expand_as(x)
        losses, low = [(x - out).square().mean()], 0
        for level in s.levels:
            out = z[:, low:level] @ s.decoder[low:level] + out
            losses.append((x - out).square().mean())
            low = level
        loss = torch.stack(losses).mean()
        self.silent += 1
        self.silent[z.sum(0) > 0] = 0
        dead = self.silent >= 5
        if dead.any():
            best = pre[:, dead].topk(min(s.config.d_in // 2, int(dead.sum())), dim=-1)
            aux = torch.zeros_like(pre[:, dead]).scatter(-1, best.indices, best.values)
            loss = loss + (aux @ s.decoder[dead] - (x - out)).square().mean() / 32
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(s.parameters(), 100_000)
        s.project_gradient()
        _set_lr(self.optimizer, self.schedule(self.n))
        self.optimizer.step()
        s.normalize_decoder()
        self.n += 1


class DictionaryLearning:
    """dictionary_learning's MatryoshkaBatchTopKTrainer."""

    def __init__(
        self,
        *,
        d: int,
        n: int,
        k: int,
        levels: tuple[int, ...],
        n_steps: int,
        batch: int,
        sample: Tensor,
        lr: float,
    ) -> None:
        module = peer_module("dictionary_learning.trainers.matryoshka_batch_top_k")
        sizes = [b - a for a, b in zip((0, *levels), levels, strict=False)]
        self.trainer = module.MatryoshkaBatchTopKTrainer(
            steps=n_steps, activation_dim=d, dict_size=n, k=k, layer=0, lm_name="none", lr=lr, seed=0,
            device=str(sample.device), group_fractions=[size / n for size in sizes], warmup_steps=max(1, n_steps // 20),
            decay_start=int(0.8 * n_steps), threshold_start_step=n_steps // 20,
        )  # fmt: skip
        self.n = 0

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.n, x)
        self.n += 1

    @torch.no_grad()
    def fvu(self, x: Tensor) -> float:
        ae = self.trainer.ae
        return fvu(x, ae.decode(ae.encode(x, use_threshold=False)))

    @torch.no_grad()
    def fired(self, x: Tensor) -> Tensor:
        return self.trainer.ae.encode(x, use_threshold=False).any(0).nonzero()[:, 0]

    @torch.no_grad()
    def n_active(self, x: Tensor) -> float:
        return float((self.trainer.ae.encode(x, use_threshold=False) > 0).sum() / len(x))


class SAELens:
    """SAELens' MatryoshkaBatchTopKTrainingSAE with its trainer's step: clipping to 1, Adam."""

    def __init__(
        self,
        *,
        d: int,
        n: int,
        k: int,
        levels: tuple[int, ...],
        n_steps: int,
        batch: int,
        sample: Tensor,
        lr: float,
    ) -> None:
        module = peer_module("sae_lens.saes.matryoshka_batchtopk_sae")
        self.base = peer_module("sae_lens.saes.sae")
        torch.manual_seed(0)  # noqa: TID251 (the peer knows no other)
        self.sae = module.MatryoshkaBatchTopKTrainingSAE(
            module.MatryoshkaBatchTopKTrainingSAEConfig(d_in=d, d_sae=n, k=k, matryoshka_widths=list(levels))
        ).to(sample.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr)
        self.schedule, self.n = schedule(lr, n_steps), 0
        self.silent = torch.zeros(n, device=sample.device)

    def _input(self, x: Tensor) -> Any:
        return self.base.TrainStepInput(
            sae_in=x,
            coefficients={},
            dead_neuron_mask=self.silent > 1000,
            n_training_steps=self.n,
            is_logging_step=False,
        )

    def step(self, x: Tensor) -> None:
        found = self.sae.training_forward_pass(self._input(x))
        self.silent += 1
        self.silent[(found.feature_acts.detach() > 0).any(0)] = 0
        self.optimizer.zero_grad()
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        _set_lr(self.optimizer, self.schedule(self.n))
        self.optimizer.step()
        self.n += 1

    @torch.no_grad()
    def fvu(self, x: Tensor) -> float:
        return fvu(x, self.sae.training_forward_pass(self._input(x)).sae_out)

    @torch.no_grad()
    def fired(self, x: Tensor) -> Tensor:
        return self.sae.training_forward_pass(self._input(x)).feature_acts.any(0).nonzero()[:, 0]

    @torch.no_grad()
    def n_active(self, x: Tensor) -> float:
        return float((self.sae.training_forward_pass(self._input(x)).feature_acts > 0).sum() / len(x))


class Overcomplete:
    """overcomplete's TopKSAE (one level: no nested dictionary) with its training loop's step, no revival."""

    def __init__(
        self,
        *,
        d: int,
        n: int,
        k: int,
        levels: tuple[int, ...],
        n_steps: int,
        batch: int,
        sample: Tensor,
        lr: float,
    ) -> None:
        module = peer_module("overcomplete.sae.topk_sae")
        torch.manual_seed(0)  # noqa: TID251 (the peer knows no other)
        self.sae = module.TopKSAE(d, n, top_k=k, device=str(sample.device))
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr)
        self.schedule, self.n = schedule(lr, n_steps), 0

    def step(self, x: Tensor) -> None:
        self.sae.train()
        self.optimizer.zero_grad()
        _, _, out = self.sae(x)
        (x - out).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        _set_lr(self.optimizer, self.schedule(self.n))
        self.optimizer.step()
        self.n += 1

    @torch.no_grad()
    def fvu(self, x: Tensor) -> float:
        return fvu(x, self.sae.eval()(x)[2])

    @torch.no_grad()
    def fired(self, x: Tensor) -> Tensor:
        return self.sae.eval()(x)[1].any(0).nonzero()[:, 0]

    @torch.no_grad()
    def n_active(self, x: Tensor) -> float:
        return float((self.sae.eval()(x)[1] > 0).sum() / len(x))


MATRYOSHKA = ("dictionary_learning", "sae_lens", "bussmann", "dense")
SYSTEMS: dict[str, type] = {
    "vlascope": Ours,
    "dense": Dense,
    "bussmann": Bussmann,
    "dictionary_learning": DictionaryLearning,
    "sae_lens": SAELens,
    "overcomplete": Overcomplete,
}
AS_PEERS = "vlascope as peers"
"""Among `SWEPT` only: the same trainer as "vlascope", so that the throughput of both is not asked twice."""
SWEPT: dict[str, type] = {
    "vlascope": Ours,
    AS_PEERS: OursAsPeers,
    **{name: SYSTEMS[name] for name in ("dictionary_learning", "sae_lens", "bussmann")},
}


def fvu(x: Tensor, out: Tensor) -> float:
    """Return the share of variance that is left."""
    return float((x - out).double().square().sum() / (x - x.mean(0)).double().square().sum())


def schedule(lr: float, n_steps: int) -> Schedule:
    """Return our trainer's step sizes: up over 5 %, down to zero over the last 20 %."""
    return lambda n: (
        lr * min(1.0, (n + 1) / max(1.0, 0.05 * n_steps)) * min(1.0, (n_steps - n) / (0.2 * n_steps))
    )


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


# ---- importing packages without what they need for other purposes ------------------------------------------------

UNUSED = (
    "nnsight", "pandas", "transformer_lens", "datasets", "wandb", "torchvision", "timm", "cv2", "skimage", "nltk",
    "babe", "plotly", "plotly_express", "simple_parsing", "huggingface_hub", "transformers", "zstandard", "httpx",
)  # fmt: skip


class _Empty(types.ModuleType):
    """A module that has every name: classes that do nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        base = nn.Identity if name == "HookPoint" else nn.Module
        value = type(name, (base,), {"setup": lambda self: None})
        setattr(self, name, value)
        return value


class _EmptyFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def peer_module(name: str) -> types.ModuleType:
    """Import one file of another package without running the `__init__` files above it.

    Raises:
        ImportError: the package is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    top = name.split(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package '{top}' is not installed")
    if not any(isinstance(finder, _EmptyFinder) for finder in sys.meta_path):
        missing = {n for n in UNUSED if n not in sys.modules and importlib.util.find_spec(n) is None}
        sys.meta_path.append(_EmptyFinder(missing))
    path = list(spec.submodule_search_locations)
    for depth in range(1, name.count(".") + 1):
        package = ".".join(name.split(".")[:depth])
        if depth > 1:
            path = [f"{p}/{package.split('.')[-1]}" for p in path]
        if package not in sys.modules:
            shell = types.ModuleType(package)
            shell.__path__ = path
            shell.__spec__ = importlib.machinery.ModuleSpec(package, None, is_package=True)
            shell.__spec__.submodule_search_locations = path
            shell.__version__, shell.logger = "unknown", logging.getLogger(package)  # type: ignore[attr-defined]
            sys.modules[package] = shell
    return importlib.import_module(name)
