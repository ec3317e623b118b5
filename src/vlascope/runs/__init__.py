"""What is kept: the run directory, written block by block and read through memory maps."""

from __future__ import annotations

from .acts import Acts
from .capture import capture
from .cleanup import Freed, clean_run
from .config import capture_config
from .diff import RunDiff, SiteDiff, diff_runs
from .engines import Engine, LocalEngine, RayEngine, open_engine
from .export import export_lerobot, export_safetensors
from .listing import RunEntry, list_runs
from .meter import CaptureProgress
from .paths import read_info
from .plan import Plan, PlanSite, human_bytes, human_secs, make_plan, sample_items, timed
from .run import Run, RunSite
from .session import CaptureInterrupted
from .tables import ItemRow, ResponseRow, TokenTable
from .verify import VerifyReport, verify_run

__all__ = [
    "Acts",
    "CaptureInterrupted",
    "CaptureProgress",
    "Engine",
    "Freed",
    "ItemRow",
    "LocalEngine",
    "Plan",
    "PlanSite",
    "RayEngine",
    "ResponseRow",
    "Run",
    "RunDiff",
    "RunEntry",
    "RunSite",
    "SiteDiff",
    "TokenTable",
    "VerifyReport",
    "capture",
    "capture_config",
    "clean_run",
    "diff_runs",
    "export_lerobot",
    "export_safetensors",
    "human_bytes",
    "human_secs",
    "list_runs",
    "make_plan",
    "open_engine",
    "read_info",
    "sample_items",
    "timed",
    "verify_run",
]
