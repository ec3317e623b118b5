"""What is kept: the run directory, written block by block and read through memory maps."""

from __future__ import annotations

from .acts import Acts
from .capture import CaptureInterrupted, capture
from .paths import read_info
from .plan import Plan, PlanSite, human_bytes, make_plan
from .run import Run, RunSite, VerifyReport
from .tables import ItemRow, ResponseRow, TokenTable

__all__ = [
    "Acts",
    "CaptureInterrupted",
    "ItemRow",
    "Plan",
    "PlanSite",
    "ResponseRow",
    "Run",
    "RunSite",
    "TokenTable",
    "VerifyReport",
    "capture",
    "human_bytes",
    "make_plan",
    "read_info",
]
