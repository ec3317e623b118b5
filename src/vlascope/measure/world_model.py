"""Does a layer hold the future? h(t) -> embedding K steps later, over standing still, over e(t), over the action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .crossfit import unit_folds
from .findings import Finding, Row
from .pooling import TokenChoice, pool_items
from .resample import MIN_UNITS, Units, bootstrap_mean, shuffled, summarise_null, units_of
from .result import Result, adjusted, cannot_say, number_text, plain_json, table, undecided
from .ridge import HeldOutRidge, reduce_channels

if TYPE_CHECKING:
    from ..runs import Run

HORIZONS = (1, 3, 10, 30)
N_COMPONENTS = 32
MIN_PAIRS = 30


@dataclass(frozen=True)
class WorldModelResult:
    """What a layer says about the state K steps later, for several K.

    Attributes:
        site: The layer h.
        state_site: The layer whose pooled principal components are the state e.
        results: One per horizon: R² of [h(t), e(t)] over e(t) alone, on held-out episodes. A layer adds something
            where that is found and its interval lies above 0. Controls: the R² of
            [h(t), e(t)] over persistence and over the action alone, of e(t) alone and of the action alone over
            persistence, and h(t) shuffled in time.
    """

    site: str
    state_site: str
    results: tuple[Result, ...]

    def verdict(self) -> str:
        """Return in one sentence how far ahead the layer adds something."""
        known = [r for r in self.results if r.value is not None]
        if not known:
            return f"cannot say whether {self.site} holds the future: {self.results[0].reason}"
        ahead = [r for r in known if _adds(r)]
        if not ahead and (unclear := undecided(known)):
            return f"cannot say whether {self.site} holds the future: {unclear}"
        if not ahead:
            return f"{self.site} says nothing about the future that {self.state_site} does not say now"
        values = ", ".join(f"{r.details['steps']} steps: {number_text(r.value or 0)}" for r in ahead)
        return (
            f"{self.site} adds to what {self.state_site} says now about the future (R² over e(t), {values})"
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return one row of text per horizon."""
        return table(self.results)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "site": self.site,
                "state_site": self.state_site,
                "verdict": self.verdict(),
                "horizons": [r.to_json() for r in self.results],
            }
        )

    def finding(self) -> Finding:
        """Return the numbers as they are kept in a run."""
        return Finding(
            measure="world model",
            title=self.site,
            verdict=self.verdict(),
            rows=tuple(Row(site=self.site, result=one) for one in self.results),
            settings={
                "site": self.site,
                "state_site": self.state_site,
                "horizons": [one.name for one in self.results],
            },
        )


def world_model(
    run: Run,
    *,
    site: str,
    state_site: str,
    horizons: Sequence[int] = HORIZONS,
    tokens: TokenChoice = "auto",
    n_components: int = N_COMPONENTS,
    n_permutations: int = 99,
    seed: int = 0,
) -> WorldModelResult:
    """Ask whether a layer knows more about the state K steps later than the present state does.

    The state e is the first principal components of the pooled tokens of `state_site`. All predictions are of the
    change e(t+K) - e(t), by ridge on whole held-out episodes, so that predicting nothing is persistence.

    Args:
        run: A run of episodes.
        site: The layer h.
        state_site: Usually the last layer of the vision tower.
        horizons: Steps ahead.
        tokens: Which tokens of `site` stand for a frame.
        n_components: Size of e.
        n_permutations: Shuffles of h in time behind each p-value.
        seed: Seeds folds, shuffles and bootstrap.

    Raises:
        SiteNotFoundError: no such site.
        InputError: the run holds no episodes, or a horizon below 1.

    Cost: a few seconds per horizon for 1,000 frames.
    """
    if not horizons or min(horizons) < 1:
        raise InputError(f"got horizons {list(horizons)}; need steps of at least 1.")
    if any(row.episode is None or row.step is None for row in run.items):
        raise InputError("a world model needs frames of episodes; some items of this run belong to none.")
    h = pool_items(run, site, tokens=tokens).of_items(np.arange(run.n_items))
    e = pool_items(run, state_site).of_items(np.arange(run.n_items)).astype(np.float64)
    actions = [row.action for row in run.items]
    a = None if any(x is None for x in actions) else np.array(actions, np.float64)
    episode = np.array([row.episode for row in run.items])
    step = np.array([row.step for row in run.items])
    return world_model_arrays(
        h, e, a, episode, step, site=site, state_site=state_site, horizons=horizons,
        n_components=n_components, n_permutations=n_permutations, seed=seed,
    )  # fmt: skip


