"""Finding the parts of a model: by lists of candidate paths, so that renamed modules keep working."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import ModelNotFoundError
from .sites import Site

LEAVES: Mapping[str, tuple[str, ...]] = {
    "q": (
        "self_attn.q_proj",
        "attention.q_proj",
        "attention.attention.query",
        "attn.q_proj",
        "attention.query",
    ),
    "k": ("self_attn.k_proj", "attention.k_proj", "attention.attention.key", "attn.k_proj", "attention.key"),
    "v": (
        "self_attn.v_proj",
        "attention.v_proj",
        "attention.attention.value",
        "attn.v_proj",
        "attention.value",
    ),
    "attn": (
        "self_attn.out_proj",
        "self_attn.o_proj",
        "attention.o_proj",
        "attention.output.dense",
        "attn.proj",
        "attn.out_proj",
        "attn.c_proj",
        "attention.proj",
    ),
    "mlp": ("mlp", "feed_forward", "ffn"),
}
"""Paths inside a block, per tensor. Leaves are hooked because some models never call the parents."""

FUSED_QKV = ("attn.qkv", "self_attn.qkv", "self_attn.qkv_proj", "attention.qkv", "attn.c_attn")
MIXED_QKV = ("attention.query_key_value",)
"""Fused projections of GPT-NeoX: q, k and v of one head, then those of the next."""


def has(module: nn.Module, path: str) -> bool:
    """Return whether `module` has a sub-module at the dotted `path`."""
    for part in path.split("."):
        if not isinstance(module, nn.Module) or not hasattr(module, part):
            return False
        module = getattr(module, part)
    return isinstance(module, nn.Module)


def first_path(module: nn.Module, candidates: Sequence[str], *, needed_for: str) -> str:
    """Return the first of `candidates` that exists in `module`.

    Raises:
        ModelNotFoundError: none does; the message lists what was looked for.
    """
    for path in candidates:
        if has(module, path):
            return path
    raise ModelNotFoundError(
        f"{type(module).__name__} has no {needed_for}: none of {', '.join(candidates)} is there. Its parts are "
        f"{', '.join(name for name, _ in module.named_children())}. Use vlascope.wrap(module, sites=..., "
        "layout=...) to name its sites yourself."
    )


def block_sites(
    module: nn.Module,
    *,
    blocks: str,
    name: str,
    layout: str,
    width: int,
    leaves: Mapping[str, tuple[str, ...]] = LEAVES,
    head_widths: tuple[int, int, int] | None = None,
) -> list[Site]:
    """Return the sites of a stack of blocks: the residual stream after each and whichever leaves exist.

    Args:
        module: The model.
        blocks: Path of the list of blocks.
        name: First part of the sites' names, such as "vision".
        layout: Name of the token layout.
        width: Width of the residual stream.
        leaves: Candidate paths inside a block per tensor.
        head_widths: Widths of q, k, v in a fused projection; by default what the attention module says of its
            heads, else equal.
    """
    sites = []
    for index, block in enumerate(_children(module, blocks)):
        base, path = f"{name}.{index}", f"{blocks}.{index}"
        sites.append(Site(name=base, module_path=path, layout=layout, width=width))
        fused = next((leaf for leaf in (*FUSED_QKV, *MIXED_QKV) if has(block, leaf)), None)
        for tensor, candidates in leaves.items():
            leaf = next((leaf for leaf in candidates if has(block, leaf)), None)
            channels, mixed_heads = None, 0
            if leaf is None and tensor in "qkv" and fused is not None:
                leaf = fused
                whole = module_width(block.get_submodule(fused))
                if fused in MIXED_QKV:
                    mixed_heads = _mixed_heads(attention_of(block, fused), whole)
                    if not mixed_heads:
                        continue
                widths = head_widths or fused_widths(attention_of(block, fused), whole)
                channels = split_qkv(whole, tensor, widths=widths)
            if leaf is None:
                continue
            leaf_width = module_width(block.get_submodule(leaf)) or width
            site_width = channels[1] - channels[0] if channels else leaf_width
            dim = head_dim(attention_of(block, leaf)) if tensor in "qkv" else 0
            sites.append(
                Site(
                    name=f"{base}.{tensor}",
                    module_path=f"{path}.{leaf}",
                    layout=layout,
                    tensor=tensor,
                    width=site_width,
                    channels=channels,
                    mixed_heads=mixed_heads,
                    n_heads=site_width // dim if dim and site_width % dim == 0 else 0,
                )
            )
    return sites


def attention_of(block: nn.Module, leaf: str) -> nn.Module:
    """Return the attention module that owns the projection at the dotted path `leaf` inside `block`."""
    return block.get_submodule(leaf.rpartition(".")[0])


def head_dim(attention: nn.Module) -> int:
    """Return the width of one attention head where the module (or its configuration) tells, else 0."""
    for name in ("head_dim", "attention_head_size", "head_size", "dim_head"):
        if isinstance(value := getattr(attention, name, None), int):
            return value
    n_heads = _number(attention, ("num_heads", "num_attention_heads", "n_heads", "n_head"))
    for leaf in ("q_proj", "query", "qkv", "c_attn"):
        if n_heads and isinstance(part := getattr(attention, leaf, None), nn.Module):
            width = module_width(part) // (3 if leaf in ("qkv", "c_attn") else 1)
            return width // n_heads if width % n_heads == 0 else 0
    return 0


def fused_widths(attention: nn.Module, width: int) -> tuple[int, int, int] | None:
    """Return the widths of q, k and v in a fused projection of grouped heads; None when they are equal."""
    dim, n_heads = head_dim(attention), _number(attention, ("num_heads", "num_attention_heads", "n_heads"))
    if not dim or not n_heads or width == 3 * n_heads * dim or (width - n_heads * dim) % 2:
        return None
    keys = (width - n_heads * dim) // 2
    return (n_heads * dim, keys, keys) if keys > 0 and keys % dim == 0 else None


def _mixed_heads(attention: nn.Module, width: int) -> int:
    """Return the heads of a fused projection of whole heads; 0 where they are not known, so that nobody guesses."""
    dim = head_dim(attention)
    return width // (3 * dim) if dim and width % (3 * dim) == 0 else 0


def _number(module: nn.Module, names: Sequence[str]) -> int:
    """Return the first of these attributes of the module, or of its configuration, that is a number; else 0."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(holder, name, None), int):
                return value
    return 0


def split_qkv(width: int, tensor: str, *, widths: tuple[int, int, int] | None = None) -> tuple[int, int]:
    """Return the channels (first, past the last) of "q", "k" or "v" in a fused projection of that width.

    `widths` are those of q, k and v where keys and values are narrower (grouped heads).
    """
    q, k, v = widths or (width // 3,) * 3
    if q + k + v != width:
        raise ModelNotFoundError(
            f"a fused projection of width {width} cannot be split into q, k, v of widths {q}, {k}, {v}."
        )
    return {"q": (0, q), "k": (q, q + k), "v": (q + k, width)}[tensor]


def module_width(module: nn.Module) -> int:
    """Return the width of a module's output where its parameters tell, else 0."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return module.out_channels
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer
        return int(module.nf)  # type: ignore[arg-type]
    return 0


def pair(value: Any) -> tuple[int, int]:
    """Return (rows, cols) of a size that is given as one number or as two."""
    a, b = (value, value) if isinstance(value, int) else value
    return int(a), int(b)


def _children(module: nn.Module, path: str) -> list[nn.Module]:
    return list(module.get_submodule(path).children())
