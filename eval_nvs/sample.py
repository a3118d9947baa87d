"""Scenes for `--bench sample`: procedural, made on the spot, no download. They try the harness and rank nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from geometry.scene import Scene
from geometry.synthetic import SyntheticConfig, make_atlas, sample_batch
from geometry.synthetic.scenes import KINDS
from geometry.write_scene import write_scene

EDITION = "sample-1"  # changes with what is written, so that an old cache is not taken for the new scenes
VIEWS, SIZE = 16, (135, 240)  # half of the protocol's 270x480: some seconds a scene on two cores
TEXTURES = 16
SEEDS = {"shelf": 7, "tabletop": 22}  # kind of scene to its seed, chosen by eye
CONFIG = SyntheticConfig(
    targets=0,
    boxes=28,
    rounds=11,
    panels=14,
    steps=6,
    rigs=(1, 0, 0, 0, 0, 0),  # an arc
    baseline=(0.05, 0.06),
    fov=(55, 60),
    shadows=0.0,
    exposure=0.0,
    noise=0.0,
    world_scale=(1.0, 1.001),
)


def write_samples(root: Path | None = None) -> dict[str, Path]:
    """Name to folder of the sample scenes below `root` (default: the user's cache); those not there yet are made.

    Several processes may call it at once: each scene appears whole, by whoever is first.
    """
    root = cache() if root is None else Path(root)
    folders = {name: root / EDITION / name for name in sorted(SEEDS)}
    todo = [name for name, folder in folders.items() if not (folder / "transforms.json").is_file()]
    for name in tqdm(todo, desc="making sample scenes", unit="scene", disable=not todo):
        folders[name].parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folders[name].parent))
        try:
            write_scene(make_scene(name), temporary)
            os.rename(temporary, folders[name])
        except OSError:
            if not (folders[name] / "transforms.json").is_file():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folders


def make_scene(name: str) -> Scene:
    """The sample scene of this name, in memory; always the same on one machine."""
    seed, kinds = SEEDS[name], tuple(float(kind.__name__ == name) for kind in KINDS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # no slower on small pictures, and on a busy machine ten times faster
    try:
        made = sample_batch(seed, 1, VIEWS, SIZE, make_atlas(seed, TEXTURES), config=replace(CONFIG, kinds=kinds))
    finally:
        torch.set_num_threads(threads)
    photos = (made.images[0].permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).numpy()
    # As one would take them: from one end of the arc to the other.
    centers = made.cameras.centers[0].double().numpy()
    axes = np.linalg.svd(centers - centers.mean(0), full_matrices=False)[2]
    order = np.argsort(centers @ axes[0])
    return Scene(
        name=name,
        root=Path(name),
        names=tuple(f"{i:02d}.png" for i in range(VIEWS)),
        sizes=(SIZE,) * VIEWS,
        load=lambda i: photos[order[i]],
        w2c=made.cameras.w2c[0].double().numpy()[order],
        K=made.cameras.K[0].double().numpy()[order],
    )


def cache() -> Path:
    """The folder for what this program makes and can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raysplat"
