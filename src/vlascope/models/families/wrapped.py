"""Any module at all: the user names the sites and says what their tokens are."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError, SiteNotFoundError, nearest_text
from ...items.item import Item
from ..batch import Batch, Response
from ..family import Assets, Family, register
from ..images import Frame, ImageTransform
from ..layout import Grid, TokenLayout, concat, grid_tokens, plain_tokens
from ..sites import Site
from ..structure import has, module_width

MAX_NAME = 100
"""Longest name of a site: runs have files of that name, and disks a limit of 255 bytes."""

_PLAIN = ImageTransform()  # no resize: values in 0..1 at the image's own size


@register
class WrappedFamily(Family):
    """A module given to `vlascope.wrap`; see there for the arguments."""

    name = "wrapped"
    summary = "any torch.nn.Module through vlascope.wrap(module, sites=..., layout=...)"

    def __init__(
        self,
        module: nn.Module,
        *,
        assets: Assets,
        named: Sequence[str] | Mapping[str, str],
        grids: Grid | Mapping[str, Grid],
        preprocess: Callable[..., Any] | None,
        run: Callable[[nn.Module, Tensor], Any] | None,
    ) -> None:
        super().__init__(module, assets=assets)
        self.paths = _paths(module, named)
        self.grids = _grids(grids, self.paths)
        if missing := [name for name in self.paths if name not in self.grids]:
            raise InputError(
                f"site '{missing[0]}' has no layout; give one Grid for all, or one per site: "
                f"{{{missing[0]!r}: vlascope.Grid(rows, cols)}}."
            )
        self.preprocess, self.run = preprocess, run

    def sites(self) -> list[Site]:
        return [self._site(name, path, self.grids[name]) for name, path in self.paths.items()]

    def native_site(self, path: str) -> Site:
        if len(set(self.grids.values())) != 1:
            raise SiteNotFoundError(
                f"name module '{path}' in wrap(sites=..., layout=...), with its own grid."
            )
        if not has(self.module, path):
            names = [name for name, _ in self.module.named_modules() if name]
            raise SiteNotFoundError(f"the model has no module '{path}'.{nearest_text(path, names)}")
        return self._site(f"module:{path}", path, next(iter(self.grids.values())))

    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        pixels, frames = [], []  # frames per item: one per camera
        for item in items:
            frames.append([])
            for image in item.images:
                value, frame = self._pixels(item, image)
                pixels.append(value)
                frames[-1].append(frame)
        if len({value.shape for value in pixels}) > 1:
            raise InputError(
                f"the images of one batch have different sizes ({sorted({tuple(p.shape) for p in pixels})}); pass "
                "preprocess= to wrap() that brings them to one size, or use batches of one."
            )
        layouts: dict[str, list[TokenLayout]] = {}
        rows: dict[str, list[Any]] = {}
        for grid in dict.fromkeys(self.grids.values()):
            name = self._layout_name(grid)
            layouts[name], rows[name], n_before = [], [], 0
            for per_camera in frames:
                parts = [_grid_layout(grid, frame, camera) for camera, frame in enumerate(per_camera)]
                rows[name].append(tuple((n_before + j, 0, len(part)) for j, part in enumerate(parts)))
                layouts[name].append(concat(parts))
                n_before += len(parts)
        return Batch(
            inputs={"pixel_values": torch.stack(pixels)},
            layouts=layouts,
            rows=rows,
            item_ids=tuple(item.item_id for item in items),
            prompts=(None,) * len(items),
            source=tuple(items),
        )

    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        pixels = batch.inputs["pixel_values"]
        if self.run is not None:
            self.run(self.module, pixels)
        else:
            self.module(pixels)

    def _pixels(self, item: Item, image: Any) -> tuple[Tensor, Frame]:
        whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
        if self.preprocess is None:
            return torch.from_numpy(_PLAIN(image)), whole
        # One camera at a time: what `preprocess` sees as `item.image` is the image that it has to return.
        one = Item(item_id=item.item_id, images=(image,), prompt=item.prompt, labels=item.labels)
        value, frame = self.preprocess(one), whole
        if isinstance(value, tuple) and len(value) == 2:
            value, frame = value[0], _checked_frame(value[1], item)
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, Tensor):
            raise InputError(
                f"preprocess returned {type(value).__name__} for item '{item.item_id}'; need a float tensor "
                "[channels, H, W], or a tuple of it and the frame (x0, y0, x1, y1) that it shows."
            )
        if not value.is_floating_point():
            raise InputError(
                f"preprocess returned numbers of type {str(value.dtype).removeprefix('torch.')} for item "
                f"'{item.item_id}'; need floats, scaled as the model expects them (value.float() / 255, for instance)."
            )
        if value.ndim != 3:
            raise InputError(
                f"preprocess returned shape {tuple(value.shape)} for item '{item.item_id}'; need [channels, H, W]."
            )
        return value, frame

    def _site(self, name: str, path: str, grid: Grid) -> Site:
        axes = {None: "btd", True: "bdhw", False: "bhwd"}[grid.channels_first]
        if axes != "btd" and grid.prefix:
            raise InputError(f"site '{name}': a feature map has no prefix tokens; use Grid(prefix=0).")
        return Site(
            name=name,
            module_path=path,
            layout=self._layout_name(grid),
            width=module_width(self.module.get_submodule(path)),
            axes=axes,
            grid=None if axes == "btd" else (grid.rows, grid.cols),
        )

    def _layout_name(self, grid: Grid) -> str:
        shapes = {(g.rows, g.cols, g.prefix) for g in self.grids.values()}
        return "vision" if len(shapes) == 1 else f"grid{grid.rows}x{grid.cols}p{grid.prefix}"


def _grids(grids: Any, names: Mapping[str, str]) -> dict[str, Grid]:
    """Return the grid of each site; a mapping may lack some, which the caller reports."""
    if isinstance(grids, Grid):
        return dict.fromkeys(names, grids)
    given = grids if isinstance(grids, Mapping) else {"layout": grids}
    if wrong := [value for value in given.values() if not isinstance(value, Grid)]:
        raise InputError(
            f"got {wrong[0]!r} as layout; need vlascope.Grid(rows, cols), or one per site: "
            f"{{{next(iter(names))!r}: vlascope.Grid(rows, cols)}}."
        )
    return dict(grids)


def _checked_frame(frame: Any, item: Item) -> Frame:
    """Return a frame as four floats."""
    try:
        x0, y0, x1, y1 = (float(value) for value in frame)
    except (TypeError, ValueError):
        x0 = y0 = x1 = y1 = float("nan")
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
        raise InputError(
            f"preprocess returned the frame {frame!r} for item '{item.item_id}'; need four numbers (x0, y0, x1, y1) in "
            "pixels of the original image, with x0 < x1 and y0 < y1."
        )
    return x0, y0, x1, y1


def _grid_layout(grid: Grid, frame: Frame, camera: int) -> TokenLayout:
    patches = grid_tokens(grid.rows, grid.cols, frame=frame, camera=camera)
    if not grid.prefix:
        return patches
    heads = plain_tokens("class", [f"<prefix {i}>" for i in range(grid.prefix)])
    heads.camera[:] = camera
    heads.tile[:] = 0
    return concat([heads, patches])


def _paths(module: nn.Module, named: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return {site name: module path}; wildcards match within one dotted part."""
    names = [name for name, _ in module.named_modules() if name]
    if isinstance(named, str):
        named = [named]
    given = named.items() if isinstance(named, Mapping) else [named]
    if not isinstance(named, (Mapping, Sequence)) or not all(
        isinstance(x, str) for one in given for x in one
    ):
        raise InputError(
            f"got {named!r} as sites; need module paths such as ['blocks.*'], or {{site name: module path}}."
        )
    wanted = dict(named) if isinstance(named, Mapping) else {path: path for path in named}
    out: dict[str, str] = {}
    for alias, path in wanted.items():
        if alias != path:
            _check_alias(alias)
        parts = path.split(".")
        found = [
            name
            for name in names
            if len(pieces := name.split(".")) == len(parts)
            and all(fnmatch.fnmatchcase(piece, part) for piece, part in zip(pieces, parts, strict=True))
        ]
        if not found:
            raise SiteNotFoundError(f"the module has no part '{path}'.{nearest_text(path, names)}")
        if len(found) > 1 and alias != path:
            raise SiteNotFoundError(f"'{path}' matches {len(found)} modules; a named site takes one.")
        out.update({alias: found[0]} if alias != path else {name: name for name in found})
    if not out:
        raise SiteNotFoundError("wrap() got no sites; name at least one module path.")
    return out


def _check_alias(alias: str) -> None:
    """Raise `InputError` for a name that no pattern could mean, or no file could have."""
    is_name = (
        isinstance(alias, str) and len(alias) <= MAX_NAME and alias.isprintable() and all(alias.split("."))
    )
    if not is_name or set(alias) & set("*?,@:/\\") or alias != alias.strip():
        raise InputError(
            f"got the site name {alias!r}; need at most {MAX_NAME} characters, words with dots between them, without "
            "any of * ? , @ : / \\, such as 'vision.3'."
        )
