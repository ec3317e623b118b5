"""The safety monitor: which frames of an episode no longer look like clean ones, where in the image, at which level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, nearest_text
from ..models.layout import KINDS
from ..sae import MatryoshkaSAE
from ..sae.stream import read_rows
from .monitor_detectors import Detector, SAEError, standardized
from .monitor_thresholds import RULES, Rate, Rule, Thresholds

if TYPE_CHECKING:
    from ..runs import Run
    from .monitor_watch import MonitorWatcher

ANY_TASK = "*"
FLOOR = 1e-9
CHUNK_TOKENS = 1 << 15


@dataclass(frozen=True)
class Patches:
    """Which rows of an item's tokens are watched, and where they lie; the same for all items.

    Attributes:
        position: int64 [p], rows in the site's layout.
        row, col, camera: int64 [p], place in the camera's patch grid.
        box: float32 [p, 4], x0, y0, x1, y1 in pixels of the image.
    """

    position: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    camera: NDArray[np.int64]
    box: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.position)

    def of_camera(self, camera: int) -> NDArray[np.int64]:
        """Return which patches a camera has."""
        return np.flatnonzero(self.camera == camera)


def patches_of(run: Run, site: str, *, item: int = 0) -> Patches:
    """Return the patches of one item of a run.

    Raises:
        SiteNotFoundError: the site was not captured.
        InputError: the site has no patches.
    """
    table = run.tokens(run.site(site).layout)
    rows = table.rows_of(item)
    layout = table.layout_of(item)
    found = np.flatnonzero(layout.is_kind("patch"))
    if not len(found):
        kinds = ", ".join(sorted({KINDS[k] for k in np.unique(table.kind[rows])})) or "no tokens"
        raise InputError(
            f"site '{site}' has no patches (item {item} has {kinds}); the monitor watches images. Choose another site."
        )
    return Patches(
        position=found.astype(np.int64),
        row=layout.row[found].astype(np.int64),
        col=layout.col[found].astype(np.int64),
        camera=layout.camera[found].astype(np.int64),
        box=np.asarray(layout.box[found], np.float32),
    )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One detector and what is usual for it.

    Attributes:
        detector: Scores tokens.
        centre, spread: float32 [p], mean and deviation of the logarithm of each patch's score on clean frames.
        patch_threshold: Standardised score above which a patch is marked: a share of `PATCH_RATE` of clean ones is.
        thresholds: By "task|camera".
        realised: By "task|camera", then by rule: alarms in clean episodes that nothing was fitted on; the rule
            "sigma per frame" counts frames.
        any_camera: By task, then by rule: the same episodes, with an alarm of any camera. Empty in monitors that an
            older vlascope saved.
    """

    detector: Detector
    centre: NDArray[np.float32]
    spread: NDArray[np.float32]
    patch_threshold: float
    thresholds: Mapping[str, Thresholds]
    realised: Mapping[str, Mapping[str, Rate]]
    any_camera: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)

    def rate(self, rule: str, *, task: str | None = None) -> Rate:
        """Return the realised rate of a rule: in how many clean episodes any camera raised an alarm.

        Args:
            rule: One of the rules, or "sigma per frame".
            task: Of this task alone, as in the keys of `thresholds` (default: of all).

        An older monitor did not count that; its rate is over pairs of episode and camera.
        """
        known = self.any_camera or self.realised
        rates = [
            by_rule[rule]
            for key, by_rule in known.items()
            if rule in by_rule and (task is None or key.rpartition("|")[0] == task or key == task)
        ]
        return Rate(alarms=sum(r.alarms for r in rates), n=sum(r.n for r in rates))


