"""`vlascope doctor`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ._common import Common, give
from ._main import FAILED, OK

MARKS = {"ok": "ok     ", "note": "note   ", "missing": "missing", "broken": "BROKEN "}


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Say what is installed, missing or broken, and how to mend it. Exit code 2 when something needed is broken."""


def run(args: Args) -> int:
    """Print the findings, area by area."""
    from ..doctor import examine

    checks = examine()
    n_broken = sum(check.status == "broken" for check in checks)
    width = max(len(check.name) for check in checks)
    lines, area = [], ""
    for check in checks:
        if check.area != area:
            area = check.area
            lines += ["", area] if lines else [area]
        lines.append(f"  {MARKS[check.status]}  {check.name:<{width}}  {check.detail}")
        if check.fix:
            lines.append(f"  {'':7}  {'':{width}}  -> {check.fix}")
    lines += ["", f"{n_broken} broken" if n_broken else "Everything that is needed is here."]
    give(args, {"ok": not n_broken, "checks": [asdict(check) for check in checks]}, text="\n".join(lines))
    return FAILED if n_broken else OK
