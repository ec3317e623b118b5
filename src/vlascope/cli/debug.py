"""`vlascope debug`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from ._common import Common, OptionalInt, RunPath, give, say, table
from ._main import OK

if TYPE_CHECKING:
    from ..runs import Run


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Batch debugging: do the groups that each layer makes of similar images follow the truth or the answers?"""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    label: Annotated[str, arg(metavar="NAME")]
    """label that holds the truth: the factor that varies"""
    answers: Annotated[str, arg(metavar="NAME|none")] = "answer"
    """`answer` for what the model said, a label that holds its answers, or `none`"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """layers, as patterns (default: after every block)"""
    tokens: Literal["auto", "patch", "text", "last", "action", "state", "class", "all"] = "auto"
    """which tokens stand for an item (auto: patches where there are any)"""
    groups: OptionalInt = None
    """number of groups (default: as many as the factor has values)"""
    permutations: int = 499
    """shuffles behind each p-value"""
    seed: int = 0
    """seed of everything random"""


def run(args: Args) -> int:
    """Group, compare, and print the table."""
    from .. import api
    from ..measure import keep
    from ..measure.association import DEBUG_HEAD, association
    from ..runs import Run
    from ..views.answers import answers

    captured = Run.open(args.run)
    sites = api.run_sites(captured, args.site or None)
    say(args, f"grouping {captured.n_items} items at {len(sites)} layers")
    found = association(
        captured,
        sites=sites,
        label=args.label,
        answers=None if args.answers == "none" else args.answers,
        tokens=args.tokens,
        n_groups=args.groups,
        n_permutations=args.permutations,
        seed=args.seed,
    )
    text = f"{table(found.table(), head=DEBUG_HEAD)}\n\n{found.raw_pixels.line()}\n{found.verdict()}"
    facts = {
        "run": str(captured.path),
        **found.to_json(),
        "picture": str(answers(captured, found).save(_folder(captured, args) / "answers.png")),
        "finding": str(keep(captured, found.finding())),
    }
    give(args, facts, text=f"{text}\n\n{facts['picture']}")
    return OK


def _folder(captured: Run, args: Args) -> Path:
    asked = {"label": args.label, "answers": args.answers, "site": list(args.site), "tokens": args.tokens}
    folder = captured.derived_dir("debug", {**asked, "groups": args.groups, "seed": args.seed})
    folder.mkdir(parents=True, exist_ok=True)
    return folder
