"""Reviews of episodes and images, success, failure or drop with a reason, in a table beside the data."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, ItemError, ItemNotFoundError, StorageError, nearest_text
from ..files import storage_errors, write_text
from .recognise import parse_spec

REVIEWS = ("success", "failure", "drop")
UNLABELLED = "unlabelled"
TABLE_NAME = "labels.csv"
COLUMNS = ("id", "review", "reason", "by", "time")


@dataclass(frozen=True)
class Review:
    """One row of the table.

    Attributes:
        id: Name of an episode ("ep0003") or id of an image.
        review: success, failure or drop.
        reason: Why; may be empty.
        by: Who said so; may be empty.
        time: When, ISO 8601 with the offset from UTC.
    """

    id: str
    review: str
    reason: str = ""
    by: str = ""
    time: str = ""


def reviews_beside(spec: Any) -> Path:
    """Return where the table of some data lies by default: FOLDER/labels.csv, or FILE.labels.csv for a file.

    Raises:
        InputError: the data has no place on disk (demo, simulated, patterns, lists); name the table then.
    """
    if isinstance(spec, str | Path):
        found = parse_spec(spec) if isinstance(spec, str) else None
        path = Path(found.path if found else spec).expanduser()
        if path.is_dir():
            return path / TABLE_NAME
        if path.is_file():
            return path.with_name(f"{path.name}.{TABLE_NAME}")
    raise InputError(
        f"there is no place beside {str(spec)[:60]!r} for a table of labels; name one: --table FILE (labels=FILE)."
    )


class ReviewTable:
    """A CSV file of reviews. Every review is kept as a row; the last one of an id counts.

    Several processes may add rows at once: each waits for the folder's lock, reads, adds and replaces the file, so
    neither a crash nor another writer loses a row.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def rows(self) -> list[Review]:
        """Return all rows, oldest first; none when there is no file.

        Raises:
            ItemError: the file is no table of reviews.
        """
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ItemError(f"'{self.path}' cannot be read ({error}).") from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        names = reader.fieldnames or ()
        if not {"id", "review"} <= set(names):
            raise ItemError(
                f"'{self.path}' has the columns {', '.join(names) or 'none'}; a table of labels has "
                f"{', '.join(COLUMNS)}. Is it another file? Then name a table of your own: --table FILE."
            )
        found: list[Review] = []
        for row in reader:
            review = Review(**{name: (row.get(name) or "").strip() for name in COLUMNS})
            if not review.id or review.review not in REVIEWS:
                raise ItemError(
                    f"'{self.path}', line {reader.line_num}: id '{review.id}' with review '{review.review}'; need an "
                    f"id and one of {', '.join(REVIEWS)}."
                )
            found.append(review)
        return found

    def current(self) -> dict[str, Review]:
        """Return the review that counts for each id: its last row."""
        return {review.id: review for review in self.rows()}

    def add(
        self,
        ids: Sequence[str],
        *,
        review: str,
        reason: str = "",
        by: str = "",
        known: Sequence[str],
        wait_secs: float = 30.0,
    ) -> list[Review]:
        """Record a review of some episodes or images, all or none, and return the new rows.

        Args:
            ids: What is reviewed.
            review: success, failure or drop.
            reason: Why.
            by: Who says so.
            known: The ids that the data has.
            wait_secs: How long to wait for another writer.

        Raises:
            InputError: an id that the data does not have, or another review.
            ItemError: the file is no table of reviews.
            StorageError: it cannot be written, or another writer keeps it locked.
        """
        if review not in REVIEWS:
            raise InputError(f"got review '{review}'; need one of {', '.join(REVIEWS)}.")
        there = set(known)
        for one in ids:
            if one not in there:
                raise InputError(
                    f"there is no episode or image '{one}' in the data; it has {len(there)}."
                    f"{nearest_text(one, known)} Nothing was recorded."
                )
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        new = [Review(one, review, reason.strip(), by.strip(), now) for one in dict.fromkeys(ids)]
        with _folder_lock(self.path.parent, wait_secs=wait_secs):
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(astuple(row) for row in [*self.rows(), *new])
            write_text(self.path, text.getvalue())
        return new


@contextmanager
def _folder_lock(folder: Path, *, wait_secs: float) -> Iterator[None]:
    """Hold the lock of a folder; the operating system releases it when its holder dies. Leaves no file behind."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + wait_secs
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise StorageError(
                        f"another process keeps '{folder}' locked for {wait_secs:g} s; try again later."
                    ) from error
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def parse_where(where: str) -> frozenset[str]:
    """Return the reviews that a filter keeps, "unlabelled" among them when it does.

    Args:
        where: "success", "failure,drop", "not drop", "unlabelled".

    Raises:
        InputError: another word.
    """
    words = [word.strip() for word in where.removeprefix("not ").split(",")]
    known = (*REVIEWS, UNLABELLED)
    for word in words:
        if word not in known:
            raise InputError(
                f"where='{where}': need {', '.join(known)}, joined by commas, or 'not drop'.{nearest_text(word, known)}"
            )
    return frozenset(known) - frozenset(words) if where.startswith("not ") else frozenset(words)


def matches(name: str, reviews: Mapping[str, Review], kept: frozenset[str]) -> bool:
    """Return whether an episode or image is among those that a filter keeps."""
    return (reviews[name].review if name in reviews else UNLABELLED) in kept


def require_table(path: Path) -> ReviewTable:
    """Return the table at `path`. Raises `ItemNotFoundError` when there is none yet."""
    if not path.is_file():
        raise ItemNotFoundError(
            f"there is no table of labels '{path}'; make one with `vlascope label DATA --success ID ...`, or name it."
        )
    return ReviewTable(path)
