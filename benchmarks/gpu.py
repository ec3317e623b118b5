"""What one GPU changes: the cut, capture from a 7 B model, dictionaries, scores of a monitor.

    python -m benchmarks.gpu [--quick] [--only cut capture llava sae monitor] [--docs]

Needs a CUDA device and says so where there is none. Prints and saves benchmarks/results/gpu.json (with --quick:
gpu-quick.json, small sizes that show that everything runs, not how fast) after each section; `--docs` writes the saved
numbers as docs/gpu-benchmark.md and runs nothing. Weights are random: times do not depend on them. What is compared
takes turns on the same device; times end with a synchronisation, and the first round of each is not counted.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vlascope as vs
from benchmarks import _spectral_data
from benchmarks._gpu_docs import write_page
from benchmarks._record import RESULTS, environment
from vlascope.files import write_json
from vlascope.items import Item, ItemSource
from vlascope.models import Model

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--docs", action="store_true", help="write docs/gpu-benchmark.md from saved results")
    args = parser.parse_args()
    path = RESULTS / ("gpu-quick.json" if args.quick else "gpu.json")
    if args.docs:
        print(f"wrote {write_page(path)}")
        return 0
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 2
    facts = environment() | {"device": torch.cuda.get_device_name()}
    saved = json.loads(path.read_text()) if path.exists() else {}
    for name in args.only:
        start = time.perf_counter()
        torch.cuda.reset_peak_memory_stats()
        found = SECTIONS[name](args.quick)
        found["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        print(f"\n== {name} ({time.perf_counter() - start:.0f} s)\n{json.dumps(found, indent=2)}", flush=True)
        saved[name] = {"environment": facts, "results": found}
        write_json(path, saved)
        torch.cuda.empty_cache()
    return 0


# --- cutting


def cut(quick: bool) -> Row:
    """A million tokens, against ncut_pytorch on the same device and against reading them once."""
    from benchmarks.spectral import _peer_ncut, _sigma
    from vlascope.spectral import NystromNCut, kway

    n, k = (50_000 if quick else 1_000_000), 20
    x_host = _spectral_data.mixture(n, 0)
    x = torch.from_numpy(x_host).cuda()
    sigma = _sigma(x_host[:20_000], 0.05)
    ways: dict[str, Callable[[], Any]] = {
        "vlascope": lambda: NystromNCut(k, scale=sigma).fit_transform(x),
        "ncut_pytorch": lambda: _peer_ncut(x, k, sigma, 0),
        "reading once": lambda: x.sum(),
    }
    secs = _in_turns(ways, rounds=5)
    eigvecs = ways["vlascope"]()
    one, two = (NystromNCut(k, scale=sigma).fit_transform(x[:12_000]).cpu() for _ in range(2))
    host = torch.as_tensor(NystromNCut(k, scale=sigma).fit_transform(x_host[:12_000]))
    return {
        "n": n,
        "d": x.shape[1],
        "n_eig": k,
        "secs": secs,
        "times_faster_than_peer": _ratio(secs, "ncut_pytorch", "vlascope"),
        "times_reading": _ratio(secs, "vlascope", "reading once"),
        "kway_10_secs": _in_turns({"kway": lambda: kway(eigvecs[:, :10], 10)}, rounds=3)["kway"],
        "same_bits_twice": bool(torch.equal(one, two)),
        "rms_sine_against_cpu": _rms_sine(one, host),
    }


def _rms_sine(found: torch.Tensor, exact: torch.Tensor) -> float:
    q, p = (torch.linalg.qr(values.double())[0] for values in (found, exact))
    return float((p - q @ (q.T @ p)).norm() / p.shape[1] ** 0.5)


# --- capturing


class Photos(ItemSource):
    """Noise pictures held in memory: reading them costs nothing."""

    name = "photos"

    def __init__(self, n_items: int, *, px: int, prompt: str | None = None) -> None:
        self.n_items, self.px, self.prompt = n_items, px, prompt
        draw = np.random.default_rng(0)
        self.pixels = [draw.integers(0, 256, (px, px, 3), np.uint8) for _ in range(8)]

    def __len__(self) -> int:
        return self.n_items

    def read(self, index: int) -> Item:
        return Item(item_id=f"{index:06d}", images=(self.pixels[index % 8],), prompt=self.prompt)

    def fingerprint(self) -> str:
        return f"photos-{self.n_items}-{self.px}-{self.prompt}"


def capture(quick: bool) -> Row:
    """A ViT-L in bfloat16: every layer, and one layer of four, from pictures in memory to a run on the disk."""
    from benchmarks.capture import as_pixels, tower

    width, n_layers, n_items, batch = (64, 4, 64, 16) if quick else (1024, 24, 512, 64)
    module, sites, grid = tower(width=width, n_layers=n_layers, image_px=224)
    module.to("cuda", torch.bfloat16)
    model = vs.wrap(module, sites=sites, layout=grid, preprocess=as_pixels, device="cuda")
    items = Photos(n_items, px=224)
    bytes_per_site = n_items * (grid.rows * grid.cols + 1) * width * 2
    few = [f"vision.{i}" for i in range(3, n_layers, 4)]
    pixels = torch.stack([as_pixels(items[i]) for i in range(batch)]).to("cuda", torch.bfloat16)
    return {
        "width": width,
        "n_layers": n_layers,
        "n_items": n_items,
        "batch_size": batch,
    } | _captures(
        model, items, batch, {"all": list(sites), "few": few}, bytes_per_site, lambda: module(pixels)
    )


def llava(quick: bool) -> Row:
    """LLaVA-1.5 7 B, random weights in bfloat16: capture, an answer, an edit, its memory."""
    model, n_layers = big_llava(quick)
    n_items, batch = (8, 4) if quick else (64, 8)
    items = Photos(n_items, px=model.module.config.vision_config.image_size, prompt="pick up the red object")
    prepared = model.prepare([items[i] for i in range(batch)])
    site = f"language.{n_layers // 2}"
    rows = model.capture(prepared, [site])[site]
    few = [f"language.{i}" for i in range(0, n_layers, 8)]
    width = rows[0].shape[1]
    found = {
        "parameters": model.n_parameters,
        "n_items": n_items,
        "batch_size": batch,
        "tokens_per_item": len(rows[0]),
    }
    found |= _captures(
        model,
        items,
        batch,
        {"few": few, "all": [f"language.{i}" for i in range(n_layers)]},
        n_items * len(rows[0]) * width * 2,
        lambda: model.module.get_submodule("model")(**prepared.inputs, use_cache=False),
    )

    def last() -> torch.Tensor:
        return model.capture(prepared, [f"language.{n_layers - 1}"])[f"language.{n_layers - 1}"][0].clone()

    plain = last()
    with model.edit(site, lambda x: x):
        same = last()
    with model.edit(site, lambda x: x * 1.25, tokens=lambda layout: layout.is_kind("patch")):
        changed = last()
    found["edit_that_returns_its_input_changes_a_bit"] = not torch.equal(plain, same)
    found["edit_of_patches_moves_the_last_layer"] = float(
        (changed - plain).float().norm() / plain.float().norm()
    )
    answer = _in_turns({"answer": lambda: model.respond(prepared, max_new_tokens=7)}, rounds=3)["answer"]
    found["answers_of_7_tokens_per_sec"] = round(batch / statistics.median(answer), 2)
    return found


def big_llava(quick: bool) -> tuple[Model, int]:
    """LLaVA-1.5 7 B (or a tenth of its width) with random weights, made on the device, and a tokenizer of words."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from tests.models import tiny

    n_layers, width, heads = (4, 256, 4) if quick else (32, 4096, 32)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128 if quick else 1024,
            intermediate_size=512 if quick else 4096,
            num_hidden_layers=4 if quick else 24,
            num_attention_heads=4 if quick else 16,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 11008 // 4096,
            num_hidden_layers=n_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=32064,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_id=4,
        vision_feature_layer=-2,
    )
    config.vlascope_prompt = "<image> In: {prompt} Out:"
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            module = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(kind)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        tokenizer=tiny.tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return vs.load(module, processor=processor, device="cuda"), n_layers


