"""`vlascope info`."""

from __future__ import annotations

from dataclasses import dataclass

from ._common import Common, Flag, RunPath, give, size_text, table
from ._main import FAILED, OK


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Say what a run holds; with --verify also whether every byte of it is what was written."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    verify: Flag = False
    """compare every block with its checksum"""


def run(args: Args) -> int:
    """Print the summary."""
    from ..runs import Run

    captured = Run.open(args.run)
    problems = captured.verify().problems if args.verify else ()
    size = sum(path.stat().st_size for path in captured.path.rglob("*") if path.is_file())
    sites = [
        (name, len(captured.acts(name)), site.width, site.dtype, site.layout)
        for name, site in captured.sites.items()
    ]
    episodes = {row.episode for row in captured.items if row.episode is not None}
    facts = {
        "run": str(captured.path),
        "status": captured.info["status"],
        "model": captured.config["model"]["name"],
        "n_items": captured.n_items,
        "n_episodes": len(episodes),
        "size_bytes": size,
        "n_failed": captured.n_failed,
        "problems": list(problems) if args.verify else None,
        "sites": [
            dict(zip(("site", "n_tokens", "width", "dtype", "layout"), row, strict=True)) for row in sites
        ],
    }
    lines = [
        f"{captured.path}: {captured.n_items} items, {len(episodes)} episodes, {size_text(size)}, {facts['status']}",
        *(["every block matches its checksum"] if args.verify and not problems else problems),
        "",
        table([tuple(map(str, row)) for row in sites], head=("site", "tokens", "width", "dtype", "layout")),
    ]
    give(args, facts, text="\n".join(lines))
    return FAILED if problems else OK
