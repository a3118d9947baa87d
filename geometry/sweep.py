"""Warp and correlate: the inner loop of the plane sweep, in plain PyTorch and, on CUDA, as one fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sweep(
    features: Tensor, source: Tensor, A: Tensor, b: Tensor, start: Tensor, step: float, planes: int, groups: int
) -> Tensor:
    """Correlate each view with its neighbours over planes of log-spaced depth.

    Shapes: `features` [R, C, h, w] float32; `source` [R, S] the neighbours' rows in `features`; `A` [R, S, 3, 3] and
    `b` [R, S, 3] such that pixel p at depth z falls on A p + b / z in the neighbour (homogeneous feature pixels,
    centres at +0.5); `start` [R, h, w] log depth of the first plane, the next ones `step` apart. Returns [R, S, groups,
    planes, h, w]: sums over the channels of a group of feature times bilinearly sampled neighbour, zero outside the
    neighbour's image. Differentiable in `features` alone.
    """
    if features.is_cuda:
        from geometry.sweep_cuda import fused_sweep

        return fused_sweep(features, source, A, b, start, step, planes, groups)
    return reference_sweep(features, source, A, b, start, step, planes, groups)


def reference_sweep(
    features: Tensor, source: Tensor, A: Tensor, b: Tensor, start: Tensor, step: float, planes: int, groups: int
) -> Tensor:
    """`sweep` in plain PyTorch, one neighbour at a time so that only one warped volume is alive without gradients."""
    rows, channels, h, w = features.shape
    y, x = torch.meshgrid(
        torch.arange(h, device=features.device) + 0.5, torch.arange(w, device=features.device) + 0.5, indexing="ij"
    )
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    steps = step * torch.arange(planes, device=features.device, dtype=torch.float32)
    inverse_depth = torch.exp(-(start[:, None] + steps[:, None, None])).view(rows, 1, planes, h * w)
    own = features.unflatten(1, (groups, -1))[:, :, :, None]
    matches = []
    for s in range(source.shape[1]):
        point = (A[:, s] @ pixels)[:, :, None] + b[:, s, :, None, None] * inverse_depth
        depth = point[:, 2]
        ahead = depth > 1e-6
        scale = 1 / torch.where(ahead, depth, 1.0)
        # Coordinates of grid_sample: -1 and 1 are the outer edges of the image. Behind the camera: far outside.
        u = torch.where(ahead, point[:, 0] * scale * (2 / w) - 1, -9.0)
        v = torch.where(ahead, point[:, 1] * scale * (2 / h) - 1, -9.0)
        grid = torch.stack([u, v], -1).clamp(-9, 9)
        warped = F.grid_sample(features[source[:, s]], grid, mode="bilinear", align_corners=False)
        warped = warped.view(rows, groups, channels // groups, planes, h, w)
        matches.append((own * warped).sum(2))
    return torch.stack(matches, 1)