def _captures(
    model: Model,
    items: Photos,
    batch: int,
    chosen: Mapping[str, list[str]],
    bytes_per_site: int,
    forward: Callable[[], Any],
) -> Row:
    """Time the bare loop of `forward` (one prepared batch) and whole captures of each choice of sites, in turns."""
    with tempfile.TemporaryDirectory(prefix="vlascope-gpu-") as folder:
        out = Path(folder) / "run"

        def bare() -> None:
            with torch.no_grad():
                for _ in range(0, len(items), batch):
                    forward()

        def whole(sites: list[str]) -> None:
            vs.capture(
                model,
                items,
                sites=sites,
                out=out,
                batch_size=batch,
                dtype="bfloat16",
                respond=False,
                quiet=True,
            )

        ways: dict[str, Callable[[], Any]] = {"bare forward loop": bare}
        ways |= {name: functools.partial(whole, sites) for name, sites in chosen.items()}
        secs = _in_turns(ways, rounds=3, after=lambda: shutil.rmtree(out, ignore_errors=True))
        disk = _disk_gb_per_sec(Path(folder), 2 << 30)
    found: Row = {"secs": secs, "disk_gb_per_sec": disk}
    for name, sites in chosen.items():
        middle, gb = statistics.median(secs[name]), bytes_per_site * len(sites) / 1e9
        limit = max(statistics.median(secs["bare forward loop"]), gb / disk)
        found[name] = {
            "n_sites": len(sites),
            "stored_gb": round(gb, 2),
            "items_per_sec": round(len(items) / middle, 1),
            "gb_per_sec": round(gb / middle, 2),
            "share_of_bare_loop": _ratio(secs, "bare forward loop", name),
            "share_of_the_limit": round(limit / middle, 3),  # the slower of forward pass and plain writing
        }
    return found


