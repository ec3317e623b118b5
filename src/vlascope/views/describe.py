"""What a picture shows and how it was computed, as parameters for the file and as one line for its footer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__

if TYPE_CHECKING:
    from ..palette import SavedCut
    from ..runs import Run


def model_name(run: Run) -> str:
    """Return the name of the model that a run was captured from (of a folder its last part)."""
    model = run.config.get("model", run.info.get("model"))
    name = str(model.get("name", "unnamed model") if isinstance(model, Mapping) else model or "unnamed model")
    # A checkpoint in a folder goes by the folder's name: pictures are shared, paths of a machine are not.
    return Path(name).name if name.startswith(("/", ".", "~")) else name


def model_revision(run: Run) -> str | None:
    """Return the revision (or fingerprint) of the model, None where the run does not say."""
    model = run.config.get("model", run.info.get("model"))
    if isinstance(model, Mapping):
        revision = model.get("revision")
        value = model.get("fingerprint") if revision in (None, "local", "embedded") else revision
        return str(value) if value else None
    return None


def picture_params(cut: SavedCut, *, view: str, sites: Sequence[str], **shown: Any) -> dict[str, Any]:
    """Return everything needed to tell what a picture shows and to make it again.

    Args:
        cut: What was drawn.
        view: Name of the drawing function.
        sites: Sites that are shown.
        shown: Further parameters of the drawing function.
    """
    run = cut.run
    return {
        "view": view,
        "vlascope": __version__,
        "model": model_name(run),
        "model_revision": model_revision(run),
        "run": run.path.name,
        "sites": list(sites),
        "cut_sites": list(cut.sites),
        "cut": plain(dict(cut.params)),
        "tokens": len(cut.rgb),
        "sampled_share": sampled_share(cut),
        **plain(shown),
    }


def sampled_share(cut: SavedCut) -> float | None:
    """Return the share of tokens that the cut sampled as landmarks, 0..1; None where the cut does not say."""
    n_landmarks, n = health_value(cut, "n_landmarks"), health_value(cut, "n")
    return None if not n or n_landmarks is None else min(1.0, float(n_landmarks) / float(n))


def health_value(cut: SavedCut, name: str) -> Any:
    """Return one field of the cut's health report, whichever form it has; None when it is not there."""
    health = getattr(cut, "health", None)
    if isinstance(health, Mapping):
        return health.get(name)
    return getattr(health, name, None)


def plain(value: Any) -> Any:
    """Return `value` with tuples as lists and NumPy numbers as Python's, fit for JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def count(n: int, noun: str) -> str:
    """Return a number with its noun: "1 step", "2 steps"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


FLAGS = {
    "too_many_tokens": "{} tokens, more than an action has numbers",
    "too_few_tokens": "{} tokens, fewer than an action has numbers",
    "word_in_action": "a word where number {} of the action should be (counted from 0)",
    "length_limit": "cut off at the largest length",
    "normalized_units": "an action in normalized units, as the checkpoint holds no statistics",
}
"""What a flag of a response (`Response.flags`) means."""


def flag_text(flag: str) -> str:
    """Return a flag of a response in words; one that is not known as it is."""
    kind, _, value = flag.partition(":")
    return FLAGS[kind].format(value) if kind in FLAGS else flag


def footer(params: Mapping[str, Any]) -> str:
    """Return the line under a picture: model, site, method, parameters, seed and share of tokens sampled."""
    cut = params["cut"]
    sites = params["sites"]
    shown = sites[0] if len(sites) == 1 else f"{sites[0]} … {sites[-1]} ({len(sites)} sites)"
    parts = [params["model"] + (f" @ {params['model_revision'][:10]}" if params["model_revision"] else "")]
    parts.append(shown)
    joint = len(params["cut_sites"])
    settings = [f"{name} {cut[key]}" for name, key in _SETTINGS if cut.get(key) is not None]
    parts.append("NCut" + (f", joint over {joint} sites" if joint > 1 else ""))
    parts.extend(settings)
    tokens = f"{params['tokens']:,} tokens"
    share = params.get("sampled_share")
    parts.append(f"{tokens}, {_percent(share)} sampled" if share is not None else tokens)
    parts.append(f"vlascope {params['vlascope']}")
    return "  ·  ".join(parts)


_SETTINGS = (
    ("affinity", "affinity"),
    ("density", "density"),
    ("balance", "balance"),
    ("groups by", "method"),
    ("n_eig", "n_eig"),
    ("seed", "seed"),
    ("colours", "color"),
    ("colour space", "color_space"),
)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
