"""Writing files so that a crash never leaves half of one: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import StorageError


@contextmanager
def storage_errors(path: Path | str, *, way: str = "choose another place with -o") -> Iterator[None]:
    """Turn the operating system's refusals (permission, full or read-only disk) into `StorageError`.

    Args:
        path: What is being written.
        way: What else to do, where the place is the matter.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EROFS: f"the file system is read-only; {way}",
            errno.EACCES: f"permission denied; {way} or change its permissions",
            errno.EPERM: f"permission denied; {way} or change its permissions",
            errno.EEXIST: f"a file stands where a folder is needed; {way}",
            errno.ENOENT: f"nothing can be made in that place; {way}",
            errno.ENAMETOOLONG: "that name is too long; choose a shorter one with -o",
            errno.EDQUOT: "your quota on that disk is used up; free some space and run the same command again",
            errno.EFBIG: "the file would be larger than is allowed here (see `ulimit -f`)",
            errno.EIO: f"the disk reports an error; look at the system's log, or {way}",
            errno.ENOTDIR: f"a part of that path is a file, not a folder; {way}",
        }
        reason = reasons.get(error.errno or 0)
        if reason is None:
            raise
        raise StorageError(f"cannot write '{path}': {reason}.") from error


def write_atomic(path: Path | str, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a file through `write(handle)` and move it into place only when it is whole.

    Args:
        path: Final place; its folder is made when missing.
        write: Receives a binary handle. When it raises, nothing is left behind.

    Returns:
        `path` as a `Path`.

    Raises:
        StorageError: no permission, read-only or full disk.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle_no, temp_name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle_no, "wb") as handle:
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temp_name, 0o644)
            os.replace(temp_name, path)
        except BaseException:
            Path(temp_name).unlink(missing_ok=True)
            raise
    return path


MADE_NAME = ".vlascope-made.json"
"""Lies in folders that vlascope wrote for its user: `force` replaces these, and no others."""


@contextmanager
def new_folder(out: Path | str, *, force: bool = False, apart: Iterable[Path | str] = ()) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its place when the block ends well, and is removed otherwise.

    For what a user asked for, wherever that was: nothing that somebody else made is ever deleted.

    Args:
        out: Final place; its parents are made when missing.
        force: Replace a folder that was written this way. An empty folder is always replaced.
        apart: What the folder is made from; it may not be replaced.

    Yields:
        The folder to fill.

    Raises:
        StorageError: something is at `out` that may not be replaced, or it cannot be written.
    """
    out = Path(out).resolve() if Path(out).is_symlink() else Path(out)
    _check_replaceable(out, force=force, apart=apart)
    with derived_folder(out, way="choose another place with -o") as temp:
        yield temp
        write_json(temp / MADE_NAME, {"made_by": "vlascope"})


@contextmanager
def derived_folder(out: Path, *, way: str = "copy the run to where you may write") -> Iterator[Path]:
    """The same for folders inside a run, which hold nothing but what can be made again: what is there is replaced."""
    with storage_errors(out, way=way):
        out.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        try:
            yield temp
            os.chmod(temp, 0o755)
            if out.exists():
                shutil.rmtree(out)
            os.replace(temp, out)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise


def _check_replaceable(out: Path, *, force: bool, apart: Iterable[Path | str]) -> None:
    """Raise unless nothing of value is lost when a folder takes the place of `out`."""
    place = out.resolve()
    if place == Path.cwd() or place in Path.cwd().parents:
        raise StorageError(f"'{out}' holds the folder you are in; choose another folder with -o.")
    for source in apart:
        if place == (found := Path(source).resolve()) or place in found.parents:
            raise StorageError(
                f"'{out}' holds what the new folder is made from ('{source}'); choose another with -o."
            )
    with storage_errors(out):
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    if not force:
        raise StorageError(f"'{out}' exists; choose another folder, or replace it with force=True (--force).")
    if not (out / MADE_NAME).is_file():
        raise StorageError(
            f"'{out}' was not written by vlascope, so that it is not replaced; choose another folder with -o, or "
            "remove it yourself."
        )


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write bytes atomically."""
    return write_atomic(path, lambda handle: handle.write(data))


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """Return `value` as indented JSON. NaN is refused (it is not JSON)."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path | str, value: Any) -> Path:
    """Write `value` as `json_text`, atomically."""
    return write_text(path, json_text(value))


def read_json(path: Path | str) -> Any:
    """Return the parsed content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def content_hash(value: Any, *, length: int = 12) -> str:
    """Return a short hexadecimal SHA-256 of a JSON-able value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_hash(path: Path | str, *, length: int = 64) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:length]