def _disk_gb_per_sec(folder: Path, n_bytes: int) -> float:
    """Return how fast one thread writes a plain file there until it is on the disk, as a capture ends, too."""
    piece = np.random.default_rng(0).bytes(1 << 26)
    start = time.perf_counter()
    with open(folder / "plain", "wb") as handle:
        for _ in range(n_bytes >> 26):
            handle.write(piece)
        handle.flush()
        os.fsync(handle.fileno())
    took = time.perf_counter() - start
    (folder / "plain").unlink()
    return round(n_bytes / 1e9 / took, 2)


# --- dictionaries


def sae(quick: bool) -> Row:
    """Training at the width of a 7 B language model: bfloat16 and float32 search, and dense matrices."""
    from benchmarks import sae as on_cpu
    from benchmarks._sae_peers import Bussmann, Dense, Ours

    d, n, k, batch, steps = (256, 2048, 16, 2048, 30) if quick else (4096, 32768, 32, 8192, 60)
    levels = (64, 256, 1024, 4096, n) if n > 4096 else (64, 256, 1024, n)
    _, draw = on_cpu.planted(1024, d, 12, zipf=0.6, noise=0.02)
    train = torch.cat([draw(batch) for _ in range(8)]).cuda()
    held = draw(batch).cuda()
    mean = train.mean(0)
    scale = (train - mean).square().mean().sqrt()
    train, held = (train - mean) / scale, (held - mean) / scale
    shape = {"d": d, "n": n, "k": k, "levels": levels, "n_steps": steps, "batch": batch, "sample": train}
    lr = 3 * on_cpu.usual_rate(n)
    found: Row = {"d": d, "latents": n, "k": k, "batch": batch, "steps": steps}
    makers: dict[str, Callable[[], Any]] = {
        "vlascope, bfloat16 search": lambda: Ours(**shape, lr=lr, precision="bfloat16"),
        "vlascope, float32": lambda: Ours(**shape, lr=lr),
        "dense, float32": lambda: Dense(**shape, lr=lr),
        "dense over the batch, float32": lambda: Bussmann(**shape, lr=lr),
    }
    for name, make in makers.items():
        system = make()
        order = torch.Generator().manual_seed(1)
        secs = []
        for _ in range(steps):
            x = train[torch.randint(0, len(train), (batch,), generator=order).cuda()]
            torch.cuda.synchronize()
            start = time.perf_counter()
            system.step(x)
            torch.cuda.synchronize()
            secs.append(time.perf_counter() - start)
        found[name] = {
            "tokens_per_sec": round(batch / statistics.median(secs[5:])),
            "held_out_fvu": system.fvu(held),
            "l0": system.n_active(held),
        }
        del system
        torch.cuda.empty_cache()
    ours = found["vlascope, bfloat16 search"]["tokens_per_sec"]
    found["times_faster_than_dense"] = round(ours / found["dense, float32"]["tokens_per_sec"], 2)
    return found


# --- a monitor


def monitor(quick: bool) -> Row:
    """Reconstruction errors of tokens on the device, beside the encoder's product alone."""
    from vlascope.sae import MatryoshkaSAE, SAEConfig
    from vlascope.sae.errors import reconstruction_errors

    d, n_latents, n = (256, 2048, 20_000) if quick else (4096, 32768, 200_000)
    sae = MatryoshkaSAE(SAEConfig(d_in=d, n_latents=n_latents, k=32)).cuda()
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).cuda()
    weight = sae.encoder.detach().t()

    def product() -> None:
        for at in range(0, n, 8192):
            x[at : at + 8192] @ weight

    secs = _in_turns({"product": product, "errors": lambda: reconstruction_errors(sae, x)}, rounds=5)
    return {
        "d": d,
        "latents": n_latents,
        "tokens": n,
        "secs": secs,
        "tokens_per_sec": round(n / statistics.median(secs["errors"])),
        "share_of_the_product_rate": _ratio(secs, "product", "errors"),
    }


def _in_turns(
    ways: Mapping[str, Callable[[], Any]], *, rounds: int, after: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Time each way once per round, and a first round that does not count; `after` cleans up, untimed."""
    secs: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            torch.cuda.synchronize()
            if turn:  # the first round warms up
                secs[name].append(round(time.perf_counter() - start, 5))
            after()
    return secs


def _ratio(secs: dict[str, list[float]], of: str, to: str) -> float:
    return round(statistics.median(x / y for x, y in zip(secs[of], secs[to], strict=True)), 3)


SECTIONS: dict[str, Callable[[bool], Row]] = {
    "cut": cut,
    "capture": capture,
    "llava": llava,
    "sae": sae,
    "monitor": monitor,
}

if __name__ == "__main__":
    sys.exit(main())
