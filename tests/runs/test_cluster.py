"""Which Ray cluster is worked on: the one that was named, never one that happens to run here."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from vlascope.runs.engines.cluster import join_cluster


class FakeRay:
    """Records how a cluster was joined."""

    def __init__(self, *, is_there: bool = False) -> None:
        self.is_there = is_there
        self.joined: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return self.is_there

    def init(self, **settings: Any) -> None:
        self.joined.append(settings)


@pytest.fixture(autouse=True)
def _no_address(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_cluster_that_nobody_named_is_not_joined(monkeypatch):
    ray = FakeRay()
    n_cpus = os.cpu_count() or 1
    assert join_cluster(ray)
    # "local", not None: None would be the latest cluster that anybody started on this machine.
    assert ray.joined[-1]["address"] == "local" and ray.joined[-1]["num_cpus"] == n_cpus
    assert join_cluster(ray, n_workers=n_cpus + 3)
    assert ray.joined[-1]["num_cpus"] == n_cpus + 3
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert join_cluster(ray) and ray.joined[-1]["address"] == "local"


def test_the_named_cluster_is_joined_as_it_is(monkeypatch):
    ray = FakeRay()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert join_cluster(ray, n_workers=7) and ray.joined[-1]["address"] == "10.0.0.1:6379"
    assert join_cluster(ray, "10.0.0.2:6379", n_workers=7) and ray.joined[-1]["address"] == "10.0.0.2:6379"
    # Ray refuses a number of slots for a cluster that exists.
    assert not any("num_cpus" in settings for settings in ray.joined)


def test_a_process_in_a_cluster_stays_there():
    ray = FakeRay(is_there=True)
    assert not join_cluster(ray, "10.0.0.1:6379") and ray.joined == []


def test_quiet_is_meant_for_ray_too():
    ours, theirs = logging.getLogger("vlascope"), logging.getLogger("ray")
    before = ours.level, theirs.level
    try:
        ours.setLevel(logging.ERROR)
        join_cluster(FakeRay())
        assert theirs.level == logging.ERROR
    finally:
        ours.setLevel(before[0])
        theirs.setLevel(before[1])
