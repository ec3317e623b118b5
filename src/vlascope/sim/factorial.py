"""The decorrelated image set: every combination of factors equally often, so that none predicts another.

Image i shows a target whose colour, material, being held or not, side of the table, number of neighbours and
table texture are the digits of i in a mixed base. Any 8 images in a row hold each colour x material once, and
`N_COMBINATIONS` in a row hold every combination of all factors once.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from vlascope.errors import InputError, RunExistsError, RunVersionError
from vlascope.files import read_json, storage_errors, write_atomic, write_json
from vlascope.processes import script_left_alone
from vlascope.progress import progress
from vlascope.sim.expert import grasp_z
from vlascope.sim.language import COLOURS, MATERIALS
from vlascope.sim.record import check_image_px, mask_names
from vlascope.sim.scene import TRAIN_TABLES, Scene, sample_scene
from vlascope.sim.world import OPEN_M, SEG_OBJECT, Observation, State, TableTop

MAX_IMAGES = 12_000
SCHEMA_VERSION = 1
SHARD_IMAGES = 96

SIDES = ("left", "right")
FACTORS: dict[str, tuple[Any, ...]] = {
    "colour": COLOURS,
    "material": MATERIALS,
    "held": (False, True),
    "side": SIDES,
    "n_objects": (2, 3, 4),
    "table": TRAIN_TABLES,
}
N_KINDS = len(COLOURS) * len(MATERIALS)
N_COMBINATIONS = int(np.prod([len(values) for values in FACTORS.values()]))

_MIN_TARGET_PX_AT_112 = 60  # the hand may not hide the target


@dataclass(frozen=True, kw_only=True)
class _Job:
    out: Path
    shard: int
    first: int
    n_images: int
    image_px: int
    seed: int


def record_factorial(
    out: Path | str,
    *,
    n_images: int = 1200,
    image_px: int = 384,
    processes: int = 2,
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """Render the decorrelated set and return its folder; run again with the same settings to resume.

    Layout: `images/000000.png`, `masks/000000.png` (8 bit, ids named in the index), `index.parquet` (one row per
    image: factors, physical parameters, positions, visible pixels), `factorial.json` (settings).

    Args:
        out: Folder to make, or to go on with.
        n_images: A multiple of 8, at most 12,000; of `N_COMBINATIONS` for exact balance over all factors.
        image_px: Side of the pictures.
        processes: Worker processes; the result does not depend on their number.
        seed: Image i depends on (seed, i) only.
        quiet: No progress bar.

    Raises:
        InputError: A count or size out of range.
        RunExistsError: The folder holds a set with other settings, or other files.
        RunVersionError: It was written by a newer vlascope.
        StorageError: It cannot be written.
        MissingExtraError: PyBullet is not installed.

    Cost: 70 ms of one core's time per image at 384 px.
    """
    if not 1 <= n_images <= MAX_IMAGES or n_images % N_KINDS:
        raise InputError(
            f"got n_images = {n_images}; need a multiple of {N_KINDS} (so that every colour x material has equal "
            f"counts) from {N_KINDS} to {MAX_IMAGES}."
        )
    if processes < 1:
        raise InputError(f"got processes = {processes}; need at least 1.")
    check_image_px(image_px)
    TableTop(image_px=image_px).close()  # a missing extra is reported before any file is made
    out = Path(out)
    settings = {"schema_version": SCHEMA_VERSION, "n_images": n_images, "image_px": image_px, "seed": seed}
    _open_folder(out, settings)
    jobs = [
        _Job(
            out=out,
            shard=shard,
            first=first,
            n_images=min(SHARD_IMAGES, n_images - first),
            image_px=image_px,
            seed=seed,
        )
        for shard, first in enumerate(range(0, n_images, SHARD_IMAGES))
    ]
    missing = [job for job in jobs if not _part_path(job).exists()]
    _run(missing, processes=processes, quiet=quiet)
    _join_parts(out, jobs)
    return out


def factors_of(index: int) -> dict[str, Any]:
    """The factors of image `index`: its digits in the mixed base of `FACTORS`."""
    found = {}
    for name, values in FACTORS.items():
        index, digit = divmod(index, len(values))
        found[name] = values[digit]
    return found


def _open_folder(out: Path, settings: dict[str, Any]) -> None:
    path = out / "factorial.json"
    if path.exists():
        found = read_json(path)
        if found.get("schema_version", 0) > SCHEMA_VERSION:
            raise RunVersionError(
                f"'{out}' has schema version {found['schema_version']}; this vlascope reads up to {SCHEMA_VERSION}. "
                f"Upgrade vlascope or choose another folder."
            )
        differing = [k for k in settings if found.get(k) != settings[k]]
        if differing:
            told = ", ".join(f"{k} = {found.get(k)} (asked for: {settings[k]})" for k in differing)
            raise RunExistsError(
                f"'{out}' holds a set with {told}; use those settings or choose another folder."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunExistsError(f"'{out}' exists and is no factorial set; choose another folder.")
    write_json(path, settings)


def _run(jobs: list[_Job], *, processes: int, quiet: bool) -> None:
    if processes == 1 or len(jobs) <= 1:
        for job in progress(jobs, desc="render", unit="shard", quiet=quiet):
            _write_shard(job)
        return
    with script_left_alone():
        workers = multiprocessing.get_context("spawn").Pool(min(processes, len(jobs)))
    with workers as pool:
        finished = pool.imap_unordered(_write_shard, jobs)
        for _ in progress(finished, desc="render", total=len(jobs), unit="shard", quiet=quiet):
            pass


def _write_shard(job: _Job) -> None:
    """Render one shard; its part of the index is written last and marks it complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    with TableTop(image_px=job.image_px) as world:
        for index in range(job.first, job.first + job.n_images):
            scene, state, seen = _image(world, index, seed=job.seed)
            for folder, pixels in (("images", seen.rgb), ("masks", seen.segmentation)):
                with storage_errors(job.out):
                    (job.out / folder).mkdir(exist_ok=True)
                    (job.out / folder / f"{index:06d}.png").write_bytes(_png(pixels))
            rows.append(_row(index, scene, state, seen, seed=job.seed))
    write_atomic(_part_path(job), lambda handle: pq.write_table(pa.Table.from_pylist(rows), handle))


