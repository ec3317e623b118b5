"""From what the page asks to an edit of the model, and to the edits that it has to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SiteNotFoundError
from .book import RunBook
from .questions import Ask

if TYPE_CHECKING:
    from ..act import CutAttention, ModelEdit, SteerDirection, SteerLatents
    from ..items import Item
    from ..models import Model

SAMPLE_ROWS = 8192
"""Tokens of a site that means and units are measured on, evenly spread."""


def make_edit(
    book: RunBook, model: Model, ask: Ask, *, items: Sequence[Item]
) -> tuple[ModelEdit, list[ModelEdit]]:
    """Return the edit that was asked for, and those that it has to be compared with.

    Args:
        book: The run; directions between its tokens come from its captured activations.
        model: Its model.
        ask: What was asked.
        items: Items that words and means are measured on.

    Raises:
        InputError: what was asked makes no direction, or names what does not exist.
        SiteNotFoundError: no such site.
    """
    from ..act import Ablate, CutAttention, mean_values, random_directions

    if ask.kind == "attention":
        cut = CutAttention(source=ask.source, reader=ask.reader, blocks=ask.blocks)
        return cut, list(_other_cuts(book, model, cut)[: ask.controls])
    if ask.kind == "module":
        names = [site.name for site in model.resolve(ask.site)]
        others = _same_elsewhere(model, names[0])[: ask.controls] if len(names) == 1 else []
        means = mean_values(model, items, sites=[*names, *others], batch_size=8) if ask.mean else None
        return Ablate(site=ask.site, means=means), [Ablate(site=one, means=means) for one in others]
    steer = _steering(book, model, ask, items)
    return steer, list(random_directions(steer, n=ask.controls, seed=ask.seed))


def _steering(book: RunBook, model: Model, ask: Ask, items: Sequence[Item]) -> SteerDirection | SteerLatents:
    from ..act.words import word_direction

    if ask.kind == "latent":
        return _latent(book, ask)
    if ask.kind == "words":
        if not ask.away_from.strip() or not ask.to.strip():
            raise InputError("name two words: one of the prompt, and the one to steer to.")
        found = word_direction(
            model, items, site=ask.site, away_from=ask.away_from.strip(), to=ask.to.strip()
        )
        return replace(found, strength=ask.strength, tokens=ask.where)
    if ask.kind == "tokens":
        near, far, label = _clicked(book, ask)
    else:
        near, far, label = _group(book, ask)
    return _between(book, ask, near, far, label)


def _between(
    book: RunBook, ask: Ask, near: NDArray[np.int64], far: NDArray[np.int64], label: str
) -> SteerDirection:
    """Return the steering from some tokens of the run to others; one unit is the 99 % quantile of all of them."""
    from ..act import SteerDirection, direction_unit, mean_difference

    part, acts = book.cut.parts[ask.site], book.run.acts(ask.site)
    rows = np.asarray(part.token_rows)
    values = [np.asarray(acts[np.sort(rows[some])], np.float32) for some in (near, far)]
    direction, _ = mean_difference(values[0], values[1])
    sample = np.asarray(acts[rows[_spread(len(rows))]], np.float32)
    return SteerDirection(
        site=ask.site, direction=direction, unit=direction_unit(sample, direction), strength=ask.strength,
        tokens=ask.where, label=label,
    )  # fmt: skip


def _clicked(book: RunBook, ask: Ask) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Return the clicked tokens, and those to steer away from: clicked as negative, else all of the site."""
    book.site(ask.site)
    for one in ask.clicks:
        book.row_at(ask.site, one.token)
    near = np.array([one.token for one in ask.clicks if one.positive], np.int64)
    far = np.array([one.token for one in ask.clicks if not one.positive], np.int64)
    if not len(near):
        raise InputError("click a patch or word first: it says which way to steer.")
    if not len(far):
        far = _spread(len(book.cut.parts[ask.site].token_rows))
    return near, far, f"{len(near)} clicked token{'s' if len(near) > 1 else ''}"


def _group(book: RunBook, ask: Ask) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    labels = book.labels(book.site(ask.site), ask.k)
    is_in = labels == ask.group
    if not 0 <= ask.group < ask.k or not is_in.any() or is_in.all():
        raise InputError(
            f"concept {ask.group + 1} of {ask.k} does not divide the tokens of '{ask.site}'; choose another one or "
            "another layer."
        )
    found = []
    for rows in (np.flatnonzero(is_in), np.flatnonzero(~is_in)):
        found.append(rows[_spread(len(rows))])
    return found[0], found[1], f"concept {ask.group + 1} of {ask.k}"


def _latent(book: RunBook, ask: Ask) -> SteerLatents:
    from ..act import SteerLatents, latent_units
    from ..sae import load_sae

    path = next((p for p in dictionary_folders(book) if p.name == ask.dictionary), None)
    if path is None:
        raise InputError("there is no such dictionary in this run; make one with `vlascope sae train`.")
    checkpoint = load_sae(path, run=book.run)
    site = checkpoint.site
    if site is None or site not in book.run.sites:
        raise SiteNotFoundError(f"the dictionary belongs to '{site}', which this run does not hold.")
    width = checkpoint.sae.config.n_latents
    if not 0 <= ask.latent < width:
        raise InputError(f"got latent {ask.latent}; the dictionary has latents 0..{width - 1}.")
    table = book.run.tokens(book.run.site(site).layout)
    rows = table.select(["patch"])
    if not len(rows):
        rows = np.arange(len(table))
    tokens = np.asarray(book.run.acts(site)[rows[_spread(len(rows))]], np.float32)
    unit = float(latent_units(checkpoint.sae, tokens)[ask.latent])
    if not np.isfinite(unit):
        raise InputError(f"latent {ask.latent} is active nowhere in this run; choose another.")
    return SteerLatents(
        site=site,
        sae=checkpoint.sae,
        latents=(ask.latent,),
        units=(unit,),
        strength=ask.strength,
        tokens=ask.where,
    )


def dictionary_folders(book: RunBook) -> list[Any]:
    """Return the folders of the dictionaries that were trained on this run, by name."""
    found = (book.run.path / "derived").glob("sae-*/cfg.json")
    return sorted(path.parent for path in found if not path.parent.is_symlink())


def token_kinds(book: RunBook) -> list[str]:
    """Return the kinds of tokens that the language model of a run reads."""
    from ..models.layout import KINDS

    if "language" not in book.run.layouts:
        return []
    return [KINDS[i] for i in np.unique(np.asarray(book.run.tokens("language").kind))]


def _other_cuts(book: RunBook, model: Model, cut: CutAttention) -> Sequence[CutAttention]:
    """Return what a cut is compared with: other tokens hidden from the same reader, the same ones in another block."""
    kinds = [kind for kind in token_kinds(book) if kind not in (cut.source, "action")]
    out = [replace(cut, source=kind) for kind in kinds]
    names = [site.name for site in model.resolve(cut.blocks)]
    if len(names) == 1:
        out += [replace(cut, blocks=name) for name in _same_elsewhere(model, names[0])]
    return out


def _same_elsewhere(model: Model, name: str) -> list[str]:
    """Return the same module in the other blocks: "language.1.mlp" for "language.3.mlp"."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return []
    head, tail = parts[:number], parts[number + 1 :]
    out = []
    for site in model.sites:
        other = site.name.split(".")
        same = len(other) == len(parts) and other[:number] == head and other[number + 1 :] == tail
        if same and site.name != name:
            out.append(site.name)
    return out


def _spread(n: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLE_ROWS)).astype(np.int64))
