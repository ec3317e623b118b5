"""The episodes inside the package: a small LeRobot dataset of what mini-vla really did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ItemNotFoundError, nearest_text
from .lerobot import EpisodeInfo, LeRobotSource, is_lerobot
from .outcome import succeeded

DEMO_DIR = Path(__file__).parent / "demo"


def open_demo(
    spec: str,
    *,
    prompt: str | None = None,
    camera: str | Sequence[str] | None = None,
    root: Path | None = None,
) -> LeRobotSource:
    """Return the embedded episodes that `spec` names.

    Args:
        spec: "demo" for all; "demo:success" or "demo:failure" by how they ended (label "success"); "demo:pick"
            or "demo:place" by their task (label "task", else the first word of the instruction).
        prompt: As for `LeRobotSource`.
        camera: As for `LeRobotSource`.
        root: Another dataset folder (for tests).

    Raises:
        ItemNotFoundError: the package was built without the episodes, or has none of that kind.
    """
    root = root or DEMO_DIR
    if not is_lerobot(root):
        raise ItemNotFoundError(
            f"this installation has no demo episodes (looked in '{root}'); reinstall vlascope, or open a dataset "
            "of your own."
        )
    source = LeRobotSource(root, prompt=prompt, camera=camera)
    kind = spec.partition(":")[2]
    if not kind:
        return source
    kinds: dict[str, list[int]] = {}
    for episode in source.episodes:
        for name in _kinds(episode):
            kinds.setdefault(name, []).append(episode.index)
    if kind not in kinds:
        raise ItemNotFoundError(
            f"there is no demo '{spec}'; there are 'demo' and {', '.join(repr(f'demo:{k}') for k in sorted(kinds))}."
            f"{nearest_text(kind, kinds)}"
        )
    return LeRobotSource(root, prompt=prompt, camera=camera, episodes=kinds[kind])


def _kinds(episode: EpisodeInfo) -> list[str]:
    kinds: list[str] = []
    if "success" in episode.labels:
        kinds.append("success" if succeeded(episode.labels) else "failure")
    words = (episode.task or "").split()
    first = {"put": "place"}.get(words[0], words[0]) if words else None
    task = episode.labels.get("task") or first
    return [*kinds, str(task)] if task else kinds
