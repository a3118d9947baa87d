"""Depth on which views agree: what other views see in a pixel's place, where more of them bear it out, and their mean.

Each view's depth is found by itself, and where it errs it is mostly too far: the background's depth on something thin
in front. The neighbours may have seen that thing. Nothing here is learned. It is for depth as a result: splats made of
it are not better ones, as each view's sit where its own picture is sharpest (docs/nano.md).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras
from geometry.compiled import kernels
from geometry.sweep import homographies, in_neighbor

AGREE = 0.1  # difference in log depth at which a neighbour's word counts for exp(-1)
MARGIN = 0.5  # by how many neighbours more another view's depth must be borne out to take the place of one's own
NEARER = 0.95  # and it must be nearer by this factor: through gaps in what is in front, everything far shines
MOST = 5 / 9  # of 3x3 pixels change together: single ones are edges that other views have a pixel too wide


def consistent_depth(depth: Tensor, cameras: Cameras, source: Tensor) -> Tensor:
    """Z-depth [B, V, H, W] above 0, in the unit of `cameras` [B, V], brought to where its views agree; no gradient.

    `source` [B*V, S] are each view's neighbours as rows of all views (`geometry.sweep.neighbor_rows`).
    """
    with torch.no_grad(), torch.autocast(depth.device.type, enabled=False):
        A, b = homographies(cameras, source, depth.shape[-2:])
        agree = kernels("consistency").compiled_depth if depth.device.type == "cpu" else reference_depth
        return agree(depth.float().flatten(0, 1), source, A, b).view(depth.shape)


def reference_depth(depth: Tensor, source: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """What `consistent_depth` makes of `depth` [R, H, W], in plain PyTorch; `A` [R, S, 3, 3], `b` [R, S, 3].

    With them pixel p at depth z falls on A p + b / z in the neighbour (`geometry.sweep.homographies`).
    """
    log_depth = depth.log()
    candidates = torch.cat([log_depth[:, None], seen_by_neighbors(log_depth, source, A, b)], 1)
    borne_out, _ = ask_neighbors(candidates, log_depth, source, A, b)
    borne_out[:, 0] += MARGIN
    nearer = candidates < log_depth[:, None] + math.log(NEARER)
    nearer[:, 0] = True
    best = borne_out.masked_fill(~nearer, -1.0).argmax(1, keepdim=True)
    changed = F.avg_pool2d((best > 0).float(), 3, stride=1, padding=1, count_include_pad=False)
    best = best.masked_fill(changed < MOST - 1e-3, 0)
    chosen = candidates.gather(1, best)
    weight, shift = ask_neighbors(chosen, chosen[:, 0], source, A, b)
    return (chosen + shift / (1 + weight)).exp()[:, 0]


def seen_by_neighbors(log_depth: Tensor, source: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """Log depth [R, S, H, W] in each view of what its neighbours see; infinite where they see nothing.

    Their pixels become points, each of which fills one pixel, and the nearest wins.
    """
    height, width = log_depth.shape[1:]
    y, x = torch.meshgrid(*(torch.arange(n, device=A.device) + 0.5 for n in (height, width)), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    # With z for depths, z' p' = z A p + b for p here and p' in the neighbour.
    points = log_depth.exp().flatten(1)[source][:, :, None] * pixels - b[..., None]
    points = torch.linalg.inv(A) @ points
    z = points[:, :, 2]
    column, row = (points[:, :, :2] / z[:, :, None]).floor().unbind(2)
    inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.where(inside, row * width + column, 0.0).long()
    nearest = torch.full_like(z, torch.inf).scatter_reduce(-1, index, torch.where(inside, z, torch.inf), "amin")
    return nearest.log().unflatten(-1, (height, width))


def ask_neighbors(candidates: Tensor, log_depth: Tensor, source: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How far the neighbours bear out log depths `candidates` [R, K, H, W].

    Returns the sum over neighbours of their weight, 1 for the same depth and 0 for another one, and of weight times how
    much farther they see, both [R, K, H, W]. `log_depth` [R, H, W] is what they see themselves.
    """
    weights, shifts = torch.zeros_like(candidates), torch.zeros_like(candidates)
    for s in range(source.shape[1]):
        grid, ratio = in_neighbor(candidates, A[:, s], b[:, s])
        inside = (grid.abs() <= 1).all(-1)
        theirs = log_depth[source[:, s], None]
        found = F.grid_sample(theirs, grid.flatten(1, 2), "nearest", padding_mode="border", align_corners=False)
        farther = found.view_as(candidates) - candidates - ratio.log()
        weight = torch.where(inside, torch.exp(-((farther / AGREE) ** 2)), 0.0)
        weights += weight
        shifts += torch.where(weight > 0, weight * farther, 0.0)
    return weights, shifts
