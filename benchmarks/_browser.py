"""The browser that benchmarks drive."""

from __future__ import annotations

import shutil
from typing import Any

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)


def launch(driver: Any) -> Any:
    """Return a headless Chromium of the machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"no browser here; needs one of {', '.join(names)}")
    return driver.chromium.launch(executable_path=program, args=list(FLAGS))
