"""Choose and write the two embedded demo episodes: what the shipped weights really did, closed loop.

    python -m training.mini_vla.make_demo [--out src/vlascope/items/demo] [--seed 700000]

Rolls out the shipped mini-vla on consecutive seeds and keeps the first failure and the first success with the
same number of objects. Nothing is staged: the failure is one that the model made on its own, and the number of
episodes played until it came is printed (and belongs into the model card).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlascope.models import load
from vlascope.models.policy import VLAPolicy
from vlascope.sim import rollout, write_episodes
from vlascope.sim.episode import Episode

CHUNK = 20  # episodes with pictures kept in memory at a time


def find_pair(policy: VLAPolicy, *, seed: int, at_most: int) -> tuple[Episode, Episode, int]:
    """Return the first success, the first failure, and how many episodes were played until both were there."""
    success: Episode | None = None
    for start in range(seed, seed + at_most, CHUNK):
        played = rollout(
            policy, task="pick", n_episodes=CHUNK, seed=start, n_objects=3, keep_frames=True
        ).episodes
        for i, episode in enumerate(played):
            if not episode.success:
                first = success or next(e for e in played if e.success)
                return first, episode, start - seed + i + 1
            success = success or episode
    raise SystemExit(f"no failure in {at_most} episodes from seed {seed}; ask for more with --at-most")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("src/vlascope/items/demo"))
    parser.add_argument("--model", default="mini-vla")
    parser.add_argument("--seed", type=int, default=700_000)
    parser.add_argument("--at-most", type=int, default=600)
    args = parser.parse_args()
    policy = VLAPolicy(load(args.model), malformed="hold")
    success, failure, n_played = find_pair(policy, seed=args.seed, at_most=args.at_most)
    # Exact pixels: video would be lossy, and the model must see again what it acted on.
    write_episodes(args.out, [failure, success], video=False, force=True)
    print(f"played {n_played} episodes from seed {args.seed} until the first failure")
    for episode in (failure, success):
        print(f"{episode.instruction.text!r}: {episode.outcome} in {len(episode.actions)} steps")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
