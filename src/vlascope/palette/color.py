"""Colour spaces: sRGB, linear light, OKLab, and how colour-blind people see a colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LMS_FROM_RGB = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB_FROM_LMS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

_BLINDNESS = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
VISIONS = ("normal", "protan", "deutan", "tritan")


def linear_from_srgb(rgb: Floats) -> Floats:
    """Return linear light in [0, 1] of sRGB values in [0, 1], any shape."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(light: Floats) -> Floats:
    """Return sRGB values in [0, 1] of linear light; out-of-range light is clipped."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def oklab_from_srgb(rgb: Floats) -> Floats:
    """Return OKLab (L in [0, 1], a, b) of sRGB values in [0, 1], [..., 3]. Reference: Ottosson 2020."""
    return np.cbrt(linear_from_srgb(rgb) @ _LMS_FROM_RGB.T) @ _LAB_FROM_LMS.T


def srgb_from_oklab(lab: Floats) -> Floats:
    """Return sRGB values in [0, 1] of OKLab, [..., 3]; colours outside the gamut are clipped per channel."""
    lms = (lab @ np.linalg.inv(_LAB_FROM_LMS).T) ** 3
    return srgb_from_linear(lms @ np.linalg.inv(_LMS_FROM_RGB).T)


def seen_by(rgb: Floats, vision: str) -> Floats:
    """Return how a person with full red, green or blue blindness sees sRGB values in [0, 1], [..., 3].

    Args:
        rgb: sRGB values.
        vision: One of `VISIONS`.

    References: Machado, Oliveira and Fernandes 2009, severity 1.0.
    """
    if vision == "normal":
        return rgb
    return srgb_from_linear(linear_from_srgb(rgb) @ np.asarray(_BLINDNESS[vision]).T)


def worst_distance(one: Floats, many: Floats) -> Floats:
    """Return OKLab distances between colours [3] and [n, 3] under the vision that tells them apart least, [n]."""
    return np.min(
        [
            np.linalg.norm(oklab_from_srgb(seen_by(many, v)) - oklab_from_srgb(seen_by(one, v)), axis=-1)
            for v in VISIONS
        ],
        axis=0,
    )
