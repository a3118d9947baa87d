"""Gaussians for the tests of files: the same on every machine, and a picture of them."""

import torch
from torch import Tensor

from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from splat.render import render


def woven(count: int, degree: int) -> Gaussians:
    """`count` Gaussians on a bumpy sheet 2 to 4 in front of `camera`, without a random generator."""
    i = torch.arange(count, dtype=torch.float64)

    def wave(*speeds: float) -> Tensor:
        """Numbers [count, len(speeds)] in -1..1."""
        return torch.stack([torch.sin(speed * i + speed**2) for speed in speeds], -1)

    place = wave(0.7548, 0.5698)
    depth = 3 + (3 * place[:, :1]).sin() * (2 * place[:, 1:]).cos()
    sh = wave(*(1.1 + 0.37 * k for k in range(3 * (degree + 1) ** 2))).reshape(count, -1, 3)
    sh[:, 1:] *= 0.25
    return Gaussians(
        torch.cat([place * depth * 0.6, depth], -1),
        (0.05 * torch.exp(0.8 * wave(0.9, 1.7, 2.3))),
        torch.nn.functional.normalize(wave(1.3, 2.1, 0.4, 2.9), dim=-1),
        0.5 + 0.49 * wave(1.9)[:, 0],
        sh,
    ).to(torch.float32)


def picture(gaussians: Gaussians) -> Tensor:
    """What a camera at the origin sees, [1, 60, 80, 3], in 0..1."""
    K = torch.tensor([[[70.0, 0, 40], [0, 70, 30], [0, 0, 1]]])
    return render(gaussians, Cameras(torch.eye(4)[None], K, (60, 80))).color.clamp(0, 1)
