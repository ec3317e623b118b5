"""`vlascope sim rollout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ._common import Common, Device, ModelName, OutPath, give, say
from ._main import OK

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Let a model act in the simulator, closed loop; print successes, a 95 % interval and how it failed."""

    model: ModelName
    """mini-vla, or a folder with a model that answers in action tokens"""
    episodes: int = 20
    """number of episodes"""
    seed: int = 0
    """seed of the scenes"""
    task: Literal["pick", "place"] = "pick"
    """what the instructions ask for"""
    out: OutPath = None
    """also save the episodes, as a LeRobot v3 dataset"""
    device: Device = "auto"
    """where to compute"""


def run(args: Args) -> int:
    """Roll out and print the counts."""
    from .. import api
    from ..act.rollout import check_free
    from ..models.policy import VLAPolicy
    from ..sim import Perturbation, rollout

    check_free(args.out)
    model = api.load(args.model, device=args.device)
    say(args, f"{model.name}: {args.episodes} episodes of '{args.task}', seed {args.seed}")
    # A reply that is no action moves nothing; it must not end the count.
    # Each episode has a policy of its own: a gripper that the last one closed must not be held closed in the next.
    policies: dict[int, VLAPolicy] = {}

    def start(rgb: np.ndarray, episode: int) -> np.ndarray:
        if episode not in policies:
            policies[episode] = VLAPolicy(model, malformed="hold")
        return rgb

    result = rollout(
        lambda rgb, text: policies[max(policies)](rgb, text),
        task=args.task,
        n_episodes=args.episodes,
        seed=args.seed,
        out=args.out,
        perturbation=Perturbation(image=start),
        quiet=args.quiet,
    )
    low, high = result.interval
    facts = {
        "model": model.name,
        **result.to_dict(),
        "malformed_replies": sum(one.n_malformed for one in policies.values()),
    }
    if args.out:
        facts["out"] = str(args.out)
    lines = [
        f"n          {result.n}",
        f"successes  {result.successes} ({result.successes / result.n:.1%})",
        f"interval   {low:.1%} to {high:.1%} (95 %, Wilson)",
        *(f"failed     {count} x {label}" for label, count in sorted(result.failure_labels.items())),
        *([f"episodes   {args.out}"] if args.out else []),
    ]
    give(args, facts, text="\n".join(lines))
    return OK
