"""Ways to lead a model astray, to test a monitor with: things in the image, adversarial patches, activations."""

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

if TYPE_CHECKING:
    from ..models import Model, Response

Box = tuple[int, int, int, int]
OCCLUDER = (96, 88, 80)
STRANGE = ((230, 30, 200), (20, 220, 220))
FAR = 0.5


def box_mask(box: Box, *, height: int, width: int) -> NDArray[np.bool_]:
    """Return bool [height, width] of a box x0, y0, x1, y1 in pixels, cut at the image's edge.

    Raises:
        InputError: nothing of it lies inside the image.
    """
    x0, y0, x1, y1 = box
    out = np.zeros((height, width), bool)
    out[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = True
    if not out.any():
        raise InputError(f"got the box {box}; it has no pixel inside an image of {width} x {height}.")
    return out


def occluded(
    rgb: NDArray[np.uint8], *, box: Box, colour: tuple[int, int, int] = OCCLUDER
) -> NDArray[np.uint8]:
    """Return the image [h, w, 3] with a plain patch over it, as a hand or a sheet of paper would make."""
    out = rgb.copy()
    out[box_mask(box, height=rgb.shape[0], width=rgb.shape[1])] = colour
    return out


def with_strange_object(rgb: NDArray[np.uint8], *, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the image with a striped disc that is in no training scene, and its mask bool [h, w]."""
    height, width = rgb.shape[:2]
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:height, :width] + 0.5
    inside = ((x - (x0 + x1) / 2) / max(1, (x1 - x0) / 2)) ** 2 + (
        (y - (y0 + y1) / 2) / max(1, (y1 - y0) / 2)
    ) ** 2 < 1
    inside &= box_mask(box, height=height, width=width)
    stripe = ((x + y) // 3 % 2).astype(int)
    out = rgb.copy()
    out[inside] = np.array(STRANGE, np.uint8)[stripe[inside]]
    return out, inside


@dataclass(frozen=True)
class PatchAttack:
    """Outcome of an attack on the pixels of one item.

    Attributes:
        item: The item with the adversarial patch, in whole pixel values.
        mask: bool [h, w], the pixels that were free.
        loss: Mean negative log-probability of the attacked answer, before and after each step.
        before, after: The model's answers.
    """

    item: Item
    mask: NDArray[np.bool_]
    loss: tuple[float, ...]
    before: Response
    after: Response

    @property
    def moved(self) -> float:
        """Largest change of a degree of freedom of the action, in its own unit; NaN where there is no action."""
        a, b = self.before.action, self.after.action
        return float("nan") if a is None or b is None else float(np.nanmax(np.abs(a - b)))


def pgd_patch(
    model: Model,
    item: Item,
    *,
    box: Box,
    n_steps: int = 20,
    step_size: float = 16.0,
    target: Response | None = None,
    goal: Literal["untargeted", "targeted"] = "untargeted",
    seed: int = 0,
) -> PatchAttack:
    """Return the item with an adversarial patch that leads the model away from its own answer, or to another.

    Projected gradient descent: the pixels inside the box are free (0..255), all others stay; each step follows the
    sign of the gradient of the answer's log-probability, the answer's earlier tokens being given.

    Args:
        model: A model that answers, whose images are inputs "pixel_values" of the image's own size.
        item: One image (the first camera is attacked) and its prompt.
        box: x0, y0, x1, y1 in pixels.
        n_steps: Steps, at least one.
        step_size: Change per step, in pixel values.
        target: The answer to lead to ("targeted").
        goal: "untargeted" makes the model's own answer unlikely; "targeted" makes `target` likely.
        seed: Seeds the starting noise.

    Raises:
        InputError: the model answers nothing, resizes its images, or `target` is missing.

    Cost: a forward and a backward pass per step, and two answers.
    References: A. Madry et al., 2018, arXiv 1706.06083 (PGD); T. Brown et al., 2017, arXiv 1712.09665 (patches).
    """
    if n_steps < 1 or not step_size > 0:
        raise InputError(
            f"got n_steps={n_steps}, step_size={step_size}; need at least one step of positive size."
        )
    if (goal == "targeted") != (target is not None):
        raise InputError("give a target for goal='targeted', and only then.")
    before = model.respond([item])[0]
    aim = before if target is None else target
    if not aim.token_ids:
        raise InputError(
            f"model '{model.name}' answered nothing to '{item.item_id}'; there is no answer to attack."
        )
    image = item.image
    height, width = image.shape[:2]
    mask = box_mask(box, height=height, width=width)
    offset, gain = pixel_map(model, item)
    free = torch.from_numpy(mask)
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    pixels = torch.where(free, torch.randint(0, 256, pixels.shape, generator=draw).float(), pixels)
    sign = 1.0 if target is None else -1.0
    losses: list[float] = []
    for _ in range(n_steps):
        leaf = pixels.clone().requires_grad_(True)
        loss = answer_loss(model, item, aim, values=(leaf * gain + offset).to(model.device))
        losses.append(float(loss.detach()))
        (slope,) = torch.autograd.grad(loss, leaf)
        pixels = torch.where(free, (pixels + sign * step_size * slope.sign()).clamp(0, 255), pixels)
    shown = pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()
    attacked = replace(item, images=(shown, *item.images[1:]), source=None)
    with torch.no_grad():
        last = answer_loss(model, item, aim, values=(pixels.round() * gain + offset).to(model.device))
    return PatchAttack(attacked, mask, (*losses, float(last)), before, model.respond([attacked])[0])


def answer_loss(model: Model, item: Item, answer: Response, *, values: Tensor | None = None) -> Tensor:
    """Return the mean negative log-probability of an answer's tokens, each given those before it.

    Args:
        model: The model.
        item: Image and prompt.
        answer: The answer.
        values: Inputs "pixel_values" of the first image, [3, h, w]; differentiable where they are.
    """
    batch = model._cast(model.prepare([item], answers=[answer]))
    inputs = dict(batch.inputs)
    if values is not None:
        given = inputs["pixel_values"]
        first = values.to(given.dtype)[None]
        inputs["pixel_values"] = torch.cat([first, given[1:]]) if len(given) > 1 else first
    with torch.set_grad_enabled(values is not None and values.requires_grad):
        logits = model.module(**inputs, use_cache=False).logits[0]
    n = len(answer.token_ids)
    stop = batch.rows["language"][0][0][2]
    ids = torch.tensor(answer.token_ids, device=logits.device)
    return torch.nn.functional.cross_entropy(logits[stop - n - 1 : stop - 1].float(), ids)


def pixel_map(model: Model, item: Item) -> tuple[Tensor, Tensor]:
    """Return (offset, gain) [3, 1, 1]: the model's "pixel_values" are pixel * gain + offset.

    Raises:
        InputError: the model resizes, crops or otherwise rearranges the image.
    """
    height, width = item.image.shape[:2]

    def prepared(image: NDArray[np.uint8]) -> Tensor:
        given: Any = model.prepare([replace(item, images=(image, *item.images[1:]), source=None)]).inputs
        found = given.get("pixel_values")
        if found is None or found.ndim != 4 or tuple(found.shape[2:]) != (height, width):
            shape = None if found is None else tuple(found.shape)
            raise InputError(
                f"the images of '{item.item_id}' are {height} x {width}, but '{model.name}' reads them as {shape}; "
                "pixels can be attacked only at the model's own size. Resize the image first."
            )
        return found[0].detach().float().cpu()

    black, white = (prepared(np.full_like(item.image, level)) for level in (0, 255))
    offset = black.mean((1, 2), keepdim=True)
    gain = (white - black).mean((1, 2), keepdim=True) / 255
    real = torch.from_numpy(item.image.astype(np.float32)).permute(2, 0, 1)
    if not torch.allclose(prepared(item.image), real * gain + offset, atol=1e-2):
        raise InputError(
            f"model '{model.name}' does more to an image than scale its values; it cannot be attacked so."
        )
    return offset, gain


def trojan_direction(
    model: Model, *, site: str, toward: Sequence[Item], away: Sequence[Item], kind: str = "patch"
) -> Tensor:
    """Return the mean difference of a site's tokens between two sets of items, float32 [d].

    Adding it in a forward pass makes the model treat one like the other: a Trojan in the activations.

    Args:
        model: The model.
        site: Where.
        toward, away: Items of the two kinds.
        kind: Kind of token that is averaged.

    References: H. Wang and K. Shu, 2023, arXiv 2311.09433 (Trojan activation attack).
    """

    def mean(items: Sequence[Item]) -> Tensor:
        batch = model.prepare(items)
        chosen = model.resolve(site)[0]
        rows = model.capture(batch, [chosen])[chosen.name]
        kept = [
            x[torch.from_numpy(layout.is_kind(kind)).to(x.device)].float()
            for x, layout in zip(rows, batch.layouts[chosen.layout], strict=True)
        ]
        tokens = torch.cat(kept)
        if not len(tokens):
            raise InputError(f"site '{site}' has no tokens of kind '{kind}'.")
        return tokens.mean(0)

    return mean(toward) - mean(away)


def injection(direction_d: Tensor, *, strength: float) -> Any:
    """Return an edit for `Model.edit`: adds `strength` times the tokens' mean norm along a direction to every token."""
    unit = direction_d / direction_d.norm().clamp_min(1e-12)

    def edit(x: Tensor) -> Tensor:
        size = x.float().norm(dim=-1).mean()
        return x + (strength * size * unit.to(x.device)).to(x.dtype)

    return edit
