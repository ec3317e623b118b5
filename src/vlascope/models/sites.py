"""Sites: named places in a model where one vector per token can be read and edited; and how to pick them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import SiteNotFoundError, nearest_text

if TYPE_CHECKING:
    from .packed import Packing
    from .windows import Windows  # imports torch, which importing this room must not

TENSORS = ("out", "q", "k", "v", "attn", "mlp")
"""What a site reads: residual stream after the block, queries, keys, values, attention output, MLP output."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place in a model.

    Attributes:
        name: "vision.3", "vision.3.q", "vision.3.q.h2" (one head), "projector", "language.7" or "module:PATH".
        module_path: Dotted path of the module whose output (or input) is read.
        layout: Name of the token layout of its rows, a key of `Batch.layouts`.
        tensor: One of `TENSORS`.
        width: Size of each token's vector; 0 when only a forward pass can tell.
        channels: Part of the last axis that belongs to this site, for fused projections; None for all of it.
        mixed_heads: Heads of a fused projection that holds q, k and v of one head side by side, then those of the
            next: `channels` are counted after all q have been put first, then all k and all v. 0 for others.
        side: Whether the module's "output" or its first "input" is read.
        axes: "btd" for tokens, "bdhw" or "bhwd" for feature maps.
        grid: Rows and columns that a feature map must have; None where nobody declared them.
        windows: How the module folds the image grid into attention windows ("bhwd" only); None when it does
            not.
        packing: Where the tokens lie in a tensor that holds those of all images of a batch; None when the
            batch has an axis of its own.
        repeats: Why one pass calls the module more than once: "no" (it does not), "images" (once per camera;
            the calls are put one below the other) or "steps" (once per denoising step).
        n_calls: Number of denoising steps, for "steps".
        call: The step that this site stands for, 0 for the first; None reads the last and edits all of them.
        in_place: An edit overwrites the tensor itself, so that whoever else holds it sees the change too: for
            the residual stream of models that never call their blocks, read where the next norm takes it.
        n_heads: Of q, k and v: heads side by side in the vector, each `head_dim` wide (with grouped heads k and
            v have fewer than q); 0 where there are none or the model does not tell.
    """

    name: str
    module_path: str
    layout: str
    tensor: str = "out"
    width: int = 0
    channels: tuple[int, int] | None = None
    mixed_heads: int = 0
    side: str = "output"
    axes: str = "btd"
    grid: tuple[int, int] | None = None
    windows: Windows | None = None
    packing: Packing | None = None
    repeats: str = "no"
    n_calls: int = 1
    call: int | None = None
    in_place: bool = False
    n_heads: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one head; 0 where heads are not known."""
        return self.width // self.n_heads if self.n_heads else 0

    def head(self, index: int) -> Site:
        """Return the site of one head, such as "language.4.q.h3", for reading and editing.

        Args:
            index: 0 <= index < n_heads.

        Raises:
            SiteNotFoundError: the site has no such head, or no heads that are known.
        """
        if not 0 <= index < self.n_heads:
            raise SiteNotFoundError(f"no site '{self.name}.h{index}': {_say_heads(self)}.")
        first = (self.channels[0] if self.channels else 0) + index * self.head_dim
        channels = (first, first + self.head_dim)
        return replace(self, name=f"{self.name}.h{index}", channels=channels, width=self.head_dim, n_heads=1)


def resolve(
    patterns: str | Sequence[str],
    *,
    sites: Sequence[Site],
    model_name: str,
    native: Callable[[str], Site] | None = None,
    in_memory: bool = False,
) -> tuple[Site, ...]:
    """Return the sites that match any of `patterns`, in the model's order, each once.

    Args:
        patterns: A name; several joined by commas; or a sequence. Each may be exact ("language.7.v"), count
            from the end ("vision.-1"), be a range ("vision.0:6:2"), use wildcards within one part of the name
            ("vision.*" is every block's residual stream, "vision.*.q" every block's queries), be "*" (all
            residual streams and the projector), "**" (everything except single heads) or "module:PATH". ".h3"
            after q, k or v names one head ("language.4.q.h3"); ".h-1" counts from the end, ".h0:4" is a range
            and ".h*" are all heads, each a site of its own. "@3" at the end names a denoising step of a policy
            that computes an action in several ("expert.2@0", "expert.*@-1").
        sites: The sites to choose from.
        model_name: For the error message.
        native: Makes the site of "module:PATH"; None where paths cannot be named.
        in_memory: Whether the model has no name that the program knows, for the error message.

    Raises:
        SiteNotFoundError: a pattern matches nothing.
    """
    if isinstance(patterns, str):
        patterns = [part.strip() for part in patterns.split(",") if part.strip()]
    if not patterns:
        raise SiteNotFoundError(f"no site was named; name at least one site of model '{model_name}'.")
    chosen: set[str] = set()
    heads: dict[str, set[int]] = {}
    extra: dict[str, Site] = {}
    for pattern in patterns:
        if pattern.startswith("module:") and native is not None:
            extra[pattern] = native(pattern.removeprefix("module:"))
            continue
        if step := re.fullmatch(r"(.+)@(-?\d+)", pattern):
            base = resolve([step[1]], sites=sites, model_name=model_name, in_memory=in_memory)
            extra |= {site.name: site for site in at_step(base, int(step[2]), pattern=pattern)}
            continue
        if found := _match(pattern, sites):
            chosen.update(found)
            continue
        base, dot, head = pattern.rpartition(".h")
        owners = set(_match(base, sites)) if dot and re.fullmatch(_HEAD, head) else set()
        if not owners:
            raise SiteNotFoundError(_not_found(pattern, sites, model_name, in_memory))
        for site in (site for site in sites if site.name in owners):
            heads.setdefault(site.name, set()).update(_heads(head, site, pattern))
    found_sites: list[Site] = []
    for site in sites:
        if site.name in chosen:
            found_sites.append(site)
        found_sites += [site.head(index) for index in sorted(heads.get(site.name, ()))]
    return (*found_sites, *extra.values())


