"""Writing files so that a crash never leaves half of one: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import StorageError


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals (permission, full or read-only disk) into `StorageError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EROFS: "the file system is read-only; choose another place with -o",
            errno.EACCES: "permission denied; choose another place with -o or change its permissions",
            errno.EPERM: "permission denied; choose another place with -o or change its permissions",
            errno.EEXIST: "a file stands where a folder is needed; choose another place with -o",
            errno.ENOENT: "nothing can be made in that place; choose another with -o",
            errno.ENAMETOOLONG: "that name is too long; choose a shorter one with -o",
            errno.EDQUOT: "your quota on that disk is used up; free some space and run the same command again",
            errno.EIO: "the disk reports an error; look at the system's log, or choose another place with -o",
            errno.ENOTDIR: "a part of that path is a file, not a folder; choose another place with -o",
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


@contextmanager
def new_folder(out: Path | str, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `out` that takes its place when the block ends well, and is removed otherwise.

    Args:
        out: Final place; its parents are made when missing.
        force: Replace what is there. An empty folder is always replaced.

    Yields:
        The folder to fill.

    Raises:
        StorageError: `out` exists and `force` is False, or it cannot be written.
    """
    out = Path(out)
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"'{out}' exists; choose another folder, or replace it with force=True (--force).")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        try:
            yield temp
            os.chmod(temp, 0o755)
            if out.exists():
                shutil.rmtree(out) if out.is_dir() else out.unlink()
            os.replace(temp, out)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write bytes atomically."""
    return write_atomic(path, lambda handle: handle.write(data))


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> Path:
    """Write `value` as indented JSON, atomically. NaN is refused (it is not JSON)."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


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
