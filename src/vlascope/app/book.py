"""A run opened for the page: its cut, its colours, its features, and what the page is told about it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, SiteNotFoundError
from ..files import content_hash
from ..items.item import vector_names
from ..items.outcome import succeeded
from ..views.choose import episodes_of, outcome_text
from ..views.describe import footer, health_value, model_name, picture_params, plain, sampled_share
from ..views.measured import episode_measures, saved_findings
from ..views.robot import MAX_STATES, answer_text, episode_track
from ..views.style import css_color
from ..views.tokens import TokenIndex
from .colors import ColorBook
from .layouts import layout_json
from .run_model import RunModel
from .similarity import ConceptRows, SiteFeatures

if TYPE_CHECKING:
    from ..models import Model
    from ..palette import SavedCut
    from ..runs import Run


MAX_LABEL_CHARS = 80
"""So much of a label is shown and searched."""


class RunBook:
    """Everything that the page asks of one run.

    Args:
        cut: The run's cut; in a comparison, its share of the cut of both runs.
        number: 0 for the first run, 1 for the second.
        model: The run's model, when it is loaded already; else it is loaded by name once an edit is tried.
    """

    def __init__(self, cut: SavedCut, *, number: int = 0, model: Model | None = None) -> None:
        self.cut, self.run, self.number = cut, cut.run, number
        self.model = RunModel(cut.run, model)
        self.index = TokenIndex(cut)
        self.colors = ColorBook(cut)
        self.concepts = ConceptRows(cut.eigvecs)
        self.stopping = threading.Event()
        """Set when the server shuts down: what is being computed ends soon."""
        self.features = {site: SiteFeatures(self.run, site, stopping=self.stopping) for site in cut.sites}
        self.group_colors = lru_cache(maxsize=None)(self._group_colors)
        self.key = content_hash([self.run.info.get("content_sha256"), cut.path.name, number])
        self._word_rgb: Any = None
        self._lock = threading.Lock()

    # ---- what the page is told -----------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return the run as the page sees it, JSON-able: sites, numbers of clusters, parameters."""
        cut, index = self.cut, self.index
        params = picture_params(
            cut, view="app", sites=cut.sites, site=cut.sites[0], k=max(cut.labels), items=()
        )
        patch_sites = set(index.patch_sites())
        return {
            "key": self.key,
            "name": self.run.path.name or str(self.run.path),
            "model": model_name(self.run),
            "n_items": self.run.n_items,
            "n_tokens": sum(len(p.token_rows) for p in cut.parts.values()),
            "sites": [
                {
                    "name": name,
                    "layout": part.layout,
                    "n": len(part.token_rows),
                    "width": self.run.site(name).width,
                    "patches": name in patch_sites,
                    "words": index.has_words(name),
                }
                for name, part in cut.parts.items()
            ],
            "default_site": index.default_site() if patch_sites else cut.sites[-1],
            "ks": sorted(cut.labels),
            "n_eig": int(cut.eigvecs.shape[1]),
            "eigenvalues": [round(float(v), 6) for v in cut.eigenvalues],
            "method": cut.params["color"],
            "sampled_share": sampled_share(cut),
            "notes": [str(n) for n in health_value(cut, "notes") or ()],
            "n_failed": int(self.run.info.get("n_failed") or 0),
            "footer": footer(params),
        }

    @cached_property
    def items(self) -> dict[str, Any]:
        """What the page lists: for every item its id, episode, step, time, prompt, cameras, answer and outcome.

        Other labels stand with an image, and with the first frame of an episode: its frames mostly share them.
        """
        prompts: dict[str | None, int] = {}
        seen: set[int] = set()
        rows = []
        for row in self.run.items:
            said = answer_text(self.run, row.index)
            tells = row.episode is None or row.episode not in seen
            if row.episode is not None:
                seen.add(row.episode)
            rows.append(
                {
                    "id": row.item_id,
                    "unit": unit_id(row.item_id, row.episode),
                    "episode": row.episode,
                    "step": row.step,
                    "time": row.time_secs,
                    "prompt": prompts.setdefault(row.prompt, len(prompts)),
                    "cameras": list(row.cameras),
                    "sizes": [[int(h), int(w)] for h, w in row.image_sizes],
                    "answer": said,
                    "outcome": outcome_text(row.labels) or None,
                    "success": succeeded(row.labels),
                    **({"labels": label_texts(row.labels)} if tells else {}),
                }
            )
        return {"prompts": list(prompts), "items": rows}

    def episode(self, number: int) -> dict[str, Any]:
        """Return the time line of an episode: items, steps, times, actions, states, events.

        Raises:
            InputError: no such episode.
        """
        held = episodes_of(self.run)
        if number not in held:
            raise InputError("there is no such episode in this run.")
        track = episode_track(self.run, episode=number, items=held[number])
        found = [self.run.items[i].state for i in held[number]]
        states = [state for state in found if state is not None]
        has_states = len(states) == len(found) and len({state.shape for state in states}) == 1
        moves = track.moves_cm
        closed = track.gripper_closed
        if moves is not None:
            series = [
                {"name": f"{axis} (cm)", "values": _numbers(moves[:, i])} for i, axis in enumerate("xyz")
            ]
        elif track.action is not None:
            series = [
                {"name": name, "values": _numbers(track.action[:, i])}
                for i, name in enumerate(track.action_names)
            ]
        else:
            series = []
        return {
            "episode": number,
            "items": list(track.items),
            "steps": list(track.steps),
            "times": [None if not np.isfinite(t) else t for t in track.times],
            "prompt": track.prompt,
            "source": track.source,
            "actions": series,
            "closed": None if closed is None else [bool(c) for c in closed],
            "states": (
                [
                    {"name": name, "values": _numbers(np.array([s[i] for s in states]))}
                    for i, name in enumerate(
                        vector_names(self.run.state_names, len(states[0]), what="state ")
                    )
                    if i < MAX_STATES
                ]
                if has_states
                else []
            ),
            "events": [{"name": name, "step": step} for name, step in track.events],
            "labels": plain(
                {k: v for k, v in track.labels.items() if isinstance(v, str | int | float | bool)}
            ),
        }

    def measured(self, number: int) -> dict[str, Any]:
        """Return what saved measures say about an episode: changes of course, anomaly score; None where unknown.

        Raises:
            InputError: no such episode.
            RunIncompleteError: a saved measure is damaged.
        """
        held = episodes_of(self.run)
        if number not in held:
            raise InputError("there is no such episode in this run.")
        found = episode_measures(saved_findings(self.run), episode=number, items=held[number])
        score = found.anomaly
        return {
            "episode": number,
            "changes": None if found.changes is None else list(found.changes),
            "changes_site": found.changes_site,
            "anomaly": None if score is None else [float(v) if np.isfinite(v) else None for v in score],
            "anomaly_site": found.anomaly_site,
            "threshold": found.threshold,
            "alarm": found.alarm,
        }

    def layout(self, name: str) -> dict[str, Any]:
        """Return where the tokens of a layout lie, see `layout_json`; kept after the first time.

        Raises:
            InputError: the cut holds no such layout.
        """
        if name not in {part.layout for part in self.cut.parts.values()}:
            raise InputError("there is no such layout in this cut.")
        with self._lock:
            if name not in self._layouts:
                self._layouts[name] = layout_json(self.cut, self.index, name)
            return self._layouts[name]

    @cached_property
    def _layouts(self) -> dict[str, dict[str, Any]]:
        return {}

    def site(self, name: str) -> str:
        """Return `name`, or raise `SiteNotFoundError` when the cut does not hold it."""
        if name not in self.cut.parts:
            raise SiteNotFoundError(f"this cut has no site '{name}'; it holds {', '.join(self.cut.sites)}.")
        return name

    def labels(self, site: str, k: int) -> np.ndarray:
        """Return the cluster of each token of a site, uint8 or uint16 [m].

        Raises:
            InputError: the cut holds no such k.
        """
        if k not in self.cut.labels:
            raise InputError(f"this cut holds k = {', '.join(map(str, self.cut.labels))}, not {k}.")
        values = self.cut.labels[k][self.cut.parts[site].rows]
        return values.astype(np.uint8 if k <= 256 else np.uint16)

    def _group_colors(self, k: int) -> list[str]:
        """Return the colour of each cluster, "#rrggbb"; behind `group_colors`, which keeps them.

        Cost: one pass over the tokens of all sites, so it waits until clusters are asked for.
        """
        return [css_color(tuple(c)) for c in self.cut.cluster_colors(k).tolist()]

    def word_rgb(self, site: str) -> np.ndarray | None:
        """Return the colours of a site's tokens in a cut of the words alone, uint8 [m, 3]; None where there is none.

        Among all patches of a run, words come out almost in one colour; see `vlascope.spectral.words`. A comparison
        has one cut of everything, and no other.
        """
        if self.is_compared:
            return None
        with self._lock:
            if self._word_rgb is None:
                from ..spectral.cut import CutResult
                from ..spectral.words import cut_words
                from ..views.words import word_colors

                words = cut_words(CutResult.load(self.cut.path, run=self.run))
                self._word_rgb = (words is not None, None if words is None else word_colors(self.cut, words))
        has, rgb = self._word_rgb
        return rgb[self.cut.parts[site].rows] if has else None

    @property
    def is_compared(self) -> bool:
        """Whether the cut spans two runs."""
        return self.cut.path.name.startswith("compare-")

    def row_at(self, site: str, token: int) -> int:
        """Return the row of the cut of a site's token.

        Raises:
            InputError: no such token.
        """
        rows = self.cut.parts[site].rows
        if not 0 <= token < rows.stop - rows.start:
            raise InputError(f"site '{site}' has no token {token} in this cut.")
        return rows.start + token

    def place(self, site: str, token: int) -> Place:
        """Return what a token stands for, so that other layers and runs can be asked for theirs."""
        part = self.cut.parts[site]
        row = int(part.token_rows[token])
        table = self.run.tokens(part.layout)
        x0, y0, x1, y1 = (float(v) for v in table.box[row])
        return Place(
            item_id=self.run.items[int(table.item[row])].item_id,
            layout=part.layout,
            position=int(table.position[row]),
            camera=int(table.camera[row]),
            center_xy=None if np.isnan(x0) else ((x0 + x1) / 2, (y0 + y1) / 2),
        )

    def token_at(self, place: Place, site: str) -> int | None:
        """Return the token of a site that stands for a place; None where there is none.

        A patch is matched with the patch of the same item and camera whose centre is nearest, a word with the token
        at the same position of a layout of the same name.
        """
        item = self._item_of.get(place.item_id)
        if item is None:
            return None
        part = self.cut.parts[site]
        index, rows = self.index.rows_of(site, item)
        table = self.run.tokens(part.layout)
        if place.center_xy is None:
            found = (
                index[table.position[rows] == place.position] if part.layout == place.layout else index[:0]
            )
            return int(found[0]) - part.rows.start if len(found) else None
        keep = ~np.isnan(table.box[rows, 0]) & (table.camera[rows] == place.camera)
        if not keep.any():
            return None
        gap = table.box[rows[keep]].reshape(-1, 2, 2).mean(1) - np.asarray(place.center_xy)
        return int(index[keep][int(np.square(gap).sum(1).argmin())]) - part.rows.start

    @cached_property
    def _item_of(self) -> dict[str, int]:
        return {row.item_id: row.index for row in self.run.items}


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a token stands for, whatever the layer: a point of an image, or a position in a sequence.

    Attributes:
        item_id: Id of the item.
        layout: Name of its token layout.
        position: Its place in the item's sequence.
        camera: Index of the image; -1 for words.
        center_xy: Centre of the patch in pixels of the image; None for words.
    """

    item_id: str
    layout: str
    position: int
    camera: int
    center_xy: tuple[float, float] | None


def label_texts(labels: Mapping[str, Any]) -> list[str]:
    """Return labels in words, such as "class: cat"; without those that say how an episode ended."""
    said = ("success", "outcome", "failure") if succeeded(labels) is not None else ()
    out = []
    for name, value in labels.items():
        if name in said or value is None or value == "":
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")
        out.append(f"{name}: {text}"[:MAX_LABEL_CHARS])
    return out


def unit_id(item_id: str, episode: int | None) -> str:
    """Return what is reviewed as a whole: the episode of a frame ("ep0003"), or the image itself."""
    if episode is None:
        return item_id
    found = re.match(r"(.*ep\d+)/\d+$", item_id)
    return found[1] if found else item_id.rsplit("/", 1)[0] if "/" in item_id else f"ep{episode:04d}"


def shared_items(first: Run, second: Run) -> np.ndarray:
    """Return for every item of the second run the item of the first with the same id, -1 where there is none."""
    place = {row.item_id: row.index for row in first.items}
    return np.array([place.get(row.item_id, -1) for row in second.items], np.int64)


def _numbers(values: Any) -> list[float]:
    """Return six significant digits of each: some actions are a few thousandths of the others."""
    return [float(f"{float(v):.6g}") if np.isfinite(v) else 0.0 for v in values]


def open_books(
    runs: Sequence[Run | Path | str], *, seed: int = 0, models: Sequence[Model | None] = ()
) -> list[RunBook]:
    """Return one or two runs ready for the page; makes a cut where a run has none, and one of both where two are given.

    Args:
        runs: One or two runs, or their paths.
        seed: Seed of a cut that is made here.
        models: The runs' models, for edits, where they are loaded already or cannot be loaded by name.

    Raises:
        InputError: no run or more than two; two runs that share no item; a model with other weights than its run's.
        RunNotFoundError, RunIncompleteError: a path is no run.

    Cost: that of a cut when there is none yet (`vlascope cut`), once.
    """
    from .. import api
    from ..palette import read_cut
    from ..views.report import cut_folder

    if not 1 <= len(runs) <= 2:
        raise InputError(f"got {len(runs)} runs; the app shows one, or compares two.")
    opened = [api.open_run(run) if isinstance(run, str | Path) else run for run in runs]
    cuts: list[SavedCut] = []
    for run in opened:
        folder = cut_folder(run) or api.cut(run, seed=seed).result.path
        cuts.append(read_cut(folder, run=run))
    if len(cuts) == 2:
        from .compare import compare_cuts

        cuts = list(compare_cuts(cuts[0], cuts[1]))
    given = [*models, None, None]
    return [RunBook(cut, number=number, model=given[number]) for number, cut in enumerate(cuts)]
