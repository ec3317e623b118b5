"""`vlascope sites`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from ._common import Common, Device, ModelName, give, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """List the places of a model that can be read and edited."""

    model: ModelName
    """mini-vla, a Hugging Face name or a folder"""
    patterns: Positional[Annotated[tuple[str, ...], arg(metavar="[SITE...]", help_behavior_hint="")]] = ()
    """only these, e.g. 'vision.*' or 'language.*.q' (default: all)"""
    device: Device = "cpu"
    """where to load the model"""


def run(args: Args) -> int:
    """Print one line per site."""
    from .. import api

    model = api.load(args.model, device=args.device)
    wanted = {site.name for site in model.resolve(args.patterns)} if args.patterns else None
    rows = [row for row in model.describe() if wanted is None or row["site"] in wanted]
    head = ("site", "tensor", "layout", "width", "n_parameters", "module")
    lines = table([tuple(str(row[name]) for name in head) for row in rows], head=head)
    give(args, {"model": model.name, "family": model.family, "sites": rows}, text=lines)
    return OK
