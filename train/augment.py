"""Changes to the photos of a scene, the same for all its views, with cameras and depth moved along.

Photos are uint8 [H, W, 3] until they are a batch on the training device, which develops them: a GPU gets a quarter of
the bytes so, and the CPU decodes and nothing else. Sizes are (height, width); K is in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.images import center_window, cover_size, resize_array

NEAR_ENOUGH = 1.02  # how much larger a photo may be than what is needed, to be taken as it is


@dataclass(frozen=True)
class Augmentation:
    """How much a scene may be changed; `Augmentation(mirror=0, gamma=1, gain=0)` changes nothing."""

    mirror: float = 0.5  # share of scenes that are mirrored left to right
    zoom: float = 1.0  # photos are enlarged by a factor from 1 to this before the window is cut
    # Moves the principal point, which networks that take the field of view alone (all published ones) cannot be told.
    shift: float = 0.0  # how far the window may lie off the centre, from 0 to 1 = the border of the photo
    gamma: float = 1.25  # brightness to a power from 1 / gamma to gamma
    gain: float = 0.15  # each colour channel times 1 - gain to 1 + gain

    def __post_init__(self):
        if not (0 <= self.mirror <= 1 and 0 <= self.shift <= 1 and 0 <= self.gain < 1):
            raise ValueError("mirror and shift must lie in 0..1, gain in 0 to below 1")
        if min(self.zoom, self.gamma) < 1:
            raise ValueError(f"zoom and gamma must be 1 or more, got {self.zoom} and {self.gamma}")


@dataclass(frozen=True)
class Drawn:
    """One scene's share of an `Augmentation`."""

    mirrored: bool
    zoom: float
    shift: tuple[float, float]  # down and right, -1..1
    gamma: float
    gain: tuple[float, float, float]


@dataclass(frozen=True)
class Placement:
    """A photo of size `old` is resampled to `new`; the window of `size` at (`top`, `left`) is the picture."""

    old: tuple[int, int]
    new: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]

    def photo(self, resampled: np.ndarray) -> np.ndarray:
        """[new H, new W, ...] to [H, W, ...]."""
        return resampled[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """A depth map [h, w] of the whole photo, at any size, to [H, W]; values are picked, never mixed."""
        rows = ((np.arange(self.size[0]) + self.top + 0.5) * (depth.shape[0] / self.new[0])).astype(np.int64)
        columns = ((np.arange(self.size[1]) + self.left + 0.5) * (depth.shape[1] / self.new[1])).astype(np.int64)
        return depth[np.ix_(rows, columns)]

    def K(self, K: np.ndarray) -> np.ndarray:
        """Intrinsics [3, 3] of the photo to those of the picture."""
        moved = np.diag([self.new[1] / self.old[1], self.new[0] / self.old[0], 1.0]) @ K
        moved[:2, 2] -= (self.left, self.top)
        return moved


def draw(augmentation: Augmentation, rng: np.random.Generator) -> Drawn:
    a = augmentation
    return Drawn(
        mirrored=bool(rng.random() < a.mirror),
        zoom=float(rng.uniform(1, a.zoom)),
        shift=tuple(rng.uniform(-a.shift, a.shift, 2).tolist()),
        gamma=float(a.gamma ** rng.uniform(-1, 1)),
        gain=tuple(rng.uniform(1 - a.gain, 1 + a.gain, 3).tolist()),
    )


def place(old: tuple[int, int], size: tuple[int, int], drawn: Drawn) -> Placement:
    """Where the picture of `size` lies in a photo of size `old`.

    A photo that is hardly larger than needed is not resampled, nor one whose half, quarter or eighth is, at which a
    JPEG decodes: the window is cut from that. So the picture is sharper, and made in half the time.
    """
    new = cover_size(old, tuple(int(np.ceil(side * drawn.zoom)) for side in size))
    for halved in (1, 2, 4, 8):
        reduced = (old[0] // halved, old[1] // halved)
        divides = reduced[0] * halved == old[0] and reduced[1] * halved == old[1]
        if divides and all(n <= r <= NEAR_ENOUGH * n for n, r in zip(new, reduced)):
            new = reduced
            break
    corner = []
    for middle, whole, side, shift in zip(center_window(new, size), new, size, drawn.shift):
        room = whole - side
        corner.append(min(max(round(middle + shift * room / 2), 0), room))
    return Placement(tuple(old), new, *corner, tuple(size))


def resample(photo: np.ndarray, placement: Placement) -> np.ndarray:
    return resize_array(photo, placement.new)


def tone_table(drawn: Drawn) -> np.ndarray:
    """[256, 3] float32: what each byte of a colour channel becomes under the scene's gamma and gain, in [0, 1]."""
    value = np.linspace(0, 1, 256)[:, None] ** drawn.gamma
    return (value * drawn.gain).clip(0, 1).astype(np.float32)


def develop(pictures: Tensor, drawn: Sequence[Drawn]) -> Tensor:
    """uint8 [B, V, H, W, 3] to float32 [B, V, 3, H, W] on the same device: each scene's tones, and mirrored if it is.

    On a CPU a look-up is nine times as fast as to compute every pixel. The result lies with the channels last.
    """
    tables = np.stack([tone_table(each) for each in drawn])
    if pictures.device.type == "cpu":
        images = torch.from_numpy(_develop_on_cpu(pictures.numpy(), tables, drawn))
    else:
        mirrored = torch.tensor([each.mirrored for each in drawn], device=pictures.device)
        images = look_up(pictures, torch.from_numpy(tables).to(pictures.device), mirrored)
    return images.movedim(-1, -3)


def _develop_on_cpu(pictures: np.ndarray, tables: np.ndarray, drawn: Sequence[Drawn]) -> np.ndarray:
    import cv2

    images = np.empty(pictures.shape, np.float32)
    rows = (-1, *pictures.shape[-2:])  # the views of a scene below each other
    for scene, table, each, image in zip(pictures, tables, drawn, images):
        seen = scene.reshape(rows)
        cv2.LUT(cv2.flip(seen, 1) if each.mirrored else seen, table[None], dst=image.reshape(rows))
    return images


def look_up(pictures: Tensor, tables: Tensor, mirrored: Tensor) -> Tensor:
    """What `develop` does, on any device: uint8 [B, V, H, W, 3] through tables [B, 256, 3]; `mirrored` [B] is bool."""
    pictures = torch.where(mirrored.view(-1, 1, 1, 1, 1), pictures.flip(-2), pictures)
    scene = torch.arange(len(tables), device=tables.device).view(-1, 1, 1, 1, 1)
    return tables[scene, pictures.long(), torch.arange(3, device=tables.device)]


def mirror(cameras: Cameras) -> Cameras:
    """Cameras of the mirrored world whose pictures are the given ones flipped left to right."""
    # Mirroring x in the world and in every camera leaves the cameras rigid.
    sign = torch.ones(4, 4, dtype=cameras.w2c.dtype, device=cameras.w2c.device)
    sign[0, 1:], sign[1:, 0] = -1, -1
    K = cameras.K.clone()
    K[..., 0, 2] = cameras.size[1] - K[..., 0, 2]
    return Cameras(cameras.w2c * sign, K, cameras.size)
