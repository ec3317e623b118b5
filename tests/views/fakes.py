"""A run and a cut made of known numbers, with the attributes that the real ones have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vlascope.models.layout import KINDS, TokenLayout, concat, grid_tokens, plain_tokens
from vlascope.runs.tables import ItemRow, ResponseRow, TokenTable, table_from_layouts


@dataclass
class FakeRun:
    path: Path
    items: list[ItemRow]
    images: list[np.ndarray]
    layouts: dict[str, list[TokenLayout]]
    masks: list[np.ndarray] | None = None
    tables: dict[str, TokenTable] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    responses: list[ResponseRow] = field(default_factory=list)
    info: dict[str, Any] = field(
        default_factory=lambda: {"status": "complete", "command": "vlascope capture fake"}
    )
    config: dict[str, Any] = field(default_factory=lambda: {"model": {"name": "fake-vla"}})
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def sites(self) -> dict[str, Any]:
        return {}

    def tokens(self, layout: str) -> TokenTable:
        if layout not in self.tables:
            self.tables[layout] = TokenTable(table_from_layouts(self.layouts[layout], first_item=0))
        return self.tables[layout]

    def image(self, index: int, camera: int = 0) -> np.ndarray:
        return (
            self.images[index] if camera == 0 else self.images[index][::-1, ::2]
        )  # half as wide, upside down

    def response(self, item: int) -> ResponseRow | None:
        return next((r for r in self.responses if r.item == item), None)

    def mask(self, index: int, name: str = "segmentation") -> np.ndarray | None:
        return None if self.masks is None else self.masks[index]

    def mask_names(self, index: int, name: str = "segmentation") -> dict[int, str]:
        return self.names


@dataclass
class FakePart:
    layout: str
    token_rows: np.ndarray
    rows: slice


@dataclass
class FakeCut:
    run: FakeRun
    sites: tuple[str, ...]
    eigvecs: np.ndarray
    rgb: np.ndarray
    labels: dict[int, np.ndarray]
    parts: dict[str, FakePart]
    params: dict[str, Any]
    eigenvalues: np.ndarray
    health: Any = None

    def cluster_colors(self, k: int) -> np.ndarray:
        rng = np.random.default_rng(k)
        return rng.integers(40, 240, (k, 3)).astype(np.uint8)


PATCH = KINDS.index("patch")
WORDS = ["<s>", "In:", "pick", "up", "the", "red", "fragile", "object", "Out:"]


def scene(step: int, *, width: int = 112, height: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A table with a red disc, a blue box and a grey gripper that comes down; and its mask."""
    yy, xx = np.mgrid[0:height, 0:width]
    image = np.zeros((height, width, 3), np.uint8)
    image[...] = (196 - yy[..., None] // 3, 176 - yy[..., None] // 3, 150 - yy[..., None] // 3)[0]
    mask = np.zeros((height, width), np.uint8)
    image[60:88, 70:100], mask[60:88, 70:100] = (40, 80, 190), 5
    disc = (xx - 34) ** 2 + (yy - 62) ** 2 < 16**2
    image[disc], mask[disc] = (200, 50, 40), 4
    top = 4 + 2 * step
    image[top : top + 22, 40:52], mask[top : top + 22, 40:52] = (120, 122, 126), 2
    return image, mask


def make_cut(
    path: Path,
    *,
    n_steps: int = 8,
    n_episodes: int = 2,
    rows: int = 12,
    cols: int = 14,
    n_vision: int = 3,
    n_language: int = 3,
    wh: tuple[int, int] = (112, 96),
    frame: tuple[float, float, float, float] | None = None,
    words: list[str] | None = None,
    prompt: str | None = "pick up the red fragile object",
    cameras: tuple[str, ...] = ("main",),
) -> FakeCut:
    """Two short episodes; the colour of a patch is the image's own mean colour there, changed a little per site."""
    words = WORDS if words is None else words
    width, height = wh
    frame = frame or (0.0, 0.0, float(width), float(height))
    items, images, masks, responses = [], [], [], []
    for episode in range(n_episodes):
        for step in range(n_steps):
            image, mask = scene(step, width=width, height=height)
            images.append(image)
            masks.append(mask)
            good = episode == 0
            action = np.array([0.01 * step, -0.02, -0.025, float(step > n_steps // 2)], np.float32)
            index = len(items)
            items.append(
                ItemRow(
                    index=index,
                    source_index=index,
                    item_id=f"ep{episode:04d}/{step:06d}",
                    cameras=cameras,
                    image_sizes=((height, width), (height, width // 2))[: len(cameras)],
                    prompt=prompt,
                    labels={
                        "success": good,
                        "outcome": "success" if good else "wrong_object",
                        "target_colour": "red",
                        "event.grasp": n_steps // 2,
                        "holding": 1 if step > n_steps // 2 else -1,
                    },
                    mask_names={"segmentation": {2: "gripper", 4: "red fragile", 5: "blue rigid"}},
                    episode=episode,
                    step=step,
                    time_secs=step / 10,
                    state=np.array([0.5, 0.0, 0.3 - 0.02 * step, 0.04], np.float32),
                    action=action,
                )
            )
            responses.append(
                ResponseRow(
                    item=index,
                    text=None,
                    token_ids=(300, 310, 320, 330),
                    token_texts=("<act_12>", "<act_99>", "<act_3>", "<act_255>"),
                    action=action,
                    action_names=("dx", "dy", "dz", "grip"),
                )
            )
    second = (0.0, 0.0, float(width // 2), float(height))
    seen = [grid_tokens(rows, cols, frame=frame), grid_tokens(rows, cols, frame=second, camera=1)]
    vision = [concat(seen[: len(cameras)]) for _ in items]
    language = [
        concat([plain_tokens("special", words[:1]), v, plain_tokens("text", words[1:])]) for v in vision
    ]
    run = FakeRun(
        path=path,
        items=items,
        images=images,
        layouts={"vision": vision, "language": language},
        masks=masks,
        names={2: "gripper", 4: "red fragile", 5: "blue rigid"},
        responses=responses,
    )
    sites = tuple(f"vision.{i}" for i in range(n_vision)) + tuple(f"language.{i}" for i in range(n_language))
    rng = np.random.default_rng(0)
    parts, rgbs, start = {}, [], 0
    for number, site in enumerate(sites):
        layout = site.split(".")[0]
        table = run.tokens(layout)
        n = len(table)
        rgb = rng.integers(60, 220, (n, 3)).astype(np.float64)
        for i in range(n):
            if not np.isnan(table.box[i, 0]):
                x0, y0, x1, y1 = table.box[i].clip(0)
                part = run.image(int(table.item[i]), int(table.camera[i]))[
                    int(y0) : int(y1) + 1, int(x0) : int(x1) + 1
                ]
                if part.size:
                    rgb[i] = part.reshape(-1, 3).mean(0)
        rgbs.append((rgb * (1 - 0.06 * number) + 10 * number).clip(0, 255).astype(np.uint8))
        parts[site] = FakePart(layout, np.arange(n), slice(start, start + n))
        start += n
    all_rgb = np.concatenate(rgbs)
    eigvecs = np.concatenate([all_rgb / 255.0 - 0.5, rng.normal(0, 0.05, (len(all_rgb), 2))], 1)
    labels = {}
    for k in (5, 10, 25):
        centers = rng.integers(30, 220, (k, 3)).astype(np.float64)
        labels[k] = ((all_rgb[:, None, :] - centers[None]) ** 2).sum(2).argmin(1).astype(np.int16)
    return FakeCut(
        run=run,
        sites=sites,
        eigvecs=eigvecs.astype(np.float32),
        rgb=all_rgb,
        labels=labels,
        parts=parts,
        params={"n_eig": 5, "affinity": "rbf", "density": 0.05, "seed": 0, "color": "tsne", "k": [5, 10, 25]},
        eigenvalues=np.linspace(1, 0.5, 5).astype(np.float32),
        health=SimpleNamespace(
            mode="nystrom",
            n=len(all_rgb),
            n_landmarks=1024,
            sigma=1.3,
            mean_affinity=0.05,
            lambda2=0.93,
            n_components=1,
            far_share=0.002,
            notes=("0.2% of the tokens are far from every landmark",),
        ),
    )


def make_word_cut(cut: FakeCut) -> FakeCut:
    """The words of a cut cut by themselves: colours, concepts and parameters of their own."""
    parts, rows, start = {}, [], 0
    for site, part in cut.parts.items():
        kinds = cut.run.tokens(part.layout).kind[part.token_rows]
        words = np.flatnonzero(kinds != PATCH)
        if len(words):
            parts[site] = FakePart(part.layout, part.token_rows[words], slice(start, start + len(words)))
            rows.append(part.rows.start + words)
            start += len(words)
    at = np.concatenate(rows)
    return FakeCut(
        **{
            **cut.__dict__,
            "sites": tuple(parts),
            "parts": parts,
            "eigvecs": cut.eigvecs[at],
            "rgb": 255 - cut.rgb[at],
            "labels": {4: (np.arange(len(at)) % 4).astype(np.int16)},
            "params": {**cut.params, "n_eig": 3, "k": [4]},
            "health": None,
        }
    )
