"""Dictionaries on disk: a folder that SAELens reads too, and that knows how well it must reconstruct."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, RunNotFoundError, RunVersionError
from ..files import read_json, storage_errors, write_json
from .config import SAEConfig, TrainConfig
from .metrics import Evaluation, evaluate
from .module import MatryoshkaSAE
from .tensors import write_tensors

if TYPE_CHECKING:
    from ..runs import Run

SCHEMA = 1
CONFIG_NAME, WEIGHTS_NAME, PROOF_NAME = "cfg.json", "sae_weights.safetensors", "fingerprint.safetensors"
PROOF_ROWS = 256
FVU_TOLERANCE = 2e-3
AGAIN = "train it again with --force"


@dataclass(frozen=True)
class Checkpoint:
    """A dictionary and where it comes from.

    Attributes:
        sae: The dictionary, on raw tokens.
        path: Its folder.
        origin: Model, site, tokens, settings and metrics, as saved; empty for folders that another program wrote.
    """

    sae: MatryoshkaSAE
    path: Path
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> str | None:
        """The site whose tokens it explains."""
        return self.origin.get("site")


def run_origin(run: Run, site: str) -> dict[str, Any]:
    """Return what ties a dictionary to a model and site."""
    model = run.config["model"]
    return {
        "model": model.get("name"),
        "model_fingerprint": model.get("fingerprint"),
        "run_sha256": run.info.get("content_sha256"),
        "items_fingerprint": run.config.get("items", {}).get("fingerprint"),
        "site": site,
        "width": run.site(site).width,
    }


def weights_hash(sae: MatryoshkaSAE) -> str:
    """Return a hexadecimal SHA-256 of a dictionary's weights, wherever they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(sae.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_sae(
    sae: MatryoshkaSAE, path: Path | str, *, origin: Mapping[str, Any], proof_td: NDArray[np.floating]
) -> Path:
    """Write a dictionary as cfg.json, sae_weights.safetensors and fingerprint.safetensors; cfg.json comes last.

    The folder is in SAELens' format (`SAE.load_from_disk`): architecture "topk", or "jumprelu" for jumprelu and
    batchtopk. Everything else of ours is under metadata.vlascope.

    Args:
        sae: The dictionary; centring and scale are folded into its weights.
        path: Folder, made when missing.
        origin: JSON-able facts, see `run_origin`.
        proof_td: A few hundred raw tokens, kept in the folder with the FVU that they must give.

    Raises:
        StorageError: full or read-only disk; an older checkpoint in the folder is then incomplete, not wrong.
    """
    path = Path(path)
    folded = sae.folded().cpu().float()
    # A copy: a run may hand out memory that must not be written to.
    proof = np.array(proof_td[:PROOF_ROWS], np.float32, order="C")
    expected = evaluate(folded, [proof])
    architecture = "topk" if sae.config.activation == "topk" else "jumprelu"
    tensors = {
        "W_enc": folded.encoder.detach().t().contiguous(),
        "W_dec": folded.decoder.detach().contiguous(),
        "b_enc": folded.b_enc.detach().contiguous(),
        "b_dec": folded.b_dec.detach().contiguous(),
    }
    if architecture == "jumprelu":
        tensors["threshold"] = folded.threshold.detach().contiguous()
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.config.d_in,
        "d_sae": sae.config.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",  # the version of the format
            "model_name": origin.get("model"),
            "hook_name": origin.get("site"),
            "vlascope": {
                "schema": SCHEMA,
                "config": sae.config.to_json(),
                "origin": dict(origin),
                "expected": {"fvu": [m.fvu for m in expected.levels], "l0": expected.levels[-1].l0},
            },
        },
    }
    if architecture == "topk":
        cfg |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / CONFIG_NAME).unlink(missing_ok=True)
    write_tensors(path / WEIGHTS_NAME, tensors)
    write_tensors(path / PROOF_NAME, {"tokens": torch.from_numpy(proof)})
    write_json(path / CONFIG_NAME, cfg)
    return path


