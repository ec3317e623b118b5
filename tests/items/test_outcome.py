"""How an episode ended, by what its label says."""

from __future__ import annotations

import numpy as np
import pytest

from vlascope.items.outcome import succeeded
from vlascope.views.choose import outcome_text


@pytest.mark.parametrize("told", [True, "true", "TRUE ", "yes", 1, 1.0, np.bool_(True), "success"])
def test_words_for_success(told):
    assert succeeded({"success": told}) is True and outcome_text({"success": told}) == "success"


@pytest.mark.parametrize("told", [False, "false", "No", 0, 0.0, np.bool_(False), "failed"])
def test_words_for_failure(told):
    """Any text counts as true in Python."""
    labels = {"success": told, "outcome": "never_lifted"}
    assert succeeded(labels) is False and outcome_text(labels) == "failure: never lifted"


@pytest.mark.parametrize(
    "labels", [{}, {"success": None}, {"success": ""}, {"success": "perhaps"}, {"success": 0.5}]
)
def test_what_has_no_one_meaning_is_not_told(labels):
    assert succeeded(labels) is None and outcome_text(labels) == ""
