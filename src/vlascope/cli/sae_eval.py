"""`vlascope sae eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
    model: OptionalText = None
    """also let this model (the dictionary's own) read the reconstruction: share of its answers' loss recovered"""
    data: OptionalText = None
    """items with prompts for that, as for `vlascope capture`"""
    n: int = 24
    """items of them to use, spread evenly"""
    device: Device = "cpu"
    """where to compute"""


def run(args: Args) -> int:
    """Evaluate and print the table."""
    import numpy as np

    from ..errors import InputError
    from ..measure.result import TABLE_HEAD
    from ..measure.result import table as rows_of
    from ..progress import watched
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
    chunks = held_out_chunks(captured, site, split, tokens=key.get("tokens", "auto"))
    result = evaluate(found.sae, watched(chunks, desc="items", total=len(split.held_out)))
    which = "held-out items" if args.items == "held-out" and own else "all items"
    facts: dict[str, Any] = {
        "run": str(captured.path),
        "dictionary": str(args.sae),
        "site": site,
        "items": which,
    }
    text = f"{site}: {result.n_tokens} tokens of {len(split.held_out)} items ({which})\n"
    text += table(result.table(), head=LEVEL_HEAD)
    if args.model is not None or args.data is not None:
        recovered = _recovered(args, found, site=site, tokens=key.get("tokens", "auto"))
        facts["loss_recovered"] = [one.to_json() for one in recovered]
        text += f"\n\n{table(rows_of(recovered), head=TABLE_HEAD)}"
    give(args, facts | result.to_json(), text=text)
    return OK


def _recovered(args: Args, found: Any, *, site: str, tokens: str) -> list[Any]:
    """Return the share of the answers' loss that each level recovers."""
    from .. import api
    from ..act import baseline, loss_recovered
    from ..errors import InputError
    from .cut import spread

    if args.model is None or args.data is None:
        raise InputError(
            "--model and --data go together: which model reads the reconstruction, on which items."
        )
    model = api.load(args.model, device=args.device)
    known = found.origin.get("model_fingerprint")
    if known is not None and known != model.fingerprint():
        raise InputError(
            f"the dictionary in '{args.sae}' belongs to other weights than those of '{model.name}'."
        )
    source = api.items(args.data)
    base = baseline(model, [source[i] for i in spread(len(source), args.n)])
    if tokens == "auto":  # as in training: patches where the site has any
        (place,) = model.resolve(site)
        layout = model.prepare(base.items[:1]).layouts[place.layout][0]
        tokens = "patch" if layout.is_kind("patch").any() else "all"
    return loss_recovered(model, found.sae, base, site=site, tokens=tokens)
