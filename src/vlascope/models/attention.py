"""Attention weights: who looked at whom, per head, as the model computed it or worked out again from q and k.

Fast kernels never hold the weights. So one pass is run with the model's own plain ("eager") attention, and what that
computes is copied: masks, rotary positions, grouped heads, soft caps and windows are then the model's business. For
modules that have no such path, and to check it, `weights_from` works them out from captured queries and keys.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .batch import Batch, Rows
from .hooks import read_at
from .sites import Site

if TYPE_CHECKING:
    from .model import Model

METHODS = ("auto", "model", "recompute")


def weights_from(
    q: Tensor,
    k: Tensor,
    *,
    n_heads: int,
    n_kv_heads: int | None = None,
    scale: float | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return the attention weights that follow from queries and keys.

    Args:
        q: Queries [..., t, n_heads * head_dim], as the site `.q` holds them (before rotation).
        k: Keys [..., t_k, n_kv_heads * head_dim].
        n_heads: Heads of q.
        n_kv_heads: Heads of k; `n_heads` when left out. Must divide it: each key head serves a group of query heads.
        scale: Factor on the products; 1 / sqrt(head_dim) when left out.
        rope: Cosines and sines [..., t, r] of rotary positions (both halves filled, as transformers makes them),
            applied to the first r channels of each head; None for no rotation.
        mask: bool, broadcast to [..., n_heads, t, t_k], True where a query may look; None for everywhere.
        softcap: c in c * tanh(products / c); None for none.

    Returns:
        float32 [..., n_heads, t, t_k]; rows sum to 1.

    Raises:
        InputError: widths that heads do not divide.

    Cost: O(t * t_k * width).
    """
    n_kv_heads = n_kv_heads or n_heads
    if q.shape[-1] % n_heads or n_heads % n_kv_heads or k.shape[-1] * n_heads != q.shape[-1] * n_kv_heads:
        raise InputError(
            f"queries of width {q.shape[-1]} in {n_heads} heads and keys of width {k.shape[-1]} in {n_kv_heads} "
            "heads do not fit; need one head width for both, and key heads that divide the query heads."
        )
    q = q.float().unflatten(-1, (n_heads, -1)).transpose(-2, -3)
    k = k.float().unflatten(-1, (n_kv_heads, -1)).transpose(-2, -3)
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    k = k.repeat_interleave(n_heads // n_kv_heads, dim=-3)
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads [..., h, t, d] turned by rotary positions; cos and sin are [..., t, r], r <= d."""
    cos, sin = cos.float().unsqueeze(-3), sin.float().unsqueeze(-3)
    part, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    low, high = part.chunk(2, dim=-1)
    return torch.cat([part * cos + torch.cat([-high, low], dim=-1) * sin, rest], dim=-1)


def read(model: Model, batch: Batch, *, site: str, method: str = "auto") -> list[Tensor]:
    """Return the attention weights of a block; see `Model.attention`."""
    if method not in METHODS:
        raise InputError(f"got method '{method}'; need one of {', '.join(METHODS)}.")
    q_site = query_site(model, site)
    if method == "auto" and (own := model._family.attention(batch, site=q_site)) is not None:
        return own
    path = q_site.module_path.rpartition(".")[0]
    if method in ("auto", "model"):
        with recording(model.module, [path]) as calls:
            model._run(batch, [q_site])
        if calls[path]:
            return _per_item(calls[path], q_site, batch)
        if method == "model":
            raise InputError(
                f"{type(model.module.get_submodule(path)).__name__} (site '{q_site.name}') never hands out its "
                "attention weights; try method='recompute'."
            )
    return _recomputed(model, batch, q_site)


def query_site(model: Model, site: str) -> Site:
    """Return the site of the queries of the block that `site` ("language.4", "language.4.weights") belongs to.

    Raises:
        SiteNotFoundError: no such site.
        InputError: it names several blocks, or none that has queries.
    """
    base = site.removesuffix(".weights")
    found = model.resolve(base)
    if len(found) != 1:
        raise InputError(
            f"'{site}' names {len(found)} sites; attention weights are read one block at a time."
        )
    names = {other.name: other for other in model.sites}
    name, _, step = found[0].name.partition("@")
    while name:
        if f"{name}.q" in names:
            return model.resolve(f"{name}.q@{step}")[0] if step else names[f"{name}.q"]
        name = name.rpartition(".")[0]
    blocks = [other[:-2] for other in names if other.endswith(".q")]
    raise InputError(
        f"'{site}' has no attention weights: it has no queries. "
        + (f"Blocks that have: {blocks[0]} .. {blocks[-1]}." if blocks else "No site of this model has.")
    )


@contextlib.contextmanager
def recording(module: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the weights [b, heads, t, t_k] of each call of these attention modules inside the `with` block.

    The whole model computes with eager attention meanwhile, and with its own choice again afterwards.
    """
    modules = {path: module.get_submodule(path) for path in paths}
    path_of = {id(attention): path for path, attention in modules.items()}
    calls: dict[str, list[Tensor]] = {path: [] for path in paths}
    outputs: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str, weights: Any, into: dict[str, list[Tensor]]) -> None:
        if isinstance(weights, Tensor) and weights.ndim == 4:
            into[path].append(weights.detach().clone())

    def wrapped(original: Any) -> Any:
        def eager(attention: Any, *args: Any, **more: Any) -> Any:
            out = original(attention, *args, **more)
            if id(attention) in path_of:
                keep(path_of[id(attention)], out[1], calls)
            return out

        return eager

    with contextlib.ExitStack() as stack:
        stack.enter_context(eager_attention(module))
        for scope in {id(s): s for s in map(_scope, modules.values()) if s is not None}.values():
            original = scope[_EAGER]
            scope[_EAGER] = wrapped(original)
            stack.callback(scope.__setitem__, _EAGER, original)
        for path, attention in modules.items():
            # Classes that compute the weights in their own `forward` return them second.
            def second(_module: nn.Module, _args: Any, out: Any, path: str = path) -> None:
                if isinstance(out, tuple) and len(out) > 1:
                    keep(path, out[1], outputs)

            handle = attention.register_forward_hook(second)
            stack.callback(handle.remove)
        yield calls
    for path in paths:
        calls[path] = calls[path] or outputs[path]


