"""What the page may send, and within which limits; imported by `create_app`, as pydantic comes with the extra `app`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_CLICKS = 64
MAX_FRAMES = 64

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


class Click(BaseModel):
    """One clicked token."""

    model_config = ConfigDict(extra="forbid")
    run: Key
    site: SiteName
    token: Number
    positive: bool = True


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


class EditAsk(BaseModel):
    """An edit of the model, and the items that it is tried on; see `vlascope.app.edits.Ask`."""

    model_config = ConfigDict(extra="forbid")
    run: Key
    item: Number
    kind: Literal["tokens", "group", "words", "latent", "attention", "module"]
    site: str = Field(default="", max_length=200)
    clicks: list[Click] = Field(default=[], max_length=MAX_CLICKS)
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
    strength: float = Field(default=2.0, ge=-32, le=32)
    frames: int = Field(default=1, ge=1, le=MAX_FRAMES)
    scope: Literal["episode", "run"] = "episode"
    controls: int = Field(default=8, ge=0, le=32)
    seed: Number = 0
