"""`vlascope models`."""

from __future__ import annotations

from dataclasses import dataclass

from ._common import Common, give
from ._main import OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """List the model families that vlascope knows and the models that come with it."""


def run(args: Args) -> int:
    """Print the families."""
    from ..models import families

    known = families()
    give(args, {"families": known}, text="\n".join(str(family) for family in known))
    return OK
