"""A small scene on disk for demonstrations and tests: photographs of a table, with their cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..scene import Scene
from ..write_scene import write_scene
from .batch import SyntheticConfig, sample_batch
from .scenes import KINDS, tabletop
from .textures import make_atlas

SEED = 22  # chosen by eye
CONFIG = SyntheticConfig(
    targets=0,
    kinds=tuple(float(kind is tabletop) for kind in KINDS),
    rigs=(1, 0, 0, 0, 0, 0),  # an arc
    baseline=(0.08, 0.1),
    fov=(50, 60),
    shadows=1.0,
    exposure=0.0,
    noise=0.004,
    world_scale=(1.0, 1.001),
)


def write_sample(folder: str | Path, *, views: int = 10, size: tuple[int, int] = (252, 336)) -> Path:
    """Write `views` photographs of `size` (H, W) and transforms.json; returns the path of the latter.

    Always the same scene, made on the CPU in some seconds.
    """
    atlas = make_atlas(SEED, 48)
    made = sample_batch(SEED, 1, views, size, atlas, config=CONFIG)
    photos = (made.images[0].permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).numpy()
    w2c, K = made.cameras.w2c[0].double().numpy(), made.cameras.K[0].double().numpy()
    # As one would take them: from one end of the arc to the other.
    centers = made.cameras.centers[0].double().numpy()
    _, _, axes = np.linalg.svd(centers - centers.mean(0), full_matrices=False)
    order = np.argsort(centers @ axes[0])
    scene = Scene(
        name="sample",
        root=Path(folder),
        names=tuple(f"{i:02d}.png" for i in range(views)),
        sizes=(size,) * views,
        load=lambda i: photos[order[i]],
        w2c=w2c[order],
        K=K[order],
    )
    return write_scene(scene, folder)
