"""Any module at all: the user names the sites and says what their tokens are."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        self.grids = dict.fromkeys(self.paths, grids) if isinstance(grids, Grid) else dict(grids)
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
        value = self.preprocess(one)
        frame: Frame = whole
        if isinstance(value, tuple):
            value, frame = value
        value = torch.as_tensor(value)
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
    wanted = dict(named) if isinstance(named, Mapping) else {path: path for path in named}
    out: dict[str, str] = {}
    for alias, path in wanted.items():
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
