"""The Ray cluster that capture and training work on: the one that was named, else a new one of this machine."""

from __future__ import annotations

import logging
import os
from typing import Any

from ...errors import missing_extra

log = logging.getLogger(__name__)


def import_ray(needed_for: str) -> Any:
    """Return the module `ray`.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", extra="ray", needed_for=needed_for) from error
    return ray


def join_cluster(ray: Any, address: str | None = None, *, n_workers: int | None = None) -> bool:
    """Join the cluster at `address`, else at RAY_ADDRESS, else one that is started on this machine.

    A cluster that nobody named is never joined, although Ray would take the latest one that runs here: it may be
    somebody else's.

    Args:
        ray: The module.
        address: Address of a cluster, e.g. `"10.0.0.1:6379"`.
        n_workers: Slots that a cluster started here has at least, also when there are fewer cores.

    Returns:
        Whether this call joined or started one: not when the process is in a cluster already.
    """
    if ray.is_initialized():
        return False
    if not log.isEnabledFor(logging.WARNING):  # quiet is meant for Ray's notices as well
        logging.getLogger("ray").setLevel(log.getEffectiveLevel())
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    here: dict[str, Any] = {}
    if address == "local":
        here = {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, n_workers or 1)}
    ray.init(address=address, log_to_driver=False, configure_logging=False, namespace="vlascope", **here)
    return True
