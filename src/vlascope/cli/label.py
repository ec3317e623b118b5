"""`vlascope label`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..errors import InputError
from ._common import Common, Flag, OptionalInt, OptionalText, OutPath, give, say, table
from ._main import OK

Ids = Annotated[tuple[str, ...], arg(metavar="ID...", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """List episodes (or images), record success, failure or drop with a reason, and write out those to keep."""

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """a dataset, videos or images, as for `vlascope capture`"""
    success: Ids = ()
    """record these episodes as successes"""
    failure: Ids = ()
    """record these episodes as failures"""
    drop: Ids = ()
    """record these episodes as not to be used"""
    reason: str = ""
    """why, kept with each of them"""
    by: str = ""
    """who says so"""
    table: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """CSV file of the labels (default: DATA/labels.csv, or beside a single file)"""
    where: OptionalText = None
    """only these: success, failure, drop, unlabelled, several with commas, or 'not drop'"""
    limit: OptionalInt = None
    """list and draw the first N only"""
    sheet: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """draw a contact sheet, a picture (.png, .jpg or .webp) with thumbnails of every episode listed"""
    out: OutPath = None
    """write those listed by --where as a dataset: LeRobot for episodes, a folder for images and videos"""
    prompt: OptionalText = None
    """instruction of every episode written with -o, in place of its own"""
    fps: OptionalInt = None
    """frames per second of a dataset that does not say, for -o"""
    force: Flag = False
    """replace an existing folder"""


def run(args: Args) -> int:
    """Record, then list, draw and write out what was asked for."""
    from ..items import ReviewTable, export_curated, open_items, reviews_beside, units_of, with_reviews
    from ..items.contact import sheet_format
    from ..items.reviews import UNLABELLED, matches, parse_where

    if args.limit is not None and (args.limit < 1 or args.out is not None):
        raise InputError(
            f"got --limit {args.limit}; need at least 1, and not with -o, which writes all of --where."
        )
    if args.sheet is not None:
        sheet_format(args.sheet)  # before anything is recorded
    kept = None if args.where is None else parse_where(args.where)
    source = open_items(args.data, prompt=args.prompt)
    path = args.table or reviews_beside(args.data)
    reviews = ReviewTable(path)
    units = units_of(source)
    n_new = _record(args, reviews, [unit.id for unit in units])
    current = reviews.current()
    strays = sorted(set(current) - {unit.id for unit in units})
    if strays:
        say(args, f"{len(strays)} ids in {path} are not in the data, such as '{strays[0]}'")
    shown = [unit for unit in units if kept is None or matches(unit.id, current, kept)]
    shown = shown[: args.limit]
    rows = []
    for unit in shown:
        review = current.get(unit.id)
        rows.append(
            (unit.id, str(unit.n_items), *((review.review, review.reason) if review else (UNLABELLED, "")))
        )
    if args.sheet is not None:
        _draw(args.sheet, source, shown, rows)
        say(args, f"contact sheet: {args.sheet}")
    if args.out is not None:
        # With no label yet there is no table; everything is written then, unless a filter asks for one.
        has_labels = args.where is not None or path.is_file()
        chosen = with_reviews(source, path, where=args.where) if has_labels else source
        export_curated(chosen, args.out, fps=args.fps, force=args.force)
    counts = {
        name: sum((current[u.id].review if u.id in current else UNLABELLED) == name for u in units)
        for name in ("success", "failure", "drop", UNLABELLED)
    }
    head = ("id", "frames", "label", "reason")
    text = str(args.out) if args.out is not None else table(rows, head=head)
    say(args, f"{len(units)} in all: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    listed = [dict(zip(head, row, strict=True)) | {"frames": int(row[1])} for row in rows]
    facts = {"table": str(path), "recorded": n_new, "counts": counts, "items": listed}
    facts |= {"sheet": str(args.sheet) if args.sheet else None, "out": str(args.out) if args.out else None}
    give(args, facts, text=text)
    return OK


def _record(args: Args, reviews, known: list[str]) -> int:
    """Write the new labels; all ids are checked before the first is written."""
    wanted = {"success": args.success, "failure": args.failure, "drop": args.drop}
    ids = [one for some in wanted.values() for one in some]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise InputError(f"'{twice[0]}' is given twice; label it once.")
    if args.reason and not ids:
        raise InputError(
            "got --reason without --success, --failure or --drop; say which episodes it is about."
        )
    unknown = [one for one in ids if one not in set(known)]
    for review, some in wanted.items():
        if unknown:
            reviews.add(unknown, review=review, known=known)  # raises, and names what is near
        if some:
            reviews.add(some, review=review, reason=args.reason, by=args.by, known=known)
    return len(ids)


def _draw(path: Path, source, units, rows: list[tuple[str, ...]]) -> None:
    from PIL import Image

    from ..files import write_atomic
    from ..items.contact import contact_sheet, sheet_format

    form = sheet_format(path)
    captions = []
    for unit, row in zip(units, rows, strict=True):
        size = f" | {unit.n_items} frames" if unit.n_items > 1 else ""
        captions.append(f"{row[0]}{size} | {row[2]}{': ' + row[3] if row[3] else ''}")
    picture = contact_sheet(source, units, captions=captions, reviews=[row[2] for row in rows])
    write_atomic(path, lambda handle: Image.fromarray(picture).save(handle, format=form, quality=95))
