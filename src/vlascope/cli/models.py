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
    from ..models import embedded, families

    known = [
        {
            "family": name,
            "summary": family.summary,
            "answers": family.answers,
            "model_types": list(family.model_types),
            "examples": list(family.examples),
            "handed_over": list(family.handed_over),
        }
        for name, family in families().items()
    ]
    lines = [f"embedded: {', '.join(embedded())}", ""]
    for family in known:
        lines.append(f"{family['family']}: {family['summary']}")
        option = " --trust-remote-code" if "trust_remote_code" in family["summary"] else ""
        lines += [f"  vlascope sites {example}{option}" for example in family["examples"]]
        if family["handed_over"]:
            names = ", ".join(family["handed_over"])
            lines.append(f"  {names}: load with LeRobot, then vlascope.load(policy, processor=preprocessor)")
    lines += ["", "What each family can do: docs/families.md"]
    give(args, {"embedded": list(embedded()), "families": known}, text="\n".join(lines))
    return OK
