"""Reading and editing tensors inside a model: one mechanism for both.

Each module of interest gets at most one forward hook of ours, put *before* the hooks that are already there:
transformers records `hidden_states` with forward hooks of its own, and LLaVA's projector is fed from that
record, so an edit that ran after the recorder would silently change nothing. The one hook runs the edits in
the order in which they were entered, then the readers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import HookNotFiredError, InputError
from .chosen import Chosen, Tokens, masked
from .sites import Site

if TYPE_CHECKING:
    from .batch import Batch

Edit = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Edited:
    """One edit that is in force.

    Attributes:
        site: Where.
        run: Returns the replacement of a [b, t, d] tensor; its second argument counts the module's calls in a pass.
        n_due: Completed passes that were to reach the site.
        n_fired: Calls of the site's module.
    """

    site: Site
    run: Callable[[Tensor, int], Tensor]
    n_due: int = 0
    n_fired: int = 0

    @property
    def missed(self) -> bool:
        """Whether passes that were to reach the site are over, and none of them called its module."""
        return self.n_due > 0 and self.n_fired == 0


@dataclass
class _Point:
    """The hook on one side of one module, and what it serves."""

    handle: Any = None
    n_calls: int = 0  # of the module since the pass began
    edits: list[Edited] = field(default_factory=list)
    readers: list[tuple[Site, Callable[[Tensor], None]]] = field(default_factory=list)


class Hooks:
    """The hooks of one model.

    Attributes:
        module: The model.
        batch: What is being run, so that edits find the tokens of each item; None outside `running`.
        grows: Name of the layout whose sequence an answer is being appended to, from the prompt's pass on; None
            while nothing is decoded.
        positions: None while whole sequences run; during step-by-step decoding the index, in each row's sequence,
            of the token that is being computed (int64 [rows]).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.batch: Batch | None = None
        self.grows: str | None = None
        self.positions: Tensor | None = None
        self._points: dict[tuple[str, str], _Point] = {}

    @property
    def n_hooked(self) -> int:
        """Number of modules that carry a hook of ours (0 outside `reading` and `editing`)."""
        return len(self._points)

    @property
    def edited(self) -> tuple[str, ...]:
        """Sites that carry an edit, in the order of their modules' hooks."""
        return tuple(edit.site.name for point in self._points.values() for edit in point.edits)

    @contextlib.contextmanager
    def editing(self, site: Site, fn: Edit, *, tokens: Tokens = None) -> Iterator[Edited]:
        """Replace a site's tensor by `fn(tensor)` in every forward pass inside the `with` block.

        Raises:
            InputError: (when the block ends well) `tokens` named an item that none of its batches had.
        """
        chosen = None if tokens is None else Chosen(tokens, site=site)
        edited = Edited(site, self._masked(fn, chosen, site=site))
        point = self._open(site)
        point.edits.append(edited)
        try:
            yield edited
        finally:
            point.edits.remove(edited)
            self._close(site)
        if chosen is not None:
            chosen.check_items()

    @contextlib.contextmanager
    def reading(
        self, sites: Sequence[Site], *, copy: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[dict[str, list[Tensor]]]:
        """Collect copies of the sites' tensors: {site name: one [b, t, d] tensor per call of its module}.

        `copy` makes them; None takes fresh memory.
        """
        copied = copy or _fresh_copy
        calls: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        entries = []
        try:
            for site in sites:
                # A copy, because a later in-place operation (ReLU of a CNN) would change what we hold.
                entry = (site, lambda x, name=site.name: calls[name].append(copied(x)))
                point = self._open(site)
                point.readers.append(entry)
                entries.append((site, point, entry))
            yield calls
        finally:
            for site, point, entry in entries:
                point.readers[:] = [other for other in point.readers if other is not entry]
                self._close(site)

    @contextlib.contextmanager
    def running(self, batch: Batch, *, reaches: Callable[[Site], bool] | None = None) -> Iterator[None]:
        """Say what the passes inside the `with` block run.

        `reaches` says of a site whether these passes are meant to call its module; None for a pass of the whole
        model.
        """
        before, self.batch = self.batch, batch
        try:
            yield
        finally:
            self.batch = before
        for edited in (edited for point in self._points.values() for edited in point.edits):
            edited.n_due += reaches is None or reaches(edited.site)

    @contextlib.contextmanager
    def must_fire(self, paths: Sequence[str], *, why: str) -> Iterator[None]:
        """Raise `HookNotFiredError` when the block ends well but one of these modules was never called."""
        for point in self._points.values():
            point.n_calls = 0  # a pass begins
        fired: set[str] = set()
        handles = [
            self.module.get_submodule(path).register_forward_hook(lambda *_, path=path: fired.add(path))
            for path in paths
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if missing := [path for path in paths if path not in fired]:
            raise HookNotFiredError(
                f"the forward pass never called {', '.join(repr(p) for p in missing)}: {why}. "
                "Check that this version of transformers runs the model as its authors meant it."
            )

    def _masked(self, fn: Edit, chosen: Chosen | None, *, site: Site) -> Callable[[Tensor, int], Tensor]:
        """Return an edit that changes only the chosen tokens; see `Edited.run`."""
        if chosen is None:
            return lambda x, _call: fn(x)

        def edit(x: Tensor, call: int) -> Tensor:
            grows = self.grows == site.layout
            mask = chosen.mask(
                (x.shape[0], x.shape[1]),
                batch=self.batch,
                positions=self.positions if grows or self.batch is None else None,
                grows=grows,
                call=call,
            )
            if not mask.any():
                return x
            # On a copy, so that an edit which works in place cannot touch the other tokens.
            new = _checked(fn(x.clone()), like=x, site=site)
            return torch.where(masked(mask, like=x), new.to(x.dtype), x)

        return edit

    def _open(self, site: Site) -> _Point:
        key = (site.module_path, site.side)
        if key not in self._points:
            point = self._points[key] = _Point()
            module = self.module.get_submodule(site.module_path)
            if site.side == "output":
                point.handle = module.register_forward_hook(
                    lambda _module, _args, output: _serve(point, output), prepend=True
                )
            else:
                point.handle = module.register_forward_pre_hook(
                    lambda _module, args: _serve(point, args), prepend=True
                )
        return self._points[key]

    def _close(self, site: Site) -> None:
        key = (site.module_path, site.side)
        point = self._points[key]
        if not point.edits and not point.readers:
            point.handle.remove()
            del self._points[key]


def _fresh_copy(x: Tensor) -> Tensor:
    return x.detach().clone()


def _serve(point: _Point, value: Any) -> Any:
    """Run edits and readers on a module's output (or inputs); None means "unchanged" to torch."""
    is_tuple = isinstance(value, (tuple, list))
    tensor = value[0] if is_tuple else value
    if not isinstance(tensor, Tensor):
        served = [*(edited.site for edited in point.edits), *(site for site, _ in point.readers)]
        names = ", ".join(sorted({site.name for site in served}))
        raise InputError(
            f"site {names}: the module returns {type(tensor).__name__}, not a tensor. Name a module inside it."
        )
    before, call = tensor, point.n_calls
    point.n_calls += 1
    for edited in point.edits:
        site = edited.site
        if site.call is None or site.call == call % site.n_calls:
            edited.n_fired += 1
            tensor = _write(tensor, edited.run(read_at(tensor, site), call), site)
    for site, read in point.readers:
        if site.repeats != "steps" or _step_read(site) == call % site.n_calls:
            read(read_at(tensor, site))
    if tensor is before:
        return None
    if any(edited.site.in_place for edited in point.edits):
        before.copy_(tensor)
        return None
    if not is_tuple:
        return tensor
    if hasattr(value, "_replace"):  # a namedtuple, which takes its fields one by one
        return type(value)(tensor, *value[1:])
    return type(value)([tensor, *value[1:]])


def _step_read(site: Site) -> int:
    return site.n_calls - 1 if site.call is None else site.call


def read_at(tensor: Tensor, site: Site) -> Tensor:
    """Return the [b, t, d] view of a site in its module's tensor."""
    if site.windows is not None:
        tensor = site.windows.unfold(tensor)
    elif site.packing is not None:
        tensor = site.packing.unfold(tensor)
    if tensor.ndim == 4:
        if site.axes == "bdhw":
            tensor = tensor.permute(0, 2, 3, 1)
        elif site.axes != "bhwd":
            b, x, y, z = tensor.shape
            raise InputError(
                f"site '{site.name}' gives a 4-D map {tuple(tensor.shape)}. It could be {y} x {z} places of width "
                f"{x} (channels first) or {x} x {y} places of width {z} (channels last). Declare it: "
                "layout=vlascope.Grid(rows, cols, channels_first=True or False)."
            )
        if site.grid is not None and tuple(tensor.shape[1:3]) != site.grid:
            raise _other_grid(tensor, site)
        tensor = tensor.flatten(1, 2)
    elif tensor.ndim != 3 or site.axes != "btd":
        raise InputError(
            f"site '{site.name}' gives a tensor of shape {tuple(tensor.shape)}; need [batch, tokens, width]"
            f"{' or the declared 4-D map' if site.axes != 'btd' else ''}. Name a module that keeps the tokens."
        )
    if site.mixed_heads:
        tensor = _swapped(tensor, site.mixed_heads, 3)
    return tensor if site.channels is None else tensor[..., slice(*site.channels)]


def _swapped(x: Tensor, n: int, m: int) -> Tensor:
    """Return a copy whose last axis, n groups of m vectors, has become m groups of n."""
    return x.unflatten(-1, (n, m, -1)).transpose(-2, -3).flatten(-3)


def _other_grid(map_bhwd: Tensor, site: Site) -> InputError:
    """Return the error for a map of another shape than the declared one, also where both have as many places."""
    assert site.grid is not None
    (h, w), (rows, cols) = map_bhwd.shape[1:3], site.grid
    channels = "first" if site.axes == "bdhw" else "last"
    swapped = ": rows and columns are swapped" if (h, w) == (cols, rows) else ""
    return InputError(
        f"site '{site.name}' gives a map of {h} rows x {w} columns (channels {channels}); its layout declares {rows} "
        f"rows x {cols} columns{swapped}. If the channels are {channels}, declare vlascope.Grid(rows={h}, cols={w}, "
        f"channels_first={channels == 'first'}); or name another module."
    )


def _checked(new: Any, *, like: Tensor, site: Site) -> Tensor:
    """Return what an edit returned, when it can stand where `like` was."""
    if not isinstance(new, Tensor):
        why = (
            "None: does it lack its `return`" if new is None else f"{type(new).__name__}, which is no tensor"
        )
        raise InputError(
            f"the edit of site '{site.name}' returned {why}{'?' if new is None else '.'} Need a torch tensor of shape "
            f"{tuple(like.shape)} on {like.device}."
        )
    if new.shape != like.shape:
        raise InputError(
            f"the edit of site '{site.name}' returned shape {tuple(new.shape)}; need {tuple(like.shape)}."
        )
    if new.device != like.device:
        raise InputError(
            f"the edit of site '{site.name}' returned a tensor on {new.device}, but the site is on {like.device}; "
            "move what it adds there first (`direction.to(x.device)`)."
        )
    return new


def _write(tensor: Tensor, new: Tensor, site: Site) -> Tensor:
    """Put an edited [b, t, d] view back; returns `tensor` itself when nothing was changed."""
    old = read_at(tensor, site)
    new = _checked(new, like=old, site=site)
    if new.data_ptr() == old.data_ptr() and new.stride() == old.stride():
        return tensor  # the edit returned its input (or changed it in place)
    new = new.to(tensor.dtype)
    if site.channels is not None:
        whole = read_at(tensor, _whole(site)).clone()
        whole[..., slice(*site.channels)] = new
        new = whole
    if site.mixed_heads:
        new = _swapped(new, 3, site.mixed_heads)
    if site.windows is not None:
        grid = new.unflatten(1, (site.windows.rows, site.windows.cols))
        new = site.windows.fold(grid, into=tensor)
    elif site.packing is not None:
        new = site.packing.fold(new, into=tensor)
    elif site.axes == "bdhw":
        new = new.unflatten(1, tensor.shape[2:]).permute(0, 3, 1, 2)
    elif site.axes == "bhwd":
        new = new.unflatten(1, tensor.shape[1:3])
    return _laid_out(new, like=tensor)


def _laid_out(new: Tensor, *, like: Tensor) -> Tensor:
    """Return `new` with the strides of `like`.

    A GPU chooses its kernels by them, too, and each kernel rounds in its own way: an edit that returns equal values
    must change no bit downstream.
    """
    if new.stride() == like.stride():
        return new
    return torch.empty_like(like, dtype=new.dtype).copy_(new)  # keeps the strides of dense tensors


def _whole(site: Site) -> Site:
    return replace(site, channels=None)
