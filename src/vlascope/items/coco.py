"""COCO datasets as items: images with instances (masks and boxes) and captions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError
from ..files import content_hash
from ._rle import mask_from_segmentation
from .images import file_facts, read_image
from .item import Box, Item, ItemSource, OnError, Scalar

_NAMES = ("instances*.json", "captions*.json", "person_keypoints*.json", "_annotations.coco.json")


def find_annotations(folder: Path) -> list[Path]:
    """Return the files in `folder` (or its `annotations/`) that are named like COCO annotations."""
    places = (folder, folder / "annotations")
    return sorted({path for place in places for name in _NAMES for path in place.glob(name)})


@dataclass
class _Image:
    """What the annotation files say about one image."""

    split: str | None
    path: Path
    height: int
    width: int
    objects: list[dict[str, Any]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


class CocoSource(ItemSource):
    """Images of COCO annotation files with their objects and captions.

    Files of one split (instances_val2017.json, captions_val2017.json) are joined by image id. Item ids are file
    names. Of each item

        masks["segmentation"]: category id per pixel; where objects overlap, the smaller one is on top;
        masks["instance"]: 1, 2, ... per object in the order of the file, overlapping in the same way;
        masks["crowd"]: 1 where a crowd is, only in images that have one. Crowds are part of "segmentation" but
            no instance;
        no mask at all where an object has only a box: its pixels are not known to be background;
        boxes: one per object, with the flag "crowd" where it is one;
        labels: objects ("cat, person"), n_objects (crowds not counted), caption, caption.1, ..., split.

    Args:
        path: An annotation file, or a folder that holds some (also in `annotations/`).
        images: Folder of the images; by default looked for beside the annotations.
        prompt: Prompt of every item.
        on_error: "skip" leaves out images that are missing, or have an impossible box, and lists them in `skipped`.

    Raises:
        ItemNotFoundError: no such file, or an image is missing.
        ItemError: not COCO's form, or a box that lies outside its image or has a negative size.
        InputError: the folder of images cannot be found.

    Cost: the annotation files are parsed on opening (450 MB of train2017 take some ten seconds and 3 GB).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        images: Path | str | None = None,
        prompt: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.prompt, self.on_error = prompt, on_error
        path = Path(path)
        self.files = find_annotations(path) if path.is_dir() else [path]
        if not self.files:
            raise ItemError(
                f"the folder '{path}' has no COCO annotations (instances*.json, captions*.json); name the file."
            )
        root = path if path.is_dir() else path.parent
        self.name = root.resolve().name
        self.categories: dict[int, str] = {}
        by_key: dict[tuple[str, int], _Image] = {}
        for file in self.files:
            self._open_file(file, root, None if images is None else Path(images), by_key)
        counts: dict[str, int] = defaultdict(int)
        for image in by_key.values():
            counts[image.path.name] += 1
        self._images: list[tuple[str, _Image]] = []
        for image in by_key.values():
            item_id = image.path.name if counts[image.path.name] == 1 else f"{image.split}/{image.path.name}"
            if not image.path.is_file():
                self._skip(
                    item_id,
                    ItemNotFoundError(
                        f"there is no image '{image.path}', which the annotations list; fetch it."
                    ),
                )
                continue
            try:
                for one in image.objects:
                    _check_box(one, image)
            except ItemError as error:
                self._skip(item_id, error)
                continue
            self._images.append((item_id, image))
        if not self._images:
            raise ItemError(
                f"none of the {len(by_key)} images of '{path}' can be used: {self.skipped[0].reason}"
            )
        self._has_masks = any(one.get("segmentation") for _, image in self._images for one in image.objects)

    def _open_file(
        self, file: Path, root: Path, images: Path | None, by_key: dict[tuple[str, int], _Image]
    ) -> None:
        data = _read(file)
        split = file.stem.partition("_")[2] if not file.stem.startswith("_") else ""
        for category in data.get("categories", ()):
            known = self.categories.setdefault(int(category["id"]), str(category["name"]))
            if known != category["name"]:
                raise ItemError(
                    f"'{file}' calls category {category['id']} '{category['name']}', another file '{known}'."
                )
        listed = data["images"]
        if not listed:
            raise ItemError(f"'{file}' lists no image; need at least one.")
        folder = images or _image_folder(
            file, root, split, [str(image["file_name"]) for image in listed[:20]]
        )
        for image in listed:
            key = (split, int(image["id"]))
            if key not in by_key:
                size = int(image["height"]), int(image["width"])
                by_key[key] = _Image(split or None, folder / image["file_name"], *size)
        for note in data["annotations"]:
            key = (split, int(note["image_id"]))
            if key not in by_key:
                raise ItemError(
                    f"'{file}': annotation {note.get('id')} is of image {key[1]}, which is not listed."
                )
            if "caption" in note:
                by_key[key].captions.append(str(note["caption"]).strip())
            if "category_id" in note:
                if int(note["category_id"]) not in self.categories:
                    raise ItemError(f"'{file}': annotation {note.get('id')} has an unknown category.")
                notes = by_key[key].objects
                if all(
                    other["id"] != note["id"] for other in notes
                ):  # instances and keypoints repeat each other
                    notes.append(note)

    @property
    def item_ids(self) -> list[str]:
        """The id of every item."""
        return [item_id for item_id, _ in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Item:
        item_id, about = self._images[index]
        image = read_image(about.path)
        if image.shape[:2] != (about.height, about.width):
            raise ItemError(
                f"'{about.path}' is {image.shape[:2]} (height, width); the annotations say "
                f"{(about.height, about.width)}. They do not belong together."
            )
        masks, names = self._masks(item_id, about)
        return Item(
            item_id=item_id,
            images=(image,),
            prompt=self.prompt,
            labels=self._labels(about),
            masks=masks,
            mask_names=names,
            boxes=tuple(self._boxes(about.objects)),
            source=str(about.path),
        )

    def _labels(self, about: _Image) -> dict[str, Scalar]:
        labels: dict[str, Scalar] = {} if about.split is None else {"split": about.split}
        if self.categories:
            found = sorted({self.categories[int(o["category_id"])] for o in about.objects})
            labels["objects"] = ", ".join(found)
            labels["n_objects"] = sum(not o.get("iscrowd") for o in about.objects)
        for number, caption in enumerate(about.captions):
            labels[f"caption.{number}" if number else "caption"] = caption
        return labels

    def _boxes(self, objects: Iterable[Mapping[str, Any]]) -> Iterable[Box]:
        for one in objects:
            if one.get("bbox"):
                x, y, width, height = (float(value) for value in one["bbox"])
                flags = ("crowd",) if one.get("iscrowd") else ()
                name = self.categories[int(one["category_id"])]
                yield Box(name, x, y, x + width, y + height, flags)

    def _masks(
        self, item_id: str, about: _Image
    ) -> tuple[dict[str, NDArray[np.integer]], dict[str, dict[int, str]]]:
        if not self._has_masks or not all(one.get("segmentation") for one in about.objects):
            return {}, {}
        shape = (about.height, about.width)
        category, instance, crowd = (np.zeros(shape, np.int32) for _ in range(3))
        names: dict[str, dict[int, str]] = {"segmentation": {}, "instance": {}}
        drawn: list[tuple[int, int, int, NDArray[np.bool_]]] = []  # area, category, number (0: crowd), pixels
        number = 0
        for one in about.objects:
            where = f"'{about.path}', annotation {one.get('id')}"
            pixels = mask_from_segmentation(
                one["segmentation"], height=about.height, width=about.width, name=where
            )
            kind = int(one["category_id"])
            names["segmentation"][kind] = self.categories[kind]
            if not one.get("iscrowd"):
                number += 1
                names["instance"][number] = self.categories[kind]
            drawn.append((int(pixels.sum()), kind, 0 if one.get("iscrowd") else number, pixels))
        for _, kind, place, pixels in sorted(drawn, key=lambda one: -one[0]):
            category[pixels] = kind
            if place:
                instance[pixels] = place
            else:
                crowd[pixels] = 1
        masks: dict[str, NDArray[np.integer]] = {
            "segmentation": smallest(category),
            "instance": smallest(instance),
        }
        if crowd.any():
            masks["crowd"] = smallest(crowd)
            names["crowd"] = {1: "crowd"}
        return masks, names

    def fingerprint(self) -> str:
        facts = [[item_id, *file_facts(image.path)] for item_id, image in self._images]
        return content_hash([[file_facts(file) for file in self.files], facts, self.prompt])


def _check_box(one: Mapping[str, Any], image: _Image) -> None:
    """Raise for a box that is none, or lies outside its image by more than the pixel that writers round away."""
    box = one.get("bbox")
    if not box:
        return
    where = f"annotation {one.get('id')} of '{image.path}'"
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise ItemError(f"{where}: bbox is {box!r}; need four numbers [x, y, width, height].") from error
    if not (width >= 0 and height >= 0):
        raise ItemError(f"{where}: bbox {box} has a negative size; need [x, y, width, height].")
    if not (x >= -1 and y >= -1 and x + width <= image.width + 1 and y + height <= image.height + 1):
        raise ItemError(
            f"{where}: bbox {box} lies outside the image, which is {image.width} wide and {image.height} high; need "
            "[x, y, width, height] in pixels."
        )


def smallest(mask: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return a non-negative integer map as uint8 or uint16 where its values fit."""
    top = int(mask.max()) if mask.size else 0
    return mask.astype(np.uint8 if top < 1 << 8 else np.uint16 if top < 1 << 16 else np.int32)


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ItemNotFoundError(f"there is no file '{file}'; check the path.") from error
    except (OSError, ValueError) as error:
        raise ItemError(f"'{file}' cannot be read ({error}); fetch it again.") from error
    if not isinstance(data, dict) or not {"images", "annotations"} <= set(data):
        raise ItemError(f"'{file}' is no COCO file: need 'images' and 'annotations' at the top.")
    return data


def _image_folder(file: Path, root: Path, split: str, names: Sequence[str]) -> Path:
    """Return the first of the usual folders that holds one of the images."""
    bases = dict.fromkeys((root, file.parent, file.parent.parent))
    below = dict.fromkeys(("images", *((split, f"images/{split}") if split else ()), "", "data"))
    tried = [base / name for base in bases for name in below]
    for folder in tried:
        if any((folder / name).is_file() for name in names):
            return folder
    raise InputError(
        f"the images of '{file}' (such as '{names[0]}') are in none of "
        f"{', '.join(repr(str(folder)) for folder in tried[:6])}; name their folder: 'coco:{file}?images=FOLDER'."
    )
