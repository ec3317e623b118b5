"""What is kept: the run directory, written block by block and read through memory maps."""

from __future__ import annotations

from .acts import Acts
from .capture import capture
from .engines import Engine, LocalEngine, RayEngine, open_engine
from .meter import CaptureProgress
from .paths import read_info
from .plan import Plan, PlanSite, human_bytes, make_plan
from .run import Run, RunSite
from .session import CaptureInterrupted
from .tables import ItemRow, ResponseRow, TokenTable
from .verify import VerifyReport, verify_run

__all__ = [
    "Acts",
    "CaptureInterrupted",
    "CaptureProgress",
    "Engine",
    "ItemRow",
    "LocalEngine",
    "Plan",
    "PlanSite",
    "RayEngine",
    "ResponseRow",
    "Run",
    "RunSite",
    "TokenTable",
    "VerifyReport",
    "capture",
    "human_bytes",
    "make_plan",
    "open_engine",
    "read_info",
    "verify_run",
]
