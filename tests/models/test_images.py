"""Pixel values equal those of transformers' processors; frames say which pixels they are."""

from __future__ import annotations

import numpy as np
import pytest

from vlascope.errors import InputError
from vlascope.models.images import BICUBIC, ImageTransform, crop, squash


def _processors():
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return {
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 53}, crop_size={"height": 47, "width": 41}),
        "clip-larger-crop": CLIPImageProcessorPil(
            size={"shortest_edge": 31}, crop_size={"height": 57, "width": 44}
        ),
        "siglip": SiglipImageProcessorPil(size={"height": 43, "width": 59}),
        "dino": BitImageProcessorPil(
            size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, do_center_crop=True, resample=3
        ),
        "plain": SiglipImageProcessorPil(do_resize=False, do_normalize=False),
    }


@pytest.mark.parametrize("size", [(61, 97), (97, 61), (29, 31), (40, 40)])
@pytest.mark.parametrize("name", ["clip", "clip-larger-crop", "siglip", "dino", "plain"])
def test_pixel_values_equal_the_processors(name, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = _processors()[name]
    transform = ImageTransform.from_config(processor.to_dict(), default=squash(10))
    expected = np.asarray(processor(image)["pixel_values"][0])
    np.testing.assert_array_equal(transform(image), expected)
    assert transform.output_hw(*size) == expected.shape[1:]


@pytest.mark.parametrize("size", [(61, 97), (97, 61), (29, 31)])
@pytest.mark.parametrize(
    "transform",
    [
        squash(80),
        crop(80, mean=(0, 0, 0), std=(1, 1, 1)),
        crop(80, resize=96, mean=(0, 0, 0), std=(1, 1, 1)),
        ImageTransform(shortest_edge=60, crop_hw=(80, 70), resample=BICUBIC),
    ],
)
def test_the_frame_is_where_the_pixels_come_from(transform, size):
    """A bright dot at the centre of each ninth of the frame must show up there in the pixel values."""
    height, width = size
    x0, y0, x1, y1 = transform.frame(height, width)
    for fy, fx in [(0.3, 0.5), (0.5, 0.3), (0.6, 0.7)]:
        x, y = x0 + fx * (x1 - x0), y0 + fy * (y1 - y0)
        yy, xx = np.mgrid[0:height, 0:width] + 0.5
        blob = np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 * 2.0**2))
        image = np.repeat((255 * blob).astype(np.uint8)[..., None], 3, axis=2)
        values = transform(image)[0]
        values = values - values[0, 0] if transform.crop_hw is None else values
        weight = np.clip(values - np.median(values), 0, None)
        rows, cols = weight.shape
        found_y = (weight.sum(1) * (np.arange(rows) + 0.5)).sum() / weight.sum() / rows
        found_x = (weight.sum(0) * (np.arange(cols) + 0.5)).sum() / weight.sum() / cols
        assert found_y == pytest.approx(fy, abs=0.012)
        assert found_x == pytest.approx(fx, abs=0.012)


def test_old_files_with_plain_numbers():
    clip_like = ImageTransform.from_config(
        {"size": 224, "crop_size": 224, "do_center_crop": True},
        default=crop(9, mean=(0, 0, 0), std=(1, 1, 1)),
    )
    assert (clip_like.shortest_edge, clip_like.crop_hw) == (224, (224, 224))
    assert ImageTransform.from_config({"size": 224}, default=squash(9)).size_hw == (224, 224)
    assert ImageTransform.from_config({}, default=squash(9)) == squash(9)


def test_what_it_cannot_do_is_an_error():
    with pytest.raises(InputError, match="do_pad"):
        ImageTransform.from_config({"do_pad": True}, default=squash(9))
    with pytest.raises(InputError, match="longest_edge"):
        ImageTransform.from_config({"size": {"longest_edge": 9}}, default=squash(9))
