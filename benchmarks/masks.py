"""Do the concepts of mini-vla match the simulator's masks? NCut against k-means on raw pixels, held-out frames.

    python -m benchmarks.masks [--frames 100] [--seed 900000]

Records expert episodes on seeds that no training used (two objects each), takes two frames of each, captures
mini-vla, cuts all its layers together as the report does (same defaults), and prints for several sites and K the
mean best-overlap IoU of the two objects and the gripper. The control clusters the raw pixels of the very same
patches with the same K. The first row is the report's default site and K: nothing was chosen on these frames.

Beside it stands the default cut of one layer alone against full k-means (Lloyd's, over all patches) on the same
tokens with the same K, each the mean over five seeds, with the interval of the paired difference over episodes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import vlascope as vs
from benchmarks._record import environment, save
from vlascope.measure import best_overlap, evaluate
from vlascope.measure.nave import MAX_FULL_ROWS
from vlascope.sim import record_episodes
from vlascope.views import report

FRAMES_PER_EPISODE = 2
ALONE = ("vision.0", "vision.5", "projector", "language.0", "language.2", "language.5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument(
        "--seed", type=int, default=900_000, help="first scene seed; training used none above 800000"
    )
    args = parser.parse_args()
    env = environment()
    with tempfile.TemporaryDirectory(prefix="vlascope-masks-") as name:
        folder = Path(name)
        n_episodes = args.frames // FRAMES_PER_EPISODE
        record_episodes(
            folder / "episodes", n_episodes=n_episodes, seed=args.seed, image_px=112, n_objects=2, quiet=True
        )
        source = vs.items(folder / "episodes")
        frames = source.subset(_spread(source))
        run = vs.capture(
            vs.load("mini-vla"),
            frames,
            sites=["vision.*", "projector", "language.*"],
            out=folder / "run",
            respond=False,
            quiet=True,
        )
        cut = vs.cut(run, seed=0).result
        defaults = report(cut).params  # what the report itself would choose
        site, k = defaults["site"], defaults["k"]
        rows = [(site, k)]
        rows += [(s, k) for s in cut.sites if s != site]
        rows += [(site, other) for other in cut.labels if other != k]
        results = []
        for row_site, row_k in rows:
            found = best_overlap(run, cut, site=row_site, k=row_k, seed=0)
            results.append(
                {
                    "site": row_site,
                    "k": row_k,
                    "default_of_the_report": (row_site, row_k) == (site, k),
                    "n_frames": found.n_items,
                    "iou": round(found.mean, 4),
                    "control_iou": round(found.control_mean, 4),
                    "difference": round(found.difference, 4),
                    "interval_95": [round(x, 4) for x in found.interval] if found.interval else None,
                    "interval_over": found.unit,
                    "by_region": {
                        name: [round(x, 4) for x in pair] for name, pair in sorted(found.by_name().items())
                    },
                }
            )
            print(("default  " if len(results) == 1 else "         ") + found.summary())
        n_patches = len(run.acts(site))
        if n_patches > MAX_FULL_ROWS:
            raise SystemExit(f"{n_patches} patches: k-means would be the mini-batch kind; take fewer frames.")
        alone = []
        for one in ALONE:
            found = evaluate(
                run,
                sites=[one],
                methods=["ncut", "kmeans"],
                k=k,
                scope="joint",
                n_permutations=19,
                n_starts=5,
            )
            methods = {name: by_score["best overlap"] for name, by_score in found.results.items()}
            difference = found.difference("ncut", "kmeans", score="best overlap")
            print(
                one, k, *(methods[name].line() for name in methods), difference.line(), sep="\n  ", flush=True
            )
            scores = {name: result.to_json() for name, result in methods.items()}
            alone.append({"site": one, "k": k, **scores, "difference": difference.to_json()})
    path = save(
        "masks", environment=env, results={"seed": args.seed, "rows": results, "one_layer_alone": alone}
    )
    print(f"saved {path}")


def _spread(source) -> list[int]:
    """Return indices of frames evenly inside each episode: at one and two thirds of it."""
    chosen = []
    start = 0
    for episode in source.episodes:
        chosen += [
            start + round(episode.length * (j + 1) / (FRAMES_PER_EPISODE + 1))
            for j in range(FRAMES_PER_EPISODE)
        ]
        start += episode.length
    return chosen


if __name__ == "__main__":
    main()
