"""A run whose activations, labels, answers and masks are chosen by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlascope.files import content_hash
from vlascope.models.layout import TokenLayout, concat, grid_tokens, plain_tokens
from vlascope.runs.run import RunSite
from vlascope.runs.tables import ItemRow, ResponseRow, TokenTable, table_from_layouts

PATCH = 7


class PlantedActs(np.ndarray):
    """An array that can be read block by block, as `Acts` can."""

    def blocks(self):
        """Two blocks of unequal size."""
        middle = len(self) // 3
        for rows in (slice(0, middle), slice(middle, len(self))):
            if rows.stop > rows.start:
                yield rows, np.asarray(self[rows])


class PlantedRun:
    """Looks like a `Run`; `acts` maps each site to (layout, [n_items, n_tokens, d])."""

    def __init__(
        self,
        acts: dict[str, tuple[str, np.ndarray]],
        *,
        layouts: dict[str, TokenLayout],
        labels: list[dict[str, Any]] | None = None,
        episodes: list[int] | None = None,
        answers: list[str] | None = None,
        masks: list[np.ndarray] | None = None,
        mask_names: dict[int, str] | None = None,
        images: list[np.ndarray] | None = None,
        states: np.ndarray | None = None,
        actions: np.ndarray | None = None,
        path: Path = Path("planted"),
    ) -> None:
        n = len(next(iter(acts.values()))[1])
        self.n_items, self.path, self._masks, self._names = n, path, masks, mask_names or {}
        self._acts = {
            site: np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float32).view(PlantedActs)
            for site, (_, x) in acts.items()
        }
        self.sites = {
            site: RunSite(name=site, layout=layout, width=x.shape[-1], dtype="float32")
            for site, (layout, x) in acts.items()
        }
        self._tables = {
            name: TokenTable(table_from_layouts([layout] * n, first_item=0))
            for name, layout in layouts.items()
        }
        rng = np.random.default_rng(99)
        self._images = images or [rng.integers(0, 256, (21, 35, 3)).astype(np.uint8) for _ in range(n)]
        step_of: dict[int, int] = {}
        self.items = []
        for i in range(n):
            episode = None if episodes is None else int(episodes[i])
            step = None
            if episode is not None:
                step = step_of.get(episode, 0)
                step_of[episode] = step + 1
            self.items.append(
                ItemRow(
                    index=i,
                    source_index=i,
                    item_id=f"item-{i}",
                    cameras=("main",),
                    image_sizes=(self._images[i].shape[:2],),
                    labels={} if labels is None else labels[i],
                    episode=episode,
                    step=step,
                    state=None if states is None else states[i].astype(np.float32),
                    action=None if actions is None else actions[i].astype(np.float32),
                    mask_media={} if masks is None else {"segmentation": "x"},
                    mask_names={} if masks is None else {"segmentation": self._names},
                )
            )
        self._answers = answers
        weights = {site: float(np.abs(x).sum()) for site, x in self._acts.items()}
        self.config = {"model": {"fingerprint": content_hash(weights)}}

    def site(self, name: str) -> RunSite:
        from vlascope.errors import SiteNotFoundError

        if name not in self.sites:
            raise SiteNotFoundError(f"no site '{name}'")
        return self.sites[name]

    def acts(self, site: str) -> PlantedActs:
        return self._acts[site]

    def tokens(self, layout: str) -> TokenTable:
        return self._tables[layout]

    def image(self, item: int) -> np.ndarray:
        return self._images[item]

    def mask(self, item: int, name: str = "segmentation") -> np.ndarray | None:
        return None if self._masks is None or name != "segmentation" else self._masks[item]

    def mask_names(self, item: int, name: str = "segmentation") -> dict[int, str]:
        return self._names

    def response(self, item: int) -> ResponseRow | None:
        return None if self._answers is None else ResponseRow(item=item, text=self._answers[item])

    def derived_dir(self, verb: str, params: dict[str, Any]) -> Path:
        return self.path / "derived" / f"{verb}-{content_hash(params)}"


def grid(rows: int = 3, cols: int = 5) -> TokenLayout:
    """Patches of PATCH pixels."""
    return grid_tokens(rows, cols, frame=(0, 0, cols * PATCH, rows * PATCH))


def language(rows: int = 3, cols: int = 5, words: tuple[str, ...] = ("pick", "red")) -> TokenLayout:
    """The same patches, then words."""
    return concat([grid(rows, cols), plain_tokens("text", words)])
