"""From shards of labelled frames to packed batches.

A shard is a folder of .npy arrays (see `data.py`) that are memory-mapped. Each image gets as many text segments
as fit into a fixed budget: pick-up instructions for every object, putting instructions, and questions; so one
picture trains the same words and scene against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.mini_vla.settings import BatchSettings
from training.mini_vla.vocabulary import BINS, PAD, REACH_M, WORD_IDS, prompt_ids
from vlascope.sim.language import (
    COLOURS,
    MATERIALS,
    Instruction,
    Question,
    instructions_from_arrays,
    questions_from_arrays,
    words,
)

ARRAYS = (
    "images seg n_objects colour material object_xyz gripper_xyz gripper_open holding pad_xy act_pick act_place source"
).split()
PAD_SEG = 3  # segmentation id of the goal pad; objects are 4 + i
N_SEG = 8
OWN = 4  # group of the frames that the model reached by itself


class Frames:
    """All shards found so far, addressed by one running index.

    Args:
        folders: Folders that contain shard folders.
        correlated: Keep only frames in which red and yellow objects are fragile and the others rigid.
    """

    def __init__(self, folders: list[Path], *, patch_px: int, correlated: bool = False) -> None:
        self.folders, self.patch_px, self.correlated = folders, patch_px, correlated
        self.shards: list[dict[str, np.ndarray]] = []
        self.index = np.zeros((0, 2), dtype=np.int64)  # shard, row
        self._group = np.zeros(0, dtype=np.uint8)  # 1: physics, 2: something is held, OWN
        self._groups: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * (OWN + 1)
        self._seen: set[Path] = set()
        self.scan()

    def __len__(self) -> int:
        return len(self.index)

    def scan(self) -> int:
        """Adds shards that appeared since the last scan; returns how many."""
        found = 0
        for folder in self.folders:
            for shard_dir in sorted(folder.iterdir()):
                if shard_dir in self._seen or not all((shard_dir / f"{a}.npy").exists() for a in ARRAYS):
                    continue
                self._seen.add(shard_dir)
                self._add(shard_dir)
                found += 1
        return found

    def _add(self, shard_dir: Path) -> None:
        shard = {a: np.load(shard_dir / f"{a}.npy", mmap_mode="r") for a in ARRAYS if a != "seg"}
        for name, array in shard.items():
            if name != "images":
                shard[name] = np.array(array)
        shard["counts"] = patch_counts(np.load(shard_dir / "seg.npy", mmap_mode="r"), self.patch_px)
        rows = np.arange(len(shard["images"]))
        if self.correlated:
            rows = rows[follows_correlation(shard["colour"], shard["material"])]
        self.index = np.concatenate([self.index, np.stack([np.full(len(rows), len(self.shards)), rows], 1)])
        group = np.where(shard["source"] == 2, OWN, (shard["source"] == 1) + 2 * (shard["holding"] >= 0))
        self._group = np.concatenate([self._group, group[rows].astype(np.uint8)])
        self._groups = [np.flatnonzero(self._group == g) for g in range(OWN + 1)]
        self.shards.append(shard)

    def frame(self, i: int) -> dict[str, np.ndarray]:
        """All arrays of frame `i` (`counts`: pixels per patch and segmentation id)."""
        shard, row = self.index[i]
        return {name: array[row] for name, array in self.shards[shard].items()}

    def sample(
        self, n: int, *, physics_share: float, held_share: float, own_share: float, rng: np.random.Generator
    ) -> np.ndarray:
        """`n` frame numbers with given shares of each kind of frame.

        Args:
            n: How many.
            physics_share: Frames of disturbed expert episodes, among those that are not the model's own.
            held_share: Frames with an object in the hand, likewise.
            own_share: Frames that the model reached by itself.
            rng: Source of all choices. A kind that has no frames is replaced by frames of any kind.
        """
        kind = (rng.random(n) < physics_share) + 2 * (rng.random(n) < held_share)
        kind[rng.random(n) < own_share] = OWN
        found = rng.integers(len(self), size=n)
        for group, rows in enumerate(self._groups):
            if len(rows):
                wanted = kind == group
                found[wanted] = rows[rng.integers(len(rows), size=int(wanted.sum()))]
        return found


def follows_correlation(colour: np.ndarray, material: np.ndarray) -> np.ndarray:
    """Frames whose red and yellow objects are all fragile and whose other objects are all rigid; bool [n]."""
    warm = np.isin(colour, [COLOURS.index("red"), COLOURS.index("yellow")])
    wanted = np.where(warm, MATERIALS.index("fragile"), MATERIALS.index("rigid"))
    return ((colour < 0) | (material == wanted)).all(-1)


def patch_counts(seg: np.ndarray, patch_px: int) -> np.ndarray:
    """Pixels per patch and segmentation id; uint8 [n, patches, 8] from uint8 [n, h, w]."""
    n, h, w = seg.shape
    blocks = seg.reshape(n, h // patch_px, patch_px, w // patch_px, patch_px)
    counts = np.empty((n, h // patch_px, w // patch_px, N_SEG), dtype=np.uint8)
    for k in range(N_SEG):
        counts[..., k] = (blocks == k).sum((2, 4), dtype=np.uint8)
    return counts.reshape(n, -1, N_SEG)


@dataclass
class Segment:
    """One text with its supervision."""

    ids: np.ndarray
    n_prompt: int
    action: np.ndarray | None  # [4]: dx, dy, dz in metres, grip 0 or 1
    answer: int  # word id or -1
    point_at: int  # segmentation id of the thing meant, or -1
    note: Instruction | Question


def action_segment(frame: dict[str, np.ndarray], order: Instruction) -> Segment | None:
    """The segment of an instruction, or None where the expert has no action."""
    action = frame["act_pick" if order.task == "pick" else "act_place"][order.target]
    if not np.isfinite(action).all():
        return None
    prompt = prompt_ids(order.text)
    held = int(frame["holding"]) == order.target
    point_at = PAD_SEG if order.task == "place" and held else 4 + order.target
    ids = np.concatenate([prompt, BINS.encode(action)])
    return Segment(ids, len(prompt), action, -1, point_at, order)


def answer_segment(frame: dict[str, np.ndarray], question: Question) -> Segment:
    """The segment of a question."""
    prompt = prompt_ids(question.text)
    answer = WORD_IDS[question.answer]
    ids = np.append(prompt, answer)
    return Segment(ids, len(prompt), None, answer, _asked_about(frame, question.text), question)


def _asked_about(frame: dict[str, np.ndarray], text: str) -> int:
    """Segmentation id of the object that a question names, or -1 (the gripper)."""
    said = words(text)
    if "object" not in said:
        return -1
    colour, material = frame["colour"], frame["material"]
    name = said[said.index("the") + 1 : said.index("object")]
    fits = colour >= 0
    for word in name:
        if word in COLOURS:
            fits &= colour == COLOURS.index(word)
        elif word in MATERIALS:
            fits &= material == MATERIALS.index(word)
        else:
            y = np.where(colour >= 0, frame["object_xyz"][:, 1], np.nan)
            fits &= np.arange(len(colour)) == (np.nanargmin(y) if word == "left" else np.nanargmax(y))
    return 4 + int(np.flatnonzero(fits)[0]) if fits.sum() == 1 else -1


def segments_of(frame: dict[str, np.ndarray], *, budget: int, rng: np.random.Generator) -> list[Segment]:
    """Text segments for one picture that fit into `budget` tokens, the most useful first."""
    colour, material = frame["colour"], frame["material"]
    orders = instructions_from_arrays(colour, material)
    asked = questions_from_arrays(
        colour, material, frame["object_xyz"], gripper_open=bool(frame["gripper_open"])
    )
    by_target: dict[tuple[str, int], list[Instruction]] = {}
    for order in orders:
        by_target.setdefault((order.task, order.target), []).append(order)
    by_kind: dict[tuple[str, str], list[Question]] = {}
    for question in asked:
        by_kind.setdefault((question.kind, question.answer), []).append(question)

    def one_of(options: list) -> object:
        return options[int(rng.integers(len(options)))]

    held, present = int(frame["holding"]), [i for i in range(len(colour)) if colour[i] >= 0]
    place = [held] if held >= 0 else []
    place.append(present[int(rng.integers(len(present)))])
    queue: list[object] = [one_of(by_target["place", t]) for t in dict.fromkeys(place)]
    queue += [one_of(by_target["pick", int(t)]) for t in rng.permutation(present)]
    kinds = list(dict.fromkeys(k for k, _ in by_kind))
    questions = []
    for kind in rng.permutation(kinds):  # the answer is drawn first, so that answers are balanced
        answers = [a for k, a in by_kind if k == kind]
        questions.append(one_of(by_kind[str(kind), str(one_of(answers))]))
    if len(queue) > 3 or rng.random() < 0.5:  # leave room for two questions whatever the number of objects
        queue = queue[:2] + questions[:2] + queue[2:] + questions[2:]
    else:
        queue = queue[:3] + questions + queue[3:]
    rest: list[object] = [*orders, *asked]
    queue += [rest[i] for i in rng.permutation(len(rest))]

    found: list[Segment] = []
    said: set[str] = set()
    for item in queue:
        assert isinstance(item, (Instruction, Question))
        if item.text in said:
            continue
        said.add(item.text)
        segment = (
            action_segment(frame, item) if isinstance(item, Instruction) else answer_segment(frame, item)
        )
        if segment is not None and len(segment.ids) <= budget:
            found.append(segment)
            budget -= len(segment.ids)
        if budget < 8:
            break
    return found


@dataclass
class Batch:
    """Arrays of one packed batch; b images, t text tokens, p kept patches.

    Rows of the supervision tables index the flattened [b * t] text tokens.
    """

    pixels: Tensor  # float32 [b, 3, h, w] in [-1, 1]
    keep: Tensor | None  # int64 [b, p]
    ids: Tensor  # int64 [b, t]
    positions: Tensor  # int64 [b, t]
    segments: Tensor  # int64 [b, t]
    classes: Tensor  # float32 [b, p, 12], shares of each patch
    bin_rows: Tensor  # tokens that predict an action bin
    bin_values: Tensor  # float32, in [-1, 1]
    bin_weights: Tensor  # float32
    answer_rows: Tensor
    answer_ids: Tensor
    end_rows: Tensor
    delta_rows: Tensor
    delta_values: Tensor  # float32 [n, 3], metres / REACH_M
    point_rows: Tensor
    point_images: Tensor  # which image each pointing token belongs to
    point_shares: Tensor  # float32 [n, p], sums to 1
    notes: list[tuple[int, Instruction | Question]]  # image and text of every segment


def choose_patches(counts: np.ndarray, *, n_keep: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted patch numbers to keep: things first, then robot and table at random; int64 [b, n_keep]."""
    things = counts[..., 2:].any(-1)
    order = rng.random(things.shape) + things
    return np.sort(np.argpartition(-order, n_keep - 1, axis=1)[:, :n_keep], axis=1)


