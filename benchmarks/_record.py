"""What every benchmark saves beside its numbers: machine, versions, commit, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlascope.files import write_json

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Return versions, processor, threads and commit (no host name and no paths)."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python", *(Path(arg).name if os.sep in arg else arg for arg in sys.argv)]),
        "python": platform.python_version(),
        "packages": {
            name: _version(name) for name in ("vlascope", "torch", "transformers", "numpy", "scikit-learn")
        },
        "processor": _processor(),
        "cores": os.cpu_count(),
        "omp_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_at_start": round(os.getloadavg()[0], 1),
        "commit": _commit(),
    }


def save(name: str, *, environment: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json and return its path."""
    return write_json(RESULTS / f"{name}.json", {"environment": environment, "results": results})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
