"""Gaussians straight from depth, for networks that have no Gaussian head."""

from __future__ import annotations

import torch
from torch import Tensor

from geometry.cameras import Cameras, unproject
from splat.gaussians import Gaussians
from splat.sh import C0

# Standard deviation in pixels at which neighbouring splats close the surface without blurring it much.
_FOOTPRINT = 0.6
_MAX_OPACITY = 0.95


def splats_from_depth(images: Tensor, depth: Tensor, confidence: Tensor | None, cameras: Cameras) -> Gaussians:
    """One round Gaussian [N] a pixel, as large as the pixel, coloured by it; pixels without depth are left out.

    Shapes: `images` [V, 3, H, W] in [0, 1], z-`depth` [V, H, W], `confidence` [V, H, W] or None, `cameras` [V] of
    that size. The Gaussians are in the world of the cameras.
    Opacity is the confidence over its median, at most 0.95: where the network is less sure than usual, splats fade.
    """
    good = torch.isfinite(depth) & (depth > 0)
    means = unproject(depth, cameras)[good]
    pixel = (1 / cameras.K[..., 0, 0] + 1 / cameras.K[..., 1, 1]) / 2
    scales = (_FOOTPRINT * depth * pixel[..., None, None])[good]
    opacities = torch.full_like(depth, _MAX_OPACITY)
    if confidence is not None and bool(good.any()):
        opacities = _MAX_OPACITY * (confidence / confidence[good].median().clamp_min(1e-8)).clamp(0, 1)
    colors = images.movedim(-3, -1)[good]
    quats = means.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(means), 4)
    return Gaussians(means, scales[:, None].expand(-1, 3), quats, opacities[good], ((colors - 0.5) / C0)[:, None])
