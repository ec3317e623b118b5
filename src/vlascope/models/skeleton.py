"""A model without its weights: built from the configuration alone, on torch's meta device, to list its sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ModelNotFoundError
from .checkpoint import explained, find_checkpoint, read_assets, read_config
from .family import family_of
from .model import Model


def skeleton(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Model:
    """Return a model that has sites, widths and parameter counts but no weights; it cannot compute.

    Args:
        name: An embedded model, a folder that holds at least a config.json, or a hub name.
        revision: Branch, tag or commit of a hub checkpoint.
        trust_remote_code: Run code that comes with the checkpoint.

    Raises:
        ModelNotFoundError: unknown name, unsupported family, or a class that cannot be built without weights.

    Cost: a config.json and a tokenizer instead of the weights; no memory for parameters.
    """
    source, kind = find_checkpoint(name)
    config = read_config(name, source, kind, revision=revision, trust_remote_code=trust_remote_code)
    family = family_of(config.model_type, name=name)
    with explained(name, kind):
        cls = family.module_class(config, source=source, trust_remote_code=trust_remote_code)
    with explained(name, kind), torch.device("meta"):
        module = _built(cls, config, name=name, trust_remote_code=trust_remote_code)
    return Model(
        module,
        family=family(
            module, assets=read_assets(source, revision=revision, trust_remote_code=trust_remote_code)
        ),
        name=name,
        revision="configuration",
        device=torch.device("meta"),
        dtype=torch.float32,
    )


def _built(cls: Any, config: Any, *, name: str, trust_remote_code: bool) -> nn.Module:
    import transformers

    try:
        if cls is not None:
            own = cls.config_class
            # A family may take part of a larger checkpoint, whose configuration holds that part's.
            return cls(config if isinstance(config, own) else own.from_dict(config.to_dict()))
        return transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except (NotImplementedError, RuntimeError) as error:
        raise ModelNotFoundError(
            f"the model '{name}' ({getattr(cls, '__name__', config.model_type)}) cannot be built without its weights: "
            f"{str(error).splitlines()[0][:200]}. Load it with vlascope.load()."
        ) from error
