"""Pictures of the report's sections, of a run with measures and cards made by the verbs of the how-to pages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MADE_BY = (
    "sim rollout mini-vla --episodes 12 --seed 40 -o data/pick",
    "capture mini-vla data/pick -o runs/pick",
    "cut runs/pick --no-video",
    "temporal runs/pick",
    "trace runs/pick",
    "probe runs/pick --target state",
    "sae train runs/pick --site vision.5 -o runs/dictionary",
    "sae cards runs/pick runs/dictionary",
    "report runs/pick",
)
"""A minute and a half on two cores."""


def make_report(folder: Path) -> Path:
    """Run the verbs in a folder and return the page."""
    for words in MADE_BY:
        subprocess.run([sys.executable, "-m", "vlascope", *words.split(), "-q"], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    return folder / "runs" / "pick" / "report.html"


def shoot_report(
    page: Any, *, demo: Path, measured: Path, keep: Callable[[str], None], settle_ms: int = 600
) -> None:
    """Save a picture of each section that the how-to page shows."""
    for path, section, name in (
        (demo, "failure", "report-failure"),
        (measured, "measures", "report-measures"),
        (measured, "latents", "report-cards"),
        (measured, "warnings", "report-end"),
    ):
        page.goto(path.resolve().as_uri())
        page.wait_for_timeout(settle_ms)
        # Instantly: a picture taken while the page glides would show another place.
        page.evaluate(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
        page.wait_for_timeout(settle_ms)
        keep(name)