def _image(world: TableTop, index: int, *, seed: int) -> tuple[Scene, State, Observation]:
    """Scene, state and picture of image `index`; drawn again until the target (object 0) is on its side, visible."""
    factors = factors_of(index)
    rng = np.random.default_rng([seed, index])
    least = _MIN_TARGET_PX_AT_112 * (world.image_px / 112) ** 2
    while True:
        scene = sample_scene(rng, kinds=_kinds(rng, factors), table=factors["table"])
        state = _arrange(world, scene, rng, held=factors["held"])
        y = state.object_xyz[0, 1]
        if (y < -0.02 and factors["side"] == "left") or (y > 0.02 and factors["side"] == "right"):
            seen = world.observe()
            if np.count_nonzero(seen.segmentation == SEG_OBJECT) >= least:
                return scene, state, seen


def _kinds(rng: np.random.Generator, factors: dict[str, Any]) -> list[tuple[str, str]]:
    """The target first, then neighbours drawn from the kinds that are not yet there."""
    kinds = [(factors["colour"], factors["material"])]
    rest = [(c, m) for c in COLOURS for m in MATERIALS if (c, m) != kinds[0]]
    order = rng.permutation(len(rest))[: factors["n_objects"] - 1]
    return kinds + [rest[i] for i in order]


def _arrange(world: TableTop, scene: Scene, rng: np.random.Generator, *, held: bool) -> State:
    world.reset(scene, move_hand=False)
    spec = scene.objects[0]
    if held:
        hand = np.array([rng.uniform(0.42, 0.60), rng.uniform(-0.13, 0.13), rng.uniform(0.145, 0.19)])
        world.place_hand(hand, finger_gap=0.076, is_open=False)
        in_hand = np.array([rng.uniform(-0.008, 0.008), 0.0, spec.height / 2 - grasp_z(spec.height)])
        world.place_object(0, world.state().gripper_xyz + in_hand)
    else:
        hand = np.array([rng.uniform(0.40, 0.56), rng.uniform(-0.13, 0.13), rng.uniform(0.13, 0.19)])
        world.place_hand(hand, finger_gap=2 * OPEN_M, is_open=True)
    return world.state()


def _row(index: int, scene: Scene, state: State, seen: Observation, *, seed: int) -> dict[str, Any]:
    spec = scene.objects[0]
    counts = np.bincount(seen.segmentation.reshape(-1), minlength=SEG_OBJECT + len(scene.objects))
    names = mask_names(scene)
    return {
        "index": index,
        "image": f"images/{index:06d}.png",
        "mask": f"masks/{index:06d}.png",
        **factors_of(index),
        "mass": spec.mass,
        "friction": spec.friction,
        "stiffness": spec.stiffness,
        "target_xyz": [float(v) for v in state.object_xyz[0]],
        "gripper_xyz": [float(v) for v in state.gripper_xyz],
        "gripper_open": bool(state.gripper_open),
        "target_pixels": int(counts[SEG_OBJECT]),
        "mask_ids": list(names),
        "mask_names": list(names.values()),
        "mask_pixels": [int(counts[i]) for i in names],
        "objects": [dataclasses.asdict(o) for o in scene.objects],
        "seed": seed,
    }


def _join_parts(out: Path, jobs: list[_Job]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage_errors(out):
        table = pa.concat_tables([pq.read_table(_part_path(job)) for job in jobs])
    write_atomic(out / "index.parquet", lambda handle: pq.write_table(table, handle))


def _part_path(job: _Job) -> Path:
    return job.out / "parts" / f"{job.shard:05d}.parquet"


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
