"""What each family of models can do, found out by doing it on the tiny models of the tests: docs/families.md.

    python -m benchmarks.families            # write the page
    python -m benchmarks.families --check    # exit 1 when the page is not up to date

Nothing in the table is declared: each tick is a thing that was tried on a model of the real class with random
weights (on a stand-in with the same modules where the class is not part of transformers).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vlascope.errors import VlascopeError
from vlascope.items.item import Item
from vlascope.models import Model, families

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
COLUMNS = (
    "sites",
    "q, k, v",
    "heads",
    "attention weights",
    "edits",
    "text",
    "answers",
    "actions",
    "crops",
    "cameras",
)
CROP_PX = (61, 97)
HAND_OVER = "how-to/own-model.md#a-policy-of-lerobot-or-openpi"

HEAD = """# Families of models

A family says how to load, preprocess and prompt a model, where its sites are, and what each token is. What is not
in this table goes through [`vs.wrap`](how-to/own-model.md).

This page is written by `python -m benchmarks.families`: every tick was tried on a tiny model of the real class, or on
a stand-in with the same modules where the class comes with another library (marked *).
"""

LEGEND = """
| column | means |
|---|---|
| sites | every named site fires, and its layout has one entry per token |
| q, k, v; heads | sites `.q`, `.k`, `.v` of each block; single heads such as `language.4.q.h3` |
| attention weights | `model.attention(items, SITE)` gives them for every block; (✓) for some blocks |
| edits | an edit that returns its input changes no bit; another one reaches the last site |
| text, answers | another prompt changes what is computed; `model.respond(items)` answers in words or tokens |
| actions | answers hold an action in the units of the training data, or a chunk of them |
| crops | an image is shown in several tiles, each token says in which |
| cameras | several images of one item are read together |