_HEAD = r"\*|-?\d+|(-?\d*):(-?\d*)"


def _heads(head: str, site: Site, pattern: str) -> list[int]:
    """Return the heads of a site that the part of a pattern after ".h" names."""
    if ":" in head or head == "*":
        bounds = [int(number) if number else None for number in head.split(":")] if head != "*" else [None]
        found = list(range(site.n_heads)[slice(*bounds)] if head != "*" else range(site.n_heads))
    else:
        index = int(head) + (site.n_heads if head.startswith("-") else 0)
        found = [index] if 0 <= index < site.n_heads else []
    if not found:
        raise SiteNotFoundError(f"'{pattern}' names no head: {_say_heads(site)}.")
    return found


def _say_heads(site: Site) -> str:
    if site.n_heads:
        return f"the heads of '{site.name}' run 0..{site.n_heads - 1}"
    return f"'{site.name}' has no heads that vlascope knows; q, k and v of most models have"


def at_step(sites: Sequence[Site], step: int, *, pattern: str) -> list[Site]:
    """Return those of `sites` that are computed once per denoising step, at one of these steps.

    Args:
        sites: At least one.
        step: 0 is the first step (noise), -1 the last.
        pattern: For the error message.

    Raises:
        SiteNotFoundError: no such step, or none of the sites has steps.
    """
    found = [site for site in sites if site.repeats == "steps"]
    if not found:
        raise SiteNotFoundError(
            f"'{pattern}' names a denoising step, but '{sites[0].name}' is computed once per pass. Leave '@{step}' "
            "out."
        )
    n_steps = found[0].n_calls
    if not -n_steps <= step < n_steps:
        raise SiteNotFoundError(f"'{pattern}': steps run 0..{n_steps - 1}; -1 is the last.")
    return [replace(site, name=f"{site.name}@{step % n_steps}", call=step % n_steps) for site in found]


def _match(pattern: str, sites: Sequence[Site]) -> list[str]:
    names = [site.name for site in sites]
    if pattern in names:  # also names that hold dots and brackets of their own, as `wrap` makes them
        return [pattern]
    if pattern in ("*", "**"):
        return [s.name for s in sites if pattern == "**" or s.tensor == "out"]
    parts = pattern.split(".")
    counts = _block_counts(sites)
    wanted = [_allowed(part, counts.get(".".join(parts[:i]))) for i, part in enumerate(parts)]
    matched = []
    for name in names:
        pieces = name.split(".")
        if len(pieces) == len(parts) and all(ok(piece) for ok, piece in zip(wanted, pieces, strict=True)):
            matched.append(name)
    return matched


def _allowed(part: str, n_blocks: int | None) -> Callable[[str], bool]:
    """Return the test for one dotted part of a name; numbers are read against the number of blocks."""
    if n_blocks is not None and re.fullmatch(r"-\d+", part):
        index = int(part) + n_blocks
        return lambda piece: piece == str(index)
    if n_blocks is not None and re.fullmatch(r"(-?\d*):(-?\d*)(:(-?\d+))?", part):
        bounds = [int(number) if number else None for number in part.split(":")]
        chosen = {str(i) for i in range(*slice(*bounds).indices(n_blocks))} if 0 not in bounds[2:] else set()
        return lambda piece: piece in chosen
    return lambda piece: fnmatch.fnmatchcase(piece, part)


def _block_counts(sites: Sequence[Site]) -> dict[str, int]:
    """Return for each prefix such as "vision" how many numbered blocks it has."""
    counts: dict[str, int] = {}
    for site in sites:
        pieces = site.name.split(".")
        for i, piece in enumerate(pieces):
            if piece.isdigit():
                prefix = ".".join(pieces[:i])
                counts[prefix] = max(counts.get(prefix, 0), int(piece) + 1)
    return counts


def _not_found(pattern: str, sites: Sequence[Site], model_name: str, in_memory: bool) -> str:
    listing = "All are in model.sites" if in_memory else f"List all with `vlascope sites {model_name}`"
    ranges = "; ".join(
        f"{prefix or 'blocks'} runs 0..{n - 1}"
        for prefix, n in _block_counts(sites).items()
        if "." not in prefix
    )
    return (
        f"model '{model_name}' has no site '{pattern}'{f'; {ranges}' if ranges else ''}."
        f"{nearest_text(pattern, [site.name for site in sites])} "
        f"{listing}."
    )
