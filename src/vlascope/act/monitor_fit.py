"""Fitting a monitor on clean episodes: what is usual, where the limits are, and how often clean episodes break them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import progress
from ..sae.checkpoint import Checkpoint
from ..sae.train import same_split
from .monitor import (
    ANY_TASK,
    FLOOR,
    Fitted,
    Monitor,
    Patches,
    episode_tokens,
    episodes_of,
    patches_of,
    raw_scores,
    task_of,
    top_mean,
)
from .monitor_detectors import (
    DETECTORS,
    Detector,
    SAEError,
    SAEFall,
    mahalanobis,
    moments,
    pca_residual,
    standardized,
)
from .monitor_thresholds import CAPTURE_MORE, RULES, Rate, Rule, Thresholds, calibrate, episodes_needed

if TYPE_CHECKING:
    from ..runs import Run

ALPHA = 0.05
SHARES = (0.3, 0.4, 0.3)
TOP = 0.05
PATCH_RATE = 0.005
AUTO = "auto"
TASK_LABEL = "sim_task"
MIN_REFERENCE_FRAMES = 20
MAX_LEVEL_FRAMES = 256


def fit_monitor(
    run: Run,
    checkpoint: Checkpoint,
    *,
    alpha: float = ALPHA,
    by: str | None = AUTO,
    items: Sequence[int] | None = None,
    site: str | None = None,
    shares: tuple[float, float, float] = SHARES,
    top: float = TOP,
    n_components: int = 0,
    seed: int = 0,
    quiet: bool = False,
) -> Monitor:
    """Return a monitor fitted on the clean episodes of a run.

    Whole episodes are dealt into three parts: the reference (what each place of the image usually scores, and the
    baselines' covariance), the calibration (thresholds) and the test, which nothing is fitted on: how many of its
    episodes raise an alarm is the realised false-alarm rate. Where the run shows the data that the dictionary was
    trained on (see `held_out_of`), its training episodes serve as the reference only: their errors are too small to
    calibrate with.

    Args:
        run: Clean episodes; items without an episode count as episodes of one frame.
        checkpoint: The dictionary, of the same model (see `load_sae`, which checks that).
        alpha: Share of clean episodes that may raise an alarm, all cameras together.
        by: Label that names the task, each of which gets its own thresholds; "auto" is "sim_task" where all items
            have it; None treats all tasks alike.
        items: Only these rows of items.
        site: Where to read (default: where the dictionary was trained).
        shares: Of the three parts.
        top: Share of a camera's patches, the highest, whose mean is the frame's score.
        n_components: Of the PCA baseline; 0 stands for as many as the dictionary has active latents per token.
        seed: Seeds the deal.
        quiet: No progress bar.

    Raises:
        InputError: another model or width, too few episodes for `alpha`, NaN, patches that move, missing labels.

    Cost: one pass over the run to fit the baselines, one to score; memory for the scores of all patches, 4 bytes each
    per detector.
    """
    episodes_needed(alpha)  # refuses impossible rates
    if not 0 < top <= 1:
        raise InputError(f"got top={top}; need a share of patches, 0 < top <= 1.")
    site = site or checkpoint.site
    if site is None:
        raise InputError(
            f"the dictionary in '{checkpoint.path}' does not say where it was trained; name the site."
        )
    if run.site(site).width != checkpoint.sae.config.d_in:
        raise InputError(
            f"the dictionary in '{checkpoint.path}' reads {checkpoint.sae.config.d_in} channels, but site '{site}' has "
            f"{run.site(site).width}."
        )
    patches = patches_of(run, site, item=0 if items is None else int(items[0]))
    groups = episodes_of(run, items)
    if by == AUTO:
        by = TASK_LABEL if all(TASK_LABEL in run.items[int(i)].labels for g in groups for i in g) else None
    tasks = [task_of(run, group, by) for group in groups]
    parts = deal(run, checkpoint, groups, tasks, shares=shares, seed=seed)
    advice = _advice(groups, held_out_of(run, checkpoint))
    reference = [groups[i] for i in parts[0]]

    def reference_tokens() -> Iterator[NDArray[np.float32]]:
        for group in progress(reference, desc="reading clean frames", unit="episode", quiet=quiet):
            tokens = episode_tokens(run, site, group, patches)
            yield tokens.reshape(-1, tokens.shape[2])

    found = moments(reference_tokens())
    k = n_components or checkpoint.sae.config.k
    sae = SAEError(checkpoint.sae, found.variance)
    fall = SAEFall(checkpoint.sae, found.variance)
    detectors: list[Detector] = [sae, fall, mahalanobis(found), pca_residual(found, n_components=k)]
    assert tuple(one.name for one in detectors) == DETECTORS
    logs: dict[str, list[NDArray[np.float32]]] = {one.name: [] for one in detectors}
    level_logs: list[NDArray[np.float32]] = []
    is_reference = set(parts[0].tolist())
    n_frames = sum(len(group) for group in reference)
    if n_frames < MIN_REFERENCE_FRAMES:
        raise InputError(
            f"the reference episodes have {n_frames} frames; need at least {MIN_REFERENCE_FRAMES} to know what each "
            "place of the image usually scores."
        )
    every = max(1, n_frames // MAX_LEVEL_FRAMES)
    for number in progress(range(len(groups)), desc="scoring", unit="episode", quiet=quiet):
        tokens = episode_tokens(run, site, groups[number], patches)
        for one in detectors:
            # The two that look at the dictionary's error share it.
            shared = logs[sae.name][number] if one is fall else None
            logs[one.name].append(np.log(raw_scores(one, tokens) + FLOOR) if shared is None else shared)
        if number in is_reference:
            level_logs.append(_level_logs(sae, tokens[::every]))
    levels = np.concatenate(level_logs)
    cameras = max((run.items[int(group[0])].cameras for group in groups), key=len)
    alone = int(len(np.unique(patches.camera)))
    fitted = {
        one.name: _fit_one(
            one,
            logs[one.name],
            parts,
            tasks,
            patches,
            cameras=cameras,
            by=by,
            alpha=alpha / alone,
            top=top,
            advice=advice,
        )
        for one in detectors
    }
    model = run.config["model"]
    return Monitor(
        site=site,
        alpha=alpha,
        by=by,
        top=top,
        patches=patches,
        cameras=tuple(cameras),
        fitted=fitted,
        level_centre=levels.mean(0),
        level_spread=np.maximum(levels.std(0), 1e-6),
        model={"name": model.get("name"), "fingerprint": model.get("fingerprint")},
        facts={
            "run_sha256": run.info.get("content_sha256"),
            "items_fingerprint": items_fingerprint(run),
            "n_episodes": {
                name: len(part)
                for name, part in zip(("reference", "calibration", "test"), parts, strict=True)
            },
            "n_frames": int(sum(len(group) for group in groups)),
            "tasks": sorted(set(tasks)),
            "pca_components": k,
            "seed": seed,
        },
    )


def deal(
    run: Run,
    checkpoint: Checkpoint,
    groups: Sequence[NDArray[np.int64]],
    tasks: Sequence[str],
    *,
    shares: tuple[float, float, float],
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return which episodes are reference, calibration and test, each task dealt by itself."""
    if len(shares) != 3 or min(shares) <= 0 or not math.isfinite(sum(shares)):
        raise InputError(f"got shares {shares}; need three positive ones: reference, calibration, test.")
    total = sum(shares)
    rng = np.random.default_rng([seed, 11])
    parts: list[list[int]] = [[], [], []]
    held = held_out_of(run, checkpoint)
    for task in sorted(set(tasks)):
        own = [i for i, name in enumerate(tasks) if name == task]
        order = [own[int(j)] for j in rng.permutation(len(own))]
        if held is None:
            edges = [
                0,
                round(len(order) * shares[0] / total),
                round(len(order) * (shares[0] + shares[1]) / total),
            ]
            cut = [order[edges[0] : edges[1]], order[edges[1] : edges[2]], order[edges[2] :]]
        else:
            trained = [i for i in order if not held.issuperset(int(item) for item in groups[i])]
            fresh = [i for i in order if held.issuperset(int(item) for item in groups[i])]
            edge = round(len(fresh) * shares[1] / (shares[1] + shares[2]))
            cut = [trained, fresh[:edge], fresh[edge:]]
        for part, some in zip(parts, cut, strict=True):
            part += some
    if not all(parts):
        raise InputError(
            f"got {len(groups)} clean episodes; they do not suffice for reference, calibration and test. "
            f"{_advice(groups, held)}"
        )
    first, second, third = (np.array(sorted(part), np.int64) for part in parts)
    return first, second, third


def held_out_of(run: Run, checkpoint: Checkpoint) -> set[int] | None:
    """Return the items of a run that a dictionary was not trained on; None when it was trained on other data.

    A capture of the same data at other sites is another run, but shows the same episodes. Same data is: the run that
    the dictionary was trained on, or one with the fingerprint of its items; of a dictionary that does not say that
    fingerprint, a run in which the same items would be held out.
    """
    origin = checkpoint.origin
    key = origin.get("key") or {}
    if key.get("run") is None or "train" not in key or run.n_items < 2:
        return None
    split = same_split(run, origin)
    held = {int(i) for i in split.held_out}
    if key["run"] == run.info.get("content_sha256"):
        return held
    known = origin.get("items_fingerprint")
    if known is not None:
        return held if known == items_fingerprint(run) else None
    ids = origin.get("held_out_items")
    if not ids or origin.get("n_held_out_items") != len(held):
        return None
    return held if [run.items[int(i)].item_id for i in split.held_out[: len(ids)]] == list(ids) else None


def _advice(groups: Sequence[NDArray[np.int64]], held: set[int] | None) -> str:
    """What to do about too few calibration episodes."""
    trained = 0 if held is None else sum(not held.issuperset(int(i) for i in group) for group in groups)
    if not trained:
        return CAPTURE_MORE
    return (
        f"Of {len(groups)} episodes, {trained} trained the dictionary and never calibrate: train it with a larger "
        "--held-out, such as 0.6, or fit the monitor on another run. Or capture more, or state a higher rate with "
        "--alpha."
    )


def items_fingerprint(run: Run) -> str | None:
    """Return the fingerprint of the data that a run was captured from."""
    return (run.config.get("items") or {}).get("fingerprint")


def _level_logs(sae: SAEError, tokens_fpd: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    flat = torch.from_numpy(np.ascontiguousarray(tokens_fpd.reshape(-1, tokens_fpd.shape[2])))
    return np.log(sae.levels(flat).numpy() + FLOOR)


def _fit_one(
    detector: Detector,
    logs: list[NDArray[np.float32]],
    parts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    tasks: Sequence[str],
    patches: Patches,
    *,
    cameras: Sequence[str],
    by: str | None,
    alpha: float,
    top: float,
    advice: str,
) -> Fitted:
    """Return centre, spread, thresholds and realised rates of one detector from the logarithms of its scores."""
    reference = np.concatenate([logs[i] for i in parts[0]])
    centre = reference.mean(0)
    # A place that never changes must not turn its first flicker into thousands of deviations.
    own = reference.std(0)
    spread = np.maximum(own, max(1e-6, 0.25 * float(np.median(own))))
    scores = [standardized(one, centre=centre, spread=spread, detector=detector) for one in logs]
    patch_threshold = float(
        np.quantile(np.concatenate([scores[i].ravel() for i in parts[1]]), 1 - PATCH_RATE)
    )
    thresholds: dict[str, Thresholds] = {}
    realised: dict[str, dict[str, Rate]] = {}
    seen_by: dict[str, list[tuple[Thresholds, list[NDArray[np.float64]]]]] = {}
    for camera in np.unique(patches.camera):
        seen = np.flatnonzero(patches.camera == camera)
        name = cameras[camera] if camera < len(cameras) else f"camera{camera}"
        frames = [top_mean(one[:, seen], share=top) for one in scores]
        for task in sorted(set(tasks)):
            known = task if by else ANY_TASK
            group = f"{known}|{name}"
            clean = [frames[i] for i in parts[1] if tasks[i] == task]
            # A task without a reference of its own counts from that of all.
            usual = [frames[i] for i in parts[0] if tasks[i] == task] or [frames[i] for i in parts[0]]
            limits = calibrate(
                clean, reference=usual, alpha=alpha, what=f"task '{task}', camera '{name}'", advice=advice
            )
            thresholds[group] = limits
            test = [frames[i] for i in parts[2] if tasks[i] == task]
            realised[group] = realised_rates([(limits, test)])
            seen_by.setdefault(known, []).append((limits, test))
    return Fitted(
        detector=detector,
        centre=centre.astype(np.float32),
        spread=spread.astype(np.float32),
        patch_threshold=patch_threshold,
        thresholds=thresholds,
        realised=realised,
        any_camera={task: realised_rates(cameras_of) for task, cameras_of in seen_by.items()},
    )


def realised_rates(
    cameras: Sequence[tuple[Thresholds, Sequence[NDArray[np.floating]]]],
) -> dict[str, Rate]:
    """Return in how many of some clean episodes any camera raises an alarm, by rule; "sigma per frame" counts frames.

    Args:
        cameras: Per camera its thresholds and the frame scores of the same episodes.
    """
    n = len(cameras[0][1])

    def over(i: int, rule: Rule) -> NDArray[np.bool_]:
        return np.any(
            [limits.over(np.asarray(episodes[i]), rule=rule) for limits, episodes in cameras], axis=0
        )

    out: dict[str, Rate] = {}
    for rule in RULES:
        if all(rule in limits.rules for limits, _ in cameras):
            out[rule] = Rate(alarms=sum(bool(over(i, rule).any()) for i in range(n)), n=n)
    frames = np.concatenate([over(i, "sigma") for i in range(n)]) if n else np.empty(0, bool)
    out["sigma per frame"] = Rate(alarms=int(frames.sum()), n=len(frames))
    return out


def fit_facts(monitor: Monitor) -> dict[str, Any]:
    """Return what a fit printed: rates by detector and rule, thresholds, episodes; JSON-able."""
    return {
        "site": monitor.site,
        "alpha": monitor.alpha,
        "by": monitor.by,
        "model": dict(monitor.model),
        **dict(monitor.facts),
        "realised_false_alarms": {
            name: {
                group: {rule: rate.to_json() for rule, rate in by_rule.items()}
                for group, by_rule in fitted.realised.items()
            }
            for name, fitted in monitor.fitted.items()
        },
        "realised_false_alarms_any_camera": {
            name: {
                task: {rule: rate.to_json() for rule, rate in by_rule.items()}
                for task, by_rule in fitted.any_camera.items()
            }
            for name, fitted in monitor.fitted.items()
        },
        "thresholds": {
            name: {group: dict(vars(limits)) for group, limits in fitted.thresholds.items()}
            for name, fitted in monitor.fitted.items()
        },
    }
