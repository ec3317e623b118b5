"""Proofs that every family has to pass; import them with `from tests.models.proof import ...`.

A new family's test file needs three lines per tiny model:

    def test_contract():
        model = load(tiny_module(), processor=tiny_processor())
        done = check_family(model, [item(61, 97), item(97, 61)])       # sites, edits, q/k/v, batches, errors
        assert {"q", "k", "v"} <= done.tensors                         # nothing was skipped in silence
        prove_patch(model, item(61, 97), "vision.0")                   # pixels -> the token that the layout names
        prove_word(model, item(prompt="pick up the red object"), "language.0", old="red", new="blue")
        prove_state(model, item_with_state, "expert.0")                # where there is a state token

Name the first site after the embedding (or after the projector): later sites mix tokens, so that the token that
moves most need no longer be the one that was changed.

Items may have several cameras, and images of any shape. `prove_patch` changes the pixels of one patch's box in the
*original* image, one patch at a time, and looks at every view (camera and tile) on its own: in the patch's own
view that patch has to move most; in any other view that shows the same pixels (the overview of a tiled image) a
token whose box meets them; and nothing else may move more than these. All functions raise AssertionError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vlascope.errors import SiteNotFoundError
from vlascope.items.item import Item
from vlascope.models import KINDS, Model, Site, TokenLayout

GREY = 90
MIN_PIXELS = 12  # patches of which less is inside the image are not tried: too little of them can change


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What `check_family` looked at, so that a test can say that nothing was left out."""

    n_sites: int
    tensors: frozenset[str]  # "out", "q", ...
    layouts: frozenset[str]
    n_split: int  # blocks whose q, k and v were shown to be what they are called


