"""`vlascope sim rollout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ._common import Common, Device, ModelName, OutPath, give, say
from ._main import OK


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
    from ..sim import rollout

    check_free(args.out)
    model = api.load(args.model, device=args.device)
    say(args, f"{model.name}: {args.episodes} episodes of '{args.task}', seed {args.seed}")
    # A reply that is no action moves nothing; it must not end the count.
    policy = VLAPolicy(model, malformed="hold")
    result = rollout(
        policy,
        task=args.task,
        n_episodes=args.episodes,
        seed=args.seed,
        out=args.out,
        quiet=args.quiet,
    )
    low, high = result.interval
    facts = {"model": model.name, **result.to_dict(), "malformed_replies": policy.n_malformed}
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
