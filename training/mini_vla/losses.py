"""The training loss: action bins, answers, end of text, and three helpers that vanish with training.

The bins get a Gaussian soft target, because neighbouring bins are nearly the same action. The helpers (what is
in each patch, which patches the text means, the action as numbers) teach the network to read the picture: in
a trial without the pointer and the numbers, learning to follow the instruction took several times longer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.mini_vla.batches import Batch
from training.mini_vla.network import AuxiliaryHeads, encode_image, packed_forward
from training.mini_vla.settings import LossSettings
from training.mini_vla.vocabulary import EOS, N_BINS, VOCAB_SIZE


def soft_bins(values: Tensor, *, sigma: float) -> Tensor:
    """Gaussian weights over the 255 intervals of [-1, 1] around each value; float32 [n, 255], rows sum to 1."""
    place = (values + 1) / 2 * (N_BINS - 1)
    centres = torch.arange(N_BINS - 1) + 0.5
    weights = torch.exp(-((centres - place[:, None]) ** 2) / (2 * sigma**2))
    return weights / weights.sum(-1, keepdim=True)


def bin_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of the 255 intervals, lowest value first, from float32 logits [n, vocabulary]."""
    return logits.log_softmax(-1)[:, VOCAB_SIZE - (N_BINS - 1) :].flip(1)


def run_batch(model: Any, heads: AuxiliaryHeads, batch: Batch) -> dict[str, Tensor]:
    """Everything the loss and the validation read from one forward pass."""
    features = encode_image(model, batch.pixels, batch.keep)
    states, image_states = packed_forward(
        model, features, batch.ids, batch.positions, batch.segments, batch.keep
    )
    flat = states.reshape(-1, states.shape[-1])
    rows = torch.cat([batch.bin_rows, batch.answer_rows, batch.end_rows])
    logits = model.lm_head(flat[rows]).float()
    bins, answers, ends = logits.split([len(batch.bin_rows), len(batch.answer_rows), len(batch.end_rows)])
    keys = heads.key(image_states)
    queries = heads.query(flat[batch.point_rows])
    pointer = torch.einsum("npd,nd->np", keys[batch.point_images], queries).float() * keys.shape[-1] ** -0.5
    return {
        "bins": bins,
        "answers": answers,
        "ends": ends,
        "pointer": pointer,
        "delta": heads.delta(flat[batch.delta_rows]).float(),
        "classes": heads.patch_class(features).float(),
    }


def total_loss(
    out: dict[str, Tensor], batch: Batch, settings: LossSettings
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum and its unweighted parts."""
    weight = torch.tensor(settings.class_weight) * batch.classes
    target = soft_bins(batch.bin_values, sigma=settings.bin_sigma)
    per_bin = -(target * bin_log_probs(out["bins"])).sum(-1)
    parts = {
        "bins": (batch.bin_weights * per_bin).sum() / batch.bin_weights.sum(),
        "answer": F.cross_entropy(out["answers"], batch.answer_ids),
        "end": F.cross_entropy(out["ends"], torch.full_like(batch.end_rows, EOS)),
        "patch_class": -(weight * out["classes"].log_softmax(-1)).sum() / weight.sum(),
        "pointer": -(batch.point_shares * out["pointer"].log_softmax(-1)).sum(-1).mean(),
        "delta": F.smooth_l1_loss(out["delta"], batch.delta_values, beta=settings.delta_beta),
    }
    factor = {
        "bins": 1.0,
        "answer": settings.answer,
        "end": settings.end,
        "patch_class": settings.patch_class,
        "pointer": settings.pointer,
        "delta": settings.delta,
    }
    total = torch.stack([factor[name] * part for name, part in parts.items()]).sum()
    return total, {name: float(part.detach()) for name, part in parts.items()}