def load_sae(
    path: Path | str, *, run: Run | None = None, site: str | None = None, device: str | torch.device = "cpu"
) -> Checkpoint:
    """Return a saved dictionary after checking that it reconstructs its own tokens as well as when it was saved.

    Args:
        path: Its folder. Folders that SAELens wrote (topk or jumprelu, normalize_activations "none") load too, as a
            dictionary of one level; they hold no tokens to check.
        run: When given, the dictionary must come from the same model (fingerprint of the weights).
        site: When given, it must come from this site.
        device: Where to put it.

    Raises:
        RunNotFoundError: no such folder.
        RunVersionError: written by a newer vlascope.
        InputError: damaged or exchanged weights, another model, another site, or an unknown format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not (path / CONFIG_NAME).is_file():
        raise RunNotFoundError(
            f"'{path}' holds no dictionary ({CONFIG_NAME} is missing). Train one with `vlascope sae train`; an "
            "interrupted training goes on when the same command is given again."
        )
    try:
        cfg = read_json(path / CONFIG_NAME)
        tensors = load_file(path / WEIGHTS_NAME)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the dictionary in '{path}' cannot be read ({error}); {AGAIN}.") from error
    config, origin, expected = _read_config(cfg, path)
    sae = MatryoshkaSAE(config)
    _fill(sae, tensors, path)
    checkpoint = Checkpoint(sae.to(device), path, origin)
    if run is not None:
        _check_origin(checkpoint, run, site)
    if site is not None and checkpoint.site not in (None, site):
        raise InputError(
            f"the dictionary in '{path}' was trained at site '{checkpoint.site}', not at '{site}'."
        )
    if expected is not None:
        _prove(sae, path, expected)
    return checkpoint


def _read_config(cfg: Any, path: Path) -> tuple[SAEConfig, dict[str, Any], list[float] | None]:
    """Return the shape, the origin and the expected FVUs that a cfg.json holds; a foreign one has only the shape."""
    if not isinstance(cfg, dict):
        raise InputError(f"'{path / CONFIG_NAME}' holds no settings but a {type(cfg).__name__}; {AGAIN}.")
    try:
        ours = (cfg.get("metadata") or {}).get("vlascope")
        schema = int(ours["schema"]) if ours else SCHEMA
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    if schema > SCHEMA:
        raise RunVersionError(
            f"the dictionary in '{path}' has format {schema}; this vlascope reads up to {SCHEMA}. Update it."
        )
    try:
        if not ours:
            return _foreign_config(cfg, path), {}, None
        config = SAEConfig.from_json(ours["config"])
        origin, fvus = dict(ours["origin"]), [float(value) for value in ours["expected"]["fvu"]]
        if len(fvus) != len(config.levels):
            raise ValueError(f"{len(fvus)} expected values for {len(config.levels)} levels")
        if "key" in origin:  # what later calls read
            TrainConfig(**origin["key"]["train"])
        if "training" in origin:
            {name: origin["training"][name] for name in ("n_steps", "n_tokens", "history")}
        return config, origin, fvus
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return InputError(f"'{path / CONFIG_NAME}' is damaged, or not of this version ({what}); {AGAIN}.")


def _foreign_config(cfg: Mapping[str, Any], path: Path) -> SAEConfig:
    architecture = cfg.get("architecture")
    plain = cfg.get("normalize_activations", "none") == "none" and cfg.get("apply_b_dec_to_input", True)
    if architecture not in ("topk", "jumprelu") or not plain or cfg.get("rescale_acts_by_decoder_norm"):
        raise InputError(
            f"the dictionary in '{path}' is of kind '{architecture}' with settings that vlascope does not read; it "
            "reads topk and jumprelu with normalize_activations 'none' and apply_b_dec_to_input."
        )
    d_sae = int(cfg["d_sae"])
    return SAEConfig(
        d_in=int(cfg["d_in"]),
        n_latents=d_sae,
        k=int(cfg.get("k", 1)),
        levels=(d_sae,),
        activation=architecture,
    )


def _fill(sae: MatryoshkaSAE, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    parts = {"encoder": "W_enc", "decoder": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
    if sae.config.activation != "topk":
        parts["threshold"] = "threshold"
    with torch.no_grad():
        for ours, theirs in parts.items():
            target = getattr(sae, ours)
            value = tensors.get(theirs)
            value = value.t() if value is not None and ours == "encoder" else value
            if value is None or value.shape != target.shape:
                got = "missing" if value is None else f"of shape {tuple(value.shape)}"
                raise InputError(
                    f"the dictionary in '{path}': '{theirs}' is {got}; need {tuple(target.shape)}; {AGAIN}."
                )
            if not torch.isfinite(value).all():
                raise InputError(
                    f"the dictionary in '{path}': '{theirs}' holds NaN or infinite values. Its weights were changed or "
                    f"damaged; {AGAIN}."
                )
            target.copy_(value)


def _check_origin(checkpoint: Checkpoint, run: Run, site: str | None) -> None:
    origin, model = checkpoint.origin, run.config["model"]
    known = origin.get("model_fingerprint")
    if known is not None and model.get("fingerprint") != known:
        raise InputError(
            f"the dictionary in '{checkpoint.path}' belongs to the weights of '{origin.get('model')}' "
            f"({known}), but the run was made with '{model.get('name')}' ({model.get('fingerprint')}). Train one on "
            "this run."
        )
    name = site or checkpoint.site
    if name is not None and run.site(name).width != checkpoint.sae.config.d_in:
        raise InputError(
            f"the dictionary in '{checkpoint.path}' reads {checkpoint.sae.config.d_in} channels, but site '{name}' "
            f"has {run.site(name).width}."
        )


def _prove(sae: MatryoshkaSAE, path: Path, expected: list[float]) -> Evaluation:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tokens = load_file(path / PROOF_NAME)["tokens"].numpy()
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"'{path / PROOF_NAME}' cannot be read ({error}): the dictionary cannot be checked; {AGAIN}."
        ) from error
    found = evaluate(sae, [tokens])
    for level, was in zip(found.levels, expected, strict=True):
        # Not "greater": every comparison with NaN is false.
        if not abs(level.fvu - was) <= FVU_TOLERANCE * max(1.0, was):
            raise InputError(
                f"the dictionary in '{path}' leaves {level.fvu:.4f} of its own tokens' variance unexplained at level "
                f"{level.level}; when it was saved it was {was:.4f}. Its weights were changed or damaged; "
                f"{AGAIN}."
            )
    return found
