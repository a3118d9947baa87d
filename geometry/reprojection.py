"""Where views contradict each other: every pixel, put at its depth, looked up in its neighbours' images and depths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras
from geometry.compiled import kernels
from geometry.sweep import homographies, in_neighbor, neighbor_rows

CHANNELS = 6  # seen, whether in front of or behind the neighbour's surface (coarsely, finely), difference in RGB
COARSE, FINE = 4, 40  # factors of the logarithm of depth over depth, of which the tanh is taken


def reproject(images: Tensor, depth: Tensor, cameras: Cameras, index: Tensor) -> Tensor:
    """How the neighbours `index` [B, V, S] of each view see what it sees: [B, V, S, 6, H, W], no gradient.

    Shapes: `images` [B, V, 3, H, W], z-depth `depth` [B, V, H, W] above 0 in the unit of `cameras` [B, V].

    The channels: 1 where the neighbour's image holds the point, else all are 0; tanh of 4 and of 40 times the logarithm
    of the point's depth in the neighbour over the neighbour's own depth there (above 0: the point is hidden from it;
    below: the neighbour sees through the point); the pixel's colour minus the neighbour's.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        source = neighbor_rows(index)
        A, b = homographies(cameras, source, depth.shape[-2:])
        look_up = kernels("reprojection").compiled_lookup if depth.device.type == "cpu" else reference_lookup
        seen = look_up(images.float().flatten(0, 1), depth.float().flatten(0, 1), source, A, b)
        return seen.unflatten(0, depth.shape[:2])


def reference_lookup(images: Tensor, depth: Tensor, source: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """`reproject` [R, S, 6, H, W] in plain PyTorch.

    Shapes: `images` [R, 3, H, W]; `depth` [R, H, W]; `source` [R, S], A [R, S, 3, 3] and b [R, S, 3] as in
    `geometry.sweep.sweep`, of full-size pixels.
    """
    log_depth = depth.log()[:, None]
    maps = torch.cat([images, log_depth], 1)
    seen = []
    for s in range(source.shape[1]):
        grid, ratio = in_neighbor(log_depth, A[:, s], b[:, s])
        found = F.grid_sample(maps[source[:, s]], grid[:, 0], padding_mode="border", align_corners=False)
        inside = (grid.abs() <= 1).all(-1)
        behind = log_depth + ratio.log() - found[:, 3:]
        difference = images - found[:, :3]
        parts = inside.float(), (COARSE * behind).tanh(), (FINE * behind).tanh(), difference
        seen.append(inside * torch.cat(parts, 1))
    return torch.stack(seen, 1)
