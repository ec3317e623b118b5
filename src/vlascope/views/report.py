"""The report: one offline HTML page that begins with what was run and, where a robot failed, with the failure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..errors import InputError, StorageError
from ..files import write_bytes, write_text
from ..progress import watched
from .choose import camera_note, choose_items, episodes_of, item_note, item_title, row_notes
from .describe import (
    count,
    flag_text,
    footer,
    health_value,
    model_name,
    model_revision,
    picture_params,
    sampled_share,
)
from .episodes import EpisodeTeller
from .figures import LAYER_HEIGHT, LAYER_WIDTH, ROW_HEIGHT, ROW_WIDTH, finding_view
from .folder import take_apart
from .grid import split_names
from .html import asset, render
from .latents import SPARK_HEIGHT, SPARK_WIDTH, cards_view, find_cards
from .pack import PanelView, TokenPack
from .picture import params_json
from .style import css_color
from .tokens import TokenIndex
from .words import WORDS_NOTE, WordBlock, word_block, word_colors, word_concepts

if TYPE_CHECKING:
    from ..measure import OverlapResult
    from ..palette import SavedCut
    from ..runs import Run
    from ..spectral.cut import CutResult

MAX_BYTES = 25_000_000
"""Largest page: it still opens at once and can be sent by mail. A larger one becomes a folder."""

MAX_GRID_ROWS = 6
"""Rows of the summary grid; the layer strip shows all chosen items."""

_MASK = "segmentation"


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        html: The page; it needs nothing from outside but `files`.
        title: Plain text.
        params: What it shows and how that was computed.
        warnings: The warnings that the page shows.
        files: What must lie beside the page, by name, when it is too large for one file; else empty.
    """

    html: str
    title: str
    params: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The size of the page and the files beside it."""
        return len(self.html.encode()) + sum(map(len, self.files.values()))

    def save(self, path: Path | str) -> Path:
        """Write the page to `path` (.html) and return the file to open.

        A page above 25 MB becomes a folder: "report.html" is then "report/index.html", with its pictures, videos and
        tokens beside it. It opens without a server, too; copy the whole folder.

        Raises:
            InputError: another file name extension.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"cannot save a report as '{path.name}': the name must end in .html.")
        if not self.files:
            return write_text(path, self.html)
        folder = path.with_suffix("")
        for name, data in self.files.items():
            write_bytes(folder / name, data)
        for old in (folder / "media").glob("*"):  # of an earlier page at the same place
            if f"media/{old.name}" not in self.files:
                old.unlink()
        return write_text(folder / "index.html", self.html)

    def _repr_html_(self) -> str:
        import html

        if self.files:
            return (
                f"<p>This report has {self.size_bytes / 1e6:.0f} MB, too much for a notebook: "
                "<code>.save('report.html')</code> writes it as a folder.</p>"
            )
        return f'<iframe style="width:100%;height:80vh;border:0" srcdoc="{html.escape(self.html)}"></iframe>'

    def __repr__(self) -> str:
        return f"Report({self.title!r}, {self.size_bytes / 1e6:.1f} MB)"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of panels: the grid and the strip. The title is empty where it is that of the row above."""

    title: str
    note: str
    prompt: str
    panels: tuple[PanelView, ...]


def find_cut(run: Run) -> CutResult | None:
    """Return the saved cut of patches with the most sites (of equals the newest); None when there is none.

    Raises:
        StorageError: the run's folder cannot be read.
    """
    from ..spectral.cut import CutResult

    path = cut_folder(run)
    return None if path is None else CutResult.load(path, run=run)


def cut_folder(run: Run) -> Path | None:
    """Return the folder of the cut that `find_cut` reads.

    Raises:
        StorageError: the run's folder cannot be read.
    """
    folder = run.path / "derived"
    try:
        found = [p for p in folder.glob("cut-*") if (p / "params.json").is_file()] if folder.is_dir() else []
    except OSError as error:
        raise StorageError(f"cannot read '{folder}': {error}.") from error
    best: tuple[int, float, str] | None = None
    for path in found:
        saved = json.loads((path / "params.json").read_text(encoding="utf-8"))
        n_sites = len(saved.get("sites", ()))
        if "patch" not in saved.get("params", {}).get("kinds", ()):
            continue  # a cut of words alone, such as `cut_words` makes
        key = (n_sites, (path / "params.json").stat().st_mtime, path.name)
        best = max(best, key) if best else key
    return None if best is None else folder / best[2]


def report(
    cut: CutResult,
    *,
    word_cut: SavedCut | None = None,
    site: str | None = None,
    k: int | None = None,
    n_items: int = 12,
    n_videos: int = 4,
    seed: int = 0,
) -> Report:
    """Return the report on a cut and the run that it belongs to.

    Args:
        cut: What to show.
        word_cut: Colours of the words, see `words`.
        site: Site of the grid and the videos; None takes the last one of the vision tower.
        k: Number of clusters of the story and the measures; None takes the finest of the cut.
        n_items: At most so many images or frames in the pictures.
        n_videos: At most so many episodes as videos, failures first.
        seed: Seed of the measures.

    Raises:
        SiteNotFoundError: the cut does not hold `site`.
        InputError: `k` is not in the cut, or no site has patches.
    """
    return _Builder(
        cut, word_cut=word_cut, site=site, k=k, n_items=n_items, n_videos=n_videos, seed=seed
    ).build()


class _Builder:
    """Collects the sections of one report."""

    def __init__(
        self,
        cut: CutResult,
        *,
        word_cut: SavedCut | None,
        site: str | None,
        k: int | None,
        n_items: int,
        n_videos: int,
        seed: int,
    ) -> None:
        if n_items < 1:
            raise InputError(f"n_items is {n_items}; a report needs at least 1.")
        from ..measure import saved

        self.cut, self.word_cut, self.run = cut, word_cut, cut.run
        self.index = TokenIndex(cut)
        self.site = self.index.default_site() if site is None else self.index.check_site(site)
        if not self.index.has_patches(self.site):
            raise InputError(
                f"site '{self.site}' has no image patches in this cut; choose a site with patches."
            )
        self.ks = sorted(cut.labels)
        self.k = self.ks[-1] if k is None else k
        if self.k not in cut.labels:
            held = ", ".join(map(str, self.ks))
            raise InputError(f"the cut has no labels for K={self.k}; it holds K = {held}.")
        self.n_videos, self.seed = n_videos, seed
        self.pack = TokenPack(self.index)
        self.items = choose_items(self.run, n=n_items, among=self.index.items_of(self.site))
        self.warnings: list[str] = []
        self.findings = saved(self.run)
        self.colors = {k: cut.cluster_colors(k) for k in self.ks}
        self.params = picture_params(
            cut,
            view="report",
            sites=cut.sites,
            site=self.site,
            k=self.k,
            items=self.items,
            word_cut=None if word_cut is None else dict(word_cut.params),
        )

    def build(self) -> Report:
        """Return the finished page."""
        teller = EpisodeTeller(
            self.pack,
            site=self.site,
            k=self.k,
            colors=self.colors[self.k],
            findings=self.findings,
            shares_k=self.ks[len(self.ks) // 2],
        )
        tracks = teller.tracks()
        episodes = teller.views(tracks, n_videos=self.n_videos)
        story = teller.story(tracks, episodes)
        told = story.episode.number if story else None
        grid_rows, strip_rows = self._grid_rows(), self._strip_rows()
        words = self._words()
        overlap = self._overlap()
        self._warn_about_run()
        title = f"{model_name(self.run)} on {self._data_name()}"
        dictionaries = [cards_view(self.pack, facts) for facts in find_cards(self.run)]
        data = self.pack.data(ks=self.ks)
        groups, columns = split_names(self.index.patch_sites())
        html = render(
            "report.html.j2",
            title=title,
            version=__version__,
            base_css=asset("base.css"),
            report_css=asset("report.css"),
            script=asset("report.js"),
            params=params_json(self.params),
            facts=self._facts(),
            story=story,
            episodes=[e for e in episodes if e.number != told],
            n_other_episodes=len(tracks) - len(episodes),
            site=self.site,
            k=self.k,
            ks=self.ks,
            colors={k: [css_color(tuple(c)) for c in v.tolist()] for k, v in self.colors.items()},
            grid_rows=grid_rows,
            strip_rows=strip_rows,
            strip_columns=columns,
            strip_groups=_spans(groups),
            words=words,
            words_note=WORDS_NOTE[self.word_cut is not None],
            words_footer=""
            if self.word_cut is None
            else footer(picture_params(self.word_cut, view="words", sites=self.word_cut.sites)),
            overlap=overlap,
            overlap_rows=sorted(overlap.by_name().items()) if overlap else [],
            findings=[finding_view(finding) for finding in self.findings],
            row_width=ROW_WIDTH,
            row_height=ROW_HEIGHT,
            layer_wh=(LAYER_WIDTH, LAYER_HEIGHT),
            dictionaries=dictionaries,
            spark_wh=(SPARK_WIDTH, SPARK_HEIGHT),
            warnings=self.warnings,
            commands=self._commands(),
            images=self.pack.images,
            data=data,
            footer=footer(self.params),
        )
        files: dict[str, bytes] = {}
        if len(html.encode()) > MAX_BYTES:
            html, files = take_apart(html)
        return Report(html=html, title=title, params=self.params, warnings=tuple(self.warnings), files=files)

    # ---- what was run -------------------------------------------------------------------------------------

    def _data_name(self) -> str:
        items = self.run.config.get("items", {})
        name = items.get("name") if isinstance(items, Mapping) else None
        return str(name or f"{self.run.n_items} items")

    def _facts(self) -> list[tuple[str, str]]:
        run, cut = self.run, self.cut
        config = run.config.get("model", {})
        details = [
            str(config[key])
            for key in ("family", "dtype", "device")
            if isinstance(config, Mapping) and config.get(key)
        ]
        revision = model_revision(run)
        n_episodes = len(episodes_of(run))
        data = count(run.n_items, "image")
        if n_episodes:
            data = f"{count(run.n_items, 'frame')} of {count(n_episodes, 'episode')}"
        share = sampled_share(cut)
        method = [f"NCut, {cut.eigvecs.shape[1]} eigenvectors"]
        method += [
            f"{n} {cut.params[n]}" for n in ("affinity", "density", "seed") if cut.params.get(n) is not None
        ]
        if len(cut.sites) > 1:
            method.insert(1, f"joint over {len(cut.sites)} sites")
        tokens = f"{len(cut.rgb):,}" + (
            f", {100 * share:.3g} % sampled as landmarks" if share is not None else ""
        )
        return [
            (
                "Model",
                " · ".join([model_name(run), *details, *([f"revision {revision[:12]}"] if revision else [])]),
            ),
            ("Data", f"{self._data_name()}: {data}"),
            ("Sites", f"{', '.join(cut.sites) if len(cut.sites) <= 6 else _first_last(cut.sites)}"),
            ("Tokens", tokens),
            ("Method", " · ".join(method)),
        ]

    def _commands(self) -> list[str]:
        cut, run = self.cut, self.run
        recorded = run.info.get("command")
        if isinstance(recorded, str):
            commands = [recorded]
        elif recorded:
            commands = [shlex.join([str(word) for word in recorded])]
        else:
            commands = [f"# captured from Python: vs.capture(...), see {run.path.name}/config.json"]
        words = ["vlascope", "cut", str(run.path), "--site", *cut.sites, "--k", *map(str, cut.labels)]
        for key, flag in (
            ("n_eig", "--n-eig"),
            ("affinity", "--affinity"),
            ("density", "--density"),
            ("balance", "--balance"),
            ("method", "--method"),
            ("color", "--color"),
            ("color_space", "--color-space"),
            ("seed", "--seed"),
        ):
            if cut.params.get(key) is not None:
                words += [flag, str(cut.params[key])]
        return [*commands, shlex.join(words), shlex.join(["vlascope", "report", str(run.path)])]

    # ---- pictures -----------------------------------------------------------------------------------------

    def _grid_rows(self) -> list[Row]:
        rows = []
        per_k = [(f"K = {k}", self.colors[k][self.cut.labels[k]]) for k in self.ks]
        items = choose_items(self.run, n=MAX_GRID_ROWS, among=self.items)
        prompts = {item: prompt for item, (_, prompt) in zip(items, row_notes(self.run, items), strict=True)}
        for item in watched(items, desc="summary", unit="row"):
            for camera, name, title, note in self._cameras(item):
                panels = [self.pack.panel(item, site=None, camera=camera, label=f"input, {name}")]
                panels += [
                    self.pack.panel(
                        item,
                        site=self.site,
                        camera=camera,
                        rgb_n3=rgb,
                        label=f"{label}, {name}",
                        where=f"{self.site} · {name}",
                    )
                    for label, rgb in [*per_k, ("continuous", self.cut.rgb)]
                ]
                rows.append(
                    Row(title=title, note=note, prompt=prompts[item] if title else "", panels=tuple(panels))
                )
        return rows

    def _cameras(self, item: int) -> Iterator[tuple[int, str, str, str]]:
        """Yield (camera, name, title, note) of the rows of an item: one for each camera that the model read."""
        title, note = item_title(self.run, item), item_note(self.run, item, with_prompt=False)
        cameras = self.index.cameras(self.site, item) or [0]
        for camera in cameras:
            which = camera_note(self.run, item, camera, shown=cameras)
            name = f"{title}, {which}" if which else title
            if camera == cameras[0]:
                yield camera, name, title, "\n".join(text for text in (which, note) if text)
            else:
                yield camera, name, "", which

    def _strip_rows(self) -> list[Row]:
        if len(self.index.patch_sites()) < 2:
            return []  # the grid shows the only site already
        rows = []
        for item in watched(self.items, desc="layers", unit="item"):
            for camera, name, title, note in self._cameras(item):
                panels = [self.pack.panel(item, site=None, camera=camera, label=f"input, {name}")]
                panels += [
                    self.pack.panel(item, site=s, camera=camera, label=f"{s}, {name}", where=f"{s} · {name}")
                    for s in self.index.patch_sites()
                ]
                rows.append(Row(title=title, note=note, prompt="", panels=tuple(panels)))
        return rows

    def _words(self) -> list[WordBlock]:
        sites = self.index.word_sites()
        if not sites:
            return []
        chosen = choose_items(self.run, n=4, among=self.items)
        rgb = word_colors(self.cut, self.word_cut)
        concepts = word_concepts(self.cut, self.word_cut)
        return [
            word_block(self.index, i, sites=sites, rgb=rgb, token_of=self.pack.word, concepts=concepts)
            for i in chosen
        ]

    # ---- numbers ------------------------------------------------------------------------------------------

    def _overlap(self) -> OverlapResult | None:
        """Return the overlap with the masks; None where the run has none."""
        from ..measure import best_overlap

        if not any(_MASK in row.mask_names for row in self.run.items):
            return None
        return best_overlap(self.run, self.cut, site=self.site, k=self.k, seed=self.seed)

    def _warn_about_run(self) -> None:
        run, cut = self.run, self.cut
        n_failed = int(run.info.get("n_failed") or 0)
        if n_failed:
            self.warnings.append(
                f"{count(n_failed, 'item')} could not be read and {'is' if n_failed == 1 else 'are'} missing here; "
                "see failures.jsonl in the run."
            )
        self.warnings += [str(note) for note in health_value(cut, "notes") or ()]
        flags: dict[str, list[int]] = {}
        for response in run.responses:
            for flag in response.flags:
                flags.setdefault(flag, []).append(response.item)
        if flags:
            n_flagged = sum(bool(r.flags) for r in run.responses)
            told = "; ".join(f"{flag_text(flag)} — {self._places(at)}" for flag, at in sorted(flags.items()))
            verb = "is" if n_flagged == 1 else "are"
            self.warnings.append(f"{count(n_flagged, 'answer')} of the model {verb} not as expected: {told}.")
        plain = []
        for item in self.items:
            rows = [g.index_rc[g.index_rc >= 0] for g in self.index.patches(self.site, item)]
            labels = cut.labels[self.k][np.concatenate(rows)] if rows else np.zeros(0)
            if len(np.unique(labels)) == 1:
                plain.append(item_title(run, item))
        if plain:
            self.warnings.append(
                f"No structure at {self.site}: all patches are one concept (K = {self.k}) in {', '.join(plain)}."
            )

    def _places(self, items: Sequence[int]) -> str:
        """Return in how many answers something is, and the first three: "in 2 answers (episode 0, step 1; ...)"."""
        names = [item_title(self.run, item) for item in items[:3]]
        more = " and others" if len(items) > len(names) else ""
        return f"in {count(len(items), 'answer')} ({'; '.join(names)}{more})"


def _first_last(sites: Sequence[str]) -> str:
    groups, _ = split_names(sites)
    parts = []
    for name, n in _spans(groups):
        members = [s for s, g in zip(sites, groups, strict=True) if g == name]
        parts.append(members[0] if n == 1 else f"{members[0]} … {members[-1]}")
    return ", ".join(parts)


def _spans(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return (name, length) of every stretch of equal neighbours."""
    spans: list[tuple[str, int]] = []
    for name in names:
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1] + 1)
        else:
            spans.append((name, 1))
    return spans
