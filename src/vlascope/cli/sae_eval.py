"""`vlascope sae eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ._common import Common, Device, OptionalText, RunPath, give, table
from ._main import OK

SaePath = Positional[Annotated[Path, arg(metavar="DICTIONARY")]]


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Say how well a dictionary explains the tokens of a run, level by level."""

    run: RunPath
    """run directory; of the same model as the dictionary"""
    sae: SaePath
    """folder of the dictionary, as printed by `vlascope sae train`"""
    site: OptionalText = None
    """site to read (default: where it was trained)"""
    items: Literal["held-out", "all"] = "held-out"
    """held-out: only items that it was not trained on, where the run is the one it was trained on; else all"""
    device: Device = "cpu"
    """where to compute"""


def run(args: Args) -> int:
    """Evaluate and print the table."""
    import numpy as np

    from ..errors import InputError
    from ..runs import Run
    from ..sae import Split, evaluate, load_sae
    from ..sae.job import held_out_chunks
    from ..sae.metrics import LEVEL_HEAD
    from ..sae.train import same_split

    captured = Run.open(args.run)
    found = load_sae(args.sae, run=captured, site=args.site, device=args.device)
    site = args.site or found.site
    if site is None:
        raise InputError(f"the dictionary in '{args.sae}' does not say where it was trained; give --site.")
    key = found.origin.get("key") or {}
    own = key.get("run") == captured.info["content_sha256"]
    if args.items == "held-out" and own:
        split = same_split(captured, found.origin)
    else:
        everything = np.arange(captured.n_items)
        split = Split(everything[:0], everything, "item")
    result = evaluate(found.sae, held_out_chunks(captured, site, split, tokens=key.get("tokens", "auto")))
    which = "held-out items" if args.items == "held-out" and own else "all items"
    facts = {"run": str(captured.path), "dictionary": str(args.sae), "site": site, "items": which}
    text = f"{site}: {result.n_tokens} tokens of {len(split.held_out)} items ({which})\n"
    text += table(result.table(), head=LEVEL_HEAD)
    give(args, facts | result.to_json(), text=text)
    return OK
