"""Odd requests to a running `vlascope app`: made from its own description, and such as no description allows."""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

WORDS = ("*", "vision.0", "0", "-1", "1e99", "nan", "%00", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "\u202e",
         "a" * 7000, "<script>", "'; DROP", "true", "2147483648", "", "vision.0,vision.1", "concepts", "features",
         "pca", "tsne")  # fmt: skip


def described(url: str, *, n: int) -> dict[str, Any]:
    """Let schemathesis send at least `n` requests, with as many seeds as that takes, and return what broke."""
    program = shutil.which("schemathesis")
    if program is None:
        raise SystemExit(
            "the program schemathesis is not here: pip install schemathesis (in any environment)"
        )
    sent, runs, codes = 0, 0, set()
    while sent < n and runs < 40:
        runs += 1
        words = [program, "run", f"{url}openapi.json", "--checks", "not_a_server_error", "--workers", "2",
                 "--max-examples", "400", "--seed", str(runs), "--no-color"]  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:  # it leaves notes of its own behind
            done = subprocess.run(words, capture_output=True, text=True, timeout=3600, cwd=scratch)
        codes.add(done.returncode)
        found = re.findall(r"(\d[\d,]*) generated", done.stdout)
        if not found:
            raise SystemExit(
                f"schemathesis said nothing of what it sent:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        sent += int(found[-1].replace(",", ""))
    return {"requests": sent, "runs": runs, "exit_codes": sorted(codes)}


def odd(url: str, *, n: int, hide: str, seed: int = 0, n_threads: int = 8) -> dict[str, Any]:
    """Send `n` malformed, huge or misplaced requests, `n_threads` at once, and return how they were answered.

    Args:
        url: Address of the server.
        n: How many.
        hide: Text that no answer may hold (the folder of the run).
        seed: Draws the requests.
        n_threads: How many at once.
    """
    with urllib.request.urlopen(f"{url}openapi.json") as answer:
        paths = json.load(answer)["paths"]
    with urllib.request.urlopen(f"{url}api/state") as answer:
        key = json.load(answer)["runs"][0]["key"]
    host = urlsplit(url).netloc
    work = [_request(random.Random(f"{seed} {i}"), paths, key, host) for i in range(n)]
    with ThreadPoolExecutor(n_threads) as pool:
        answers = list(pool.map(lambda raw: _send(host, raw), work))
    leaks = [
        raw[:200]
        for raw, text in zip(work, answers, strict=True)
        if hide.encode() in text or b"Traceback" in text
    ]
    codes = Counter(text[9:12].decode("latin-1") if text[:5] == b"HTTP/" else "closed" for text in answers)
    return {"requests": n, "answers": dict(sorted(codes.items())), "leaks": len(leaks),
            "server_errors": sum(count for code, count in codes.items() if code == "500")}  # fmt: skip


def _request(rng: random.Random, paths: dict[str, Any], key: str, host: str) -> bytes:
    """Return the bytes of one request, most of them wrong in some way."""
    path = rng.choice(
        [*paths, "/", "/static/app.js", "/static/../server.py", "/static/%2e%2e/server.py", "//", "/api/%00"]
    )
    path = re.sub(r"\{key\}", key if rng.random() < 0.7 else rng.choice(WORDS), path)
    path = re.sub(r"\{\w+\}", lambda _: quote(rng.choice(WORDS), safe="%/"), path)
    names = ["site", "k", "method", "n_eig", "run", "token", "sites", "name"]
    asked = "&".join(
        f"{rng.choice(names)}={quote(rng.choice([*WORDS, key]), safe='%')}" for _ in range(rng.randrange(5))
    )
    method = rng.choice(["GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "G\x00T"])
    body = rng.choice([b"", b"{", b"[" * 20_000, b"null", b"\xff" * 100, b"{\"clicks\": " + b"9" * 5000 + b"}",
                       json.dumps({"run": key, "item": -1, "kind": "tokens", "clicks": [{}] * 99}).encode(),
                       b"x" * 70_000])  # fmt: skip
    length = rng.choice([len(body), len(body), len(body), 0, -1, 10**12, len(body) // 2])
    lines = [f"{method} {path}?{asked} HTTP/1.1", f"host: {rng.choice([host, host, host, host, 'evil.example', ''])}",
             f"content-length: {length}", "content-type: application/json", "connection: close"]  # fmt: skip
    if rng.random() < 0.1:
        lines.append(f"origin: {rng.choice(['null', 'https://evil.example', 'http://['])}")
    if rng.random() < 0.05:
        lines.append("x: " + "y" * 100_000)
    return "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + body


def _send(host: str, raw: bytes) -> bytes:
    """Return all that comes back; empty when the server closed without a word."""
    name, port = host.rsplit(":", 1)
    found = b""
    try:
        with socket.create_connection((name, int(port)), timeout=20) as connection:
            connection.sendall(raw)
            head, _, body = raw.partition(b"\r\n\r\n")
            announced = re.search(rb"content-length: (-?\d+)", head)
            if announced and int(announced[1]) > len(body):
                connection.shutdown(socket.SHUT_WR)  # the server would wait for the rest
            while part := connection.recv(65_536):
                found += part
    except ConnectionError:
        pass  # closed in the middle of what it did not want to hear
    return found


def alive(url: str) -> bool:
    """Return whether the server still answers."""
    with urllib.request.urlopen(f"{url}api/state", timeout=20) as answer:
        return answer.status == 200


def fuzz(url: str, *, n: int, run: Path) -> dict[str, Any]:
    """Send `n` requests of either kind and return what broke."""
    return {
        "odd": odd(url, n=n, hide=str(run.resolve().parent)),
        "described": described(url, n=n),
        "alive": alive(url),
    }
