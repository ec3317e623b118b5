"""What is installed, missing or broken on this machine, and how to mend it. Changes nothing, needs no network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .files import file_hash

Status = Literal["ok", "note", "missing", "broken"]

MIN_PYTHON = (3, 11)
MIN_MEMORY_BYTES = 2_000_000_000  # what `vlascope demo` may need
MIN_DISK_BYTES = 1_000_000_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox", "xdg-open", "open")
CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        area: "python", "packages", "extras", "machine" or "data".
        name: What was looked at.
        status: "ok"; "note" (works, worth knowing); "missing" (optional, one feature less); "broken" (needed).
        detail: What was found.
        fix: How to mend it; empty when there is nothing to mend.
    """

    area: str
    name: str
    status: Status
    detail: str
    fix: str = ""


def examine(*, where: Path | str = ".") -> list[Check]:
    """Return every check, in the order in which a person would mend things.

    Args:
        where: The folder that runs would be written to (its free space and permissions are checked).

    Cost: a few seconds, most of it importing torch.
    """
    return [
        _python(),
        *_packages(),
        _torchvision(),
        _video(),
        *_extras(),
        *_machine(Path(where)),
        _gpu(),
        _browser(),
        _weights(),
        _episodes(),
    ]


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info[:2] < MIN_PYTHON:
        return Check(
            "python", "Python", "broken", found, "install Python 3.11 or newer and run `make PYTHON=...`"
        )
    return Check("python", "Python", "ok", f"{found} at {sys.prefix}")


def _packages() -> Iterator[Check]:
    if _metadata() is None:
        fix = "pip install -e . in the clone, so that the requirements can be compared"
        yield Check("packages", "vlascope", "note", "runs from its sources without being installed", fix)
    yield from (_package(text, "packages", "broken", "pip install -U '{}'") for text in _required(None))


def _extras() -> Iterator[Check]:
    metadata = _metadata()
    for extra in metadata.get_all("Provides-Extra") or () if metadata else ():
        checks = [_package(text, "extras", "missing", "") for text in _required(extra)]
        lacking = [check for check in checks if check.status != "ok"]
        if lacking:
            names = ", ".join(f"{check.name} ({check.detail})" for check in lacking)
            yield Check("extras", extra, "missing", names, f"pip install 'vlascope[{extra}]'")
        elif checks:
            yield Check("extras", extra, "ok", ", ".join(f"{check.name} {check.detail}" for check in checks))


def _metadata():
    try:
        return importlib.metadata.metadata("vlascope")
    except importlib.metadata.PackageNotFoundError:
        return None


def _required(extra: str | None) -> Iterator[str]:
    """Yield the requirements of vlascope itself (None) or of one of its extras."""
    from packaging.requirements import Requirement

    if _metadata() is None:
        return
    for text in importlib.metadata.requires("vlascope") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        wanted = (
            extra is None
            if marker is None
            else "extra" in str(marker) and marker.evaluate({"extra": extra or ""})
        )
        if wanted:
            requirement.marker = None
            yield str(requirement)


def _package(text: str, area: str, otherwise: Status, fix: str) -> Check:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(area, requirement.name, otherwise, "not installed", fix.format(text))
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(
            area, requirement.name, otherwise, f"{found}, needs {requirement.specifier}", fix.format(text)
        )
    return Check(area, requirement.name, "ok", found)


def _torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("packages", "torchvision", "ok", "not installed (vlascope does not need it)")
    # In a process of its own: a torchvision built for another torch can leave half-registered operators behind.
    run = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        return Check("packages", "torchvision", "ok", importlib.metadata.version("torchvision"))
    reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
    return Check(
        "packages",
        "torchvision",
        "broken",
        f"installed but fails to import, and transformers then refuses to load models: {reason}",
        "pip uninstall torchvision (or install the build that matches your torch)",
    )


