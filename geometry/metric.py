"""Metres from an any-view network and a monocular one that sees the same images (paper section 4.3).

The first knows the shape of the scene in a unit of its own; the second's depth is in metres, given the focal length.
One factor per scene, by least squares over the pixels that both can be trusted in, brings them together.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.monocular import FAR, MIN_PIXELS, SKY, MonocularGeometry, quantile
from geometry.network import Geometry
from geometry.normalize import rescale

MAX_SKY = 200.0  # metres: the sky lies no farther
MIN_METRES, MIN_DEPTH = 1e-2, 1e-3  # nearer pixels do not count, by the one depth or the other


def metric_depth(monocular: MonocularGeometry, cameras: Cameras, canonical_focal: float) -> Tensor:
    """Depth [..., V, H, W] in metres of images taken by `cameras` [..., V], whose focal lengths give the scale."""
    focal = (cameras.K[..., 0, 0] + cameras.K[..., 1, 1]) / 2
    return monocular.depth * (focal / canonical_focal)[..., None, None]


def metric_scale(geometry: Geometry, metres: Tensor, sky: Tensor) -> Tensor:
    """Metres [B] per unit of `geometry` [B, V], from depth in `metres` and `sky`, both [B, V, H, W].

    1 where 10 pixels or fewer are not sky, or none is sure enough and not too near.
    """
    ground = sky < SKY
    sure = geometry.confidence >= quantile(geometry.confidence, ground, 0.5)[:, None, None, None]
    counts = (ground & sure & (metres > MIN_METRES) & (geometry.depth > MIN_DEPTH)).double()
    scale = (counts * metres * geometry.depth).sum((1, 2, 3)) / (counts * geometry.depth.square()).sum((1, 2, 3))
    known = (ground.flatten(1).sum(1) > MIN_PIXELS) & (counts.sum((1, 2, 3)) > 0)
    return torch.where(known, scale, 1.0).to(geometry.depth.dtype)


def in_metres(geometry: Geometry, monocular: MonocularGeometry, canonical_focal: float) -> Geometry:
    """`geometry` [B, V] in metres, with `scale` and `sky` set.

    Where there is sky its depth is the 0.99-quantile of the rest, at most 200 m, and its confidence 1; not where that
    rest is 10 pixels or fewer.
    """
    scale = metric_scale(geometry, metric_depth(monocular, geometry.cameras, canonical_focal), monocular.sky)
    ground = monocular.sky < SKY
    depth = geometry.depth * scale[:, None, None, None]
    far = quantile(depth, ground, FAR).clamp_max(MAX_SKY)[:, None, None, None]
    is_sky = ~ground & (ground.flatten(1).sum(1) > MIN_PIXELS)[:, None, None, None]
    rays = geometry.rays
    if rays is not None:
        rays = torch.cat([rays[..., :3], rays[..., 3:] * scale[:, None, None, None, None]], -1)
    return replace(
        geometry,
        depth=torch.where(is_sky, far, depth),
        confidence=geometry.confidence.masked_fill(is_sky, 1.0),
        rays=rays,
        cameras=rescale(geometry.cameras, scale),
        sky=monocular.sky,
        scale=scale,
    )


def scale_note(geometry: Geometry) -> str | None:
    """What a user should know of the scale of one scene, None if nothing. Reads from the device."""
    if geometry.sky is None or (geometry.sky < SKY).sum() > MIN_PIXELS:
        return None
    return "nothing but sky was found, so there is no metric scale: lengths are in the network's own unit"