@dataclass(frozen=True)
class Where:
    """What stands out in one frame.

    Attributes:
        patches: Marked patches (or the highest one), rows of `Monitor.patches`.
        box: x0, y0, x1, y1 around the largest group of neighbouring marked patches, in pixels.
        level: Width of the dictionary's level whose error rose most; None for other detectors.
        level_rise: That rise, in deviations of clean tokens.
        level_rises: Rise per level.
    """

    patches: NDArray[np.int64]
    box: tuple[float, float, float, float]
    level: int | None
    level_rise: float
    level_rises: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """A fitted monitor; see `fit_monitor`, `save_monitor`, `load_monitor`, `score_run` and `watcher`.

    Attributes:
        site: The site it reads.
        alpha: Stated share of clean episodes that may raise an alarm.
        by: Label that names the task of an item; None when all tasks share their thresholds.
        top: Share of a camera's patches, the highest ones, whose mean is the frame's score.
        patches: What it watches.
        cameras: Names of the cameras, by number.
        fitted: By detector: "sae", "sae-fall", "mahalanobis", "pca".
        level_centre, level_spread: float32 [n_levels], of the logarithm of each level's error of a clean patch.
        model: Name and fingerprint of the model.
        facts: What it was fitted on; JSON-able.
    """

    site: str
    alpha: float
    by: str | None
    top: float
    patches: Patches
    cameras: tuple[str, ...]
    fitted: Mapping[str, Fitted]
    level_centre: NDArray[np.float32]
    level_spread: NDArray[np.float32]
    model: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def sae(self) -> MatryoshkaSAE:
        """The dictionary."""
        return cast(SAEError, self.fitted["sae"].detector).sae

    @property
    def camera_alpha(self) -> float:
        """The share per camera: all cameras together stay within `alpha`."""
        return self.alpha / len(self.camera_numbers)

    @property
    def camera_numbers(self) -> tuple[int, ...]:
        """Numbers of the watched cameras."""
        return tuple(int(c) for c in np.unique(self.patches.camera))

    def camera_name(self, number: int) -> str:
        """Return the name of a camera."""
        return self.cameras[number] if number < len(self.cameras) else f"camera{number}"

    def use(self, detector: str) -> Fitted:
        """Return a detector.

        Raises:
            InputError: it was not fitted.
        """
        if detector not in self.fitted:
            raise InputError(
                f"the monitor has no detector '{detector}'.{nearest_text(detector, self.fitted)} It has "
                f"{', '.join(self.fitted)}."
            )
        return self.fitted[detector]

    def stated(self, rule: str) -> float | None:
        """Return the share of clean episodes that may raise an alarm; None for a rule that promises none."""
        return None if rule == "sigma" else self.alpha

    def group(self, task: str, camera: int) -> str:
        """Return the name under which thresholds of a task and camera are kept.

        Raises:
            InputError: the monitor was not fitted on that task.
        """
        key = f"{task if self.by else ANY_TASK}|{self.camera_name(camera)}"
        known = next(iter(self.fitted.values())).thresholds
        if key not in known:
            raise InputError(
                f"the monitor has no threshold for task '{task}' and camera '{self.camera_name(camera)}'; it was "
                f"fitted on {', '.join(sorted(known))}. Fit it on clean episodes of that task too."
            )
        return key

    def check_model(self, name: str | None, fingerprint: str | None) -> None:
        """Refuse tokens of another model.

        Raises:
            InputError: another fingerprint of weights.
        """
        if fingerprint != self.model.get("fingerprint"):
            raise InputError(
                f"this monitor belongs to the weights of '{self.model.get('name')}' "
                f"({self.model.get('fingerprint')}), but the tokens are those of '{name}' ({fingerprint}). Fit one "
                "on this model."
            )

    def check_cameras(self, run: Run, items: Sequence[int] | NDArray[np.int64]) -> None:
        """Refuse items whose watched pictures come from cameras of other names.

        Raises:
            InputError: another camera.
        """
        for i in items:
            row = run.items[int(i)]
            for number in self.camera_numbers:
                name = row.cameras[number] if number < len(row.cameras) else f"camera{number}"
                if name != self.camera_name(number):
                    raise InputError(
                        f"item '{row.item_id}' shows camera '{name}', but the monitor was fitted on "
                        f"'{self.camera_name(number)}'. Fit one on that camera."
                    )

    def patch_scores(self, tokens_fpd: NDArray[np.floating], *, detector: str = "sae") -> NDArray[np.float32]:
        """Return standardised scores of patches, float32 [frames, p]: deviations from the same place in clean frames.

        Args:
            tokens_fpd: Raw tokens of the watched patches, [frames, p, d].
            detector: "sae", "sae-fall", "mahalanobis" or "pca".

        Raises:
            InputError: another number of patches or channels, or NaN.

        Cost: for "sae" about the encoder's product.
        """
        fitted = self.use(detector)
        self._check_tokens(tokens_fpd)
        raw = raw_scores(fitted.detector, tokens_fpd)
        return standardized(
            np.log(raw + FLOOR), centre=fitted.centre, spread=fitted.spread, detector=fitted.detector
        )

    def frame_scores(self, patch_scores_fp: NDArray[np.floating], *, camera: int) -> NDArray[np.float64]:
        """Return the scores of frames as seen by one camera: the mean of its highest patches, float64 [frames]."""
        return top_mean(patch_scores_fp[:, self.patches.of_camera(camera)], share=self.top)

    def first_alarm(
        self,
        patch_scores_fp: NDArray[np.floating],
        *,
        task: str,
        detector: str = "sae",
        rule: Rule = "frame",
        cameras: Sequence[int] | None = None,
    ) -> tuple[int, int] | None:
        """Return step and camera of the first alarm of an episode; None when no camera raises one.

        Args:
            patch_scores_fp: From `patch_scores`, all frames of the episode.
            task: Task of its thresholds.
            detector: Whose thresholds.
            rule: What raises the alarm.
            cameras: Numbers of the cameras to look at (default: all that are watched).
        """
        found: tuple[int, int] | None = None
        for camera in self.camera_numbers if cameras is None else cameras:
            limits = self.use(detector).thresholds[self.group(task, camera)]
            at = limits.first_alarm(self.frame_scores(patch_scores_fp, camera=camera), rule=rule)
            if at is not None and (found is None or at < found[0]):
                found = (at, camera)
        return found

    def explain(
        self, tokens_pd: NDArray[np.floating], *, detector: str = "sae", camera: int | None = None
    ) -> Where:
        """Return which patches of one frame stand out and at which level of the dictionary.

        Args:
            tokens_pd: Raw tokens of the watched patches, [p, d].
            detector: Whose marks.
            camera: Look at this camera only.
        """
        scores = self.patch_scores(tokens_pd[None], detector=detector)[0]
        inside = np.arange(len(self.patches)) if camera is None else self.patches.of_camera(camera)
        marked = inside[scores[inside] > self.use(detector).patch_threshold]
        if not len(marked):
            marked = inside[[int(np.argmax(scores[inside]))]]
        rises: dict[int, float] = {}
        own = self.use(detector).detector
        if isinstance(own, SAEError):
            some = torch.from_numpy(np.ascontiguousarray(tokens_pd[marked], np.float32))
            logs = np.log(own.levels(some).numpy() + FLOOR)
            values = ((logs - self.level_centre) / self.level_spread).mean(0)
            rises = {int(w): float(v) for w, v in zip(own.sae.levels, values, strict=True)}
        sign = -1 if own.sees_falls else 1
        level = max(rises, key=lambda w: sign * rises[w]) if rises else None
        return Where(
            patches=marked,
            box=self._box(marked, scores),
            level=level,
            level_rise=rises[level] if level is not None else float("nan"),
            level_rises=rises,
        )

    def watcher(self, *, detector: str = "sae", rule: Rule = "both") -> MonitorWatcher:
        """Return a watcher of one episode, for `vlascope.act` rollouts."""
        from .monitor_watch import MonitorWatcher

        return MonitorWatcher(self, detector=detector, rule=rule)

    def summary(self) -> list[tuple[str, ...]]:
        """Return one row per detector and rule: the stated and the realised false-alarm rate, under `RATE_HEAD`."""
        rows = []
        for name, fitted in self.fitted.items():
            known = [rule for rule in RULES if all(rule in t.rules for t in fitted.thresholds.values())]
            for rule in (*known, "sigma per frame"):
                stated = "(2.3 % of frames)" if rule.startswith("sigma") else f"{self.alpha:.1%}"
                rows.append((name, rule, stated, fitted.rate(rule).text()))
        return rows

    def _box(
        self, marked: NDArray[np.int64], scores: NDArray[np.floating]
    ) -> tuple[float, float, float, float]:
        group = largest_group(self.patches, marked, scores)
        boxes = self.patches.box[group]
        return (
            float(boxes[:, 0].min()),
            float(boxes[:, 1].min()),
            float(boxes[:, 2].max()),
            float(boxes[:, 3].max()),
        )

    def _check_tokens(self, tokens_fpd: NDArray[np.floating]) -> None:
        d = self.sae.config.d_in
        if tokens_fpd.ndim != 3 or tokens_fpd.shape[1:] != (len(self.patches), d):
            raise InputError(
                f"got tokens of shape {tokens_fpd.shape}; this monitor watches [frames, {len(self.patches)} patches, "
                f"{d} channels] of site '{self.site}'."
            )


