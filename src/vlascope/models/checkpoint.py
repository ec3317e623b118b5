"""The files of a checkpoint: where they are, its configuration and what lies beside its weights; nothing is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingExtraError, ModelNotFoundError, nearest_text
from .family import Assets, families
from .foreign import advice
from .normalizer import policy_stats, policy_tokenizer

_WEIGHTS = Path(__file__).parent / "weights"


def embedded() -> dict[str, Path]:
    """Return the models that travel with the package: name -> folder."""
    return {path.parent.name: path.parent for path in sorted(_WEIGHTS.glob("*/config.json"))}


def find_checkpoint(name: str) -> tuple[str, str]:
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


def read_config(name: str, source: str, kind: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """Return a checkpoint's configuration.

    Args:
        name: What the user called it.
        source, kind: As `find_checkpoint` returns them.
        revision: Of a hub checkpoint.
        trust_remote_code: As for `load`.

    Raises:
        ModelNotFoundError: there is none, or another project's that has to be converted first.
        MissingExtraError: it can only be read with a package that is not installed.
        InputError: a revision of what has none.
    """
    from transformers import AutoConfig

    if revision is not None and kind != "hub":
        what = "travels with vlascope" if kind == "embedded" else "is a folder"
        raise InputError(
            f"got revision '{revision}', but the model '{name}' {what} and has only one; leave it out. Revisions are "
            "for checkpoints on the hub (owner/name)."
        )
    with explained(name, kind):
        path = beside_weights(source, "config.json", revision=revision)
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


class explained:
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
        path = beside_weights(str(source), file_name, revision=revision)
        return json.loads(path.read_text(encoding="utf-8")) if path is not None else {}

    processor_config = read("processor_config.json")
    image_config = processor_config.get("image_processor") or read("preprocessor_config.json")
    image_config = (
        image_config or processor_config.get("video_processor") or read("video_preprocessor_config.json")
    )
    has_tokenizer = any(
        beside_weights(str(source), file_name, revision=revision) is not None
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


def beside_weights(source: str, file_name: str, *, revision: str | None) -> Path | None:
    """Return the local copy of a file beside the weights, or None when the checkpoint has none."""
    folder = Path(source)
    if folder.is_dir():
        path = folder / file_name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    with explained(source, "hub"):
        found = cached_file(source, file_name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None
