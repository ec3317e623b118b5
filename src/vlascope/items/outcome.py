"""How an episode ended, by what its label says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WON = frozenset(("true", "yes", "success", "succeeded", "1", "1.0"))
LOST = frozenset(("false", "no", "failure", "failed", "fail", "0", "0.0"))


def succeeded(labels: Mapping[str, Any], *, label: str = "success") -> bool | None:
    """Return whether an episode with these labels succeeded; None where the label says nothing that has one meaning.

    Tables often hold text, and any text, "false" too, counts as true in Python: so only words with one meaning are
    taken (true, yes, success, 1 and their opposites, in any case).
    """
    told = labels.get(label)
    said = "" if told is None else str(told).strip().lower()
    return said in WON if said in WON or said in LOST else None
