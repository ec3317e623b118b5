"""The verbs of the main job: load, wrap, items, capture, cut, report. Each calls the room that does the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .items import ItemSource
    from .models import Grid, Model
    from .runs import CaptureProgress, Engine, Run
    from .spectral.cut import CutResult
    from .views import HtmlPiece, Picture, Report, Video
    from .views.tokens import Upsample


def load(
    name_or_path_or_module: str | Path | torch.nn.Module,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    processor: Any = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> Model:
    """Return a model that can be looked into: "mini-vla", a Hugging Face name, a folder, or a transformers model.

    See `vlascope.models.load` for the arguments and errors.
    """
    from .models import load as load_model

    return load_model(
        name_or_path_or_module,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        processor=processor,
        device_map=device_map,
        quantize=quantize,
    )


def wrap(
    module: torch.nn.Module,
    *,
    sites: Sequence[str] | Mapping[str, str],
    layout: Grid | Mapping[str, Grid],
    preprocess: Callable[..., Any] | None = None,
    name: str | None = None,
    device: str | torch.device = "auto",
) -> Model:
    """Return a model of your own, with the sites that you name. See `vlascope.models.wrap`."""
    from .models import wrap as wrap_model

    return wrap_model(module, sites=sites, layout=layout, preprocess=preprocess, name=name, device=device)


def items(
    spec: Any,
    *,
    prompt: str | None = None,
    limit: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    camera: str | Sequence[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    labels: Path | str | None = None,
    where: str | None = None,
) -> ItemSource:
    """Return what is shown to a model: "demo:pick", a folder, images, a video, a dataset, arrays.

    See `vlascope.items.open_items` for the arguments and errors.
    """
    from .items import open_items

    return open_items(
        spec,
        prompt=prompt,
        limit=limit,
        stride=stride,
        fps=fps,
        camera=camera,
        on_error=on_error,
        labels=labels,
        where=where,
    )


def capture(
    model: Model,
    items: ItemSource | Any,
    *,
    sites: str | Sequence[str],
    out: Path | str,
    batch_size: int = 16,
    block_items: int = 32,
    dtype: str = "auto",
    resume: bool = False,
    force: bool = False,
    respond: bool | str = "auto",
    max_new_tokens: int = 16,
    with_answer: bool = False,
    seed: int = 0,
    on_error: str = "raise",
    quiet: bool = False,
    command: Sequence[str] | None = None,
    engine: str | Engine = "local",
    n_workers: int | None = None,
    on_progress: Callable[[CaptureProgress], None] | None = None,
) -> Run:
    """Run a model over items, keep its tokens at some sites in the directory `out`, and return the run.

    `items` may also be anything that `vs.items` takes. See `vlascope.runs.capture` for the arguments and errors.
    """
    from .items import ItemSource, open_items
    from .runs import capture as capture_run

    return capture_run(
        model,
        items if isinstance(items, ItemSource) else open_items(items),
        sites=sites,
        out=out,
        batch_size=batch_size,
        block_items=block_items,
        dtype=dtype,
        resume=resume,
        force=force,
        respond=respond,
        max_new_tokens=max_new_tokens,
        with_answer=with_answer,
        seed=seed,
        on_error=on_error,
        quiet=quiet,
        command=command,
        engine=engine,
        n_workers=n_workers,
        on_progress=on_progress,
    )


def open_run(path: Path | str) -> Run:
    """Return the run at `path`. See `vlascope.runs.Run.open` for the errors."""
    from .runs import Run

    return Run.open(path)


def cut(
    run: Run | Path | str,
    *,
    site: str | None = None,
    sites: str | Sequence[str] | None = None,
    n_eig: int = 20,
    k: int | Sequence[int] = (5, 10, 25),
    kinds: Sequence[str] | None = None,
    color: Literal["tsne", "umap", "mspace", "pca"] = "tsne",
    color_space: Literal["rgb", "oklab"] = "rgb",
    affinity: Literal["rbf", "cosine"] = "rbf",
    density: float = 0.05,
    balance: Literal["density", "uniform"] = "density",
    method: Literal["kmeans", "rotation", "qr"] = "kmeans",
    seed: int = 0,
    fit_tokens: int | None = None,
    engine: Engine | None = None,
) -> Cut:
    """Cut a run's tokens into concepts (NCut) and return the cut, ready to be drawn.

    Several sites are cut together and share one palette, so that one colour is one concept at all of them. The
    result is saved in the run; asking again with the same parameters reads it back.

    Args:
        run: A run, or the path of one.
        site: One site.
        sites: Several sites: names or patterns such as "vision.*". With neither, all residual streams of the run.
        n_eig: Eigenvectors kept.
        k: Numbers of clusters.
        kinds: Kinds of tokens that are cut, e.g. ("patch", "text"); None takes the default of
            `vlascope.spectral.cut.cut_run`.
        color: How eigenvectors become colours, see `vlascope.palette.Palette.fit`.
        color_space: "rgb" is vivid; in "oklab" equal steps look equal.
        affinity: How alike two tokens are.
        density: Mean affinity that the scale is set to; lower is more local.
        balance: "uniform" gives rare concepts as much say as frequent ones, see `NystromNCut`.
        method: How eigenvectors become groups, see `vlascope.spectral.kway`.
        seed: Seed of everything random.
        fit_tokens: Fit on so many tokens and place the others in that cut, for many millions of them; None: all.
        engine: Who places and colours the tokens, block by block (`vlascope.runs.RayEngine()`); None is this process.

    Raises:
        SiteNotFoundError: the run holds no such site.
        InputError: both `site` and `sites` are given, or a value is out of range.
    """
    from .spectral.cut import cut_run

    if site is not None and sites is not None:
        raise InputError("got both site and sites; give one site by name, or several as sites.")
    opened = run if not isinstance(run, str | Path) else open_run(run)
    chosen = run_sites(opened, site if site is not None else sites)
    options: dict[str, Any] = {} if kinds is None else {"kinds": tuple(kinds)}
    result = cut_run(
        opened,
        sites=chosen,
        n_eig=n_eig,
        k=(k,) if isinstance(k, int) else tuple(k),
        color=color,
        color_space=color_space,
        affinity=affinity,
        density=density,
        balance=balance,
        method=method,
        seed=seed,
        fit_tokens=fit_tokens,
        engine=engine,
        **options,
    )
    return Cut(result)


def run_sites(run: Run, patterns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the sites of a run that match; None matches its residual streams (or all, where it has none).

    Raises:
        SiteNotFoundError: a pattern matches nothing.
    """
    from .errors import SiteNotFoundError, nearest_text
    from .models.sites import TENSORS, Site, resolve

    known = []
    for name, found in run.sites.items():
        last = name.rsplit(".", 1)[-1]
        known.append(
            Site(name=name, module_path="", layout=found.layout, tensor=last if last in TENSORS else "out")
        )
    if patterns is None:
        residual = tuple(s.name for s in known if s.tensor == "out")
        return residual or tuple(s.name for s in known)
    try:
        return tuple(s.name for s in resolve(patterns, sites=known, model_name=str(run.path)))
    except SiteNotFoundError as error:  # which speaks of a model; a run holds what was captured of it
        wanted = patterns if isinstance(patterns, str) else " ".join(patterns)
        raise SiteNotFoundError(
            f"run '{run.path}' holds no site of '{wanted}'.{nearest_text(wanted, run.sites)} "
            f"It holds: {', '.join(run.sites)}."
        ) from error


