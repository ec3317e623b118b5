"""Loading: by the name of an embedded model, a folder, a hub name, or a module in memory."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, MissingExtraError, ModelNotFoundError, nearest_text
from .family import Assets, Family, families, family_of, family_of_module
from .foreign import advice
from .layout import Grid
from .model import Model
from .normalizer import policy_stats, policy_tokenizer
from .placement import check_accepts, input_device, placement

SMALL_PARAMETERS = 50_000_000
"""Models up to this size compute in float32 everywhere unless asked otherwise: it costs them little."""

_WEIGHTS = Path(__file__).parent / "weights"


def embedded() -> dict[str, Path]:
    """Return the models that travel with the package: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(_WEIGHTS.glob("*/config.json"))}


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
        InputError: arguments that do not go together.
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
    source, kind = _find(name)
    config = _read_config(name, source, kind, revision=revision, trust_remote_code=trust_remote_code)
    family = family_of(config.model_type, name=name)
    check_accepts(family, place)
    options = {"config": config, "revision": revision, "trust_remote_code": trust_remote_code}
    if place:
        options["placement"] = place
    with _explained(name, kind), _quiet(kind != "hub"):
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
        InputError: a site without a grid.
    """
    from .families.wrapped import WrappedFamily

    given = next((p.device for p in module.parameters()), torch.device("cpu"))
    target = given if device == "auto" else torch.device(device)
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


def read_assets(source: Any, *, revision: str | None = None, trust_remote_code: bool = False) -> Assets:
    """Return what lies beside a checkpoint's weights.

    Args:
        source: A folder, a hub name, a transformers processor, image processor or tokenizer, LeRobot's processor
            pipeline, or {"tokenizer": a tokenizer or a name, "norm_stats": {...}}.
        revision: Of a hub checkpoint.
        trust_remote_code: As for `load`.
    """
    if not isinstance(source, (str, Path)):
        image = getattr(source, "image_processor", source if hasattr(source, "image_mean") else None)
        tokenizer = getattr(source, "tokenizer", source if hasattr(source, "convert_ids_to_tokens") else None)
        if isinstance(source, Mapping):
            tokenizer = source.get("tokenizer")
            if isinstance(tokenizer, (str, Path)):
                tokenizer = read_assets(tokenizer, trust_remote_code=trust_remote_code).tokenizer
        chat = getattr(source, "chat_template", None)
        config = image.to_dict() if image is not None else {}
        tokenizer = tokenizer if tokenizer is not None else policy_tokenizer(source)
        stats = policy_stats(source)
        return Assets(image_config=config, tokenizer=tokenizer, chat_template=chat, stats=stats)
    from transformers import AutoTokenizer

    def read(file_name: str) -> Any:
        path = _asset(str(source), file_name, revision=revision)
        return json.loads(path.read_text(encoding="utf-8")) if path is not None else {}

    processor_config = read("processor_config.json")
    image_config = processor_config.get("image_processor") or read("preprocessor_config.json")
    image_config = (
        image_config or processor_config.get("video_processor") or read("video_preprocessor_config.json")
    )
    has_tokenizer = any(
        _asset(str(source), file_name, revision=revision) is not None
        for file_name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    )
    tokenizer = None
    if has_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(
            str(source), revision=revision, trust_remote_code=trust_remote_code
        )
    chat = read("chat_template.json").get("chat_template")
    stats = policy_stats(processor_config)
    return Assets(image_config=image_config, tokenizer=tokenizer, chat_template=chat, stats=stats)


def _find(name: str) -> tuple[str, str]:
    """Return (where the checkpoint is, "embedded" | "local" | "hub")."""
    if name in embedded():
        return str(embedded()[name]), "embedded"
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = sorted(p.name for p in path.iterdir())[:5]
            raise ModelNotFoundError(
                f"the folder '{name}' holds no model: there is no config.json (it has "
                f"{', '.join(inside) or 'nothing'}). Name a folder written by save_pretrained()."
            )
        return str(path), "local"
    if path.is_file():
        raise ModelNotFoundError(
            f"'{name}' is a file; need the folder that holds config.json and the weights. For a bare state "
            "dictionary, build the module yourself and use vlascope.wrap()."
        )
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if not looks_like_path and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name, "hub"
    known = [*embedded(), *(example for family in families().values() for example in family.examples)]
    what = "no folder of that name exists" if looks_like_path else "it is no embedded model and no folder"
    raise ModelNotFoundError(
        f"cannot find the model '{name}': {what}.{nearest_text(name, known)} List all with `vlascope models`; "
        "a hub name has the form owner/name."
    )


def _read_config(name: str, source: str, kind: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    with _explained(name, kind):
        path = _asset(source, "config.json", revision=revision)
        # Asked first: transformers would guess a type from a name that has "pi0" in it.
        given = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        if other := advice(given, name=name):
            raise ModelNotFoundError(other)
        try:
            return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        except ImportError as error:
            # Configurations of timm's checkpoints are read with timm itself.
            reason = " ".join(str(error).split())
            raise MissingExtraError(
                f"the configuration of '{name}' needs a package that cannot be imported: {reason} timm also needs the "
                "torchvision of your PyTorch's release. Or build the module yourself and use vlascope.wrap()."
            ) from error


class _explained:
    """Turn what transformers and the hub raise into one message with the next step."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: Any, error: BaseException | None, _trace: Any) -> None:
        if not isinstance(error, (OSError, ValueError)) or isinstance(error, ModelNotFoundError):
            return
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if "contains custom code" in str(error):
            raise ModelNotFoundError(
                f"the model '{self.name}' runs code that comes with its checkpoint. If you trust its authors, load "
                "it with trust_remote_code=True."
            ) from error
        if self.kind != "hub":
            raise ModelNotFoundError(f"cannot load the model in '{self.name}': {reason}") from error
        text = f"{error} {error.__cause__}".lower()
        known = [example for family in families().values() for example in family.examples]
        page = f"https://huggingface.co/{self.name}"
        if "gated" in text or "403" in text:
            step = f"Ask for access at {page}, then run `hf auth login` (or set HF_TOKEN)."
        elif "not a valid git identifier" in text:
            step = f"Choose a branch, tag or commit that is listed at {page}/tree/main."
        elif "not a valid model identifier" in text or "404" in text or "401" in text:
            # The hub answers 401, not 404, for names that do not exist, as it does for private ones.
            step = f"Check the spelling; for a private model run `hf auth login`.{nearest_text(self.name, known)}"
        elif "does not appear to have a file named" in text:
            step = f"Look at {page}/tree/main for the files; vlascope reads safetensors beside a config.json."
        else:
            step = (
                "Without a network, download it elsewhere (`hf download "
                f"{self.name} --local-dir FOLDER`) and give the folder, or use an embedded model: "
                f"{', '.join(embedded()) or 'none installed'}."
            )
        raise ModelNotFoundError(f"cannot load '{self.name}' from the hub: {reason} {step}") from error


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


def _asset(source: str, file_name: str, *, revision: str | None) -> Path | None:
    """Return the local copy of a file beside the weights, or None when the checkpoint has none."""
    folder = Path(source)
    if folder.is_dir():
        path = folder / file_name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    with _explained(source, "hub"):
        found = cached_file(source, file_name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


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
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"got device '{device}', but PyTorch sees no GPU; use device='cpu' or 'auto'.")
    return chosen


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
