"""`vlascope cut`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from ._common import Common, Flag, OptionalInt, RunPath, give, say
from ._main import OK

if TYPE_CHECKING:
    from ..api import Cut
    from ..runs import Run
    from ..spectral.cut import CutPart


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Cut a run's tokens into concepts and draw them: grid, layer strip, coloured words, one video per episode."""

    run: RunPath
    """run directory, as made by `vlascope capture`"""
    site: Annotated[tuple[str, ...], arg(metavar="SITE...", help_behavior_hint="")] = ()
    """sites to cut together, with one palette (default: after every block)"""
    k: Annotated[tuple[int, ...], arg(metavar="K...")] = (5, 10, 25)
    """numbers of concepts, coarse to fine"""
    n_eig: int = 20
    """eigenvectors kept"""
    affinity: Literal["rbf", "cosine"] = "rbf"
    """how alike two tokens are"""
    density: float = 0.05
    """mean affinity aimed at; lower is more local"""
    balance: Literal["density", "uniform"] = "density"
    """uniform: rare concepts count as much as frequent ones"""
    method: Literal["kmeans", "rotation", "qr"] = "kmeans"
    """how eigenvectors become groups"""
    color: Literal["tsne", "umap", "mspace", "pca"] = "tsne"
    """how eigenvectors become colours"""
    color_space: Literal["rgb", "oklab"] = "rgb"
    """rgb is vivid; in oklab equal steps look equal"""
    seed: int = 0
    """seed of everything random"""
    items: int = 8
    """rows of the pictures, spread evenly over the run"""
    no_video: Flag = False
    """draw no videos"""
    fit_tokens: OptionalInt = None
    """fit on N tokens and place the others in that cut, for many millions of tokens (default: fit on all)"""
    engine: Literal["local", "ray"] = "local"
    """who places and colours the tokens: this process, or the workers of a Ray cluster"""


def run(args: Args) -> int:
    """Cut, draw, and print the paths."""
    from .. import api
    from ..runs import Run, open_engine

    captured = Run.open(args.run)
    sites = api.run_sites(captured, args.site or None)
    say(args, f"cutting {len(sites)} sites of {captured.n_items} items")
    with open_engine(args.engine) as engine:
        cut = api.cut(
            captured,
            sites=sites,
            n_eig=args.n_eig,
            k=args.k,
            affinity=args.affinity,
            density=args.density,
            balance=args.balance,
            method=args.method,
            color=args.color,
            color_space=args.color_space,
            seed=args.seed,
            fit_tokens=args.fit_tokens,
            engine=engine,
        )
    paths = draw(args, captured, cut, n_items=args.items, with_video=not args.no_video)
    give(
        args,
        {
            "run": str(captured.path),
            "sites": list(sites),
            "eigenvalues": [round(float(value), 6) for value in cut.result.eigenvalues],
            "files": [str(path) for path in paths],
        },
        text="\n".join(str(path) for path in paths),
    )
    return OK


def draw(args: Common, captured: Run, cut: Cut, *, n_items: int, with_video: bool) -> list[Path]:
    """Draw everything that the run allows and return the files, in the order in which one would look at them."""
    figures, videos = captured.path / "figures", captured.path / "videos"
    chosen = spread(captured.n_items, n_items)
    parts = cut.result.parts
    with_patches = [name for name, part in parts.items() if has_kind(captured, part, "patch")]
    with_words = [name for name, part in parts.items() if has_kind(captured, part, "text")]
    paths: list[Path] = []
    if with_patches:
        paths.append(cut.grid(items=chosen).save(figures / "grid.png"))
        paths.append(cut.strip(items=chosen, sites=with_patches).save(figures / "strip.png"))
    if with_words:
        paths.append(cut.words(items=chosen).save(figures / "words.html"))
    episodes = sorted({row.episode for row in captured.items if row.episode is not None})
    for episode in episodes if with_video and with_patches else ():
        say(args, f"drawing episode {episode}")
        paths.append(cut.video(episode=episode).save(videos / f"episode-{episode:04d}.mp4"))
    return paths


def spread(n: int, count: int) -> list[int]:
    """Return up to `count` of 0..n-1, evenly spread, first and last included."""
    if count >= n:
        return list(range(n))
    if count == 1:
        return [0]
    return [round(i * (n - 1) / (count - 1)) for i in range(count)]


def has_kind(captured: Run, part: CutPart, kind: str) -> bool:
    """Whether any token of a part of the cut is of that kind."""
    from ..models.layout import KINDS

    return bool((captured.tokens(part.layout).kind[part.token_rows] == KINDS.index(kind)).any())
