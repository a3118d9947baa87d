"""Procedural scenes (geometry/synthetic) as a source of training samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from geometry.synthetic import LENS_FOV, SyntheticConfig, in_the_wild, make_atlas, sample_batch
from train.augment import mirror
from train.batch import Batch, Shape, sample_seed

# Pairs of views are turned by 24 degrees at the median, in place of 8.
WIDE = {"rigs": (8.0, 0.0, 0.5, 0.0, 2.0, 0.0), "baseline": (0.35, 1.2)}
# Fields of view in a scene differ up to fourfold; some scenes are seen through one very short lens, as rooms are.
LENSES = {"lenses": 0.7, "fov": LENS_FOV}


class SyntheticSource:
    """Scenes made on the training device; draws are kept for the steps that share them, so use one thread.

    `draws` is how many a step takes turns on: one for each batch that this process computes in a step.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        textures: int = 512,
        photos: Path | None = None,
        seed: int = 0,
        draws: int = 1,
    ):
        self.device = device
        self.config = SyntheticConfig()
        self.atlas = make_atlas(seed, textures, device=device, photos=photos)
        self.draws = draws
        self.drawn: dict[tuple[int, Shape], Batch] = {}  # the latest last

    @torch.no_grad()
    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        """Turns 0 and 1 are halves of one draw of scenes; later turns show them with other views as inputs, mirrored.

        Casting a scene costs as much as a training step on it, and a small draw costs as much as a large one.
        """
        drawn = self.drawn.pop((seed, shape), None)
        if drawn is None:
            while len(self.drawn) >= self.draws:
                del self.drawn[next(iter(self.drawn))]
            drawn = self.draw(seed, shape)
        self.drawn[seed, shape] = drawn
        half = slice(shape.scenes * (turn % 2), shape.scenes * (turn % 2 + 1))
        count = shape.context + shape.targets
        order = list(range(count))
        if turn >= 2:
            np.random.default_rng([seed, turn]).shuffle(order)
        images, cameras = drawn.images[half][:, order], drawn.cameras[half][:, order]
        depth, valid = drawn.depth[half][:, order], drawn.valid[half][:, order]
        if turn // 2 % 2 == 1:
            images, depth, valid, cameras = images.flip(-1), depth.flip(-1), valid.flip(-1), mirror(cameras)
        if shape.wild:
            own_seed = sample_seed(seed, "wild", turn)
            images, depth, valid = in_the_wild(own_seed, images, depth, valid, shape.context, self.atlas)
        return Batch(images, cameras, depth, valid, shape.context, drawn.names[half])

    def draw(self, seed: int, shape: Shape) -> Batch:
        """Twice as many scenes as a batch of `shape` has."""
        scenes, count = 2 * shape.scenes, shape.context + shape.targets
        kind = (WIDE if shape.wide else {}) | (LENSES if shape.lenses else {})
        config = replace(self.config, targets=shape.targets, **kind)
        made = sample_batch(seed, scenes, count, shape.size, self.atlas, self.device, config)
        # The sky has no surface but it is far away, and Gaussians there should be too.
        far = 2 * made.depth.amax((1, 2, 3), keepdim=True)
        names = tuple(f"synthetic/{seed}/{i}" for i in range(scenes))
        depth = torch.where(made.valid, made.depth, far)
        return Batch(made.images, made.cameras, depth, made.valid, shape.context, names)