_EAGER = "eager_attention_forward"


def _scope(attention: nn.Module) -> dict[str, Any] | None:
    """Return the globals of the class's `forward`, where transformers keeps the function for eager attention."""
    scope = getattr(type(attention).forward, "__globals__", {})
    return scope if callable(scope.get(_EAGER)) else None


@contextlib.contextmanager
def eager_attention(module: nn.Module) -> Iterator[None]:
    """Let all parts of a transformers model compute with eager attention."""
    configs = {id(c): c for m in module.modules() if (c := getattr(m, "config", None)) is not None}
    key = "_attn_implementation_internal"  # the public property would also overwrite the sub-configurations
    before = [(config, config.__dict__[key]) for config in configs.values() if key in vars(config)]
    try:
        for config, _ in before:
            setattr(config, key, "eager")
        yield
    finally:
        for config, value in before:
            setattr(config, key, value)


def _per_item(calls: list[Tensor], site: Site, batch: Batch) -> list[Tensor]:
    """Return [heads, t, t_k] per item of what an attention module's calls gave, without padding."""
    places = batch.rows[site.layout]
    if site.packing is not None:
        return _unpacked(calls, site, places)
    if site.windows is not None:
        raise InputError(
            f"'{site.name}' attends within windows; its weights are not one matrix per image. Choose a block with "
            "global attention."
        )
    if site.repeats == "steps":
        calls = [calls[site.n_calls - 1 if site.call is None else site.call]]
    whole = calls[0] if len(calls) == 1 else torch.cat(calls)
    n_rows = 1 + max(place[0] for item in places for place in item)
    n_wanted = batch.lengths.get(site.layout, max(place[2] for item in places for place in item))
    if whole.shape[0] != n_rows or whole.shape[2] != n_wanted:
        raise InputError(
            f"the attention of '{site.name}' is {tuple(whole.shape)}; its layout '{site.layout}' has {n_rows} rows "
            f"of {n_wanted} tokens, so that vlascope cannot tell which weights are whose."
        )
    square = whole.shape[2] == whole.shape[3]
    out = []
    for item in places:
        blocks = [whole[r, :, a:b, a:b] if square else whole[r, :, a:b] for r, a, b in item]
        if not square and len(blocks) > 1:
            raise InputError(
                f"'{site.name}' attends to other tokens than its own; give items with one image."
            )
        out.append(blocks[0] if len(blocks) == 1 else block_diagonal(blocks))
    return out


