"""Running the server: which address, which token, and until when."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import InputError, missing_extra
from .book import RunBook
from .memory import share_pools
from .security import Guard, is_loopback
from .server import create_app

DEFAULT_PORT = 8899
N_PORTS = 50
"""Ports that are tried when none is named."""

CLOSE_SECS = 1
"""How long open connections may take to end once the server shuts down."""

SETTLE_SECS, IDLE_SECS = 1.0, 15.0
"""Until the work in the background begins: after the first colours were asked for, and when nobody asks."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the page can be opened.

    Attributes:
        url: The address on this machine.
        ssh: What to type on another machine to open it there through a tunnel.
        token: Part of `url` when other machines can reach the server, else None.
    """

    url: str
    ssh: str
    token: str | None


def serve(
    books: Sequence[RunBook],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    table: Path | None = None,
    ready: Callable[[Address], Any] | None = None,
    patience_secs: float | None = None,
) -> None:
    """Serve one or two opened runs until interrupted.

    Args:
        books: What `open_books` returned.
        host: Address to bind. Anything but loopback can be reached by others and needs a token, which is part of
            the URL.
        port: Port to bind; None takes the first free one from 8899 on.
        table: CSV file of labels; None takes labels.csv in the first run.
        ready: Told the address once the server accepts connections.
        patience_secs: After an interrupt, what is still being computed then is given up by ending the process (files
            are written under another name first, so nothing is left half done); None waits for it.

    Raises:
        MissingExtraError: FastAPI or uvicorn is not installed.
        InputError: the address cannot be bound.
    """
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    app = create_app(books, table=table, token=token, background=True)
    bound = _bind(host, port)
    number = bound.getsockname()[1]
    name = f"[{host}]" if ":" in host else "localhost" if host == "localhost" else host
    if host in ("0.0.0.0", "::"):
        name = socket.gethostname()
    query = f"?token={token}" if token else ""
    address = Address(
        url=f"http://{name}:{number}/{query}",
        ssh=f"ssh -L {number}:localhost:{number} {socket.gethostname()}",
        token=token,
    )
    share_pools()
    server = _server(app, patience_secs=patience_secs)
    threading.Thread(target=_prepare, args=(app,), daemon=True).start()
    if ready is not None:
        threading.Thread(target=_tell, args=(server, ready, address), daemon=True).start()
    try:
        server.run(sockets=[bound])
    finally:
        bound.close()


def _server(app: Guard, *, patience_secs: float | None) -> Any:
    """Return a uvicorn server that stops what is being computed when it is interrupted."""
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("uvicorn", extra="app", needed_for="vlascope app") from error

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.stop()
            if patience_secs is not None:
                last = threading.Timer(patience_secs, os._exit, (128 + sig,))
                last.daemon = True
                last.start()
            super().handle_exit(sig, frame)

    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=256,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=CLOSE_SECS,
        )  # fmt: skip
    )


def _prepare(app: Any) -> None:
    """Measure all sites once the first picture is there (torch alone takes a second to import), or nobody looks."""
    if app.shown.wait(timeout=IDLE_SECS):
        time.sleep(SETTLE_SECS)
    app.prepare_all()


def _tell(server: Any, ready: Callable[[Address], Any], address: Address) -> None:
    while not server.started and not server.should_exit:
        time.sleep(0.01)
    if server.started:
        ready(address)


def _bind(host: str, port: int | None) -> socket.socket:
    """Return a listening socket: of the port that was named, or of the first free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last: OSError | None = None
    for number in [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + N_PORTS):
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, number))
            made.listen(128)
        except (OSError, OverflowError) as error:
            made.close()
            last = error if isinstance(error, OSError) else OSError(str(error))
            continue
        return made
    where = (
        f"port {port}"
        if port is not None
        else f"any port from {DEFAULT_PORT} to {DEFAULT_PORT + N_PORTS - 1}"
    )
    raise InputError(f"cannot bind {where} of '{host}' ({last}); name another with --port or --host.")