def prove_patch(
    model: Model,
    item: Item,
    site: str,
    *,
    n_patches: int = 9,
    is_flat: bool = True,
    seed: int = 0,
    min_pixels: int = MIN_PIXELS,
) -> int:
    """Change the pixels of one patch at a time; the token whose box names them has to move most.

    Args:
        model: A loaded model.
        item: With one image or more; its prompt stays as it is.
        site: First site after the embedding (or projector).
        n_patches: At most so many patches per camera and tile, spread evenly over the grid.
        is_flat: Start from grey images (a patch then stands out more); else from the item's own.
        seed: Of the noise that is put into the patch.
        min_pixels: Patches with fewer pixels inside the image are left out.

    Returns:
        Number of patches that were tried (at least one per camera that the layout shows).
    """
    if is_flat:
        item = replace(item, images=tuple(np.full_like(image, GREY) for image in item.images))
    layout, before = _read(model, item, site)
    patches = np.flatnonzero(layout.is_kind("patch"))
    assert len(patches), f"the layout of {site} has no patch"
    assert not np.isnan(layout.box[patches]).any(), f"{site}: patches without a box"
    cameras = set(layout.camera[patches].tolist())
    assert cameras <= set(range(len(item.images))), f"{site}: cameras {cameras} of {len(item.images)} images"
    rng = np.random.default_rng(seed)
    n_tried = 0
    for view in sorted(_views(layout, patches)):
        own = patches[(layout.camera[patches] == view[0]) & (layout.tile[patches] == view[1])]
        inside = [t for t in own if _area(_region(layout.box[t], item.images[view[0]])) >= min_pixels]
        for token in inside[:: max(1, -(-len(inside) // n_patches))]:
            x0, y0, x1, y1 = _region(layout.box[token], item.images[view[0]])
            images = [image.copy() for image in item.images]
            images[view[0]][y0:y1, x0:x1] = rng.integers(0, 256, (y1 - y0, x1 - x0, 3), dtype=np.uint8)
            after_layout, after = _read(model, replace(item, images=tuple(images)), site)
            assert len(after_layout) == len(layout)
            moved = (after - before).norm(dim=1).numpy()
            meets = _meets(layout, camera=view[0], region=(x0, y0, x1, y1))
            what = f"{site}: {_say(layout, token)} was changed"
            winner = int(moved.argmax())
            assert moved[winner] > 0, f"{what} and nothing moved"
            assert meets[winner], f"{what}, but {_say(layout, winner)} moved most"
            best = int(own[moved[own].argmax()])
            assert best == token or _same_place(layout, best, token), (
                f"{what}, but in its view {_say(layout, best)} moved most ({moved[best]:.3g} > {moved[token]:.3g})"
            )
            for camera, tile in _views(layout, patches) - {view}:
                other = patches[(layout.camera[patches] == camera) & (layout.tile[patches] == tile)]
                if meets[other].any():
                    best = int(other[moved[other].argmax()])
                    assert meets[best], f"{what}, but in view {camera}/{tile} {_say(layout, best)} moved most"
            n_tried += 1
    assert n_tried >= len(cameras), f"{site}: only {n_tried} patches could be tried"
    return n_tried


def prove_word(model: Model, item: Item, site: str, *, old: str, new: str) -> None:
    """Exchange one word of the prompt; a token whose text the layout says has changed has to move most.

    Args:
        model: A loaded model that reads text.
        item: Its prompt holds `old` exactly once.
        site: First site after the embedding, such as "language.0" or "text.0".
        old: A word of the prompt.
        new: Takes its place; must have as many tokens.
    """
    assert item.prompt is not None and item.prompt.split().count(old) == 1
    words = [new if word == old else word for word in item.prompt.split(" ")]
    layout, before = _read(model, item, site)
    other, after = _read(model, replace(item, prompt=" ".join(words)), site)
    assert len(layout) == len(other), f"'{old}' and '{new}' have different numbers of tokens; choose others"
    named = [i for i, (a, b) in enumerate(zip(layout.text, other.text, strict=True)) if a != b]
    assert named, f"the layout of {site} shows no difference between '{old}' and '{new}'"
    assert layout.is_kind("text")[named].all(), f"{site}: {[_say(layout, i) for i in named]} are no text"
    written = "".join(layout.text[i] for i in named).strip()
    assert written in old or old in written, f"{site}: the token for '{old}' is called '{written}'"
    winner = int((after - before).norm(dim=1).argmax())
    assert winner in named, f"{site}: '{old}' became '{new}', but {_say(layout, winner)} moved most"


def prove_state(model: Model, item: Item, site: str) -> None:
    """Change the robot's state; the token of kind "state" has to move most."""
    assert item.state is not None
    layout, before = _read(model, item, site)
    _, after = _read(model, replace(item, state=np.asarray(item.state) + 1), site)
    assert layout.is_kind("state").any(), f"the layout of {site} has no state token"
    winner = int((after - before).norm(dim=1).argmax())
    assert layout.is_kind("state")[winner], (
        f"{site}: the state changed, but {_say(layout, winner)} moved most"
    )


def check_family(
    model: Model,
    items: Sequence[Item],
    *,
    skip: Collection[str] = (),
    atol: float = 2e-5,
    even: Callable[[Site], bool] = lambda site: True,
) -> Checked:
    """Check everything that holds for every model, whatever its family.

    Sites: unique names, all fire, widths and layouts as declared, finite, the same bits again. Edits: the identity
    changes no bit, whether it returns its input or a copy; nested ones compose; each site's edit reaches the block's
    output; hooks go after an exception. A pass for one layout calls the modules that the family says it calls. q, k
    and v are what they are called. An item's tokens do not depend on what else is in the batch. Unknown names list
    the nearest.

    Args:
        model: A loaded model, tiny, in float32.
        items: Two or more, of different image sizes and prompts if the model takes them.
        skip: Names of sites to which the tests of *effects* (edit reaches output, q/k/v) do not apply, with
            wildcards ("vision.*.q"); say why in your test.
        atol: Tolerance where the order of sums may differ.
        even: Whether attention from this q site depends on q and k only through their product; False for
            decomposed relative positions (SAM).
    """
    items = list(items)
    assert len(items) >= 2, "give two items or more"
    sites = model.sites
    assert len({site.name for site in sites}) == len(sites), "site names are not unique"
    batch = model.prepare(items)
    n_foreign = _n_hooks(model)
    before = model.capture(batch, "**")
    n_foreign = max(n_foreign, _n_hooks(model))  # transformers installs some of its own on first use
    _check_tensors(model, batch, before)
    assert _equal(model.capture(model.prepare(items), "**"), before), "the same items gave other bits"
    _check_identity(model, items, before)
    _check_hooks(model, batch, n_foreign)
    _check_reach(model, items)
    _check_tokens(model, items)
    skipped = _matching(model, skip)
    _check_effects(model, items, before, skipped=skipped)
    n_split = _check_split(model, items, skipped=skipped, atol=atol, even=even)
    _check_batching(model, items, before, atol=atol)
    with pytest.raises(SiteNotFoundError, match="Nearest"):
        model.resolve(_misspelt(sites[0].name))
    with pytest.raises(SiteNotFoundError):
        model.resolve("module:no.such.module")
    return Checked(
        n_sites=len(sites),
        tensors=frozenset(site.tensor for site in sites),
        layouts=frozenset(site.layout for site in sites),
        n_split=n_split,
    )


def _check_tensors(model, batch, acts) -> None:
    for site in model.sites:
        layouts = batch.layouts[site.layout]
        assert len(acts[site.name]) == len(layouts) == len(batch)
        for values, layout in zip(acts[site.name], layouts, strict=True):
            assert values.ndim == 2 and len(values) == len(layout), (site, values.shape, len(layout))
            assert site.width == values.shape[1], f"{site.name}: declared {site.width}, is {values.shape[1]}"
            assert torch.isfinite(values).all(), site.name
            _check_layout(layout, site.name)


def _check_layout(layout: TokenLayout, name: str) -> None:
    is_patch = layout.is_kind("patch")
    assert (np.isnan(layout.box).any(axis=1) == ~is_patch).all(), f"{name}: boxes belong to patches"
    assert ((layout.row >= 0) == is_patch).all() and ((layout.col >= 0) == is_patch).all(), name
    assert (layout.box[is_patch, 2:] > layout.box[is_patch, :2]).all(), f"{name}: empty boxes"
    places = np.stack([layout.camera, layout.tile, layout.row, layout.col], 1)[is_patch]
    assert len(np.unique(places, axis=0)) == len(places), f"{name}: two patches at one place"
    assert all(layout.text[i] for i in np.flatnonzero(layout.is_kind("text", "special"))), name


def _strides(model: Model, items: Sequence[Item]) -> dict[str, list[tuple[int, ...]]]:
    """Return how the tensors that go into each module lie in memory, in one forward pass."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def look(name: str, args: tuple[object, ...]) -> None:
        found.setdefault(name, []).extend(x.stride() for x in args if isinstance(x, Tensor))

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: look(name, args))
        for name, module in model.module.named_modules()
    ]
    try:
        model.capture(model.prepare(items), "**")
    finally:
        for handle in handles:
            handle.remove()
    return found


def _check_identity(model, items, before) -> None:
    answers = model.respond(items, max_new_tokens=3) if model.answers else None
    strides = _strides(model, items)
    for same in (lambda x: x, lambda x: x.clone()):
        with contextlib.ExitStack() as stack:
            for site in model.sites:
                stack.enter_context(model.edit(site, same))
            # Kernels of a GPU are chosen by the strides, too: there, bits would change where only these do here.
            assert _strides(model, items) == strides, "an identity edit changed how tensors are laid out"
            assert _equal(model.capture(model.prepare(items), "**"), before), "an identity edit changed bits"
            if answers is not None:
                again = model.respond(items, max_new_tokens=3)
                assert [r.token_ids for r in again] == [r.token_ids for r in answers]
    assert _equal(model.capture(model.prepare(items), "**"), before), "something stayed after the edits"


def _check_reach(model, items) -> None:
    """A pass calls the modules that the family says it does: edits of others are not missed, of these they would be."""
    steps = [
        replace(s, name=f"{s.name}@1", call=1) for s in model.sites if s.repeats == "steps" and s.n_calls > 1
    ]
    for asked in {(site.layout, site.repeats): site for site in model.sites}.values():
        with contextlib.ExitStack() as stack:
            edits = [
                stack.enter_context(model._hooks.editing(site, lambda x: x))
                for site in (*model.sites, *steps)
            ]
            model.capture(model.prepare(items), [asked])
        for edited in edits:
            assert (edited.n_due > 0) == (edited.n_fired > 0), f"{edited.site.name}, asked for {asked.name}"


def _check_hooks(model, batch, n_foreign) -> None:
    site = model.sites[0]
    plain = model.capture(batch, site.name)[site.name][0]

    def fail(_):
        raise RuntimeError("a mistake in an edit")

    with pytest.raises(RuntimeError, match="a mistake in an edit"), model.edit(site, fail):
        model.capture(batch, "**")
    assert model._hooks.n_hooked == 0 and _n_hooks(model) == n_foreign, "hooks stayed after an exception"
    with model.edit(site, lambda x: x + 1), model.edit(site, lambda x: x * 2):
        both = model.capture(batch, site.name)[site.name][0]
    torch.testing.assert_close(both, (plain + 1) * 2)


def _check_tokens(model, items) -> None:
    """At the first site of each layout: an edit of one token of the last item changes that row and no other."""
    batch = model.prepare(items)
    firsts = {site.layout: site for site in reversed(model.sites)}
    for site in firsts.values():
        if site.repeats == "steps" and site.n_calls > 1:
            continue  # what is changed at one step comes back to all tokens at the next
        before = model.capture(batch, site.name)[site.name]
        layouts, last = batch.layouts[site.layout], len(items) - 1
        token = len(layouts[last]) - 1
        for tokens in ({last: [token]}, {last: lambda x, t=token: np.arange(len(x)) == t}):
            with model.edit(site, lambda x: x.mul_(0).add_(7), tokens=tokens):
                after = model.capture(batch, site.name)[site.name]
            for i, (a, b) in enumerate(zip(after, before, strict=True)):
                changed = (a != b).any(dim=1).nonzero()[:, 0].tolist()
                assert changed == ([token] if i == last else []), (
                    f"{site.name}: {tokens} changed {i}: {changed}"
                )
            assert (after[last][token] == 7).all(), site.name


def _check_effects(model, items, before, *, skipped) -> None:
    names = {site.name for site in model.sites}
    for site in model.sites:
        base = site.name.rsplit(".", 1)[0]
        if site.tensor == "out" or base not in names or site.name in skipped:
            continue
        with model.edit(site, _noise):
            after = model.capture(model.prepare(items), base)[base]
        changed = any(not torch.equal(a, b) for a, b in zip(after, before[base], strict=True))
        assert changed, f"an edit of {site.name} does not reach {base}"


def _check_split(model, items, *, skipped, atol, even) -> int:
    """Queries act on their own token alone; q and k only through their product; the output is affine in v."""
    names = {site.name: site for site in model.sites}
    n_checked = 0
    for name, site in names.items():
        if site.tensor != "q" or name in skipped:
            continue
        q, k, v, attn = (name[: -len("q")] + tensor for tensor in ("q", "k", "v", "attn"))
        if not {k, v, attn} <= set(names):
            continue

        def read(*edits, attn=attn):
            with contextlib.ExitStack() as stack:
                for where, fn, tokens in edits:
                    stack.enter_context(model.edit(where, fn, tokens=tokens))
                return torch.cat([x.double() for x in model.capture(model.prepare(items), attn)[attn]])

        plain = read()
        scale = float(plain.abs().max())
        if even(site):
            both = read((q, torch.neg, None), (k, torch.neg, None))
            torch.testing.assert_close(both, plain, atol=atol * max(scale, 1), rtol=1e-3)
        none, twice = read((v, torch.zeros_like, None)), read((v, lambda x: x * 2, None))
        torch.testing.assert_close(twice - plain, plain - none, atol=10 * atol * max(scale, 1), rtol=1e-3)
        layout = model.prepare(items[:1]).layouts[site.layout][0]
        token = len(layout) // 2
        n_first = len(layout)
        first_row = n_first // max(1, len(model.prepare(items[:1]).rows[site.layout][0]))
        if token < first_row:
            moved = (read((q, _noise, {0: [token]})) - plain)[:n_first].abs().amax(dim=1)
            others = torch.ones(n_first, dtype=torch.bool)
            others[token] = False
            row_tokens = others & (torch.arange(n_first) < first_row)
            assert moved[token] > 0 and moved[row_tokens].max() <= atol * max(scale, 1), (
                f"{q}: the query of token {token} moved other tokens"
            )
        n_checked += 1
    return n_checked


def _check_batching(model, items, before, *, atol) -> None:
    for i, item in enumerate(items):
        alone = model.capture(model.prepare([item]), "**")
        for name, values in alone.items():
            torch.testing.assert_close(
                values[0], before[name][i], atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n} alone: {m}"
            )


def _noise(x: Tensor) -> Tensor:
    # The same for every row, so that a batch and its items alone get the same.
    return x + 3 * torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(1)).to(x)


def _read(model: Model, item: Item, site: str) -> tuple[TokenLayout, Tensor]:
    batch = model.prepare([item])
    (found,) = model.resolve(site)
    return batch.layouts[found.layout][0], model.capture(batch, site)[site][0].float().cpu()


def _views(layout: TokenLayout, patches) -> set[tuple[int, int]]:
    return {(int(layout.camera[t]), int(layout.tile[t])) for t in patches}


def _region(box, image) -> tuple[int, int, int, int]:
    """Return the whole pixels of a box inside the image."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (int(v) for v in np.round(box))
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


def _area(region) -> int:
    return max(0, region[2] - region[0]) * max(0, region[3] - region[1])


def _meets(layout: TokenLayout, *, camera: int, region) -> np.ndarray:
    x0, y0, x1, y1 = region
    with np.errstate(invalid="ignore"):
        wide = (layout.box[:, 0] < x1) & (layout.box[:, 2] > x0)
        high = (layout.box[:, 1] < y1) & (layout.box[:, 3] > y0)
    return wide & high & (layout.camera == camera)


def _same_place(layout: TokenLayout, a: int, b: int) -> bool:
    return bool(np.allclose(layout.box[a], layout.box[b], atol=0.01) and layout.camera[a] == layout.camera[b])


def _say(layout: TokenLayout, token: int) -> str:
    kind = KINDS[layout.kind[token]]
    if kind == "patch":
        return (
            f"patch {token} (camera {layout.camera[token]}, tile {layout.tile[token]}, row {layout.row[token]}, "
            f"column {layout.col[token]})"
        )
    return f"{kind} token {token} {layout.text[token]!r}"


def _equal(a, b) -> bool:
    return a.keys() == b.keys() and all(
        len(a[n]) == len(b[n]) and all(torch.equal(x, y) for x, y in zip(a[n], b[n], strict=True)) for n in a
    )


def _n_hooks(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


def _matching(model: Model, patterns: Collection[str]) -> set[str]:
    return {site.name for site in model.resolve(list(patterns))} if patterns else set()


def _misspelt(name: str) -> str:
    return name[0] + name[2:] if len(name) > 4 else f"{name}x"
