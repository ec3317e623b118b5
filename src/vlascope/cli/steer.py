"""`vlascope steer`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from ._common import OptionalInt, OptionalText, OutPath, give, say, table
from ._items import OnItems, open_both
from ._main import OK

if TYPE_CHECKING:
    from ..act import SteerDirection, SteerLatents
    from ..items import Item


@dataclass(frozen=True, kw_only=True)
class Args(OnItems):
    """Push a site along latents of its dictionary, or from one word to another; measure what the answers do."""

    site: OptionalText = None
    """where to steer (default: where the dictionary was trained)"""
    words: Annotated[tuple[str, ...], arg(metavar="FROM TO", help_behavior_hint="")] = ()
    """steer from one word of the prompts to another, such as: red blue"""
    sae: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """steer along latents of this dictionary"""
    latent: Annotated[tuple[int, ...], arg(metavar="N...", help_behavior_hint="")] = ()
    """which latents"""
    how: Literal["add", "set", "scale"] = "add"
    """what happens to a latent's activation"""
    mode: Literal["delta", "replace"] = "delta"
    """keep what the dictionary does not explain, or replace the token by its reconstruction"""
    level: OptionalInt = None
    """level at which the dictionary is cut (default: the whole)"""
    tokens: OptionalText = None
    """all, last, answer, readout, patch, text, ... (default: patch for latents, text for words)"""
    strengths: Annotated[tuple[float, ...], arg(metavar="X...")] = (0.5, 1.0, 2.0)
    """in units of the latent's own 99 % quantile, or of the distance between the words"""
    controls: int = 8
    """random directions, and as many other latents, of the same length"""
    unrelated: OptionalText = None
    """a prompt that the steering should leave alone, such as "is the gripper open?" """
    save: OutPath = None
    """write the direction between the words to this file, for `vlascope rollout --direction`"""


def run(args: Args) -> int:
    """Steer, measure and print."""
    from ..act import baseline, dose_response, random_directions
    from ..act.edits import check_batch_size
    from ..act.saved import check_file, save_direction
    from ..act.steer import SteerDirection
    from ..act.words import with_word
    from ..errors import InputError
    from ..items.perturb import swap_prompt
    from ..measure.result import TABLE_HEAD

    def names_the_first(item: Item) -> bool:
        return with_word(item, old=args.words[0], new=args.words[1]) is not None

    check_batch_size(args.batch_size)
    if args.save is not None:
        check_file(args.save)
    # Items that name the first word, so that there is something to steer away from.
    model, chosen = open_both(args, keep=names_the_first if len(args.words) == 2 else None)
    if len(args.words) == 2 and not names_the_first(chosen[0]):
        raise InputError(
            f"none of {len(chosen)} prompts holds '{args.words[0]}', the word to steer away from; such as "
            f"'{chosen[0].prompt}'. Choose a word that they hold, or other items."
        )
    steer, more = _steering(args, model, chosen)
    say(args, f"steering {len(chosen)} items at {steer.site}")
    base = baseline(model, chosen, batch_size=args.batch_size)
    other = None
    if args.unrelated is not None:
        asked = [swap_prompt(item, prompt=args.unrelated) for item in chosen]
        other = baseline(model, asked, batch_size=args.batch_size)
    controls = [*random_directions(steer, n=args.controls, seed=args.seed), *more]
    found = dose_response(
        model, steer, base, strengths=args.strengths, controls=controls, unrelated=other, seed=args.seed,
        quiet=args.quiet,
    )  # fmt: skip
    facts: dict[str, Any] = {
        "model": model.name,
        "data": args.data,
        "n_items": len(chosen),
        **found.to_json(),
    }
    text = f"{table(found.table(), head=TABLE_HEAD)}\n\n{found.verdict()}"
    if args.save is not None and isinstance(steer, SteerDirection):
        facts["direction"] = str(save_direction(args.save, steer, model=model))
        text += f"\n{facts['direction']}"
    give(args, facts, text=text)
    return OK


def _steering(args: Args, model: Any, items: list[Any]) -> tuple[SteerDirection | SteerLatents, list[Any]]:
    """Return the steering that was asked for and its controls along other latents."""
    import numpy as np

    from ..act import SteerLatents, latent_units, random_latents
    from ..act.words import word_direction
    from ..errors import InputError

    if len(args.words) not in (0, 2) or (len(args.words) == 2) == (args.sae is not None):
        raise InputError("say what to steer along: --words FROM TO, or --sae DICTIONARY --latent N.")
    if args.sae is None:
        if args.site is None:
            raise InputError("--words needs --site, such as --site language.1.")
        steer = word_direction(
            model, items, site=args.site, away_from=args.words[0], to=args.words[1],
            tokens=args.tokens or "text", batch_size=args.batch_size,
        )  # fmt: skip
        return steer, []
    if args.save is not None:
        raise InputError("--save keeps the direction between two words; a dictionary is a file already.")
    from ..sae import load_sae

    checkpoint = load_sae(args.sae, site=args.site)
    site = args.site or checkpoint.site
    known = checkpoint.origin.get("model_fingerprint")
    if known is not None and known != model.fingerprint():
        raise InputError(
            f"the dictionary in '{args.sae}' belongs to other weights than those of '{model.name}'."
        )
    if site is None:
        raise InputError("this dictionary does not say where it was trained; name the place with --site.")
    kind = args.tokens or "patch"
    tokens: list[Any] = []
    for start in range(0, len(items), args.batch_size):
        batch = model.prepare(items[start : start + args.batch_size])
        (resolved,) = model.resolve(site)
        captured = model.capture(batch, [resolved])[resolved.name]
        for layout, values in zip(batch.layouts[resolved.layout], captured, strict=True):
            keep = layout.is_kind("patch") if kind == "patch" else np.ones(len(layout), bool)
            tokens.append(values.float().cpu().numpy()[keep])
    units = latent_units(checkpoint.sae, np.concatenate(tokens))
    if wrong := [one for one in args.latent if not 0 <= one < len(units)]:
        raise InputError(f"got latent {wrong[0]}; the dictionary has latents 0..{len(units) - 1}.")
    steer = SteerLatents(
        site=site, sae=checkpoint.sae, latents=tuple(args.latent),
        units=tuple(float(units[one]) for one in args.latent), how=args.how, mode=args.mode, level=args.level,
        tokens=kind,
    )  # fmt: skip
    alive = np.flatnonzero(np.isfinite(units)).tolist()
    return steer, list(random_latents(steer, checkpoint.sae, among=alive, n=args.controls, seed=args.seed))
