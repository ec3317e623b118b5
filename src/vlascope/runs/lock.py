"""One writer per run: a lock that the operating system releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunExistsError, StorageError
from ..files import storage_errors

LOCK_NAME = "run.lock"


@contextmanager
def write_lock(run_dir: Path) -> Iterator[None]:
    """Hold the write lock of a run directory; the lock file says who holds it (process id and host).

    The file of a process that was killed is taken over: `flock` belongs to the process and not to the file, so a
    stale file locks nothing, and two processes that find one cannot both win.

    Raises:
        RunExistsError: another process is writing this run.
        StorageError: the file system refuses the file or has no locks.
    """
    path = run_dir / LOCK_NAME
    with storage_errors(path):
        handle_no = _acquire(path)
    try:
        os.ftruncate(handle_no, 0)
        os.pwrite(handle_no, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle_no)


def _acquire(path: Path) -> int:
    while True:
        handle_no = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle_no, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have deleted the file between our open and our lock: then nobody else can see
            # the file that we locked, and we must start again.
            if path.exists() and os.stat(path).st_ino == os.fstat(handle_no).st_ino:
                return handle_no
            os.close(handle_no)
        except OSError as error:
            os.close(handle_no)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunExistsError(
                    f"'{path.parent}' is being written by another process ({_holder(path)}). Wait for it to finish, "
                    "stop it, or choose another place with -o."
                ) from None
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise StorageError(
                    f"the file system of '{path.parent}' has no file locks, so two writers could not be kept apart; "
                    "choose a place on a local disk with -o."
                ) from error
            raise


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError):  # it is being written this very moment
        return "process unknown"
