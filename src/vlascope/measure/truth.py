"""What is known to be in the images of a run: classes, objects, boxes, human segmentations, video masks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError
from ..items.item import Box, ItemSource
from .boxes import mask_box
from .pooling import BACKGROUND
from .resample import Units, run_units, units_of
from .segmentation import VOID

if TYPE_CHECKING:
    from ..runs import Run

VOID_NAMES = ("void",)


@dataclass(frozen=True, kw_only=True)
class ImageTruth:
    """What is known about one image; None or empty where nothing is.

    Attributes:
        classes: int16 [h, w], class of each pixel by the numbers of `Truth.class_names`; -1 counts for nothing.
        objects: int16 [h, w], 0, 1, ... per object, -1 for everything else.
        boxes: float64 [m, 4], x0, y0, x1, y1 in pixels.
        is_ignored: bool [m], crowds and difficult objects, which need not be found.
        is_crowd: bool [m].
        humans: Segmentations by several people, int [h, w] each, 0, 1, ...
        foreground: bool [h, w], the object of a video.
    """

    classes: NDArray[np.int16] | None = None
    objects: NDArray[np.int16] | None = None
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    is_ignored: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    is_crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    humans: tuple[NDArray[np.integer], ...] = ()
    foreground: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Truth:
    """What is known about the images of a run.

    Attributes:
        name: Where it comes from, for tables.
        images: One entry per item that is known.
        class_names: Names of the classes, 0 being the background.
        units: What is independent, one id per entry of `images` in their order: images, or episodes and videos.
    """

    name: str
    images: Mapping[int, ImageTruth]
    class_names: tuple[str, ...]
    units: Units

    @property
    def items(self) -> list[int]:
        """The items that something is known about, increasing."""
        return list(self.images)


def read_truth(
    run: Run,
    source: str | Path | ItemSource | None = None,
    *,
    mask: str = "segmentation",
    exclude: Sequence[str] = BACKGROUND,
) -> Truth:
    """Return what is known about the images of a run.

    Args:
        run: The run.
        source: None takes the masks that the run holds (COCO, VOC and simulated items bring them; boxes are then
            those of the object masks). A folder of BSDS *.mat files; a folder of DAVIS masks (SEQUENCE/00000.png,
            one folder per video, 0 = background); or a dataset with boxes, as for `vlascope.items.open_items` (or
            opened), whose item ids are those of the run. Boxes of that dataset replace those of the masks.
        mask: Name of the class mask.
        exclude: Names of regions that are background.

    Raises:
        InputError: nothing is known about any image of the run.
        ItemError: a file of the truth is damaged.
    """
    if source is None:
        return _from_masks(run, mask, exclude, {})
    if isinstance(source, str | Path) and (folder := Path(source).expanduser()).is_dir():
        if any(folder.rglob("*.mat")):
            return _from_bsds(run, folder)
        images = {p.parent for p in folder.rglob("*.png")}
        if (
            images
            and not any((folder / n).exists() for n in ("annotations", "JPEGImages"))
            and not any(folder.glob("*.json"))
        ):
            return _from_davis(run, folder)
    if not isinstance(source, ItemSource):
        from ..items import open_items

        source = open_items(source)
    ids = getattr(source, "item_ids", None)
    places = {name: i for i, name in enumerate(ids or [source[i].item_id for i in range(len(source))])}
    known = {row.index: places[row.item_id] for row in run.items if row.item_id in places}
    if not known:
        raise InputError(
            f"'{source.name}' has none of the images of the run (e.g. '{run.items[0].item_id}'); give the dataset "
            "that was captured."
        )
    return _from_masks(run, mask, exclude, {item: source[place].boxes for item, place in known.items()})


def read_bsds(path: Path | str) -> tuple[NDArray[np.int64], ...]:
    """Return the human segmentations of one BSDS500 file (groundTruth/*.mat), int64 [h, w] each, 0, 1, ...

    Raises:
        ItemNotFoundError: no such file.
        ItemError: not BSDS's form.

    References: Arbelaez, Maire, Fowlkes and Malik 2011, doi:10.1109/TPAMI.2010.161.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        cells = loadmat(path)["groundTruth"]
        found = tuple(
            np.asarray(cells[0, i]["Segmentation"][0, 0], np.int64) - 1 for i in range(cells.shape[1])
        )
    except FileNotFoundError as error:
        raise ItemNotFoundError(f"there is no file '{path}'; check the path.") from error
    except (MatReadError, KeyError, IndexError, ValueError, TypeError, OSError) as error:
        raise ItemError(f"'{path}' is no BSDS ground truth ({error!r}); need 'groundTruth' cells.") from error
    if not found or any(one.ndim != 2 or one.min() < 0 for one in found):
        raise ItemError(f"'{path}' holds no segmentation numbered from 1; fetch it again.")
    return found


def _from_bsds(run: Run, folder: Path) -> Truth:
    files = {path.stem: path for path in folder.rglob("*.mat")}
    images: dict[int, ImageTruth] = {}
    for row in run.items:
        path = files.get(Path(row.item_id).stem)
        if path is not None:
            humans = read_bsds(path)
            _check_size(humans[0].shape, row.image_sizes[0], path)
            images[row.index] = ImageTruth(humans=humans)
    return _truth(run, f"BSDS ({folder.name})", images, (), folder)


def _from_davis(run: Run, folder: Path) -> Truth:
    from PIL import Image

    files = {(path.parent.name, path.stem): path for path in folder.rglob("*.png")}
    images: dict[int, ImageTruth] = {}
    videos: list[str] = []
    for row in run.items:
        # Frames are known by folder and name; a frame of a video file or an episode has neither, but its source may.
        for place in (row.item_id, row.source or ""):
            path = files.get((Path(place).parent.name, Path(place).stem))
            if path is not None:
                with Image.open(path) as picture:
                    mask = np.array(picture)
                if mask.ndim != 2:
                    raise ItemError(f"'{path}' has colours; need a palette or grey PNG (0 = background).")
                _check_size(mask.shape, row.image_sizes[0], path)
                images[row.index] = ImageTruth(
                    foreground=mask > 0,
                    boxes=_boxes_of((mask > 0).astype(int) - 1),
                    is_ignored=np.zeros(int((mask > 0).any()), bool),
                    is_crowd=np.zeros(int((mask > 0).any()), bool),
                )
                videos.append(path.parent.name)
                break
    truth = _truth(run, f"DAVIS ({folder.name})", images, (), folder)
    return Truth(truth.name, truth.images, (), units_of(videos, over="video"))


def _from_masks(run: Run, mask: str, exclude: Sequence[str], boxes: Mapping[int, Sequence[Box]]) -> Truth:
    names: dict[str, int] = {"background": 0}
    images: dict[int, ImageTruth] = {}
    for row in run.items:
        found: dict[str, Any] = {}
        class_hw = run.mask(row.index, mask)
        if class_hw is not None:
            found["classes"], found["objects"] = _classes(
                class_hw, run.mask_names(row.index, mask), names, exclude
            )
        instance_hw = run.mask(row.index, "instance")
        if instance_hw is not None:
            void = [v for v, n in run.mask_names(row.index, "instance").items() if n in VOID_NAMES]
            found["objects"] = _objects(instance_hw, void)
        if row.index in boxes:
            given = boxes[row.index]
            corners = [[b.x0, b.y0, b.x1, b.y1] for b in given]
            crowd = np.array(["crowd" in b.flags for b in given], bool)
            hard = np.array(["difficult" in b.flags for b in given], bool)
            found |= {
                "boxes": np.array(corners, np.float64).reshape(-1, 4),
                "is_crowd": crowd,
                "is_ignored": crowd | hard,
            }
        elif "objects" in found:
            corners = _boxes_of(found["objects"])
            nothing = np.zeros(len(corners), bool)
            found |= {"boxes": corners, "is_crowd": nothing, "is_ignored": nothing}
        if found:
            images[row.index] = ImageTruth(**found)
    if not images:
        raise InputError(
            f"nothing is known about the images of this run: it holds no mask '{mask}'. Give the truth: a dataset "
            "with boxes (coco:PATH, voc:PATH), a folder of BSDS *.mat files or of DAVIS masks."
        )
    return _truth(run, "masks of the run" if not boxes else "dataset", images, tuple(names), run.path)


def _classes(
    mask_hw: NDArray[np.integer], names: Mapping[int, str], known: dict[str, int], exclude: Sequence[str]
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return class numbers of the whole run, and objects 0, 1, ... (one per class: they are not told apart here)."""
    classes = np.zeros(mask_hw.shape, np.int16)
    objects = np.full(mask_hw.shape, -1, np.int16)
    n = 0
    for value in np.unique(mask_hw).tolist():
        name = names.get(value, "background" if value == 0 else f"class {value}")
        here = mask_hw == value
        if name in VOID_NAMES:
            classes[here] = VOID
        elif name not in exclude:
            classes[here] = known.setdefault(name, len(known))
            objects[here] = n
            n += 1
    return classes, objects


def _objects(instance_hw: NDArray[np.integer], void: Sequence[int]) -> NDArray[np.int16]:
    objects = np.full(instance_hw.shape, -1, np.int16)
    values = [v for v in np.unique(instance_hw).tolist() if v != 0 and v not in void]
    for number, value in enumerate(values):
        objects[instance_hw == value] = number
    return objects


def _boxes_of(objects_hw: NDArray[np.integer]) -> NDArray[np.float64]:
    found = [mask_box(objects_hw == i) for i in range(int(objects_hw.max(initial=-1)) + 1)]
    return np.array([box for box in found if box is not None], np.float64).reshape(-1, 4)


def _check_size(shape: tuple[int, ...], size_hw: tuple[int, int], path: Path) -> None:
    if tuple(shape) != tuple(size_hw):
        raise ItemError(f"'{path}' is {tuple(shape)}, its image {tuple(size_hw)} (height, width).")


def _truth(
    run: Run, name: str, images: Mapping[int, ImageTruth], class_names: tuple[str, ...], folder: Path
) -> Truth:
    if not images:
        raise InputError(
            f"'{folder}' knows none of the images of the run (e.g. '{run.items[0].item_id}'); names must agree."
        )
    items = list(images)
    return Truth(re.sub(r"\s+", " ", name), images, class_names, run_units(run, items))