Blocks that attend inside windows, or together with another stack of blocks, have no matrix of weights of their own;
asking for it is an error that says so.
"""


def tiny_models() -> dict[str, tuple[Callable[[], Model], bool]]:
    """Return for each row (family, or family: variant) what makes its tiny model, and whether it is a stand-in."""
    from tests.models import tiny

    sys.modules.setdefault("tiny_models", tiny)
    from tests.models.families import (
        test_cnn,
        test_flow_standins,
        test_idefics3,
        test_llava_next,
        test_openvla,
        test_paligemma,
        test_pi0,
        test_qwen_vl,
        test_sam,
        test_text_lm,
        test_timm_models,
        test_video,
        test_vit,
    )
    from vlascope.models import Grid, load, wrap

    def small() -> Model:
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, stride=4), torch.nn.Conv2d(4, 5, 1))
        return wrap(net, sites=["0", "1"], layout=Grid(15, 24, channels_first=True))

    n_words = tiny.N_WORDS + tiny.N_BINS
    return {
        "clip": (lambda: load(tiny.clip(), processor=tiny.tokenizer()), False),
        "cnn": (lambda: test_cnn.tiny("convnext"), False),
        "dino": (lambda: test_vit.tiny("dinov3"), False),
        "idefics3": (test_idefics3.model, False),
        "llava": (lambda: load(tiny.llava(), processor=tiny.llava_processor()), False),
        "llava-next": (test_llava_next.model, False),
        "mae": (lambda: test_vit.tiny("mae"), False),
        "openpi": (lambda: test_flow_standins._model("lerobot-pi0"), True),
        "openvla": (test_openvla._model, True),
        "paligemma": (test_paligemma.model, False),
        "pi0": (test_pi0._model, False),
        "qwen-vl": (lambda: test_qwen_vl.model("qwen3_vl"), False),
        "sam": (lambda: test_sam.tiny("sam"), False),
        "sam2": (lambda: test_sam.tiny("sam2"), False),
        "smolvla": (lambda: test_flow_standins._model("smolvla"), True),
        "text": (lambda: test_text_lm._model("llama", n_words), False),
        "timm": (lambda: test_timm_models.made(test_timm_models.VisionTransformer, n_registers=4), True),
        "video": (lambda: test_video.tiny("vjepa"), False),
        "vit": (lambda: test_vit.tiny("vit"), False),
        "wrapped": (small, False),
    }


def item(n_images: int, *, seed: int = 0) -> Item:
    """Return an item that every family can read: images of one size, a prompt and a state."""
    rng = np.random.default_rng(seed)
    images = tuple(rng.integers(0, 256, (*CROP_PX, 3), dtype=np.uint8) for _ in range(n_images))
    return Item(
        item_id=f"i{seed}",
        images=images,
        prompt="pick up the red object",
        cameras=tuple(f"camera {i}" for i in range(n_images)),
        state=np.array([0.25, 0.5, -0.5], np.float32),
    )


def measure(model: Model) -> dict[str, str]:
    """Return "yes", "some" or "" per column."""
    text_only = model.family == "text"
    one = item(0 if text_only else 1)
    batch = model.prepare([one])
    acts = model.capture(batch, "**")
    fires = all(len(v[0]) == len(batch.layouts[s.layout][0]) for s in model.sites for v in [acts[s.name]])
    tensors = {site.tensor for site in model.sites}
    replies = model.respond([one], max_new_tokens=4)
    crops = max(
        (len(set(x.tile[x.is_kind("patch")].tolist())) for per in batch.layouts.values() for x in per),
        default=0,
    )
    return {
        "sites": _tick(fires),
        "q, k, v": _tick({"q", "k", "v"} <= tensors),
        "heads": _tick(any(site.n_heads for site in model.sites)),
        "attention weights": _attention(model, one),
        "edits": _tick(_edits(model, one, acts)),
        "text": _tick(_reads(model, one, acts)),
        "answers": _tick(replies[0].text is not None),
        "actions": _tick(_acts(model, replies[0])),
        "crops": _tick(crops > 1 and model.family != "video"),
        "cameras": _tick(model.family not in ("text", "video") and _n_cameras(model) > 1),
    }


def table() -> str:
    """Return the table of all families.

    Raises:
        RuntimeError: a family has no row here.
    """
    makers = tiny_models()
    known = families()
    if set(makers) != set(known):
        raise RuntimeError(
            f"no row for {sorted(set(known) ^ set(makers))}: add it to benchmarks/families.py."
        )
    lines = [f"| family | {' | '.join(COLUMNS)} | such as |", "|---|" + ":-:|" * len(COLUMNS) + "---|"]
    for name, (make, is_standin) in makers.items():
        found = measure(make())
        ticks = " | ".join({"yes": "✓", "some": "(✓)"}.get(found[column], "") for column in COLUMNS)
        example = f"`{known[name].examples[0]}`" if known[name].examples else ""
        lines.append(f"| {name}{' *' if is_standin else ''} | {ticks} | {example} |")
    return "\n".join(lines)


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, table(), LEGEND, "## Each family\n"]
    for name, family in families().items():
        parts.append(f"**{name}**: {family.summary}.")
        if family.model_types:
            parts.append(f"Model types: {', '.join(f'`{t}`' for t in family.model_types)}.")
        if family.examples:
            parts.append(f"Checkpoints: {', '.join(f'`{e}`' for e in family.examples)}.")
        if family.handed_over:
            names = ", ".join(f"`{e}`" for e in family.handed_over)
            parts.append(
                f"Such as {names}: [how to hand them over](how-to/own-model.md#a-policy-of-lerobot-or-openpi)."
            )
        if family.notes:
            parts.append(family.notes)
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    args = parser.parse_args()
    new = page()
    if args.check:
        is_same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == new
        print("docs/families.md is up to date" if is_same else "docs/families.md is not up to date")
        return 0 if is_same else 1
    PAGE.write_text(new, encoding="utf-8")
    print(new)
    return 0


def _tick(is_true: bool) -> str:
    return "yes" if is_true else ""


def _attention(model: Model, one: Item) -> str:
    queries = [site.name for site in model.sites if site.tensor == "q"]
    n_good = 0
    for name in queries:
        try:
            (weights,) = model.attention([one], name)
        except VlascopeError:
            continue
        n_good += bool(torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-4))
    return "" if not n_good else "yes" if n_good == len(queries) else "some"


def _edits(model: Model, one: Item, before: dict[str, list[torch.Tensor]]) -> bool:
    first = model.sites[0].name
    tower = first.partition(".")[0] if model.family == "clip" else ""  # its text tower is a model of its own
    last = [site.name for site in model.sites if site.name.startswith(tower)][-1]
    with model.edit(first, lambda x: x.clone()):
        same = model.capture(model.prepare([one]), "**")
    with model.edit(first, lambda x: x.flip(-1) + 1):
        other = model.capture(model.prepare([one]), last)[last][0]
    return all(torch.equal(same[n][0], before[n][0]) for n in before) and not torch.equal(
        other, before[last][0]
    )


def _reads(model: Model, one: Item, before: dict[str, list[torch.Tensor]]) -> bool:
    after = model.capture(model.prepare([replace(one, prompt="pick up the blue object")]), "**")
    return any(not torch.equal(after[name][0], before[name][0]) for name in before)


def _acts(model: Model, reply) -> bool:
    # Random weights rarely answer with action tokens: what counts is that the model knows how to read them.
    return (
        reply.action_chunk is not None
        or reply.action is not None
        or getattr(model._family, "bins", None) is not None
    )


def _n_cameras(model: Model) -> int:
    """Return how many of three images end up in the tokens."""
    batch = model.prepare([replace(item(3), item_id="three")])
    return max(len(set(x.camera[x.is_kind("patch")].tolist())) for per in batch.layouts.values() for x in per)


if __name__ == "__main__":
    sys.exit(main())
