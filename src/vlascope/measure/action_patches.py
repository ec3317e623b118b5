"""Which patches move the action: gradient and occlusion, judged by insertion, deletion and the maps of other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..items.item import Item
from ..models.layout import KINDS
from ..progress import watched
from .orders import N_STEPS, judge_orders, order_areas, other_things
from .resample import MIN_UNITS, item_units
from .result import Result

if TYPE_CHECKING:
    from ..models import Model, Response

Method = Literal["gradient", "occlusion"]
BATCH_SIZE = 16


@dataclass(frozen=True)
class PatchAttribution:
    """How much each patch of one image moves one degree of freedom of the action.

    Attributes:
        dof: Its name.
        method: "gradient" or "occlusion".
        relevance: float64 [p], >= 0; for occlusion in units of the action.
        box: float32 [p, 4], the patches in pixels of the image.
        action: The expected action, in its own unit.
    """

    dof: str
    method: Method
    relevance: NDArray[np.float64]
    box: NDArray[np.float32]
    action: float


def action_patches(
    model: Model, item: Item, *, dof: str | int = 0, method: Method = "gradient", batch_size: int = BATCH_SIZE
) -> PatchAttribution:
    """Return how much each patch moves the action that a model with action tokens takes.

    The action is the expectation over the bins of one action token, the tokens before it being those that the model
    itself answers: unlike the most likely bin it changes smoothly. "gradient": |gradient x (patch - mean patch)| at
    the projector. "occlusion": how far the expectation moves when the patch is painted in the image's mean colour.

    Args:
        model: A model with action tokens, a site "projector" and patches of one camera.
        item: One image and prompt.
        dof: Name or index of the degree of freedom.
        method: "gradient" or "occlusion".
        batch_size: Images per forward pass (occlusion).

    Raises:
        InputError: a model without action tokens, an unknown degree of freedom, an answer that is no whole action.

    Cost: two forward passes and a backward pass, or one forward pass per patch.
    References: Zeiler and Fergus 2014 (occlusion), doi:10.1007/978-3-319-10590-1_53.
    """
    ask = _Asked(model, item, dof)
    relevance = _relevance(ask, method, batch_size)
    return PatchAttribution(ask.dof_name, method, relevance, ask.box, ask.action)


def insertion_deletion(
    model: Model,
    items: Sequence[Item],
    *,
    dof: str | int = 0,
    method: Method = "gradient",
    n_steps: int = N_STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> list[Result]:
    """Return insertion and deletion scores of patch attributions, against the maps of other images.

    Deletion paints patches over, the most relevant first; insertion uncovers them on a painted image. Both areas are
    of the distance to the whole image's action as a share of that of the fully painted image (at most 2). Deletion is
    good when large (the action leaves soon), insertion when small (it comes back soon): it is given as 1 - area.

    The control lays the maps of other images, found in the same way, on each image: it tells a map of *this* image
    from one that knows no more than where objects usually are, such as the middle first.

    Args:
        model: See `action_patches`.
        items: Independent images are best; episodes are resampled whole where all items have one.
        dof: Degree of freedom.
        method: Attribution to judge.
        n_steps: Shares of patches at which the action is asked.
        batch_size: Images per forward pass.
        seed: Seeds the choice of other images and the bootstrap.

    Returns:
        Results "deletion" and "insertion"; "cannot say" with fewer than 5 items whose action the image moves.

    Raises:
        InputError: see `action_patches`.

    Cost: 10 forward passes per item (2 n_steps) and as many for each of up to 19 other episodes, and the maps.
    References: Petsiuk, Das and Saenko 2018, arXiv:1806.07421.
    """
    asked, maps, spans, used = [], [], [], []
    for number, item in enumerate(watched(items, desc="maps")):
        ask = _Asked(model, item, dof)
        far = abs(ask.hidden(np.ones((1, len(ask.box)), bool), batch_size=1)[0] - ask.action)
        if far < 1e-3 * ask.span:
            continue  # the image does not move this action: there is nothing to explain
        asked.append(ask)
        maps.append(_relevance(ask, method, batch_size))
        spans.append(far)
        used.append(number)
    units = item_units(items).take(np.array(used, np.int64))
    areas = []
    if units.n >= MIN_UNITS:
        chosen = other_things(units, seed=seed)
        for ask, own, far, others in watched(
            list(zip(asked, maps, spans, chosen, strict=True)), desc="items"
        ):

            def moved(hidden: NDArray[np.bool_], ask: _Asked = ask, far: float = far) -> NDArray[np.float64]:
                return np.abs(ask.hidden(hidden, batch_size=batch_size) - ask.action) / far

            laid = [maps[other][_nearest(ask, asked[other])] for other in others]
            areas.append(order_areas(moved, own, others=laid, n_steps=n_steps))
    few = f"the image moves the action of {units.n} independent {units.over}s; need at least {MIN_UNITS}"
    found = judge_orders(areas, units, name=method, few=few, seed=seed)
    return [replace(one, details={"dof": str(dof), "steps": n_steps}) for one in found]


def _nearest(ask: _Asked, other: _Asked) -> NDArray[np.int64]:
    """Return for each patch the one of another item's image at about the same place, int64 [p]."""
    mine, theirs = ask.centres(), other.centres()
    return ((mine[:, None] - theirs[None]) ** 2).sum(2).argmin(1)


