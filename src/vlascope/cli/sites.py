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
    sites = model.resolve(args.patterns) if args.patterns else model.sites
    rows = [(site.name, site.tensor, str(site.width), site.layout, site.module_path) for site in sites]
    head = ("site", "tensor", "width", "layout", "module")
    give(
        args,
        {
            "model": model.name,
            "family": model.family,
            "sites": [dict(zip(head, row, strict=True)) for row in rows],
        },
        text=table(rows, head=head),
    )
    return OK
