"""What the page may send, and within which limits; imported by `create_app`, as pydantic comes with the extra `app`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_CLICKS = 64
MAX_FRAMES = 64
MAX_DOSES = 12

Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
Camera = Annotated[int, Field(ge=0, le=99)]
SiteName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
SiteNames = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
NEig = Annotated[int, Field(ge=1, le=4096)]
K = Annotated[int, Field(ge=1, le=65_535)]
PaletteMethod = Literal["tsne", "umap", "mspace", "pca"]
Likeness = Literal["concepts", "features"]
Word = Annotated[str, StringConstraints(max_length=60)]
Strength = Annotated[float, Field(ge=-32, le=32)]


class Pick(BaseModel):
    """A token of a site, and whether it speaks for or against."""

    model_config = ConfigDict(extra="forbid")
    token: Number
    positive: bool = True


class Click(Pick):
    """One clicked token."""

    run: Key
    site: SiteName


class Mask(BaseModel):
    """Clicked tokens, and where the mask is wanted."""

    model_config = ConfigDict(extra="forbid")
    clicks: list[Click] = Field(min_length=1, max_length=MAX_CLICKS)
    sites: SiteNames = "*"
    n_eig: NEig = 20
    threshold: float = Field(default=0.5, gt=-1, lt=1)


class Verdict(BaseModel):
    """What a person says about an episode or image."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(min_length=1, max_length=400)
    review: Literal["success", "failure", "drop"]
    reason: str = Field(default="", max_length=400)


class Ask(BaseModel):
    """What shall be done to the model.

    Attributes:
        kind: Steer along clicked "tokens", a "group" of the cut, from word to word ("words"), along a "latent"; or cut
            "attention", remove a "module".
        site: Where to steer, or the module to remove.
        clicks: Tokens of the site (kind "tokens").
        k, group: Which group (kind "group").
        away_from, to: Which words (kind "words").
        dictionary, latent: Name of a folder of the run, and which latent (kind "latent").
        source, reader, blocks: Who must not look at whom, and where (kind "attention").
        mean: Put the module's mean in its place instead of zero (kind "module").
        where: Which tokens are steered, see `vlascope.act.edits.WHERE`.
        strength: How far, in units of the direction (see `vlascope.act.steer`).
        doses: Other strengths at which it is tried as well, for the curve of dose and response.
        controls: Random directions, other modules or random tokens, to compare with.
        seed: Draws them.
    """

    model_config = ConfigDict(extra="forbid")
    kind: Literal["tokens", "group", "words", "latent", "attention", "module"]
    site: str = Field(default="", max_length=200)
    clicks: Annotated[Sequence[Pick], Field(max_length=MAX_CLICKS)] = ()
    k: Number = 0
    group: Number = 0
    away_from: Word = ""
    to: Word = ""
    dictionary: str = Field(default="", max_length=80)
    latent: Number = 0
    source: Word = "patch"
    reader: Word = "action"
    blocks: SiteName = "language.*"
    mean: bool = False
    where: Word = "patch"
    strength: Strength = 2.0
    doses: Annotated[Sequence[Strength], Field(max_length=MAX_DOSES)] = ()
    controls: int = Field(default=8, ge=0, le=32)
    seed: Number = 0

    @property
    def steers(self) -> bool:
        """Whether it pushes tokens along a direction (which has controls of the same length)."""
        return self.kind not in ("attention", "module")


class EditAsk(Ask):
    """An edit of a run's model, and the items that it is tried on."""

    run: Key
    item: Number
    clicks: Annotated[Sequence[Click], Field(max_length=MAX_CLICKS)] = ()
    frames: int = Field(default=1, ge=1, le=MAX_FRAMES)
    scope: Literal["episode", "run"] = "episode"
