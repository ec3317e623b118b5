"""What a family of models has to say about itself, and the register of all families."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelNotFoundError, SiteNotFoundError, nearest_text
from ..items.item import Item
from .batch import Batch, Response
from .hooks import Hooks
from .sites import Site
from .structure import has, module_width


@dataclass(frozen=True, kw_only=True)
class Assets:
    """What lies beside the weights: preprocessing and tokenizer.

    Attributes:
        image_config: Content of `preprocessor_config.json`; empty when the checkpoint has none.
        tokenizer: A transformers tokenizer; None when the checkpoint has none.
        chat_template: Jinja template of the processor; None when there is none.
        stats: Statistics of states and actions, as `vlascope.models.normalizer.datasets` reads them.
    """

    image_config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    chat_template: str | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)


class Family(ABC):
    """One family of models. Subclasses live one per file in `families/` and carry `@register`.

    Class attributes:
        name: Short name, such as "llava".
        model_types: `config.model_type` of the checkpoints that belong to it.
        examples: Checkpoints that are known to work, for messages and `vlascope models`.
        summary: One line for `vlascope models`.
        reads_text: Whether prompts change anything.
        answers: Whether `respond` can return text.
        needs_image: Whether items without an image cannot be read.
        handed_over: Checkpoints that another library has to load; the policy is then handed to `load`.
        notes: What a user of these checkpoints has to know, for docs/families.md.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = ""
    reads_text: ClassVar[bool] = False
    answers: ClassVar[bool] = False
    needs_image: ClassVar[bool] = True
    handed_over: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[str] = ""

    def __init__(self, module: nn.Module, *, assets: Assets) -> None:
        self.module = module
        self.assets = assets

    @abstractmethod
    def sites(self) -> list[Site]:
        """Return all named sites, in the order in which the model computes them."""

    @abstractmethod
    def prepare(self, items: Sequence[Item], *, answers: Sequence[Response] | None = None) -> Batch:
        """Return the items as inputs (on the CPU) with the layouts of all sites."""

    @abstractmethod
    def forward(self, batch: Batch, *, sites: Sequence[Site]) -> None:
        """Run the forward pass that reaches `sites`; hooks collect what is wanted."""

    def reaches(self, site: Site, *, asked: Sequence[Site]) -> bool:
        """Return whether the forward pass for the sites `asked` is meant to call the module of `site`.

        Families whose `forward` leaves parts out say here which.
        """
        return True

    def must_fire(self) -> Mapping[str, str]:
        """Return module paths that every forward pass must call, with the reason."""
        return {}

    def respond(self, batch: Batch, *, hooks: Hooks, max_new_tokens: int) -> list[Response]:
        """Return the answers, by greedy decoding; `Response()` for models without text output."""
        return [Response() for _ in range(len(batch))]

    def attention(self, batch: Batch, *, site: Site) -> list[Tensor] | None:
        """Return the attention weights [heads, t, t_k] per item where only the family knows how; None otherwise.

        For joint attention of several streams of tokens, whose queries and keys no single module holds.
        `site` is the queries' (`language.4.q`). See `vlascope.models.attention.weights_from`.
        """
        return None

    def use_dataset(self, name: str) -> None:
        """Choose the dataset whose statistics bring actions (and the state) to physical units and back."""
        raise InputError(
            "this model has no action statistics to choose from; its answers do not depend on a dataset."
        )

    @property
    def layout_roots(self) -> Mapping[str, str]:
        """Module path prefix ("" for all) -> layout of the tokens below it, to place native module paths."""
        return {}

    def native_site(self, path: str) -> Site:
        """Return the site of a module that has no name of its own.

        Raises:
            SiteNotFoundError: there is no such module, or its tokens' layout is not known.
        """
        if not path or not has(self.module, path):
            names = [name for name, _ in self.module.named_modules()]
            raise SiteNotFoundError(f"the model has no module '{path}'.{nearest_text(path, names)}")
        roots = [root for root in self.layout_roots if not root or f"{path}.".startswith(f"{root}.")]
        if not roots:
            raise SiteNotFoundError(
                f"vlascope cannot tell what the tokens of module '{path}' are. It can below "
                f"{', '.join(repr(root) for root in self.layout_roots)}. For other places use vlascope.wrap()."
            )
        layout = self.layout_roots[max(roots, key=len)]
        width = module_width(self.module.get_submodule(path))
        return Site(name=f"module:{path}", module_path=path, layout=layout, width=width)

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        """Return whether a module in memory is of this family although its `config.model_type` does not say so.

        For models that come with a library of their own, told by the names of their modules.
        """
        return False

    @classmethod
    def load_module(
        cls,
        name: str,
        *,
        config: Any,
        dtype: torch.dtype | str,
        revision: str | None,
        trust_remote_code: bool,
        placement: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return the checkpoint's module and transformers' account of missing and unexpected weights.

        `placement` holds arguments for `from_pretrained` that spread or quantize the model (see `placement.py`).
        """
        import transformers

        loader = cls.module_class(config, source=name) or transformers.AutoModel
        return loader.from_pretrained(
            name,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placement,
        )

    @classmethod
    def module_class(cls, config: Any, *, source: str, trust_remote_code: bool = False) -> Any:
        """Return the class that a checkpoint's configuration names; None when transformers has no such class.

        `source` (a folder or hub name) is where a class of the checkpoint's own comes from, if it is trusted.
        """
        import transformers

        architectures = getattr(config, "architectures", None) or []
        return next((getattr(transformers, a) for a in architectures if hasattr(transformers, a)), None)


F = TypeVar("F", bound=type[Family])
_REGISTER: dict[str, type[Family]] = {}


def register(family: F) -> F:
    """Class decorator: make a family known. Two families of one name or model type are an error."""
    for other in _REGISTER.values():
        if other.name == family.name or set(other.model_types) & set(family.model_types):
            raise ValueError(f"family '{family.name}' clashes with '{other.name}' ({other.__module__}).")
    _REGISTER[family.name] = family
    return family


def families() -> dict[str, type[Family]]:
    """Return all families by name; importing this room's `families/` registers them."""
    package = importlib.import_module(".families", __package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_REGISTER.items()))


def family_of_module(module: nn.Module) -> type[Family]:
    """Return the family of a module in memory, by its structure or its `config.model_type`.

    Raises:
        ModelNotFoundError: no family knows it.
    """
    name = type(module).__name__
    for family in families().values():
        if family.claims(module):
            return family
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    if model_type is None:
        raise ModelNotFoundError(
            f"{name} is no transformers model (it has no config). Use "
            "vlascope.wrap(module, sites=..., layout=...) instead."
        )
    return family_of(str(model_type), name=name)


def family_of(model_type: str, *, name: str) -> type[Family]:
    """Return the family of a `config.model_type`.

    Raises:
        ModelNotFoundError: no family knows it.
    """
    known = families()
    for family in known.values():
        if model_type in family.model_types:
            return family
    types = sorted(t for family in known.values() for t in family.model_types)
    raise ModelNotFoundError(
        f"'{name}' is a model of type '{model_type}', which no family supports; supported are "
        f"{', '.join(types)}. Load it yourself and use vlascope.wrap(module, sites=..., layout=...)."
    )
