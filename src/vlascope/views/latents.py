"""The cards of a sparse dictionary's latents as the page shows them: how often, when, where, and their relatives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RunIncompleteError
from .choose import camera_note, item_title
from .html import png_uri
from .pack import HeatView, PanelView, TokenPack
from .tokens import grid_frame

if TYPE_CHECKING:
    from ..runs import Run

MAX_CARDS, MAX_EXAMPLES = 12, 4
SPARK_WIDTH, SPARK_HEIGHT = 240, 36
DARK_ALPHA = 0.7
"""How dark a patch is on which the latent is silent; what is bright is active, as after a click."""


@dataclass(frozen=True, kw_only=True)
class CardView:
    """One latent.

    Attributes:
        latent: Its number.
        facts: What is said about it in a line each.
        spark: Corners of its strongest activation over the episode of its best example; "" where there is none.
        spark_note: Which episode.
        examples: Panels with their captions, the strongest first.
        parents, children: (latent, share of its tokens, whether it has a card here).
    """

    latent: int
    facts: tuple[tuple[str, str], ...]
    spark: str
    spark_note: str
    examples: tuple[tuple[PanelView, str], ...]
    parents: tuple[tuple[int, str, bool], ...]
    children: tuple[tuple[int, str, bool], ...]


@dataclass(frozen=True, kw_only=True)
class CardsView:
    """The cards of one dictionary."""

    site: str
    title: str
    note: str
    cards: tuple[CardView, ...]
    n_more: int


def find_cards(run: Run) -> list[Mapping[str, Any]]:
    """Return what `vlascope sae cards` kept in a run, one entry per site: the newest.

    Raises:
        RunIncompleteError: a file is damaged.
    """
    newest: dict[str, tuple[float, Mapping[str, Any]]] = {}
    for path in sorted((run.path / "derived").glob("sae-cards-*/cards.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            site, made = str(facts["site"]), path.stat().st_mtime
            list(facts["cards"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunIncompleteError(
                f"the cards in '{path}' are damaged ({error!r}); delete that folder and make them again."
            ) from error
        if made >= newest.get(site, (0.0, {}))[0]:
            newest[site] = (made, facts)
    return [facts for _, (_, facts) in sorted(newest.items())]


def cards_view(pack: TokenPack, facts: Mapping[str, Any], *, n_cards: int = MAX_CARDS) -> CardsView:
    """Return the cards of one dictionary, ready for the template: evenly from its levels.

    Args:
        pack: Collects the images.
        facts: One entry of `find_cards`.
        n_cards: At most so many.
    """
    run = pack.cut.run
    known = [card for card in facts["cards"] if card["examples"]]
    chosen = _evenly(known, levels=facts["levels"], n=n_cards)
    numbers = {card["latent"] for card in chosen}
    site, over = str(facts["site"]), str(facts["over"])
    return CardsView(
        site=site,
        title=f"What the dictionary of {site} tells apart",
        note=f"{Path(str(facts['dictionary'])).name}: {facts['levels'][-1]:,} latents in nested levels of "
        f"{', '.join(f'{level:,}' for level in facts['levels'])}; seen on {facts['n_tokens']:,} tokens of "
        f"{facts['n_units']} {over}s. Bright: where the latent is active, relative to the strongest place shown.",
        cards=tuple(_card(pack, run, site, card, facts, numbers) for card in chosen),
        n_more=len(facts["cards"]) - len(chosen),
    )


def _evenly(cards: Sequence[Mapping[str, Any]], *, levels: Sequence[int], n: int) -> list[Mapping[str, Any]]:
    """Return up to `n` cards, taking turns between the levels."""
    queues = [[c for c in cards if c["level"] == level] for level in levels]
    out: list[Mapping[str, Any]] = []
    while len(out) < n and any(queues):
        for queue in queues:
            if queue and len(out) < n:
                out.append(queue.pop(0))
    return sorted(
        out, key=lambda card: (list(levels).index(card["level"]), -(card["mean"] ** 2) * card["density"])
    )


def _card(
    pack: TokenPack,
    run: Run,
    site: str,
    card: Mapping[str, Any],
    facts: Mapping[str, Any],
    numbers: set[int],
) -> CardView:
    strongest = max(example["value"] for example in card["examples"])
    told = (
        ("level", f"first {card['level']:,}"),
        ("active in", f"{100 * card['density']:.2g} % of tokens"),
        ("seen in", f"{card['units']} of {facts['n_units']} {facts['over']}s"),
        ("99 % of its values", f"below {card['p99']:.3g}"),
    )
    return CardView(
        latent=card["latent"],
        facts=told,
        spark=_spark(card.get("episode")),
        spark_note=f"episode {card['episode']['episode']}" if card.get("episode") else "",
        examples=tuple(
            (_panel(pack, run, site, example, strongest), _caption(run, example))
            for example in card["examples"][:MAX_EXAMPLES]
        ),
        parents=_relatives(card["parents"], numbers),
        children=_relatives(card["children"], numbers),
    )


def _relatives(found: Sequence[Mapping[str, Any]], numbers: set[int]) -> tuple[tuple[int, str, bool], ...]:
    return tuple((one["latent"], f"{100 * one['share']:.0f} %", one["latent"] in numbers) for one in found)


def _caption(run: Run, example: Mapping[str, Any]) -> str:
    where = (
        f"“{example['text']}”"
        if example["text"]
        else f"row {example['row'] + 1}, column {example['col'] + 1}"
    )
    if example["kind"] == "patch" and example["camera"] > 0:
        where = f"{camera_note(run, example['item'], example['camera'])}, {where}"
    return f"{item_title(run, example['item'])} · {where} · {example['value']:.3g}"


def _panel(pack: TokenPack, run: Run, site: str, example: Mapping[str, Any], strongest: float) -> PanelView:
    item = int(example["item"])
    camera = max(0, int(example["camera"])) if example["kind"] == "patch" else 0
    number = pack.image(item, camera)
    width, height = pack.sizes[number]
    table = run.tokens(run.site(site).layout)
    mine = np.flatnonzero(np.asarray(table.item) == item)
    heats = []
    for one in example["maps"]:
        if one["camera"] != camera:
            continue
        here = mine[
            (np.asarray(table.camera)[mine] == one["camera"])
            & (np.asarray(table.tile)[mine] == one["tile"])
            & (np.asarray(table.row)[mine] >= 0)
        ]
        values = np.array([[0.0 if v is None else v for v in row] for row in one["values"]], np.float64)
        x0, y0, x1, y1 = grid_frame(table, here, shape=values.shape)
        share = np.clip(values / max(strongest, 1e-30), 0, 1)
        dark = np.round(255 * DARK_ALPHA * (1 - share)).astype(np.uint8)
        heats.append(
            HeatView(
                src=png_uri(np.zeros((*dark.shape, 3), np.uint8), alpha_hw=dark),
                left=round(100 * x0 / width, 4),
                top=round(100 * y0 / height, 4),
                width=round(100 * (x1 - x0) / width, 4),
                height=round(100 * (y1 - y0) / height, 4),
            )
        )
    return PanelView(
        image=number,
        aspect=round(width / height, 5),
        label=f"latent active in {_caption(run, example)}",
        where="",
        heats=tuple(heats),
    )


def _spark(episode: Mapping[str, Any] | None) -> str:
    if not episode or len(episode["strongest"]) < 2:
        return ""
    values = np.asarray(episode["strongest"], np.float64)
    x = np.linspace(0, SPARK_WIDTH, len(values))
    y = SPARK_HEIGHT - 1 - (SPARK_HEIGHT - 3) * values / max(float(values.max()), 1e-30)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
