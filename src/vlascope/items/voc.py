"""PASCAL VOC folders as items: images with class and object masks and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError
from ..files import content_hash
from ._walk import find_files
from .images import IMAGE_SUFFIXES, file_facts, read_image
from .item import Box, Item, ItemSource, OnError, Scalar

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
CLASSES: list[str] = [str(name) for name in _NAMES.split()]
VOID = 255
_FLAGS = ("difficult", "truncated", "occluded")


def is_voc(folder: Path) -> bool:
    """Return whether `folder` has the folders of a VOC year (VOCdevkit/VOC2012)."""
    notes = ("Annotations", "SegmentationClass", "SegmentationObject")
    return (folder / "JPEGImages").is_dir() and any((folder / name).is_dir() for name in notes)


class VocSource(ItemSource):
    """Images of a VOC folder: JPEGImages, Annotations/*.xml, SegmentationClass and SegmentationObject/*.png.

    Item ids are file names without ending. Of each item, where the dataset has it,

        masks["segmentation"]: class per pixel (255: void, the outline that counts for nothing);
        masks["instance"]: 1, 2, ... per object (255: void);
        boxes: from the XML, with flags difficult, truncated, occluded;
        labels: objects ("cat, person"), n_objects.

    Class names are those of VOC, or the lines of `class_names.txt` or `labels.txt` in the folder.

    Args:
        root: The folder, e.g. VOCdevkit/VOC2012.
        image_set: Only the images listed in ImageSets/*/<image_set>.txt, e.g. "Segmentation/val" or "val".
        prompt: Prompt of every item.
        on_error: "skip" leaves out images of the list that are missing and lists them in `skipped`.

    Raises:
        ItemNotFoundError: no such folder, or a listed image is missing.
        ItemError: no VOC folder.
        InputError: no such image set, or several of that name.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        image_set: str | None = None,
        prompt: str | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.root, self.prompt, self.on_error = Path(root), prompt, on_error
        self.name = self.root.resolve().name
        if not self.root.is_dir():
            raise ItemNotFoundError(f"there is no folder '{root}'; check the path.")
        if not is_voc(self.root):
            raise ItemError(
                f"'{root}' is no VOC folder: need JPEGImages and Annotations or SegmentationClass."
            )
        paths, _ = find_files(self.root / "JPEGImages", IMAGE_SUFFIXES, report=self._skip)
        by_stem = {path.stem: path for path in paths}
        self._images: list[tuple[str, Path]] = []
        for stem in list(by_stem) if image_set is None else self._listed(image_set):
            if stem in by_stem:
                self._images.append((stem, by_stem[stem]))
                continue
            missing = self.root / "JPEGImages" / f"{stem}.jpg"
            self._skip(stem, ItemNotFoundError(f"there is no image '{missing}', which '{image_set}' lists."))
        if not self._images:
            raise ItemError(f"'{root}' has no image in JPEGImages.")
        self.class_names = self._read_class_names()

    def _listed(self, image_set: str) -> list[str]:
        folder = self.root / "ImageSets"
        files = sorted(folder.glob(f"{image_set}.txt")) or sorted(folder.glob(f"*/{image_set}.txt"))
        if len(files) != 1:
            sets = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.txt"))
            found = "several are" if files else "none is"
            raise InputError(
                f"image_set='{image_set}': {found} called so; there are {', '.join(sets) or 'no image sets'}."
            )
        lines = files[0].read_text(encoding="utf-8").splitlines()
        # In the sets of one class a second column says 1, 0 or -1: only images that have the class are meant.
        words = [line.split() for line in lines if line.strip()]
        return [line[0] for line in words if len(line) == 1 or line[1] == "1"]

    def _read_class_names(self) -> list[str]:
        for name in ("class_names.txt", "labels.txt"):
            if (self.root / name).is_file():
                lines = (self.root / name).read_text(encoding="utf-8").splitlines()
                # labelme also lists "__ignore__", which has no value of its own in the images.
                return [line.strip().strip("_") for line in lines if line.strip() not in ("", "__ignore__")]
        return CLASSES

    @property
    def item_ids(self) -> list[str]:
        """The id of every item."""
        return [stem for stem, _ in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Item:
        stem, path = self._images[index]
        image = read_image(path)
        boxes = self._boxes(stem)
        masks: dict[str, NDArray[np.integer]] = {}
        names: dict[str, dict[int, str]] = {}
        for key, folder in (("segmentation", "SegmentationClass"), ("instance", "SegmentationObject")):
            file = self.root / folder / f"{stem}.png"
            if not file.is_file():
                continue
            masks[key] = _read_indices(file)
            if masks[key].shape != image.shape[:2]:
                raise ItemError(
                    f"'{file}' is {masks[key].shape}, its image {image.shape[:2]} (height, width)."
                )
        if "segmentation" in masks:
            names["segmentation"] = self._class_names(masks["segmentation"], stem)
        if "instance" in masks:
            names["instance"] = _instance_names(masks["instance"], masks.get("segmentation"), names)
        labels: dict[str, Scalar] = {}
        if boxes is not None:
            labels = {"objects": ", ".join(sorted({b.name for b in boxes})), "n_objects": len(boxes)}
        elif "segmentation" in masks:
            found = {n for v, n in names["segmentation"].items() if v != VOID}
            labels["objects"] = ", ".join(sorted(found))
        return Item(
            item_id=stem,
            images=(image,),
            prompt=self.prompt,
            labels=labels,
            masks=masks,
            mask_names=names,
            boxes=tuple(boxes or ()),
            source=str(path),
        )

    def _class_names(self, mask: NDArray[np.integer], stem: str) -> dict[int, str]:
        names: dict[int, str] = {}
        for value in np.unique(mask).tolist():
            if value == VOID:
                names[value] = "void"
            elif value >= len(self.class_names):
                raise ItemError(
                    f"'{stem}': the class mask holds {value}, but there are {len(self.class_names)} class names; "
                    f"put them into '{self.root / 'class_names.txt'}', one per line."
                )
            elif value:
                names[value] = self.class_names[value]
        return names

    def _boxes(self, stem: str) -> list[Box] | None:
        file = self.root / "Annotations" / f"{stem}.xml"
        if not file.is_file():
            return None
        try:
            tree = ElementTree.parse(file).getroot()
            return [_box(node) for node in tree.iter("object")]
        except (ElementTree.ParseError, OSError, TypeError, ValueError) as error:
            raise ItemError(f"'{file}' cannot be read ({error}); fetch it again.") from error

    def fingerprint(self) -> str:
        facts = []
        for stem, path in self._images:
            beside = [self.root / "Annotations" / f"{stem}.xml"]
            beside += [self.root / n / f"{stem}.png" for n in ("SegmentationClass", "SegmentationObject")]
            facts.append([file_facts(p) for p in (path, *beside) if p.is_file()])
        return content_hash([facts, list(self.class_names), self.prompt])


def _box(node: Any) -> Box:
    corner = node.find("bndbox")
    if corner is None or not node.findtext("name"):
        raise ValueError("an object has no name or no bndbox")
    # VOC counts pixels from 1 and includes the last one; ours count from 0 and leave it out.
    x0, y0 = float(corner.findtext("xmin")) - 1, float(corner.findtext("ymin")) - 1
    flags = tuple(flag for flag in _FLAGS if node.findtext(flag) == "1")
    return Box(
        node.findtext("name"), x0, y0, float(corner.findtext("xmax")), float(corner.findtext("ymax")), flags
    )


def _read_indices(file: Path) -> NDArray[np.uint8]:
    """Return the palette indices of a PNG; a coloured one would need a guess and is refused."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            if picture.mode not in ("P", "L"):
                raise ItemError(
                    f"'{file}' is {picture.mode}; need the palette or grey PNG of VOC (one number each)."
                )
            return np.array(picture, np.uint8)
    except (OSError, SyntaxError) as error:
        raise ItemError(f"'{file}' is damaged or no PNG ({error}); fetch it again.") from error


def _instance_names(
    instance: NDArray[np.integer], classes: NDArray[np.integer] | None, names: dict[str, dict[int, str]]
) -> dict[int, str]:
    """Return the class of each object: what most of its pixels are in the class mask."""
    found: dict[int, str] = {}
    for value in np.unique(instance).tolist():
        if value == VOID:
            found[value] = "void"
        elif value:
            inside = (
                None
                if classes is None
                else np.bincount(classes[instance == value], minlength=VOID + 1)[:VOID]
            )
            kind = 0 if inside is None else int(inside.argmax())
            found[value] = names.get("segmentation", {}).get(kind, "object")
    return found