def _relevance(ask: _Asked, method: Method, batch_size: int) -> NDArray[np.float64]:
    if method == "gradient":
        return ask.gradient()
    if method == "occlusion":
        return np.abs(ask.hidden(np.eye(len(ask.box), dtype=bool), batch_size=batch_size) - ask.action)
    raise InputError(f"got method={method!r}; need 'gradient' or 'occlusion'.")


class _Asked:
    """One item, the answer that the model gives to it, and the expected value of one of its action tokens."""

    def __init__(self, model: Model, item: Item, dof: str | int) -> None:
        bins: Any = getattr(model._family, "bins", None)
        if bins is None:
            raise InputError(
                f"model '{model.name}' has no action tokens; use one that has, such as 'mini-vla'."
            )
        names = bins.dimension_names
        number = names.index(dof) if dof in names else dof
        if not isinstance(number, int) or not 0 <= number < bins.dof:
            raise InputError(f"the action has no degree of freedom {dof!r}; it has {', '.join(names)}.")
        self.dof: int = number
        self.model, self.item, self.dof_name, self.bins = model, item, names[number], bins
        self.reply: Response = model.respond([item])[0]
        if self.reply.action is None or np.isnan(self.reply.action).any():
            raise InputError(f"the answer to item '{item.item_id}' is no whole action: {self.reply.text!r}.")
        layout = model.prepare([item]).layouts["projector"][0]
        self.box = layout.box[(layout.kind == KINDS.index("patch")) & (layout.camera == 0)]
        if len(self.box) != len(layout):
            raise InputError("patches can be attributed for models that read one image per item.")
        edges = np.linspace(-1, 1, bins.n_bins)
        centres = np.append((edges[:-1] + edges[1:]) / 2, (edges[-2] + edges[-1]) / 2)
        whole = np.zeros((bins.n_bins, bins.dof))
        whole[:, self.dof] = centres
        values = bins.unnormalize(whole)[::-1, self.dof].copy()  # the highest bin has the lowest id
        self.unit_values = torch.tensor(values, dtype=torch.float32)
        self.span = float(np.ptp(values))
        self.action = float(self.values([item], batch_size=1)[0])

    def centres(self) -> NDArray[np.float64]:
        """Return where the patches lie, as shares of the image, float64 [p, 2]."""
        height, width = self.item.image.shape[:2]
        return (self.box[:, :2] + self.box[:, 2:]).astype(np.float64) / 2 / (width, height)

    def hidden(self, hidden: NDArray[np.bool_], *, batch_size: int) -> NDArray[np.float64]:
        """Return the expected action with some patches painted over, bool [m, p] -> float64 [m]."""
        out = []
        for start in range(0, len(hidden), batch_size):
            pictures = [_painted(self.item, self.box, one) for one in hidden[start : start + batch_size]]
            out.append(self.values(pictures, batch_size=batch_size))
        return np.concatenate(out)

    def values(self, items: Sequence[Item], *, batch_size: int) -> NDArray[np.float64]:
        """Return the expected action for pictures of the same prompt and answer, float64 [n]."""
        out = []
        with torch.no_grad():
            for start in range(0, len(items), batch_size):
                out.append(self._expected(items[start : start + batch_size]).cpu().double().numpy())
        return np.concatenate(out)

    def gradient(self) -> NDArray[np.float64]:
        """Return |gradient x (token - mean token)| of each patch at the projector, float64 [p]."""
        leaves: list[Tensor] = []

        def hold(x: Tensor) -> Tensor:
            leaves.append(x.detach().clone().requires_grad_(True))
            return leaves[-1]

        with torch.enable_grad(), self.model.edit("projector", hold):
            value = self._expected([self.item])
            (slope,) = torch.autograd.grad(value.sum(), leaves[-1])
        x = leaves[-1].detach()[0]
        return (slope[0] * (x - x.mean(0))).sum(1).abs().cpu().double().numpy()

    def _expected(self, items: Sequence[Item]) -> Tensor:
        batch = self.model._cast(self.model.prepare(items, answers=[self.reply] * len(items)))
        logits = self.model.module(**batch.inputs, use_cache=False).logits
        last = batch.rows["language"][0][0][2]
        # The logits before an action token say what it will be.
        at = last - len(self.reply.token_ids) + self.dof - 1
        some = logits[:, at, self.bins.first_id : self.bins.vocab_size].float()
        return some.softmax(-1) @ self.unit_values.to(some.device)


def _painted(item: Item, box: NDArray[np.float32], hidden: NDArray[np.bool_]) -> Item:
    """Return the item with some patches of its first image in the image's mean colour."""
    image = item.image.copy()
    colour = item.image.reshape(-1, 3).mean(0).round().astype(np.uint8)
    height, width = image.shape[:2]
    for x0, y0, x1, y1 in np.rint(box[hidden]).astype(int):
        image[max(0, y0) : min(height, y1), max(0, x0) : min(width, x1)] = colour
    return replace(item, images=(image, *item.images[1:]), source=None)
