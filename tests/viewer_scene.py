"""A small scene for the tests of the viewer: a coloured wall, three cameras before it, and what they see."""

import math

import numpy as np
import torch

from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from splat.reconstruct import Reconstruction
from tests.synthetic_photos import look_at
from viewer.exhibit import Exhibit, from_reconstruction, make_exhibit
from viewer.look import Look, rendered

SIZE = (30, 40)


def wall(count=64, degree=1, distance=4.0) -> Gaussians:
    """A wall of `count` x `count` splats at z = distance, its colours a pattern."""
    y, x = np.mgrid[:count, :count] / (count - 1) * 4 - 2
    means = torch.tensor(np.stack([x, 0.75 * y, np.full_like(x, distance)], -1).reshape(-1, 3)).float()
    sh = torch.zeros(len(means), (degree + 1) ** 2, 3)
    sh[:, 0] = torch.tensor(np.stack([np.sin(5 * x), np.cos(4 * y), np.sin(3 * x + 2 * y)], -1)).reshape(-1, 3)
    if degree:
        sh[:, 1:] = 0.1 * torch.randn(sh[:, 1:].shape, generator=torch.Generator().manual_seed(0))
    quats = torch.tensor([1.0, 0, 0, 0]).expand(len(means), 4)
    return Gaussians(means, torch.full_like(means, 2.5 / count), quats, torch.full((len(means),), 0.8), sh)


def ring(views=3) -> Cameras:
    """Cameras [views] on a spiral, all towards the wall, with a principal point off the middle."""
    centers = [(0.5 * math.sin(k), -0.2 * k, -0.3 * k) for k in range(views)]
    w2c = torch.tensor(np.stack([look_at(c, (0.1, 0, 4)) for c in centers])).float()
    K = torch.tensor([[36.0, 0, 21], [0, 35, 14], [0, 0, 1]]).expand(views, 3, 3)
    return Cameras(w2c, K.contiguous(), SIZE)


def reconstruction() -> Reconstruction:
    """What a network might give for three photos of the wall: its own renders."""
    gaussians, cameras = wall(), ring()
    wall_exhibit = make_exhibit("x", gaussians, cameras, "abc")
    seen = [rendered(wall_exhibit, gaussians, cameras[i : i + 1], Look(background=(0, 0, 0))) for i in range(3)]
    return Reconstruction(
        gaussians=gaussians,
        cameras=cameras,
        depth=torch.cat([s.depth for s in seen]),
        confidence=torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1)),
        images=torch.cat([s.color for s in seen]).movedim(-1, 1).clamp(0, 1),
        names=("a.jpg", "b.jpg", "c.jpg"),
        weights="nano (Apache-2.0)",
    )


def exhibit() -> Exhibit:
    return from_reconstruction("wall", reconstruction())
