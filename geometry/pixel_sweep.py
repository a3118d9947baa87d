"""The last plane sweep, over the pixels themselves: depth that the features have found, to a part of a pixel.

Around each pixel's depth a few planes are tried, each about a pixel of motion in its neighbours from the next. What
counts is how much 3x3 pixels differ in colour from what the two best neighbours show there; so one neighbour may be
hidden. Nothing in it is learned. Between photos of one camera it sharpens what splats of several views share
(docs/nano.md has the figures).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras
from geometry.compiled import kernels
from geometry.sweep import homographies, in_neighbor

LONGEST_STEP = 0.05  # in log depth: where views hardly move, a pixel of motion would be any depth at all
UNSEEN = 0.25  # what a pixel that lies outside a neighbour's image differs from it
SHARPNESS = 500.0  # of the choice among planes: weights are exp(-this * difference)
BEST = 2  # neighbours that count
CAUTION = 0.001  # by how much a plane k steps away must differ less, times k^2: walls without texture stay as they are


def pixel_sweep(depth: Tensor, images: Tensor, cameras: Cameras, source: Tensor, planes: int) -> Tensor:
    """Z-depth [B, V, H, W] nearer to where the neighbours look alike; gradient as if it were a constant factor.

    Shapes: `depth` [B, V, H, W] above 0 in the unit of `cameras` [B, V]; `images` [B, V, 3, H, W] in [0, 1]; `source`
    [B*V, S] each view's neighbours as rows of all views. `planes`, an odd number, are tried with `depth` in the middle.
    """
    with torch.no_grad(), torch.autocast(depth.device.type, enabled=False):
        A, b = homographies(cameras, source, depth.shape[-2:])
        inputs = depth.detach().flatten(0, 1).float(), images.detach().flatten(0, 1).float(), source, A, b, planes
        if depth.device.type == "cpu":
            offsets = kernels("pixel_sweep").compiled_offsets(*inputs)
        else:
            offsets = reference_offsets(*inputs)
    return depth * offsets.view(depth.shape).exp()


def reference_offsets(depth: Tensor, images: Tensor, source: Tensor, A: Tensor, b: Tensor, planes: int) -> Tensor:
    """What to add to the logarithm of `depth` [R, H, W], in plain PyTorch.

    `images` [R, 3, H, W]; `A` [R, S, 3, 3] and `b` [R, S, 3] as in `geometry.sweep.sweep`, of full-size pixels.
    """
    rows, height, width = depth.shape
    steps = torch.arange(planes, device=depth.device) - planes // 2
    size = torch.tensor([width / 2, height / 2], device=depth.device)
    motion = 0.0
    for s in range(source.shape[1]):
        at, ratio = in_neighbor(depth.log()[:, None], A[:, s], b[:, s])
        at = (at + 1) * size
        moved = (at * b[:, s, None, None, None, 2:] - b[:, s, None, None, None, :2]) / (depth[:, None] * ratio)[
            ..., None
        ]
        motion = motion + torch.linalg.vector_norm(moved, dim=-1)[:, 0] / source.shape[1]
    step = (1 / motion.clamp_min(1e-6)).clamp_max(LONGEST_STEP)
    log_depth = depth.log()[:, None] + step[:, None] * steps[:, None, None]
    differences = []
    for s in range(source.shape[1]):
        grid, _ = in_neighbor(log_depth, A[:, s], b[:, s])
        grid = grid.flatten(1, 2)
        found = F.grid_sample(images[source[:, s]], grid, padding_mode="border", align_corners=False)
        found = found.unflatten(2, (planes, height))
        unlike = (found - images[:, :, None]).abs().mean(1)
        inside = (grid.abs() <= 1).all(-1).unflatten(1, (planes, height))
        unlike = torch.where(inside, unlike, UNSEEN)
        differences.append(F.avg_pool2d(F.pad(unlike, (1, 1, 1, 1), mode="replicate"), 3, stride=1))
    best = torch.stack(differences).sort(0).values[:BEST].mean(0)
    steps = steps[:, None, None].float()
    return step * ((-SHARPNESS * (best + CAUTION * steps.square())).softmax(1) * steps).sum(1)