def jitter(images: np.ndarray, settings: BatchSettings, rng: np.random.Generator) -> Tensor:
    """uint8 [b, h, w, 3] to float32 [b, 3, h, w] in [-1, 1] with random brightness, tint, offset and noise."""
    b = len(images)
    gain = rng.uniform(*settings.gain, size=(b, 1)) * rng.uniform(
        1 - settings.channel, 1 + settings.channel, (b, 3)
    )
    offset = rng.uniform(-settings.offset, settings.offset, size=(b, 1)) + np.zeros((1, 3))
    scale = torch.from_numpy((gain * 2 / 255).astype(np.float32))[:, :, None, None]
    shift = torch.from_numpy((2 * offset - 1).astype(np.float32))[:, :, None, None]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    x.mul_(scale).add_(shift)
    if settings.noise > 0:
        bank = _noise(int(rng.integers(4)), x[0].numel() * 8)
        start = rng.integers(bank.numel() - x[0].numel(), size=b)
        for i in range(b):
            x[i].add_(bank[start[i] : start[i] + x[i].numel()].view_as(x[i]), alpha=2 * settings.noise)
    return x.clamp_(-1, 1)


_noise_banks: dict[tuple[int, int], Tensor] = {}


def _noise(which: int, n: int) -> Tensor:
    """Standard normal numbers, made once: drawing fresh ones for every pixel costs as much as a layer."""
    if (which, n) not in _noise_banks:
        _noise_banks[which, n] = torch.randn(n, generator=torch.Generator().manual_seed(which))
    return _noise_banks[which, n]