def report(
    run: Run | Path | str,
    cuts: Cut | CutResult | Sequence[Cut | CutResult] | None = None,
    *,
    site: str | None = None,
    k: int | None = None,
    n_items: int = 12,
    n_videos: int = 4,
    seed: int = 0,
) -> Report:
    """Return a report on a run: one offline HTML page, ready to be saved.

    Args:
        run: A run, or the path of one.
        cuts: What to show; None takes the cut of the run with most sites, or makes one over all residual streams.
        site: Site of the summary grid and the videos; None takes the last one of the vision tower.
        k: Number of clusters of the story and the measures; None takes the finest of the cut.
        n_items: At most so many images or frames in the pictures.
        n_videos: At most so many episodes as videos, failures first.
        seed: Seed of a cut made here, and of the measures' bootstrap.

    Raises:
        InputError: a value is out of range, or no site has patches to draw.
    """
    from .spectral.words import cut_words
    from .views.report import find_cut
    from .views.report import report as make_report

    opened = run if not isinstance(run, str | Path) else open_run(run)
    if cuts is None:
        result = find_cut(opened) or cut(opened, seed=seed).result
    else:
        several = list(cuts) if isinstance(cuts, Sequence) else [cuts]
        if not several:
            raise InputError("got an empty list of cuts; give at least one, or None.")
        result = max((c.result if isinstance(c, Cut) else c for c in several), key=lambda c: len(c.sites))
    return make_report(
        result, word_cut=cut_words(result), site=site, k=k, n_items=n_items, n_videos=n_videos, seed=seed
    )


