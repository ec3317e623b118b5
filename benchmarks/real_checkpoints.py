"""The whole pipeline on real checkpoints: load, sites, capture of four images, a cut, an answer.

    python -m benchmarks.real_checkpoints [--only clip dino] [--list] [--device cuda] [--quick]

Needs a network or a filled cache of the hub, and for the large ones a GPU. What cannot run is skipped and the reason
said: no network, gated, too large for this machine, or code of the checkpoint's own (`--trust-remote-code` allows it).
Ends with 0 when all that could run did run, with 1 when something that could be loaded then failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import vlascope as vs
from benchmarks._record import environment, save
from vlascope.errors import MissingExtraError, ModelNotFoundError, VlascopeError

N_IMAGES = 4
BYTES_PER_PARAMETER = {"cpu": 4, "cuda": 2}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint of the list."""

    name: str
    size: float  # 1e9 parameters, for the memory check before the download
    sites: str = "vision.-1"
    is_code: bool = False  # runs code that comes with it
    is_text: bool = False  # reads no images
    prompt: str = "What is in the picture?"


CHECKPOINTS = (
    Checkpoint(name="openai/clip-vit-base-patch16", size=0.15, sites="vision.-1,text.-1"),
    Checkpoint(name="google/siglip-base-patch16-224", size=0.2),
    Checkpoint(name="google/siglip2-base-patch16-224", size=0.38),
    Checkpoint(name="facebook/dinov2-small", size=0.02, sites="vision.-1,vision.-1.k"),
    Checkpoint(name="facebook/dinov2-with-registers-base", size=0.09),
    Checkpoint(name="facebook/dinov3-vits16-pretrain-lvd1689m", size=0.02),
    Checkpoint(name="google/vit-base-patch16-224", size=0.09),
    Checkpoint(name="facebook/vit-mae-base", size=0.11),
    Checkpoint(name="facebook/sam-vit-base", size=0.09),
    Checkpoint(name="facebook/sam2.1-hiera-tiny", size=0.04),
    Checkpoint(name="facebook/vjepa2-vitl-fpc64-256", size=0.33),
    Checkpoint(name="microsoft/resnet-50", size=0.03),
    Checkpoint(name="openai-community/gpt2", size=0.12, sites="language.-1", is_text=True),
    Checkpoint(name="Qwen/Qwen3-0.6B", size=0.6, sites="language.-1", is_text=True),
    Checkpoint(
        name="HuggingFaceTB/SmolVLM-256M-Instruct", size=0.26, sites="vision.-1,projector,language.-1"
    ),
    Checkpoint(name="Qwen/Qwen3-VL-2B-Instruct", size=2.1, sites="vision.-1,projector,language.-1"),
    Checkpoint(name="google/paligemma-3b-mix-224", size=2.9, sites="vision.-1,projector,language.-1"),
    Checkpoint(name="llava-hf/llava-1.5-7b-hf", size=7.1, sites="vision.-2,projector,language.16"),
    Checkpoint(name="llava-hf/llava-v1.6-mistral-7b-hf", size=7.6, sites="vision.-2,projector,language.16"),
    Checkpoint(
        name="openvla/openvla-7b",
        size=7.5,
        sites="vision.siglip.-2,projector,language.16",
        is_code=True,
        prompt="pick up the red object",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one checkpoint."""

    name: str
    status: str  # "ran", "skipped" or "failed"
    reason: str = ""
    revision: str = ""
    n_sites: int = 0
    n_tokens: int = 0
    answer: str = ""
    load_secs: float = 0.0
    capture_secs: float = 0.0
    cut_secs: float = 0.0


def images() -> list[np.ndarray]:
    """Return four pictures, not square: frames of the embedded episodes, stretched to the usual camera shape."""
    from PIL import Image

    source = vs.items("demo:pick")
    chosen = [source[int(i)].image for i in np.linspace(0, len(source) - 1, N_IMAGES)]
    return [np.asarray(Image.fromarray(image).resize((320, 240))) for image in chosen]


def attempt(checkpoint: Checkpoint, *, device: str, trust: bool, folder: Path) -> Outcome:
    """Run the pipeline on one checkpoint."""
    name = checkpoint.name
    if checkpoint.is_code and not trust:
        return Outcome(
            name=name, status="skipped", reason="runs its own code; allow it with --trust-remote-code"
        )
    if reason := too_large(checkpoint, device):
        return Outcome(name=name, status="skipped", reason=reason)
    started = time.perf_counter()
    try:
        model = vs.load(name, device=device, trust_remote_code=checkpoint.is_code)
    except (ModelNotFoundError, MissingExtraError) as error:
        # Out of reach or gated is nobody's fault here; a checkpoint that is there and does not load is.
        if isinstance(error, ModelNotFoundError) and "from the hub" not in str(error):
            raise
        return Outcome(name=name, status="skipped", reason=str(error))
    loaded = time.perf_counter()
    if checkpoint.is_text:
        from vlascope.items.item import Item

        prompts = ("The red block is on the table.", "Pick up the red block.", "The cup is full.", "Hello")
        source = [Item(item_id=f"t{i}", images=(), prompt=prompt) for i, prompt in enumerate(prompts)]
        acts = model.capture(model.prepare(source), checkpoint.sites)
        n_tokens = sum(len(x) for per_item in acts.values() for x in per_item)
        captured = cut_done = time.perf_counter()
    else:
        source = vs.items(images(), prompt=checkpoint.prompt)
        run = vs.capture(
            model, source, sites=checkpoint.sites, out=folder / name.replace("/", "--"), quiet=True
        )
        n_tokens = sum(run.acts(site).shape[0] for site in run.sites)
        captured = time.perf_counter()
        vs.cut(run, site=next(iter(run.sites)), n_eig=8, k=(3,), seed=0)
        cut_done = time.perf_counter()
        source = [source[i] for i in range(N_IMAGES)]
    reply = model.respond(source[:1])[0]
    return Outcome(
        name=name,
        status="ran",
        revision=model.revision,
        n_sites=len(model.sites),
        n_tokens=n_tokens,
        answer=str(reply.text if reply.action is None else np.round(reply.action, 3).tolist()),
        load_secs=round(loaded - started, 1),
        capture_secs=round(captured - loaded, 1),
        cut_secs=round(cut_done - captured, 1),
    )


def too_large(checkpoint: Checkpoint, device: str) -> str:
    """Return why a checkpoint does not fit into memory; "" when it does, or nobody can tell."""
    import os

    import torch

    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return ""
    need = checkpoint.size * 1e9 * BYTES_PER_PARAMETER[device] * 1.2
    if need <= free:
        return ""
    return f"needs about {need / 1e9:.0f} GB on {device}, {free / 1e9:.0f} GB are free"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=[], help="only names that contain one of these words")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="only checkpoints of up to 300 M parameters")
    parser.add_argument("--trust-remote-code", action="store_true")
    args = parser.parse_args()
    chosen = [
        c
        for c in CHECKPOINTS
        if (not args.only or any(word in c.name.lower() for word in args.only))
        and (not args.quick or c.size <= 0.3)
    ]
    if args.list or not chosen:
        print("\n".join(c.name for c in chosen) or "no checkpoint of that name is on the list")
        return 0 if chosen else 2
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    env = environment() | {"device": device}
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="vlascope-checkpoints-") as folder:
        for checkpoint in chosen:
            try:
                outcome = attempt(
                    checkpoint, device=device, trust=args.trust_remote_code, folder=Path(folder)
                )
            except (VlascopeError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
                # One checkpoint that fails must not hide what the others do; it decides the exit code.
                reason = f"{type(error).__name__}: {error}"
                outcome = Outcome(name=checkpoint.name, status="failed", reason=reason)
            outcomes.append(outcome)
            detail = outcome.reason.splitlines()[0][:160] if outcome.reason else f"{outcome.n_tokens} tokens"
            print(f"{outcome.status:8}{outcome.name:44}{detail}", flush=True)
    n = {s: sum(o.status == s for o in outcomes) for s in ("ran", "skipped", "failed")}
    print(f"\n{n['ran']} ran, {n['skipped']} skipped, {n['failed']} failed, on {device}")
    path = save("real-checkpoints", environment=env, results={"checkpoints": [asdict(o) for o in outcomes]})
    print(f"saved to {path.parent.name}/{path.name}")
    return 1 if n["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