def plain_pixels(images: np.ndarray) -> Tensor:
    """uint8 [b, h, w, 3] to float32 [b, 3, h, w] in [-1, 1], as the processor does."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def make_batch(
    frames: list[dict[str, np.ndarray]],
    *,
    settings: BatchSettings,
    rng: np.random.Generator,
    n_keep: int | None = None,
    train: bool = True,
    texts: list[list[Segment]] | None = None,
) -> Batch:
    """Pack frames into one batch.

    Args:
        frames: As `Frames.frame` gives them.
        settings: Text budget and jitter.
        rng: All choices come from it.
        n_keep: Patches to keep per image, None for all.
        train: Jitter the pictures.
        texts: Segments per frame; drawn by `segments_of` when left out.
    """
    images = np.stack([f["images"] for f in frames])
    counts = np.stack([f["counts"] for f in frames])
    b, n_patches = counts.shape[:2]
    keep = None if n_keep is None or n_keep >= n_patches else choose_patches(counts, n_keep=n_keep, rng=rng)
    if keep is not None:
        counts = np.take_along_axis(counts, keep[..., None], axis=1)
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1).astype(np.float32)
    classes = np.zeros((b, counts.shape[1], 12), dtype=np.float32)
    classes[..., :4] = shares[..., :4]
    budget = settings.text_tokens
    ids = np.full((b, budget), PAD, dtype=np.int64)
    positions = np.zeros((b, budget), dtype=np.int64)
    numbers = np.full((b, budget), -1, dtype=np.int64)
    bins: list[tuple[int, float, float]] = []
    answers: list[tuple[int, int]] = []
    ends: list[int] = []
    deltas: list[tuple[int, np.ndarray]] = []
    points: list[tuple[int, int, np.ndarray]] = []
    notes: list[tuple[int, Instruction | Question]] = []
    for i, frame in enumerate(frames):
        for k in range(4):
            if frame["colour"][k] >= 0:
                which = 4 + 2 * int(frame["colour"][k]) + int(frame["material"][k])
                classes[i, :, which] += shares[i, :, 4 + k]
        at = 0
        texts_i = texts[i] if texts is not None else segments_of(frame, budget=budget, rng=rng)
        for number, segment in enumerate(texts_i):
            n = len(segment.ids)
            ids[i, at : at + n] = segment.ids
            positions[i, at : at + n] = 1 + n_patches + np.arange(n)
            numbers[i, at : at + n] = number
            asking = i * budget + at + segment.n_prompt - 1
            if segment.action is not None:
                unit = BINS.normalize(segment.action)
                placing = segment.point_at == PAD_SEG
                weight = settings.placing_weight if placing else 1.0
                bins += [(asking + j, float(unit[j]), weight) for j in range(4)]
                deltas.append((asking, segment.action[:3] / REACH_M))
            else:
                answers.append((asking, segment.answer))
            ends.append(i * budget + at + n - 1)
            if segment.point_at >= 0 and counts[i, :, segment.point_at].any():
                area = counts[i, :, segment.point_at].astype(np.float32)
                points.append((asking, i, area / area.sum()))
            notes.append((i, segment.note))
            at += n

    def column(rows: list, j: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([row[j] for row in rows], dtype=dtype)

    long, real = torch.int64, torch.float32
    return Batch(
        pixels=jitter(images, settings, rng) if train else plain_pixels(images),
        keep=None if keep is None else torch.from_numpy(keep),
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(numbers),
        classes=torch.from_numpy(classes),
        bin_rows=column(bins, 0, long),
        bin_values=column(bins, 1, real),
        bin_weights=column(bins, 2, real),
        answer_rows=column(answers, 0, long),
        answer_ids=column(answers, 1, long),
        end_rows=torch.tensor(ends, dtype=long),
        delta_rows=column(deltas, 0, long),
        delta_values=torch.tensor(np.array([d for _, d in deltas], dtype=np.float32).reshape(-1, 3)),
        point_rows=column(points, 0, long),
        point_images=column(points, 1, long),
        point_shares=torch.tensor(
            np.array([p for *_, p in points], dtype=np.float32).reshape(len(points), -1)
        ),
        notes=notes,
    )
