"""Images as items: a folder, a list of files, arrays and PIL images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ItemError, ItemNotFoundError
from ..files import content_hash
from ._walk import find_files
from .item import Item, ItemSource, OnError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
"""File name endings that are taken for images, lower case."""


def read_image(file: Path | str | IO[bytes], *, name: str | None = None) -> NDArray[np.uint8]:
    """Return an image file as uint8 [h, w, 3], RGB, turned upright as its EXIF data says.

    Transparent pixels are laid over white; 16-bit grey is scaled from 0..65535 and float from 0..1 to 0..255;
    of an animation the first frame is taken.

    Args:
        file: Path or open binary file.
        name: What to call it in errors; its path by default.

    Raises:
        ItemNotFoundError: no such file.
        ItemError: not an image, or a damaged one.
    """
    from PIL import Image

    name = name or str(file)
    try:
        with Image.open(file) as image:
            if image.format != "PNG":
                return rgb_from_pil(image, name=name)
            image.verify()  # pixels are not checked against their checksums on reading; this costs 1 % of it
        with Image.open(file) as image:
            return rgb_from_pil(image, name=name)
    except FileNotFoundError as error:
        raise ItemNotFoundError(f"there is no image '{name}'; check the path.") from error
    except IsADirectoryError as error:
        raise ItemError(f"'{name}' is a folder; need an image file.") from error
    except PermissionError as error:
        raise ItemError(
            f"'{name}' cannot be read: permission denied. Change its permissions, or leave it out."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ItemError(
            f"'{name}' is not an image that can be read; remove it, or save it as PNG or JPEG."
        ) from error
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ItemError(
            f"'{name}' is damaged or incomplete ({error}); copy it again or remove it."
        ) from error


def rgb_from_pil(image: PILImage, *, name: str = "image") -> NDArray[np.uint8]:
    """Return a PIL image of any mode as uint8 [h, w, 3], RGB; see `read_image` for how."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _rgb_from_deep(np.asarray(image), mode=image.mode, name=name)
    return np.array(image.convert("RGB"))


def _rgb_from_deep(values: NDArray[Any], *, mode: str, name: str) -> NDArray[np.uint8]:
    """Return grey of more than 8 bits as uint8 [h, w, 3]; PIL's own conversion would clip it to white."""
    top = 1.0 if mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise ItemError(
            f"'{name}' has values from {values.min()} to {values.max()}; a grey image of this kind needs "
            f"0..{top:g}. Is it a depth map? Convert it to an 8-bit image first."
        )
    grey = np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def rgb_from_array(array: NDArray[Any], *, name: str) -> NDArray[np.uint8]:
    """Return a uint8 array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] as uint8 [h, w, 3]; never a guess.

    Raises:
        InputError: another type or shape (floats, channels first, a batch).
    """
    check_rgb_array(array, name=name)
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.shape[2] == 3:
        return array
    from PIL import Image

    return rgb_from_pil(Image.fromarray(array), name=name)


