"""What the pictures mean, in numbers with their controls and intervals."""

from .overlap import OverlapResult, best_overlap, best_overlap_iou, paired_interval

__all__ = ["OverlapResult", "best_overlap", "best_overlap_iou", "paired_interval"]
