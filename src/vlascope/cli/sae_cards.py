"""`vlascope sae cards`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from ._common import Common, OptionalText, RunPath, give, table
from ._main import OK
from .sae_eval import SaePath


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Describe latents: how often, where in the image and when in the episode, coarse parents and fine children."""

    run: RunPath
    """run directory; of the same model as the dictionary"""
    sae: SaePath
    """folder of the dictionary, as printed by `vlascope sae train`"""
    latent: Annotated[tuple[int, ...], arg(metavar="N...", help_behavior_hint="")] = ()
    """latents (default: for each level those that carry most of the signal)"""
    site: OptionalText = None
    """site to read (default: where it was trained)"""
    n: int = 64
    """number of cards, where no latents are named"""
    examples: int = 6
    """items per card"""


def run(args: Args) -> int:
    """Write the cards and print one line each."""
    from ..runs import Run
    from ..sae import load_sae, make_cards

    captured = Run.open(args.run)
    found = load_sae(args.sae, run=captured, site=args.site)
    tokens = (found.origin.get("key") or {}).get("tokens", "auto")
    cards = make_cards(
        captured,
        found,
        site=args.site,
        tokens=tokens,
        latents=args.latent,
        n_cards=args.n,
        n_examples=args.examples,
        quiet=args.quiet,
    )
    rows = []
    for card in cards.cards:
        best = card["examples"][0] if card["examples"] else None
        where = "" if best is None else best["text"] or f"row {best['row']}, col {best['col']}"
        rows.append(
            (
                str(card["latent"]),
                str(card["level"]),
                f"{card['density']:.2%}",
                f"{card['p99']:.3g}",
                f"{card['units']} of {cards.facts['n_units']} {cards.facts['over']}s",
                "" if best is None else f"{best['item_id']}, {where}",
                ", ".join(str(p["latent"]) for p in card["parents"]),
                ", ".join(str(c["latent"]) for c in card["children"]),
            )
        )
    head = ("latent", "level", "density", "p99", "active in", "strongest at", "parents", "children")
    give(args, {"file": str(cards.path), **cards.facts}, text=f"{table(rows, head=head)}\n{cards.path}")
    return OK
