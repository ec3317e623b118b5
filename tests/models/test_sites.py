"""Which sites a pattern names."""

from __future__ import annotations

import pytest

from vlascope.errors import SiteNotFoundError
from vlascope.models.sites import Site, resolve

SITES = [
    Site(
        name=name,
        module_path=name,
        layout=name.split(".")[0],
        tensor=name.split(".")[2] if name.count(".") == 2 else "out",
    )
    for name in [
        *(f"vision.{i}{t}" for i in range(12) for t in ("", ".q", ".k")),
        "projector",
        *(f"language.{i}{t}" for i in range(3) for t in ("", ".q", ".v")),
    ]
]


def names(patterns):
    return [site.name for site in resolve(patterns, sites=SITES, model_name="toy")]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("vision.3", ["vision.3"]),
        ("vision.-1", ["vision.11"]),
        ("vision.-12.k", ["vision.0.k"]),
        ("vision.0:6:2", ["vision.0", "vision.2", "vision.4"]),
        ("vision.10:", ["vision.10", "vision.11"]),
        ("vision.:2.q", ["vision.0.q", "vision.1.q"]),
        ("vision.-2:", ["vision.10", "vision.11"]),
        ("language.*", ["language.0", "language.1", "language.2"]),
        ("language.*.v", ["language.0.v", "language.1.v", "language.2.v"]),
        ("*.1", ["vision.1", "language.1"]),
        ("projector", ["projector"]),
        ("vision.1?", ["vision.10", "vision.11"]),
        (["language.2", "vision.3", "language.2"], ["vision.3", "language.2"]),
        ("language.2, vision.3", ["vision.3", "language.2"]),
    ],
)
def test_patterns(pattern, expected):
    assert names(pattern) == expected


def test_star_is_residuals_and_projector_and_two_stars_are_all():
    assert len(names("*")) == 12 + 1 + 3
    assert len(names("**")) == len(SITES)
    assert len(names("vision.*")) == 12


@pytest.mark.parametrize("pattern", ["vision.12", "vision.-13", "vison.3", "vision.3.z", "vision.0:6:0", ""])
def test_unknown_sites_are_named_with_the_nearest(pattern):
    with pytest.raises(SiteNotFoundError) as error:
        names(pattern)
    if pattern:
        assert "vision runs 0..11" in str(error.value) and "vlascope sites toy" in str(error.value)
    if pattern in ("vision.12", "vison.3"):
        assert "'vision." in str(error.value).split("Nearest:")[1]
