"""Splats on a sphere behind everything else: what shows where no photo looked.

Without them a rendering is black there, and a network that is scored on its pictures spreads haze to cover the black.
Their colours are those of the photos in about the same direction, far surfaces before near ones, so walls and sky go on
softly where the photos end. The sphere is made, not learnt; a network trained with it has `gs.backdrop` in its
configuration.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras, pixel_rays
from geometry.tables import cached_table
from splat.gaussians import Gaussians
from splat.sh import C0

GRID = 18  # colours are taken from means over a grid of so many cells a side
SPREAD = 0.2  # radians by which colours are smoothed
UNSEEN = 0.02  # what the mean colour counts; one far cell right in the direction counts 1
OPACITY = 0.8  # with neighbours that overlap, the sphere lets a thousandth through


def backdrop(images: Tensor, depth: Tensor, cameras: Cameras, count: int, bands: int = 1) -> Gaussians:
    """`count` Gaussians [B, count] around B scenes, of images [B, V, 3, H, W], z-depth [B, V, H, W], cameras [B, V].

    They lie twice as far from the middle of the cameras as anything that these see, evenly in all directions, with
    `bands` spherical harmonics of which all but the first are 0. Depth that is not finite counts as nothing seen. Few
    splats are large ones, which wide cameras see from the side as a film over what is near; 2562 are enough.
    """
    # Autocast would round directions.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        seen, rays = _cells(images.float()), F.normalize(pixel_rays(cameras, (GRID, GRID)), dim=-1)
        far = _cells(depth.float()[:, :, None]).nan_to_num(0.0, 0.0, 0.0).clamp_min(1e-6)
        usual = far.flatten(1).median(1).values[:, None, None, None, None]
        weight = far.square() / (far.square() + usual.square())

        middle = cameras.centers.mean(1, keepdim=True)
        reach = torch.linalg.vector_norm(cameras.centers - middle, dim=-1).amax(1)
        radius = (2 * (far.flatten(1).amax(1) + reach))[:, None, None]
        directions = fibonacci_sphere(count, radius.device).to(radius.dtype)

        # How much each cell counts in each direction [B, count, V * GRID^2]: weight * exp((cosine - 1) / SPREAD^2).
        offset = (weight.log() - SPREAD**-2).flatten(1)[:, None]
        toward = rays.flatten(1, 3).transpose(-1, -2)
        share = torch.baddbmm(offset, directions.expand(len(images), -1, -1), toward, alpha=SPREAD**-2).exp_()
        counted = torch.cat([seen, torch.ones_like(far)], -1).flatten(1, 3)
        mean = (counted * weight.flatten(1)[..., None]).sum(1, keepdim=True) / weight.flatten(1).sum(1)[:, None, None]
        total = share @ counted + UNSEEN * mean
        color = total[..., :3] / total[..., 3:]

        lead = (len(images), count)
        spacing = math.sqrt(4 * math.pi / count)
        quats, sh = color.new_zeros(*lead, 4), color.new_zeros(*lead, bands, 3)
        quats[..., 0], sh[:, :, 0] = 1, (color - 0.5) / C0
        return Gaussians(
            means=middle + radius * directions,
            scales=(radius * spacing).expand(*lead, 3),
            quats=quats,
            opacities=color.new_full(lead, OPACITY),
            sh=sh,
        )


@cached_table
def fibonacci_sphere(count: int, device: torch.device) -> Tensor:
    """Unit vectors [count, 3] in float64, spread evenly over the sphere, each a golden angle on from the one before."""
    i = torch.arange(count, dtype=torch.float64, device=device) + 0.5
    z, angle = 1 - 2 * i / count, i * math.pi * (3 - math.sqrt(5))
    ring = (1 - z * z).sqrt()
    return torch.stack([ring * angle.cos(), ring * angle.sin(), z], -1)


def _cells(maps: Tensor) -> Tensor:
    """Means [B, V, GRID, GRID, C] of maps [B, V, C, H, W]."""
    pooled = F.interpolate(maps.flatten(0, 1), (GRID, GRID), mode="area")
    return pooled.unflatten(0, maps.shape[:2]).movedim(2, -1)
