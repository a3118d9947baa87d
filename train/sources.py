"""Where training samples come from.

Every batch is a pure function of (seed, step, rank), so a resumed run sees what it would have seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.scene import Scene, open_scene, views
from geometry.synthetic import SyntheticConfig, make_atlas, sample_batch
from geometry.view_selection import pose_distance


@dataclass(frozen=True)
class Batch:
    """One step's scenes: the first `context` views are inputs, the others targets."""

    images: Tensor  # [B, V, 3, H, W] in [0, 1]
    cameras: Cameras  # [B, V], any frame and scale
    depth: Tensor | None  # [B, V, H, W] z-depth, 0 where unknown; the sky's is far away
    valid: Tensor | None  # [B, V, H, W] bool: a surface is seen here, at this depth
    context: int
    names: tuple[str, ...]  # one per scene, for error reports


@dataclass(frozen=True)
class Shape:
    """What a step asks of a source."""

    scenes: int
    context: int
    targets: int
    size: tuple[int, int]


class Source(Protocol):
    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        """The batch of a seed. Steps that share a seed take turns 0, 1, 2, ...; each turn gives another batch."""
        ...


def sample_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class SyntheticSource:
    """Procedural scenes, made on the training device (geometry/synthetic)."""

    def __init__(self, device: torch.device, *, textures: int = 512, photos: Path | None = None, seed: int = 0):
        self.device = device
        self.config = SyntheticConfig()
        self.atlas = make_atlas(seed, textures, device=device, photos=photos)
        self.drawn: tuple[tuple[int, Shape], Batch] | None = None

    @torch.no_grad()
    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        """Turns 0 and 1 are halves of one draw of scenes; later turns show them with other views as inputs, mirrored.

        Casting a scene costs as much as a training step on it, and a small draw costs as much as a large one.
        """
        if self.drawn is None or self.drawn[0] != (seed, shape):
            self.drawn = ((seed, shape), self.draw(seed, shape))
        drawn = self.drawn[1]
        half = slice(shape.scenes * (turn % 2), shape.scenes * (turn % 2 + 1))
        count = shape.context + shape.targets
        order = list(range(count))
        if turn >= 2:
            np.random.default_rng([seed, turn]).shuffle(order)
        images, cameras = drawn.images[half][:, order], drawn.cameras[half][:, order]
        depth, valid = drawn.depth[half][:, order], drawn.valid[half][:, order]
        if turn // 2 % 2 == 1:
            images, depth, valid, cameras = images.flip(-1), depth.flip(-1), valid.flip(-1), mirror(cameras)
        return Batch(images, cameras, depth, valid, shape.context, drawn.names[half])

    def draw(self, seed: int, shape: Shape) -> Batch:
        """Twice as many scenes as a batch of `shape` has."""
        scenes, count = 2 * shape.scenes, shape.context + shape.targets
        config = replace(self.config, targets=shape.targets)
        made = sample_batch(seed, scenes, count, shape.size, self.atlas, self.device, config)
        # The sky has no surface but it is far away, and Gaussians there should be too.
        far = 2 * made.depth.amax((1, 2, 3), keepdim=True)
        names = tuple(f"synthetic/{seed}/{i}" for i in range(scenes))
        depth = torch.where(made.valid, made.depth, far)
        return Batch(made.images, made.cameras, depth, made.valid, shape.context, names)


class SceneSource:
    """Windows of neighbouring views out of posed scenes on disk (any layout that `open_scene` reads)."""

    def __init__(self, root: Path, device: torch.device):
        folders = sorted(p for p in Path(root).iterdir() if p.is_dir())
        self.scenes = [open_scene(folder) for folder in folders]
        without = [scene.name for scene in self.scenes if scene.w2c is None]
        if not self.scenes or without:
            found = f"{without[0]} has no poses" if without else "there is none"
            raise ValueError(f"{root}: every sub-folder must be a posed scene, but {found}")
        self.device = device
        self.distances = [np.asarray(pose_distance(torch.as_tensor(scene.w2c))) for scene in self.scenes]
        self.cache: dict[tuple[int, tuple[int, int]], tuple[Tensor, Cameras]] = {}

    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        rng = np.random.default_rng([seed, turn])
        images, w2c, K, names = [], [], [], []
        for _ in range(shape.scenes):
            which = int(rng.integers(len(self.scenes)))
            chosen = window(self.distances[which], shape.context, shape.targets, rng)
            picture, cameras = self._load(which, shape.size)
            picture, cameras = augment(picture[chosen], cameras[chosen], rng)
            images.append(picture)
            w2c.append(cameras.w2c)
            K.append(cameras.K)
            names.append(f"{self.scenes[which].name}/{','.join(map(str, chosen))}")
        cameras = Cameras(torch.stack(w2c), torch.stack(K), shape.size)
        return Batch(torch.stack(images), cameras, None, None, shape.context, tuple(names))

    def _load(self, which: int, size: tuple[int, int]) -> tuple[Tensor, Cameras]:
        """All views of a scene at one size on the device, as bytes; kept, since a scene's 40 photos are small."""
        if (which, size) not in self.cache:
            scene: Scene = self.scenes[which]
            images, cameras = views(scene, list(range(len(scene.names))), size)
            stored = (images * 255).round().to(torch.uint8).to(self.device)
            self.cache[which, size] = (stored, cameras.to(self.device, torch.float32))
        return self.cache[which, size]


def window(distance: np.ndarray, context: int, targets: int, rng: np.random.Generator) -> list[int]:
    """Views of one random neighbourhood: `context` inputs, then `targets` among those that lie between them."""
    need = context + targets
    count = len(distance)
    if count < need:
        raise ValueError(f"a scene with {count} views cannot give {context} inputs and {targets} targets")
    spread = int(rng.integers(need, min(count, 2 * need + 2) + 1))
    nearest = np.argsort(distance[int(rng.integers(count))], kind="stable")[:spread]
    chosen = rng.choice(nearest, need, replace=False)
    inner = distance[np.ix_(chosen, chosen)].sum(1)
    order = np.argsort(-inner, kind="stable")
    inputs, between = chosen[order[:context]], chosen[order[context:]]
    return [*rng.permutation(inputs).tolist(), *rng.permutation(between).tolist()]


def augment(images: Tensor, cameras: Cameras, rng: np.random.Generator) -> tuple[Tensor, Cameras]:
    """Photos [V, 3, H, W] uint8 to floats, half of them mirrored (cameras too), with one tint for the whole scene."""
    images = images.float() / 255
    if rng.random() < 0.5:
        images, cameras = images.flip(-1), mirror(cameras)
    gamma, gain = rng.uniform(0.8, 1.25), rng.uniform(0.85, 1.15, (3, 1, 1))
    gain = torch.as_tensor(gain, dtype=images.dtype, device=images.device)
    return (images.clamp_min(1e-4) ** gamma * gain).clamp(0, 1), cameras


def mirror(cameras: Cameras) -> Cameras:
    """Cameras of the mirrored world whose pictures are the given ones flipped left to right."""
    # Mirroring x in the world and in every camera leaves the cameras rigid.
    sign = torch.ones(4, 4, dtype=cameras.w2c.dtype, device=cameras.w2c.device)
    sign[0, 1:], sign[1:, 0] = -1, -1
    K = cameras.K.clone()
    K[..., 0, 2] = cameras.size[1] - K[..., 0, 2]
    return Cameras(cameras.w2c * sign, K, cameras.size)
