"""Where the cells of a feature map look: sizes, steps and centres after a chain of convolutions and poolings.

A cell's box is centred on the middle of what the cell can see and is one step wide. Convolutions that pad less
than half their kernel on the left, or more, shift that middle: in a ResNet-50 the cells of the last stage, 32
pixels apart, look at pixel 0, 32, 64, ..., not at the middles of 32-pixel squares.

Reference: A. Araujo, W. Norris, J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill
2019, doi:10.23915/distill.00021.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ModelNotFoundError
from .images import Frame
from .structure import pair


@dataclass(frozen=True, kw_only=True)
class Step:
    """One convolution or pooling along one axis.

    Attributes:
        kernel: Places that one output sees (with dilation).
        stride: Places between two outputs.
        before: Places padded before the first.
        after: Places padded after the last.
    """

    kernel: int
    stride: int
    before: int
    after: int


Steps = tuple[tuple[Step, Step], ...]
"""A chain of operations, each along rows and along columns."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The cells of a map along one axis: their number, the pixels between two, and the middle of the first.

    Attributes:
        n_cells: How many.
        step: Pixels of the input between the middles of neighbours.
        middle: Middle of the first cell, in pixels from the edge of the input.
    """

    n_cells: int
    step: int
    middle: float

    @classmethod
    def of(cls, n_pixels: int, steps: Iterable[Step]) -> Reach:
        """Return the cells along an axis of `n_pixels` after `steps`."""
        n_cells, pixels, middle = n_pixels, 1, 0.5
        for step in steps:
            n_cells = (n_cells + step.before + step.after - step.kernel) // step.stride + 1
            middle += ((step.kernel - 1) / 2 - step.before) * pixels
            pixels *= step.stride
        return cls(n_cells=n_cells, step=pixels, middle=middle)

    @property
    def span(self) -> tuple[float, float]:
        """First and last edge of the cells' boxes, in pixels of the input; may reach beyond it."""
        start = self.middle - self.step / 2
        return start, start + self.n_cells * self.step


def map_frame(rows: Reach, cols: Reach, *, frame: Frame, shown_hw: tuple[int, int]) -> Frame:
    """Return what a whole map covers, in pixels of the original image.

    Args:
        rows: Its cells from top to bottom.
        cols: Its cells from left to right.
        frame: What the model's input covers, in pixels of the original image.
        shown_hw: Height and width of the model's input.
    """
    x0, y0, x1, y1 = frame
    x, y = (x1 - x0) / shown_hw[1], (y1 - y0) / shown_hw[0]
    (top, bottom), (left, right) = rows.span, cols.span
    return (x0 + left * x, y0 + top * y, x0 + right * x, y0 + bottom * y)


def steps_of(module: nn.Module, *, skip: Sequence[str] = ()) -> Steps:
    """Return the operations inside a module, in the order in which it holds them, that change the cells.

    Args:
        module: Its convolutions and poolings must run one after another, but for those named by `skip`.
        skip: Names of children that run beside the main path, such as "shortcut".

    Raises:
        ModelNotFoundError: an operation whose geometry is not known here.
    """
    return tuple(pair for pair in _walk(module, skip) if any(step != _NOTHING for step in pair))


_NOTHING = Step(kernel=1, stride=1, before=0, after=0)


def _walk(module: nn.Module, skip: Sequence[str]) -> list[tuple[Step, Step]]:
    found: list[tuple[Step, Step]] = []
    pads: tuple[int, int, int, int] | None = None  # of a padding module that waits for its convolution
    for name, part in _leaves(module, skip):
        if isinstance(part, nn.ZeroPad2d):
            pads = tuple(int(v) for v in part.padding)  # type: ignore[assignment]
        elif isinstance(part, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            if isinstance(part, (nn.MaxPool2d, nn.AvgPool2d)) and part.ceil_mode:
                raise ModelNotFoundError(
                    f"the pooling '{name}' rounds up, which this family does not support."
                )
            # Models that hold a padding module for every convolution skip it where the convolution pads itself.
            own = getattr(part, "padding", 0)
            waiting = pads if own in ("valid", 0, (0, 0)) else None
            found.append(_steps(part, waiting))
            pads = None
    return found


def _leaves(module: nn.Module, skip: Sequence[str], path: str = "") -> Iterable[tuple[str, nn.Module]]:
    children = list(module.named_children())
    if not children:
        yield path, module
    for name, child in children:
        if name not in skip:
            yield from _leaves(child, skip, f"{path}.{name}" if path else name)


def _steps(part: Any, pads: tuple[int, int, int, int] | None) -> tuple[Step, Step]:
    kernel, dilation = pair(part.kernel_size), pair(getattr(part, "dilation", 1))
    seen = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    stride = pair(part.stride if part.stride is not None else part.kernel_size)
    if pads is not None:  # left, right, top, bottom
        sides = ((pads[2], pads[3]), (pads[0], pads[1]))
    elif part.padding == "same":
        sides = tuple(((n - 1) // 2, n - 1 - (n - 1) // 2) for n in seen)
    elif part.padding == "valid":
        sides = ((0, 0), (0, 0))
    else:
        sides = tuple((p, p) for p in pair(part.padding))
    rows, cols = (
        Step(kernel=n, stride=s, before=side[0], after=side[1])
        for n, s, side in zip(seen, stride, sides, strict=True)
    )
    return rows, cols