def _unpacked(calls: list[Tensor], site: Site, places: Sequence[Rows]) -> list[Tensor]:
    """Return the weights of images that were packed into one row, each attending within its chunks."""
    # One block per row of each call: a tile, an image, or a window of one.
    whole = block_diagonal([row for call in calls for row in call])
    index = torch.arange(whole.shape[-1], device=whole.device)[:, None]
    order = read_at(index, site)[..., 0]  # [b, t]: where the module keeps each token of the layout
    out = []
    for item in places:
        chosen = torch.cat([order[row, first:last] for row, first, last in item])
        out.append(whole[:, chosen][:, :, chosen])
    return out


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Return [h, sum t, sum t] with blocks [h, t, t] on the diagonal and 0 elsewhere: nobody looks across."""
    sizes = [block.shape[-1] for block in blocks]
    out = blocks[0].new_zeros(blocks[0].shape[0], sum(sizes), sum(sizes))
    start = 0
    for block, size in zip(blocks, sizes, strict=True):
        out[:, start : start + size, start : start + size] = block
        start += size
    return out


def _recomputed(model: Model, batch: Batch, q_site: Site) -> list[Tensor]:
    """Return the weights from q and k, with the masks and positions that the attention module was given."""
    path = q_site.module_path.rpartition(".")[0]
    attention: Any = model.module.get_submodule(path)
    k_site = next((s for s in model.sites if s.name == f"{q_site.name.partition('@')[0][:-1]}k"), None)
    problem = next((name for name in _NOT_RECOMPUTED if getattr(attention, name, None) is not None), None)
    problem = problem or _unknown_norm(attention)
    if k_site is None or not q_site.n_heads or not k_site.n_heads:
        problem = "its heads or keys are not known"
    is_flat = q_site.packing is not None and q_site.packing.is_flat
    if q_site.windows is not None or is_flat or q_site.repeats != "no":
        problem = "its tokens are folded, or computed in several calls"
    if problem is not None or k_site is None:
        raise InputError(
            f"vlascope cannot work out the attention weights of '{q_site.name}' from q and k ({problem}), and "
            f"{type(attention).__name__} does not hand them out."
        )
    given: dict[str, Any] = {}
    n_seen = 0

    def look(_module: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        nonlocal n_seen
        n_seen += 1
        given.update(_arguments(attention, args, more))

    handle = attention.register_forward_pre_hook(look, with_kwargs=True)
    try:
        # Eager, because only then a mask is spelt out as a tensor.
        # In rows as the module has them, tiles of one image apart.
        rows = [replace(site, packing=None) for site in (q_site, k_site)]
        with eager_attention(model.module), model._hooks.reading(rows) as calls:
            model._run(batch, [q_site, k_site])
    finally:
        handle.remove()
    if not n_seen:
        raise InputError(
            f"the model never calls '{path}' itself, only parts of it, so that masks and positions are not known: "
            f"vlascope cannot work out the attention weights of '{q_site.name}'."
        )
    if given.get("position_embeddings") is None and (turns := _own_positions(attention, given)):
        raise InputError(
            f"{type(attention).__name__} puts positions into q and k in a way of its own ({turns}); read the "
            "attention weights with method='model'."
        )
    (q,), (k,) = calls[q_site.name], calls[k_site.name]
    with torch.no_grad():
        try:
            q, k = _heads(q, q_site, attention), _heads(k, k_site, attention)
            if (positions := given.get("position_embeddings")) is not None:
                q, k = _turned(q, k, positions, attention, q_site)
        except RuntimeError as error:
            raise InputError(
                f"{type(attention).__name__} prepares q and k in a way of its own; read the attention weights of "
                f"'{q_site.name}' with method='model'. ({str(error).splitlines()[0][:120]})"
            ) from error
        whole = weights_from(
            q.transpose(1, 2).flatten(2),
            k.transpose(1, 2).flatten(2),
            n_heads=q_site.n_heads,
            n_kv_heads=k_site.n_heads,
            scale=_scale(attention),
            mask=_mask(given, attention, q.shape[2], q.device),
            softcap=getattr(attention, "attn_logit_softcapping", None),
        )
    return _per_item([whole], q_site, batch)


_NORMS = ("norm", "layernorm")  # after "q_" and "k_"
# What is not in q and k: attention sinks, positions relative to one another.
_NOT_RECOMPUTED = ("sinks", "rel_pos_h", "relative_position_bias_table", "relative_position_bias")


def _own_positions(attention: nn.Module, given: Mapping[str, Any]) -> str:
    """Return what says that an attention module rotates q and k by itself; "" when nothing does."""
    names = {*dir(type(attention)), *vars(attention), *attention._modules, *attention._buffers} - set(
        dir(nn.Module)
    )
    names |= {name for name, value in given.items() if value is not None}
    return next((name for name in sorted(names) if re.search(r"rotat|rotary|rope(?!r)", name)), "")


def _arguments(attention: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> dict[str, Any]:
    """Return by name what a module's forward is called with."""
    try:
        bound = inspect.signature(type(attention).forward).bind(attention, *args, **more).arguments
    except TypeError:  # the module itself is about to say what is wrong with its arguments
        return {}
    return {**bound, **bound.get("kwargs", {})}


