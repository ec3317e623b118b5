"""What a patch shows: reading the name of each region of the masks off its patches, on episodes never seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .controls import check_random
from .pooling import BACKGROUND, pool_regions, region_groups, region_pixels
from .probes import N_SHUFFLES, ProbeModel, ProbeResult, probe_arrays
from .resample import run_units

if TYPE_CHECKING:
    from ..runs import Run

MIN_REGIONS = 2


def probe_regions(
    run: Run,
    *,
    site: str,
    words: Sequence[str] = (),
    mask: str = "segmentation",
    exclude: Sequence[str] = BACKGROUND,
    model: ProbeModel = "ridge",
    split: str = "auto",
    random_run: Run | None = None,
    n_permutations: int | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Read off the patches of each region what it is, testing on whole episodes that the probe never saw.

    Every region of every item is one observation: the mean of the patches whose centre lies in it. With words such as
    the colours, the class of a region is the one of them that its name holds ("red" for "red fragile object");
    regions with none or several of them are left out.

    Args:
        run: A run with masks.
        site: A layer with patches.
        words: The classes; none takes the whole names of the regions as classes.
        mask: Name of the masks.
        exclude: Names of regions that are no objects.
        model: As this and the following in `probe`.
        split: What is held out as a whole.
        random_run: The same items read by random weights.
        n_permutations: Shuffles of the classes.
        seed: Seeds all that is random.

    Returns:
        Balanced accuracy with its interval over episodes. Controls: shuffled names, the mean raw pixels of the same
        patches, and random weights where given. "Cannot say" with fewer than 5 episodes.

    Raises:
        SiteNotFoundError: no such site.
        InputError: no masks, no patches in any region, or fewer than two classes of at least two regions.

    Cost: 1 s for 1,000 regions of 128 channels (ridge), besides reading the layer.
    """
    run.site(site)
    check_random(run, random_run)
    pooled = pool_regions(run, site, mask=mask, exclude=exclude)
    classes = np.array([_class_of(name, words) or "" for name in pooled.names])
    known, counts = np.unique(classes[classes != ""], return_counts=True)
    frequent = known[counts >= MIN_REGIONS]
    if len(frequent) < 2:
        shown = ", ".join(sorted(set(pooled.names))[:6])
        raise InputError(
            f"the regions sort into {len(frequent)} classes of at least {MIN_REGIONS} regions; need 2 or more. "
            f"Regions are: {shown}. Give words that tell them apart."
        )
    keep = np.flatnonzero(np.isin(classes, frequent))
    outputs = [word for word in words if word in frequent] or frequent.tolist()
    y = np.array([[name == one for one in outputs] for name in classes[keep]], np.float64)
    group = region_groups(run, site, mask=mask, regions=None, exclude=exclude)[0]
    controls = {"raw pixels": region_pixels(run, site, pooled, group)[keep]}
    if random_run is not None:
        other = pool_regions(random_run, site, mask=mask, exclude=exclude)
        if other.names != pooled.names:
            raise InputError(f"'{random_run.path}' has other regions at '{site}'; capture the same items.")
        controls["random weights"] = other.features[keep]
    return probe_arrays(
        pooled.features[keep],
        y,
        run_units(run, pooled.items[keep], split=split),
        outputs=outputs,
        is_class=True,
        model=model,
        controls=controls,
        site=site,
        target=f"region {'/'.join(outputs)}" if words else "region name",
        n_permutations=n_permutations or N_SHUFFLES[model],
        seed=seed,
    )


def _class_of(name: str, words: Sequence[str]) -> str | None:
    """Return the one of the words that a region's name holds, its whole name without words; None where unclear."""
    if not words:
        return name
    parts = set(re.findall(r"\w+", name.lower()))
    held = [word for word in words if set(re.findall(r"\w+", word.lower())) <= parts]
    return held[0] if len(held) == 1 else None
