"""Who does the work of a run: this process (`LocalEngine`) or the workers of a Ray cluster (`RayEngine`)."""

from __future__ import annotations

from .choose import open_engine
from .engine import BlockReport, CaptureJob, Engine
from .local import LocalEngine
from .ray import RayEngine

__all__ = ["BlockReport", "CaptureJob", "Engine", "LocalEngine", "RayEngine", "open_engine"]
