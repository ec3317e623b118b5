"""What a rollout asks at every step before the robot moves: may this action be carried out?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Veto:
    """Why an action was not carried out.

    Attributes:
        reason: One sentence for people.
        score: The number that was judged; NaN where there is none.
        threshold: What it had to stay below.
        site: The site whose tokens gave rise to it.
        box: x0, y0, x1, y1 of the place in the camera image, in pixels; None where it has no place.
        details: JSON-able facts.
    """

    reason: str
    score: float = float("nan")
    threshold: float = float("nan")
    site: str = ""
    box: tuple[float, float, float, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Watcher(Protocol):
    """Watches one episode. Rollouts make one per episode, so that several can run in one forward pass."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites whose tokens it reads."""
        ...

    def start(self, task: str, camera: str) -> None:
        """Begin an episode.

        Args:
            task: What is asked for, such as "pick".
            camera: Name of the camera.
        """
        ...

    def watch(self, step: int, tokens: dict[str, NDArray[np.float32]]) -> Veto | None:
        """Judge one step before its action is carried out.

        Args:
            step: Steps since the start of the episode, from 0.
            tokens: {site name: float32 [t, d]}, what the model computed for this step's image and prompt (without
                its answer); rows as in the site's `TokenLayout`.

        Returns:
            A veto, which ends the episode before the action; None to go on.
        """
        ...