RATE_HEAD = ("detector", "rule", "stated", "realised on clean episodes, 95 % interval")


def raw_scores(detector: Detector, tokens_fpd: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return a detector's scores of tokens [frames, p, d], float32 [frames, p]."""
    f, p, d = tokens_fpd.shape
    flat = np.ascontiguousarray(tokens_fpd, np.float32).reshape(f * p, d)
    out = np.empty(f * p, np.float32)
    for start in range(0, f * p, CHUNK_TOKENS):
        part = torch.from_numpy(flat[start : start + CHUNK_TOKENS])
        out[start : start + CHUNK_TOKENS] = detector.score(part).numpy()
    if not np.isfinite(out).all():
        raise InputError(
            "the tokens hold NaN or infinite values: the model itself has failed, or the capture is damaged."
        )
    return out.reshape(f, p)


def top_mean(scores_fp: NDArray[np.floating], *, share: float) -> NDArray[np.float64]:
    """Return the mean of the highest `share` of each row (at least one), float64 [frames]."""
    p = scores_fp.shape[1]
    k = max(1, min(p, round(share * p)))
    return np.partition(np.asarray(scores_fp, np.float64), p - k, axis=1)[:, p - k :].mean(1)


def largest_group(
    patches: Patches, marked: NDArray[np.int64], scores: NDArray[np.floating]
) -> NDArray[np.int64]:
    """Return the neighbouring marked patches whose scores sum to most, rows of `patches`."""
    from scipy.ndimage import label

    best, best_sum = marked[:1], -np.inf
    for camera in np.unique(patches.camera[marked]):
        mine = marked[patches.camera[marked] == camera]
        grid = np.full((int(patches.row.max()) + 1, int(patches.col.max()) + 1), -1)
        grid[patches.row[mine], patches.col[mine]] = mine
        names, n = label(grid >= 0, structure=np.ones((3, 3)))  # type: ignore[misc]
        for number in range(1, n + 1):
            group = grid[names == number]
            total = float(scores[group].sum())
            if total > best_sum:
                best, best_sum = group, total
    return np.sort(best).astype(np.int64)


def episodes_of(run: Run, items: Sequence[int] | None = None) -> list[NDArray[np.int64]]:
    """Return the items of each episode in the order of its steps; items without an episode stand alone."""
    chosen = range(run.n_items) if items is None else items
    groups: dict[Any, list[int]] = {}
    for i in chosen:
        row = run.items[int(i)]
        groups.setdefault(("item", row.index) if row.episode is None else row.episode, []).append(int(i))
    return [
        np.array(sorted(group, key=lambda i: (run.items[i].step or 0, i)), np.int64)
        for group in groups.values()
    ]


def task_of(run: Run, items: NDArray[np.int64], by: str | None) -> str:
    """Return the task of an episode: the value of the label `by`; "*" when there is none.

    Raises:
        InputError: the label is missing, or changes within the episode.
    """
    if by is None:
        return ANY_TASK
    values = {run.items[int(i)].labels.get(by) for i in items}
    if len(values) != 1 or None in values:
        known = sorted(run.items[int(items[0])].labels)
        raise InputError(
            f"the episode of item '{run.items[int(items[0])].item_id}' has {len(values)} values of label '{by}' "
            f"({', '.join(map(str, values))}); need one for the whole episode. Its labels: {', '.join(known)}."
        )
    return str(values.pop())


def episode_tokens(run: Run, site: str, items: NDArray[np.int64], patches: Patches) -> NDArray[np.float32]:
    """Return the watched tokens of an episode, float32 [frames, p, d].

    Raises:
        InputError: the patches of an item lie elsewhere.
    """
    table, acts = run.tokens(run.site(site).layout), run.acts(site)
    out = np.empty((len(items), len(patches), acts.shape[1]), np.float32)
    for i, item in enumerate(items):
        rows = table.rows_of(int(item))
        found = np.flatnonzero(table.kind[rows] == KINDS.index("patch")) + rows.start
        same = np.array_equal(found - rows.start, patches.position) and all(
            np.array_equal(getattr(table, name)[found], getattr(patches, name))
            for name in ("row", "col", "camera")
        )
        if not same:
            raise InputError(
                f"the patches of item '{run.items[int(item)].item_id}' lie elsewhere than those that the monitor "
                "watches (another image size, camera or prompt form); use one monitor per form."
            )
        out[i] = read_rows(acts, found)
    return out
