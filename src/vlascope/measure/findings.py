"""What was measured about a run, kept in the run: one JSON file per question in `derived/measures`.

A file holds a `Finding` in JSON's own types: {"schema", "run", "measure", "name", "title", "verdict", "rows",
"layers", "episodes", "settings"}; the report and the app read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunIncompleteError, RunVersionError
from ..files import content_hash, read_json, write_json
from .result import Result, plain_json

if TYPE_CHECKING:
    from ..runs import Run

SCHEMA = 1
FOLDER = "measures"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a finding.

    Attributes:
        result: The number with its sample size, interval and controls.
        site: The layer that it belongs to; "" where it belongs to none (or to all).
    """

    result: Result
    site: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerSeries:
    """One number per layer, to be drawn along the depth of the model.

    Attributes:
        name: What it is, e.g. "separable", "CKA with the layer before".
        unit: Its unit.
        sites: The layers, in forward order.
        values: One number each; None where nothing can be said.
        low, high: Ends of the 95 % intervals; None where there are none.
        control: The same number where nothing should be found (shuffled labels); None where it was not measured.
    """

    name: str
    unit: str
    sites: tuple[str, ...]
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    control: tuple[float | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EpisodeSeries:
    """What a finding says about each frame of one episode.

    Attributes:
        episode: Its number.
        site: The layer.
        items: Rows of the run's items, one per frame, in order of time.
        steps: Step of each frame in the episode.
        change_points: Steps at which the concepts change their course; None where the episode is too short.
        events: Step at which each known event is first seen.
        occupancy: Share of the frame's tokens that belong to each concept, [frames][k]; empty where not measured.
        anomaly: Oddity of each frame (larger is odder); empty where not measured.
        threshold: Oddity that raises the alarm; None where not measured.
        alarm: Step of the first alarm; None without one.
    """

    episode: int
    site: str
    items: tuple[int, ...]
    steps: tuple[int, ...]
    change_points: tuple[int, ...] | None = None
    events: Mapping[str, int] = field(default_factory=dict)
    occupancy: tuple[tuple[float, ...], ...] = ()
    anomaly: tuple[float, ...] = ()
    threshold: float | None = None
    alarm: int | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer of one measure to one question about a run.

    Attributes:
        measure: The verb: "trace", "debug", "probe", "sensitivity", ...
        title: The question in a few words.
        verdict: The answer in a sentence.
        rows: The numbers, tests first.
        layers: Numbers per layer.
        episodes: Numbers per frame.
        settings: What the answer depends on (label, k, seed, ...), JSON-able.
        name: Name of its file, without ".json"; "" until it is kept.
    """

    measure: str
    title: str
    verdict: str
    rows: tuple[Row, ...]
    layers: tuple[LayerSeries, ...] = ()
    episodes: tuple[EpisodeSeries, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def _repr_html_(self) -> str:
        from ..card import card
        from .result import TABLE_HEAD

        rows = [row.result.row() for row in self.rows]
        return card(f"{self.measure}: {self.title}", text=self.verdict, head=TABLE_HEAD, rows=rows)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return plain_json(
            {
                "measure": self.measure,
                "name": self.name,
                "title": self.title,
                "verdict": self.verdict,
                "rows": [{"site": row.site, **row.result.to_json()} for row in self.rows],
                "layers": [vars(one) for one in self.layers],
                "episodes": [vars(one) for one in self.episodes],
                "settings": self.settings,
            }
        )

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Finding:
        """Return what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is of another form.
        """
        return cls(
            measure=facts["measure"],
            title=facts["title"],
            verdict=facts["verdict"],
            rows=tuple(Row(site=row["site"], result=_result(row)) for row in facts["rows"]),
            layers=tuple(_layers(one) for one in facts["layers"]),
            episodes=tuple(_episode(one) for one in facts["episodes"]),
            settings=facts["settings"],
            name=facts["name"],
        )


def keep(run: Run, finding: Finding) -> Path:
    """Write a finding into the run and return its file; the same question asked again replaces the answer.

    Args:
        run: The run.
        finding: What was found; its name is made from the measure, the title and the settings.

    Raises:
        StorageError: the run cannot be written.
    """
    words = re.sub(r"\W+", "-", f"{finding.measure}-{finding.title}".lower()).strip("-")[:60].strip("-")
    asked = {"measure": finding.measure, "title": finding.title, "settings": plain_json(finding.settings)}
    name = f"{words}-{content_hash(asked, length=6)}"
    facts = {
        "schema": SCHEMA,
        "run": run.info["content_sha256"],
        **replace(finding, name=name).to_json(),
    }
    return write_json(run.path / "derived" / FOLDER / f"{name}.json", facts)


def saved(run: Run) -> list[Finding]:
    """Return what was measured about a run, by measure and name; empty when nothing was.

    Findings about another capture at the same place are left out, as cuts of it are.

    Args:
        run: The run.

    Raises:
        RunIncompleteError: a file is damaged; delete it and measure again.
        RunVersionError: written by a newer vlascope.
    """
    out = []
    for path in sorted((run.path / "derived" / FOLDER).glob("*.json")):
        try:
            facts = read_json(path)
            if facts["schema"] > SCHEMA:
                raise RunVersionError(
                    f"'{path}' was written by a newer vlascope; update this one to read it."
                )
            if facts["run"] == run.info["content_sha256"]:
                out.append(Finding.from_json(facts))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunIncompleteError(
                f"the measure in '{path}' is damaged ({error!r}); delete that file and measure again."
            ) from error
    return sorted(out, key=lambda one: (one.measure, one.name))


def layer_series(
    name: str, results: Sequence[tuple[str, Result | None]], *, control: str = "shuffled labels"
) -> LayerSeries:
    """Return the values, intervals and one control of a result per layer."""
    known = [result for _, result in results if result is not None]
    return LayerSeries(
        name=name,
        unit=known[0].unit if known else "",
        sites=tuple(site for site, _ in results),
        values=tuple(None if r is None else r.value for _, r in results),
        low=tuple(None if r is None or r.interval is None else r.interval[0] for _, r in results),
        high=tuple(None if r is None or r.interval is None else r.interval[1] for _, r in results),
        control=tuple(None if r is None else r.controls.get(control) for _, r in results),
    )


def _result(facts: Mapping[str, Any]) -> Result:
    ends = facts["interval_95"]
    return Result(
        name=facts["name"],
        value=facts["value"],
        unit=facts["unit"],
        n=facts["n"],
        over=facts["over"],
        n_units=facts["n_units"],
        interval=None if ends is None else (ends[0], ends[1]),
        controls={key: float("nan") if v is None else v for key, v in facts["controls"].items()},
        p=facts["p"],
        p_adjusted=facts["p_adjusted"],
        reason=facts["reason"],
        details=facts["details"],
    )


def _layers(facts: Mapping[str, Any]) -> LayerSeries:
    return LayerSeries(
        name=facts["name"],
        unit=facts["unit"],
        sites=tuple(facts["sites"]),
        values=tuple(facts["values"]),
        low=tuple(facts["low"]),
        high=tuple(facts["high"]),
        control=tuple(facts["control"]),
    )


def _episode(facts: Mapping[str, Any]) -> EpisodeSeries:
    changes = facts["change_points"]
    return EpisodeSeries(
        episode=facts["episode"],
        site=facts["site"],
        items=tuple(facts["items"]),
        steps=tuple(facts["steps"]),
        change_points=None if changes is None else tuple(changes),
        events=facts["events"],
        occupancy=tuple(tuple(row) for row in facts["occupancy"]),
        anomaly=tuple(facts["anomaly"]),
        threshold=facts["threshold"],
        alarm=facts["alarm"],
    )