def check_rgb_array(array: NDArray[Any], *, name: str) -> None:
    """Raise `InputError` for an array that `rgb_from_array` refuses, by its type and shape alone."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"{name}: got an array of shape {array.shape} and type {array.dtype}; need uint8 "
            "[height, width, 3] (RGB, 0..255)."
        )
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        is_first = array.shape[0] in (1, 3, 4)
        hint = " It looks like channels first: pass array.transpose(1, 2, 0)." if is_first else ""
        raise InputError(f"{name}: got an array of shape {array.shape}; need [height, width, 3].{hint}")


def file_facts(path: Path) -> list[Any]:
    """Return name, size and time of a file: what a fingerprint is made of."""
    try:
        stat = path.stat()
    except OSError as error:
        raise ItemNotFoundError(f"there is no file '{path}' any more ({error}).") from error
    return [path.name, stat.st_size, stat.st_mtime_ns]


class ImageList(ItemSource):
    """Images given one by one: paths, uint8 arrays [h, w, 3], PIL images or items, also mixed.

    Item ids are file names (with as much of the path as makes them unique), or "image-000007" for the array
    or PIL image at place 7.

    Args:
        images: At least one; files are opened when asked for.
        prompt: Prompt for all that bring none.
        name: Name of the collection.
        on_error: "skip" leaves out files that are missing and lists them in `skipped`.

    Raises:
        ItemError: empty, or a path that may not be looked at.
        ItemNotFoundError: a path does not exist.
        InputError: an entry of another type, or two items of one id.
    """

    def __init__(
        self,
        images: Sequence[Path | str | NDArray[np.uint8] | PILImage | Item],
        *,
        prompt: str | None = None,
        name: str = "images",
        on_error: OnError = "raise",
    ) -> None:
        if len(images) == 0:
            raise ItemError("got an empty list of images; need at least one.")
        self.name, self.prompt, self.on_error = name, prompt, on_error
        self.images: list[Path | NDArray[np.uint8] | PILImage | Item] = []
        places: list[int] = []
        for place, image in enumerate(images):
            try:
                self.images.append(_checked(image, place))
                places.append(place)
            except (ItemError, ItemNotFoundError) as error:
                self._skip(str(image), error)
        if not self.images:
            raise ItemError(f"none of the {len(images)} images is there: {self.skipped[-1].reason}")
        paths = [image for image in self.images if isinstance(image, Path)]
        id_from_path = short_names(paths)
        self.item_ids = [
            id_from_path[x]
            if isinstance(x, Path)
            else x.item_id
            if isinstance(x, Item)
            else f"image-{place:06d}"
            for place, x in zip(places, self.images, strict=True)
        ]
        doubles = [item_id for item_id, count in Counter(self.item_ids).items() if count > 1]
        if doubles:
            raise InputError(f"two items are called '{doubles[0]}'; every item needs its own id.")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Item:
        image, item_id = self.images[index], self.item_ids[index]
        if isinstance(image, Item):
            return image if image.prompt is not None else replace(image, prompt=self.prompt)
        if isinstance(image, Path):
            rgb, source = read_image(image), str(image)
        elif isinstance(image, np.ndarray):
            rgb, source = rgb_from_array(image, name=item_id), None
        else:
            rgb, source = rgb_from_pil(image, name=item_id), None
        return Item(item_id=item_id, images=(rgb,), prompt=self.prompt, source=source)

    def fingerprint(self) -> str:
        facts: list[Any] = []
        for image, item_id in zip(self.images, self.item_ids, strict=True):
            if isinstance(image, Path):
                facts.append([item_id, *file_facts(image)])
                continue
            arrays = image.images if isinstance(image, Item) else [np.asarray(image)]
            digest = hashlib.sha256()
            for array in arrays:
                digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
            prompt = image.prompt if isinstance(image, Item) else None
            facts.append([item_id, digest.hexdigest(), prompt])
        return content_hash([facts, self.prompt])


class ImageFolder(ImageList):
    """All images in a folder and the folders below, in natural order of their names.

    Links are followed. Other files, hidden ones, and runs of vlascope are passed over; item ids are paths relative to
    the folder.

    Raises:
        ItemNotFoundError: no such folder, or a link that leads nowhere.
        ItemError: no image in it, or a folder in it that cannot be read.
    """

    def __init__(self, folder: Path | str, *, prompt: str | None = None, on_error: OnError = "raise") -> None:
        self.folder, self.on_error = Path(folder), on_error
        if not self.folder.is_dir():
            raise ItemNotFoundError(f"there is no folder '{folder}'; check the path.")
        paths, endings = find_files(self.folder, IMAGE_SUFFIXES, report=self._skip)
        if not paths:
            found = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5)) or "no file"
            raise ItemError(
                f"the folder '{folder}' has no images: it holds {found}. "
                f"Need at least one of {', '.join(IMAGE_SUFFIXES)}."
            )
        super().__init__(paths, prompt=prompt, name=self.folder.resolve().name, on_error=on_error)
        kept = [path for path in self.images if isinstance(path, Path)]  # all of them are paths
        self.item_ids = [path.relative_to(self.folder).as_posix() for path in kept]


def _checked(image: Any, place: int) -> Path | NDArray[np.uint8] | PILImage | Item:
    if isinstance(image, str | Path):
        path = Path(image)
        try:
            is_there = path.is_file()
        except PermissionError as error:
            raise ItemError(
                f"'{image}' (place {place} of the list) cannot be read: permission denied. Change its "
                "permissions, or leave it out."
            ) from error
        if not is_there:
            raise ItemNotFoundError(
                f"there is no image '{image}' (place {place} of the list); check the path."
            )
        return path
    if isinstance(image, np.ndarray):
        check_rgb_array(image, name=f"image {place}")
        return image
    if isinstance(image, Item):
        return image
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    raise InputError(
        f"place {place} of the list is a {type(image).__name__}; need a path, a uint8 array [height, width, 3], "
        "a PIL image or an Item."
    )


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return for each path its file name, with parents in front as far as needed to be unique."""
    names: dict[Path, str] = {}
    left, depth = list(dict.fromkeys(paths)), 1
    while left:
        short = {path: "/".join(path.parts[-depth:]) for path in left}
        counts = Counter(short.values())
        done = [path for path in left if counts[short[path]] == 1 or depth >= len(path.parts)]
        names |= {path: short[path] for path in done}
        left, depth = [path for path in left if path not in names], depth + 1
    return names
