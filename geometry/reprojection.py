"""Where views contradict each other: every pixel, put at its depth, looked up in its neighbours' images and depths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras
from geometry.sweep import homographies, in_neighbor, neighbor_rows

CHANNELS = 6  # seen, whether in front of or behind the neighbour's surface (coarsely, finely), difference in RGB


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
        log_depth, flat = depth.float().log().flatten(0, 1)[:, None], images.float().flatten(0, 1)
        maps = torch.cat([flat, log_depth], 1)
        seen = []
        for s in range(source.shape[1]):
            grid, ratio = in_neighbor(log_depth, A[:, s], b[:, s])
            found = F.grid_sample(maps[source[:, s]], grid[:, 0], padding_mode="border", align_corners=False)
            inside = (grid.abs() <= 1).all(-1)
            behind = log_depth + ratio.log() - found[:, 3:]
            difference = flat - found[:, :3]
            seen.append(inside * torch.cat([inside.float(), (4 * behind).tanh(), (40 * behind).tanh(), difference], 1))
        return torch.stack(seen, 1).unflatten(0, depth.shape[:2])
