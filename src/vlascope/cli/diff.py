"""`vlascope diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ._common import Common, give, table
from ._main import OK, PARTIAL


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Compare two runs: settings, items, tokens site by site, answers. Exit code 3 when they differ."""

    a: Positional[Annotated[Path, arg(metavar="RUN_A")]]
    """one run"""
    b: Positional[Annotated[Path, arg(metavar="RUN_B")]]
    """the other"""


def run(args: Args) -> int:
    """Print what differs."""
    from ..runs import Run, diff_runs

    found = diff_runs(Run.open(args.a), Run.open(args.b))
    lines = [f"setting  {line}" for line in found.config]
    for where, ids in ((args.a, found.only_a), (args.b, found.only_b)):
        if ids:
            lines.append(f"{len(ids)} items only in {where}: {_few(ids)}")
    for where, sites in ((args.a, found.sites_only_a), (args.b, found.sites_only_b)):
        if sites:
            lines.append(f"{len(sites)} sites only in {where}: {_few(sites)}")
    if found.items:
        lines.append(
            f"{len(found.items)} items with other facts (labels, state, boxes, ...): {_few(found.items)}"
        )
    if found.answers:
        lines.append(f"{len(found.answers)} answers differ: {_few(found.answers)}")
    rows = []
    for site in found.sites:
        cosine = "-" if site.mean_cosine is None else f"{site.mean_cosine:.6f}"
        same = "same bits" if site.identical else f"{site.relative:.3g}"
        other = str(site.n_items_uncomparable) if site.n_items_uncomparable else ""
        rows.append((site.site, str(site.n_tokens), same, f"{site.max_abs:.3g}", cosine, other))
    head = ("site", "tokens", "relative difference", "largest", "mean cosine", "items of another length")
    if rows and not found.identical:
        lines += ["", table(rows, head=head)]
    if found.identical:
        lines = [f"identical: {found.n_common} items, {len(found.sites)} sites, every bit", *lines]
    give(args, found.as_dict(), text="\n".join(lines))
    return OK if found.identical else PARTIAL


def _few(names: tuple[str, ...], count: int = 5) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest
