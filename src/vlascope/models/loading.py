"""Loading: by the name of an embedded model, a folder, a hub name, or a module in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, ModelNotFoundError
from .checkpoint import explained, find_checkpoint, read_assets, read_config
from .family import Assets, Family, family_of, family_of_module
from .layout import Grid
from .model import Model
from .placement import check_accepts, input_device, placement

SMALL_PARAMETERS = 50_000_000
"""Models up to this size compute in float32 everywhere unless asked otherwise: it costs them little."""


def load(
    name_or_path_or_module: str | Path | nn.Module,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    processor: Any = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> Model:
    """Return a model that can be looked into.

    Args:
        name_or_path_or_module: An embedded model ("mini-vla"), a folder that holds a checkpoint, a hub name
            ("openai/clip-vit-base-patch16"), or a transformers model in memory (it is put in evaluation mode).
        device: "auto" takes the GPU when there is one.
        dtype: "auto" computes in float32 on the CPU and for models of up to 50 M parameters, whatever type the
            file has, and in bfloat16 for larger ones on a GPU. A module in memory keeps its type.
        revision: Branch, tag or commit of a hub checkpoint; the commit is recorded.
        trust_remote_code: Run code that comes with the checkpoint. Only for sources that you trust.
        processor: For a module in memory: its transformers processor, tokenizer, or the folder or hub name
            that holds them; LeRobot's preprocessor; or {"tokenizer": one or its name, "norm_stats": statistics of
            state and action}.
        device_map: "auto" spreads a model that is too large for one GPU over all devices (needs accelerate).
        quantize: "4bit" or "8bit" keeps the weights in so many bits (needs bitsandbytes and accelerate).

    Raises:
        ModelNotFoundError: unknown name, empty folder, unreachable hub, unsupported family, or a checkpoint
            that lacks weights.
        MissingExtraError: `device_map` or `quantize` without the packages that they need.
        InputError: arguments that do not go together, or a device that is not there.
    """
    given_device, device = device, _device(device)
    wanted = _load_dtype(dtype, device)
    place = placement(device_map=device_map, quantize=quantize, device=given_device, compute=wanted)
    if isinstance(name_or_path_or_module, nn.Module):
        if place:
            raise InputError(
                "device_map and quantize are for checkpoints; a module in memory is where and what it is already."
            )
        module = name_or_path_or_module
        name = type(module).__name__
        family = family_of_module(module)
        assets = read_assets(processor, revision=revision) if processor is not None else Assets()
        return _finish(module, family, assets, name=name, revision="memory", device=device, dtype=dtype)
    name = str(name_or_path_or_module)
    source, kind = find_checkpoint(name)
    config = read_config(name, source, kind, revision=revision, trust_remote_code=trust_remote_code)
    family = family_of(config.model_type, name=name)
    check_accepts(family, place)
    options = {"config": config, "revision": revision, "trust_remote_code": trust_remote_code}
    if place:
        options["placement"] = place
    with explained(name, kind), _quiet(kind != "hub"):
        module, account = family.load_module(source, dtype=wanted, **options)
        if dtype == "auto" and wanted != torch.float32 and _size(module) <= SMALL_PARAMETERS:
            module, account = family.load_module(source, dtype=torch.float32, **options)
    if missing := sorted(account.get("missing_keys", ())):
        raise ModelNotFoundError(
            f"the checkpoint '{name}' lacks {len(missing)} weights of {type(module).__name__}, such as "
            f"'{missing[0]}'; they would be random. Check that the download is complete and of the right class."
        )
    module.requires_grad_(False)
    assets = read_assets(source, revision=revision, trust_remote_code=trust_remote_code)
    commit = getattr(config, "_commit_hash", None) or revision or "unknown"
    return _finish(
        module,
        family,
        assets,
        name=name,
        revision=commit if kind == "hub" else kind,
        device=input_device(module) if place else device,
        dtype="keep",
        is_placed=bool(place),
        quantize=quantize,
    )


def wrap(
    module: nn.Module,
    *,
    sites: Sequence[str] | Mapping[str, str],
    layout: Grid | Mapping[str, Grid],
    preprocess: Callable[..., Any] | None = None,
    name: str | None = None,
    forward: Callable[[nn.Module, torch.Tensor], Any] | None = None,
    device: str | torch.device = "auto",
) -> Model:
    """Return a model of your own, with the sites that you name.

    Args:
        module: Any PyTorch module; it is put in evaluation mode and moved to `device`.
        sites: Module paths (wildcards allowed: "blocks.*"), or {site name: module path}.
        layout: What the tokens of the sites are: one `Grid`, or one per site name.
        preprocess: Called with an `Item`; returns a float tensor [3, H, W], or (tensor, frame) with the
            frame (x0, y0, x1, y1) of the original image that it shows. Without it images are scaled to 0..1
            at their own size.
        name: Name for pictures and runs; the class name by default.
        forward: Called as `forward(module, pixels)` with pixels [b, 3, H, W]; by default `module(pixels)`.
        device: "auto" keeps the module where it is.

    Raises:
        SiteNotFoundError: a path matches no module.
        InputError: a site without a grid, an argument of another kind, or a device that is not there.
    """
    from .families.wrapped import WrappedFamily

    if not isinstance(module, nn.Module):
        raise InputError(
            f"got {type(module).__name__} as module; need a torch.nn.Module (an instance, not its class). Checkpoints "
            "are loaded by name with vlascope.load()."
        )
    for what, value in (("preprocess", preprocess), ("forward", forward)):
        if value is not None and not callable(value):
            raise InputError(f"got {value!r} as {what}; need a function, or leave it out.")

    given = next((p.device for p in module.parameters()), torch.device("cpu"))
    target = given if isinstance(device, str) and device == "auto" else _device(device)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    family = WrappedFamily(
        module, assets=Assets(), named=sites, grids=layout, preprocess=preprocess, run=forward
    )
    return Model(
        module.to(target),
        family=family,
        name=name or type(module).__name__,
        revision="memory",
        device=target,
        dtype=dtype,
    )


@contextlib.contextmanager
def _quiet(active: bool) -> Iterator[None]:
    """Keep transformers from drawing a bar while it reads weights that lie on this machine."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    if active and was_enabled:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if active and was_enabled:
            logging.enable_progress_bar()


def _finish(
    module: nn.Module,
    family: type[Family],
    assets: Assets,
    *,
    name: str,
    revision: str,
    device: torch.device,
    dtype: str | torch.dtype,
    is_placed: bool = False,
    quantize: str | None = None,
) -> Model:
    if dtype not in ("auto", "keep"):
        module = module.to(_dtype(dtype))
    compute = next(p.dtype for p in module.parameters() if p.is_floating_point())
    return Model(
        module if is_placed else module.to(device),
        family=family(module, assets=assets),
        name=name,
        revision=revision,
        device=device,
        dtype=compute,
        quantize=quantize,
    )


def _device(device: str | torch.device) -> torch.device:
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    there = _devices("" if chosen is None else chosen.type)
    if chosen is None or chosen.type not in there or (chosen.index or 0) >= there[chosen.type]:
        names = [name if n == 1 else f"{name}:{i}" for name, n in there.items() for i in range(n)]
        no_gpu = " (PyTorch sees no GPU)" if list(there) == ["cpu"] else ""
        raise InputError(
            f"got device {str(device)!r}; here are {', '.join(names)}{no_gpu}, or leave it at 'auto'."
        )
    return chosen


def _devices(asked: str) -> dict[str, int]:
    """Return the kinds of devices that can compute here, `asked` among them, and how many there are of each."""
    found = {"cpu": 1}
    for kind in dict.fromkeys(("cuda", "xpu", "mps", asked)):
        module: Any = getattr(torch, kind, None)  # also those that other packages add
        if hasattr(module, "is_available") and hasattr(module, "device_count") and module.is_available():
            found[kind] = module.device_count()
    return found


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise InputError(f"got dtype '{dtype}'; need one of auto, {', '.join(known)}.")
    return known[dtype]


def _load_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return _dtype(dtype)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
