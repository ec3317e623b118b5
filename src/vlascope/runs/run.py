"""A captured run: reading its items, tokens, activations, images and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RunIncompleteError, SiteNotFoundError, nearest_text
from ..files import content_hash, read_json
from . import paths
from .acts import Acts
from .media import read_image, read_mask
from .tables import ItemRow, ResponseRow, TokenTable, response_from_record, row_from_record
from .verify import VerifyReport, read_index, verify_run


@dataclass(frozen=True, kw_only=True)
class RunSite:
    """A captured site: which token layout its rows follow, its channels, and the stored type."""

    name: str
    layout: str
    width: int
    dtype: str


class Run:
    """A complete capture on disk. Reading depends on nothing but its directory.

    Attributes:
        path: The directory.
        info: run.json: versions, hardware, command, timings.
        config: config.json: model, items and settings of the capture.
        sites: Captured sites by name, in the order of the forward pass.
    """

    def __init__(
        self, path: Path, *, info: dict[str, Any], config: dict[str, Any], index: dict[str, Any]
    ) -> None:
        self.path, self.info, self.config = path, info, config
        self._index = index
        self.sites: dict[str, RunSite] = {
            name: RunSite(name=name, layout=s["layout"], width=s["width"], dtype=s["dtype"])
            for name, s in info["sites"].items()
        }
        self.n_items: int = info["n_items"]
        self._acts: dict[str, Acts] = {}
        self._tokens: dict[str, TokenTable] = {}

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open the run at `path`.

        Raises:
            RunNotFoundError: there is no run.
            RunIncompleteError: its capture has not finished, or it is damaged; the message says how to go on.
            RunVersionError: it was written by a newer vlascope.
        """
        path = Path(path)
        info = paths.read_info(path)
        if info["status"] != "complete":
            n_done = len(list((path / "blocks").glob("*.ok")))
            raise RunIncompleteError(
                f"the capture of '{path}' has not finished ({n_done} of {info['n_blocks']} blocks are there). Go on "
                f"with: {paths.resume_command(info['command'], path)}"
            )
        try:
            config = read_json(path / paths.CONFIG_NAME)
        except (OSError, ValueError) as error:
            raise RunIncompleteError(
                f"'{path / paths.CONFIG_NAME}' cannot be read ({error}); the run is damaged. Capture it again with "
                "--force."
            ) from error
        index = read_index(path)
        if index is None:
            raise RunIncompleteError(
                f"'{path}' has lost its index of blocks; mend it with `vlascope verify {path} --repair`."
            )
        return cls(path, info=info, config=config, index=index)

    def __repr__(self) -> str:
        return (
            f"Run('{self.path}', model={self.config['model']['name']!r}, n_items={self.n_items}, "
            f"sites={len(self.sites)}: {', '.join(list(self.sites)[:3])}{', ...' if len(self.sites) > 3 else ''})"
        )

    def _repr_html_(self) -> str:
        from ..card import card

        rows = [(s.name, f"{self.acts(s.name).shape[0]:,} x {s.width}", s.dtype) for s in self.sites.values()]
        facts = [
            ("model", self.config["model"]["name"]),
            ("items", self.n_items),
            ("made", self.info.get("created", "")),
        ]
        return card(f"Run {self.path.name}", facts, head=("site", "tokens", "type"), rows=rows)

    @property
    def n_failed(self) -> int:
        """Items that could not be read and were skipped; they are listed in failures.jsonl."""
        return self.info["n_failed"]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the numbers of a state, as the dataset gave them; empty when it did not."""
        return tuple(self.info.get("names", {}).get("state", ()))

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the numbers of a recorded action, likewise."""
        return tuple(self.info.get("names", {}).get("action", ()))

    @property
    def layouts(self) -> tuple[str, ...]:
        """Names of the token layouts."""
        return tuple(sorted(self._index["rows"]))

    @cached_property
    def items(self) -> list[ItemRow]:
        """One row per item, without pixels."""
        return [row_from_record(record) for record in self._read_table("items").to_pylist()]

    @cached_property
    def responses(self) -> list[ResponseRow]:
        """The answers of the model, in the order of the items; empty when it gave none."""
        return [response_from_record(record) for record in self._read_table("responses").to_pylist()]

    def response(self, item: int) -> ResponseRow | None:
        """Return the answer to one item; None when there is none."""
        return self._response_of.get(item)

    @cached_property
    def _response_of(self) -> dict[int, ResponseRow]:
        return {row.item: row for row in self.responses}

    def site(self, name: str) -> RunSite:
        """Return a captured site.

        Raises:
            SiteNotFoundError: it was not captured; the message names the nearest.
        """
        if name not in self.sites:
            raise SiteNotFoundError(
                f"run '{self.path}' has no site '{name}'.{nearest_text(name, self.sites)} It holds: "
                f"{', '.join(self.sites)}."
            )
        return self.sites[name]

    def tokens(self, layout: str) -> TokenTable:
        """Return the token table of a layout ("vision", "language", ...), in the row order of its sites' `acts`.

        Raises:
            InputError: the run has no such layout.
        """
        if layout not in self._index["rows"]:
            raise InputError(
                f"run '{self.path}' has no layout '{layout}'; it has: {', '.join(self.layouts)}."
            )
        if layout not in self._tokens:
            self._tokens[layout] = TokenTable(self._read_table(f"tokens.{layout}"))
        return self._tokens[layout]

    def acts(self, site: str) -> Acts:
        """Return the activations of a site as a lazy [n_tokens, d] array.

        Raises:
            SiteNotFoundError: it was not captured.
        """
        if site not in self._acts:
            known = self.site(site)
            rows = self._index["rows"][known.layout]
            self._acts[site] = Acts(
                self.path, site, rows_per_block=rows, width=known.width, dtype=known.dtype
            )
        return self._acts[site]

    def image(self, item: int, camera: int | str = 0) -> NDArray[np.uint8]:
        """Return the pixels that the model saw, uint8 [h, w, 3].

        Args:
            item: Row of the item in the run.
            camera: Index or name of the camera.

        Raises:
            InputError: no such item or camera.
        """
        row = self._row(item)
        number = row.cameras.index(camera) if camera in row.cameras else camera
        if not isinstance(number, int) or not 0 <= number < len(row.cameras):
            raise InputError(
                f"item '{row.item_id}' has no camera {camera!r}; it has: {', '.join(row.cameras)}."
            )
        return read_image(self._media_path(row, row.media[number]))

    def media_path(self, item: int, camera: int = 0) -> Path:
        """Return the file of an item's image, for those that pass its bytes on.

        Raises:
            InputError: no such item or camera.
        """
        row = self._row(item)
        if not 0 <= camera < len(row.media):
            raise InputError(
                f"item '{row.item_id}' has no camera {camera}; it has: {', '.join(row.cameras)}."
            )
        return self._media_path(row, row.media[camera])

    def mask(self, item: int, name: str = "segmentation") -> NDArray[np.integer] | None:
        """Return an integer map [h, w] in the pixels of the item's first camera; None when it has no such mask."""
        row = self._row(item)
        return read_mask(self._media_path(row, row.mask_media[name])) if name in row.mask_media else None

    def mask_names(self, item: int, name: str = "segmentation") -> Mapping[int, str]:
        """Return what the integers of an item's mask stand for; empty when nothing is known."""
        return self._row(item).mask_names.get(name, {})

    def verify(self) -> VerifyReport:
        """Read every byte of the capture and compare it with the checksums taken when it was written.

        Cost: reads the whole run; about 0.5 to 1 GB/s.
        """
        return verify_run(self.path, self.info)

    def derived_dir(self, verb: str, params: Mapping[str, Any]) -> Path:
        """Return the folder of a result derived from this run; it is not created.

        The name is a hash of the run's content and of `params`, so the same question finds the same folder, and
        another capture at the same path does not.

        Args:
            verb: What derives it, e.g. "cut".
            params: JSON-able parameters that the result depends on.
        """
        key = content_hash({"run": self.info["content_sha256"], "params": params})
        return self.path / "derived" / f"{verb}-{key}"

    def _row(self, item: int) -> ItemRow:
        if not 0 <= item < self.n_items:
            raise InputError(f"run '{self.path}' has no item {item}; it has {self.n_items} items, from 0 on.")
        return self.items[item]

    @cached_property
    def _block_of_item(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self._index["n_items"])), self._index["n_items"])

    def _media_path(self, row: ItemRow, name: str) -> Path:
        return paths.media_dir(self.path, int(self._block_of_item[row.index])) / name

    def _read_table(self, name: str) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / f"{name}.parquet"
        try:
            # read_table would import pyarrow.dataset, and that pandas; words repeat, and are kept once each.
            with pq.ParquetFile(
                path, read_dictionary=["text"] if name.startswith("tokens.") else None
            ) as file:
                return file.read()
        except (OSError, pa.ArrowInvalid) as error:
            raise RunIncompleteError(
                f"'{path}' cannot be read ({error}); the run is damaged. Mend it with "
                f"`vlascope verify {self.path} --repair`."
            ) from error