def adjusted_world_models(layers: Sequence[WorldModelResult]) -> list[WorldModelResult]:
    """Return several layers with the p-values of all layers and horizons corrected together."""
    flat = iter(adjusted([one for layer in layers for one in layer.results]))
    return [replace(layer, results=tuple(next(flat) for _ in layer.results)) for layer in layers]


def world_model_arrays(
    h_nd: NDArray[np.floating],
    e_nk: NDArray[np.floating],
    actions_na: NDArray[np.floating] | None,
    episode: NDArray[np.integer],
    step: NDArray[np.integer],
    *,
    site: str = "h",
    state_site: str = "e",
    horizons: Sequence[int] = HORIZONS,
    n_components: int = N_COMPONENTS,
    n_permutations: int = 99,
    seed: int = 0,
) -> WorldModelResult:
    """Ask plain arrays; see `world_model`. Rows are frames; `actions_na` may be None."""
    e = np.asarray(e_nk, np.float64)
    if not np.ptp(e, axis=0).any():
        results = [cannot_say(f"{k} steps ahead", "the state is constant", unit="R²") for k in horizons]
        return WorldModelResult(site, state_site, tuple(results))
    e = _components(e, n_components)
    results = [
        _ahead(h_nd, e, actions_na, episode, step, k=k, n_permutations=n_permutations, seed=seed)
        for k in horizons
    ]
    return WorldModelResult(site, state_site, tuple(adjusted(results)))


def _adds(result: Result) -> bool:
    """Whether h lowers the error, and by more than shuffled in time.

    The p-value alone does not say so: an h that moves against e costs accuracy, so that one in step with e that adds
    nothing beats every shuffle.
    """
    return result.found and result.interval is not None and result.interval[0] > 0


def _ahead(
    h: NDArray[np.floating],
    e: NDArray[np.float64],
    a: NDArray[np.floating] | None,
    episode: NDArray[np.integer],
    step: NDArray[np.integer],
    *,
    k: int,
    n_permutations: int,
    seed: int,
) -> Result:
    name = f"{k} steps ahead"
    place = {(int(ep), int(s)): i for i, (ep, s) in enumerate(zip(episode, step, strict=True))}
    pairs = [(i, place[ep, s + k]) for (ep, s), i in place.items() if (ep, s + k) in place]
    now, then = (np.array([p[j] for p in pairs], np.int64) for j in (0, 1))
    units = units_of(episode[now].tolist(), over="episode") if len(pairs) else Units(now, "episode")
    if len(pairs) < MIN_PAIRS or units.n < MIN_UNITS:
        reason = (
            f"{len(pairs)} pairs of frames {k} steps apart in {units.n} episodes; need at least {MIN_PAIRS} in "
            f"{MIN_UNITS}"
        )
        return cannot_say(name, reason, unit="R² over e(t)", n=len(pairs), over="episode")
    change = e[then] - e[now]
    folds = unit_folds(units, seed=seed)
    still = (change**2).sum(1)

    def error(features: NDArray[np.floating]) -> NDArray[np.float64]:
        return ((HeldOutRidge(features, folds).predict(change)[0] - change) ** 2).sum(1)

    known = np.asarray(h, np.float64)[now]
    present = error(e[now])
    full = error(np.c_[_scaled(known), _scaled(e[now])])
    value = 1 - full.sum() / present.sum()
    rng = np.random.default_rng([seed, k])
    null = []
    for _ in range(n_permutations):
        other = shuffled(known, units, scheme="shift", rng=rng)
        null.append(1 - error(np.c_[_scaled(other), _scaled(e[now])]).sum() / present.sum())
    test = summarise_null(float(value), np.array(null))
    controls = {
        "over persistence": float(1 - full.sum() / still.sum()),
        "e(t) alone over persistence": float(1 - present.sum() / still.sum()),
        "shuffled time": test.null_mean,
    }
    if a is not None and np.ptp(a[now], axis=0).any():
        pushed = error(a[now])
        controls["action alone over persistence"] = float(1 - pushed.sum() / still.sum())
        controls["over action alone"] = float(1 - full.sum() / pushed.sum())
    ends = bootstrap_mean(full, units, over_values=present, seed=seed)
    return Result(
        name=name,
        value=float(value),
        unit="R² over e(t)",
        n=len(pairs),
        over="episode",
        n_units=units.n,
        interval=None if ends is None else (1 - ends[1], 1 - ends[0]),
        controls=controls,
        p=test.p,
        reach=test.reach,
        details={"steps": k},
    )


def _components(e: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    x = e - e.mean(0)
    _, vectors = np.linalg.eigh(x.T @ x) if x.shape[1] <= 4096 else (None, None)
    if vectors is None:
        return reduce_channels(e, n_channels=n)
    return x @ vectors[:, ::-1][:, :n]


def _scaled(x: NDArray[np.floating]) -> NDArray[np.float64]:
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1)
