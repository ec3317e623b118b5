"""`vlascope sites`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from ._common import Common, ModelName, give, table
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """List the places of a model that can be read and edited.

    Only the configuration is read, so this is quick for large models and works for a folder without weights.
    """

    model: ModelName
    """mini-vla, a Hugging Face name or a folder"""
    patterns: Positional[Annotated[tuple[str, ...], arg(metavar="[SITE...]", help_behavior_hint="")]] = ()
    """only these, e.g. 'vision.*', 'language.*.q' or 'language.4.q.h*' for single heads (default: all)"""
    revision: str | None = None
    """branch, tag or commit of a Hugging Face model"""
    trust_remote_code: bool = False
    """run code that comes with the checkpoint"""


def run(args: Args) -> int:
    """Print one line per site."""
    from ..models.skeleton import skeleton

    model = skeleton(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)
    rows = model.describe(args.patterns or None)
    head = ("site", "tensor", "layout", "width", "heads", "parameters", "module")
    keys = ("site", "tensor", "layout", "width", "n_heads", "n_parameters", "module")
    lines = table([tuple(str(row[key]) for key in keys) for row in rows], head=head)
    note = f"{model.family}, {model.n_parameters / 1e6:.1f} M parameters; read from the configuration, without weights."
    facts = {"model": model.name, "family": model.family, "weights": "not read", "sites": rows}
    give(args, facts, text=f"{lines}\n\n{note}")
    return OK