class Cut:
    """A cut that draws itself. `result` holds the arrays.

    Attributes:
        result: Eigenvectors, eigenvalues, labels, colours, parameters, health.
    """

    def __init__(self, result: CutResult) -> None:
        self.result = result

    def __repr__(self) -> str:
        r = self.result
        ks = ", ".join(map(str, r.labels))
        return (
            f"Cut({len(r.sites)} sites, {len(r.rgb):,} tokens, {r.eigvecs.shape[1]} eigenvectors, K = {ks})"
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were cut together."""
        return self.result.sites

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """uint8 [n, 3], a colour per token."""
        return self.result.rgb

    def grid(
        self,
        *,
        site: str | None = None,
        ks: Sequence[int] | None = None,
        items: Sequence[int] | None = None,
        upsample: Upsample = "nearest",
    ) -> Picture:
        """Return the summary grid of one site. See `vlascope.views.grid`."""
        from .views import grid

        return grid(self.result, site=site, ks=ks, items=items, upsample=upsample)

    def strip(
        self,
        *,
        items: Sequence[int] | None = None,
        sites: Sequence[str] | None = None,
        upsample: Upsample = "nearest",
    ) -> Picture:
        """Return the layer strip: a column per site, a row per item. See `vlascope.views.strip`."""
        from .views import strip

        return strip(self.result, items=items, sites=sites, upsample=upsample)

    def words(self, *, items: Sequence[int] | None = None, sites: Sequence[str] | None = None) -> HtmlPiece:
        """Return the words in colour, layer by layer, with a palette of their own. See `vlascope.views.words`."""
        from .spectral.words import cut_words
        from .views import words

        return words(self.result, word_cut=cut_words(self.result), items=items, sites=sites)

    def video(
        self,
        *,
        episode: int | None = None,
        site: str | None = None,
        upsample: Upsample = "nearest",
        speed: float | None = None,
    ) -> Video:
        """Return the video of an episode: camera, colours, overlay. See `vlascope.views.video`."""
        from .views import video

        return video(self.result, episode=episode, site=site, upsample=upsample, speed=speed)

    def _repr_html_(self) -> str:
        import base64

        from .views.tokens import TokenIndex

        told = self.result._repr_html_()
        if not any(TokenIndex(self.result).patch_sites()):
            return told  # words alone: `.words()` draws them
        png = base64.b64encode(self._repr_png_()).decode()
        return f'{told}<img style="max-width:100%" alt="summary grid" src="data:image/png;base64,{png}">'

    def _repr_png_(self) -> bytes:
        return self.grid().to_png()
