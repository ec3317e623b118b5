"""`vlascope verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, RunIncompleteError
from ._common import Common, Flag, RunPath, give, say
from ._main import FAILED, OK, main


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Compare every byte of a run with its checksums; with --repair capture the damaged blocks again."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    repair: Flag = False
    """capture damaged blocks again, from the model and the data of the run"""


def run(args: Args) -> int:
    """Print what is damaged; exit code 2 when something is."""
    from ..runs import read_info, verify_run
    from ..runs.paths import resume_command

    info = read_info(args.run)
    if info["status"] != "complete":
        raise RunIncompleteError(
            f"the capture of '{args.run}' has not finished, and going on checks what is there: "
            f"{resume_command(info['command'], args.run)}"
        )
    report = verify_run(args.run, info)
    found = report.problems
    if found and args.repair:
        for line in found:
            say(args, line)
        _repair(args, info)
        report = verify_run(args.run, read_info(args.run))
    mended = len(found) if args.repair and report.ok else 0
    facts = {
        "run": str(args.run),
        "n_blocks": report.n_blocks,
        "problems": list(report.problems),
        "mended": mended,
    }
    lines = [*report.problems]
    if report.ok:
        lines.append(f"{args.run}: {report.n_blocks} blocks, every byte is as it was written")
        if mended:
            lines[-1] = f"{args.run}: {mended} problems mended, every byte is as it has to be"
    give(args, facts, text="\n".join(lines))
    if not report.ok and not args.repair:
        say(args, f"capture the damaged blocks again with: vlascope verify {args.run} --repair")
    return OK if report.ok else FAILED


def _repair(args: Args, info: dict[str, Any]) -> None:
    """Repeat the command that made the run, with --resume: it captures damaged blocks again."""
    words = list(info["command"] or ())
    if words[:2] != ["vlascope", "capture"]:
        raise InputError(
            f"'{args.run}' was not made in the shell, so its model and data are not known here. Repair it where it "
            "was made: vlascope.capture(..., resume=True) with the same arguments."
        )
    kept = [word for word in words[1:] if word not in ("--force", "--resume", "--json", "--quiet", "-q")]
    for name in ("-o", "--out"):  # where it was made; now it is here
        if name in kept:
            del kept[kept.index(name) : kept.index(name) + 2]
    kept = [*kept, "--resume", "--quiet", "-o", str(Path(args.run))]
    if (code := _silently(kept)) != OK:
        raise RunIncompleteError(
            f"'{args.run}' could not be repaired (exit code {code}, see above); run `vlascope {' '.join(kept)}` in the "
            "folder in which the run was made, with the same model and data."
        )


def _silently(words: list[str]) -> int:
    """Run another verb without its result on stdout."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        return main(words)