def _video() -> Check:
    if importlib.util.find_spec("av") is None:
        return Check("packages", "H.264", "broken", "PyAV is not installed", "pip install av")
    from av.codec import Codec

    try:
        Codec("libx264", "w")
    except ValueError as error:  # av.codec.codec.UnknownCodecError is a ValueError
        return Check(
            "packages", "H.264", "broken", f"this PyAV has no libx264 encoder: {error}", "pip install -U av"
        )
    return Check("packages", "H.264", "ok", "libx264 encoder found")


def _machine(where: Path) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("machine", "cores", "ok", f"{cores}")
    memory = _available_memory()
    if memory is None:
        yield Check("machine", "memory", "note", "cannot be read on this system")
    elif memory < MIN_MEMORY_BYTES:
        fix = "close other programs, or pass a smaller --batch-size"
        yield Check("machine", "memory", "note", f"{memory / 1e9:.1f} GB free; the demo may need 2 GB", fix)
    else:
        yield Check("machine", "memory", "ok", f"{memory / 1e9:.1f} GB free")
    place = where.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Check(
            "machine", "disk", "note", f"no permission to write in {place}", "write elsewhere with -o"
        )
    elif free < MIN_DISK_BYTES:
        yield Check(
            "machine", "disk", "note", f"{free / 1e9:.1f} GB free in {place}", "write elsewhere with -o"
        )
    else:
        yield Check("machine", "disk", "ok", f"{free / 1e9:.0f} GB free in {place}")


def _available_memory() -> int | None:
    """Return the memory that can be had without swapping, in bytes; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _gpu() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("machine", "GPU", "missing", "torch is not installed", "pip install torch")
    import torch

    if torch.cuda.is_available():
        return Check("machine", "GPU", "ok", torch.cuda.get_device_name(0))
    if torch.backends.mps.is_available():
        return Check("machine", "GPU", "ok", "Apple GPU (mps)")
    return Check("machine", "GPU", "note", "none found; everything runs on the CPU, large models slowly")


def _browser() -> Check:
    found = [name for name in BROWSERS if shutil.which(name)]
    if found:
        return Check("machine", "browser", "ok", found[0])
    return Check(
        "machine", "browser", "note", "none found; `--open` cannot work here, copy report.html elsewhere"
    )


def _package_dir() -> Path:
    return Path(__file__).resolve().parent


def _weights(folder: Path | None = None) -> Check:
    """Check that the embedded weights are there, can be opened and are the bytes that were shipped."""
    folder = folder or _package_dir() / "models" / "weights"
    fix = "install vlascope again (`make setup` in a clone)"
    weights = folder / "mini-vla" / "model.safetensors"
    if not weights.is_file():
        return Check("data", "mini-vla", "broken", f"there is no {weights.relative_to(folder.parent)}", fix)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as handle:
            n_tensors = len(list(handle.keys()))
    except SafetensorError as error:
        return Check("data", "mini-vla", "broken", f"the weights cannot be read: {error}", fix)
    text = f"{n_tensors} tensors, {weights.stat().st_size / 1e6:.1f} MB"
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return Check("data", "mini-vla", "note", f"{text}; no {CHECKSUMS} to compare with")
    for line in sums.read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        path = folder / name.lstrip("*")
        if not path.is_file():
            return Check("data", "mini-vla", "broken", f"the file {name} is missing", fix)
        if file_hash(path) != expected:
            return Check(
                "data", "mini-vla", "broken", f"the file {name} is not the one that was shipped", fix
            )
    return Check("data", "mini-vla", "ok", f"{text}, checksums match")


def _episodes(folder: Path | None = None) -> Check:
    folder = folder or _package_dir() / "items" / "demo"
    n_videos, n_tables = (len(list(folder.rglob(f"*.{ending}"))) for ending in ("mp4", "parquet"))
    if not n_tables:
        fix = "install vlascope again (`make setup` in a clone)"
        return Check("data", "demo episodes", "broken", "not in this installation", fix)
    return Check("data", "demo episodes", "ok", f"{n_tables} tables, {n_videos} videos")