def _heads(x: Tensor, site: Site, attention: nn.Module) -> Tensor:
    """Return [b, heads, t, d] of q or k, with what some models do to them before the product.

    That is a norm of single heads (Qwen 3, Phi) or of the whole width (OLMo 2), and clipping (OLMo).
    """
    names = [f"{site.tensor}_{name}" for name in _NORMS]
    norm = next((m for name in names if isinstance(m := getattr(attention, name, None), nn.Module)), None)
    shape = getattr(getattr(norm, "weight", None), "shape", None)
    if norm is not None and shape == (site.width,) and site.n_heads > 1:
        x, norm = norm(x), None
    if (limit := getattr(getattr(attention, "config", None), "clip_qkv", None)) is not None:
        x = x.clamp(min=-limit, max=limit)
    heads = x.unflatten(-1, (site.n_heads, site.head_dim))
    if norm is None:
        return heads.transpose(1, 2)
    if shape is None:  # StableLM: a module that holds one norm per head, and finds the heads along axis 1
        return norm(heads.transpose(1, 2))
    return norm(heads).transpose(1, 2)


def _unknown_norm(attention: nn.Module) -> str | None:
    """Return the name of a norm that may change q or k in a way that is not known here; None when there is none.

    "norm" alone comes after the product (timm).
    """
    known = {"norm", *(f"{tensor}_{name}" for tensor in "qkv" for name in _NORMS)}
    children = attention.named_children()
    return next(
        (n for n, m in children if "norm" in n and n not in known and type(m) is not nn.Identity), None
    )


def _turned(q: Tensor, k: Tensor, positions: Any, attention: nn.Module, site: Site) -> tuple[Tensor, Tensor]:
    """Return q and k turned by rotary positions, by the model's own function: there are several conventions."""
    turn = getattr(type(attention).forward, "__globals__", {}).get("apply_rotary_pos_emb")
    cos, sin = positions
    if turn is None or cos.ndim != 3:
        raise InputError(
            f"'{site.name}' has positions of a kind that vlascope cannot apply; read its attention weights with "
            "method='model'."
        )
    # Some classes cut off the channels that turn before they call this function, others leave that to it.
    n = getattr(attention, "rotary_ndims", None)
    n = n if n == cos.shape[-1] else q.shape[-1]
    turned = turn(q[..., :n], k[..., :n], cos, sin)
    return torch.cat([turned[0], q[..., n:]], dim=-1), torch.cat([turned[1], k[..., n:]], dim=-1)


def _scale(attention: nn.Module) -> float | None:
    found = [getattr(attention, name) for name in ("scaling", "scale") if hasattr(attention, name)]
    return float(found[0]) if found and isinstance(found[0], (int, float)) else None


def _mask(given: Mapping[str, Any], attention: nn.Module, n: int, device: torch.device) -> Tensor | None:
    """Return where queries may look: the mask that the module was given, or else what it says of itself."""
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor):
        if mask.ndim != 4:
            raise InputError(f"the attention mask has shape {tuple(mask.shape)}; need [b, heads or 1, t, t].")
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    if given.get("is_causal", getattr(attention, "is_causal", False)):
        return torch.ones(n, n, dtype=torch.bool, device=device).tril()
    return None
