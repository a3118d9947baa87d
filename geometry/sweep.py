"""Warp and correlate: the inner loop of the plane sweep, in plain PyTorch, or compiled for CUDA and for the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras, invert_intrinsics, resize
from geometry.compiled import kernels


def neighbor_rows(index: Tensor) -> Tensor:
    """Neighbours `index` [B, V, S], views of the same scene, as rows [B*V, S] of all views of all scenes."""
    batch, views = index.shape[:2]
    return (index + views * torch.arange(batch, device=index.device)[:, None, None]).flatten(0, 1)


def homographies(cameras: Cameras, source: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How pixels of maps of `size` move to their neighbours `source` [R, S]: at depth z, p falls on A p + b / z.

    Returns A [R, S, 3, 3] and b [R, S, 3], in homogeneous pixels of such maps.
    """
    at_features = resize(cameras, size)
    w2c, K = at_features.w2c.flatten(0, 1).float(), at_features.K.flatten(0, 1).float()
    relative = w2c[source] @ at_features.c2w.flatten(0, 1).float()[:, None]
    A = K[source] @ relative[..., :3, :3] @ invert_intrinsics(K)[:, None]
    return A, (K[source] @ relative[..., :3, 3:])[..., 0]


def sweep(features: Tensor, source: Tensor, A: Tensor, b: Tensor, log_depth: Tensor, groups: int) -> Tensor:
    """Correlate each view with its neighbours over planes: mean and best over the neighbours [R, 2 * groups, D, h, w].

    Shapes: `features` [R, C, h, w] float32; `source` [R, S] the neighbours' rows in `features`; `A` [R, S, 3, 3] and
    `b` [R, S, 3] such that pixel p at depth z falls on A p + b / z in the neighbour (homogeneous feature pixels,
    centres at +0.5); `log_depth` [R, D, h, w] of the planes at each pixel. What is correlated is a group of channels: a
    feature times the neighbour's, bilinearly sampled and zero outside its image. Differentiable in `features` alone.
    """
    if features.is_cuda:
        from geometry.sweep_cuda import fused_sweep

        return mean_and_best(fused_sweep(features, source, A, b, log_depth, groups))
    if features.device.type == "cpu" and not (features.requires_grad and torch.is_grad_enabled()):
        return kernels("sweep").compiled_sweep(features, source, A, b, log_depth, groups)
    return reference_sweep(features, source, A, b, log_depth, groups)


def mean_and_best(matches: Tensor) -> Tensor:
    """Of [R, S, G, D, h, w] over the neighbours: [R, 2G, D, h, w]."""
    return torch.cat([matches.mean(1), matches.amax(1)], 1)


def reference_sweep(features: Tensor, source: Tensor, A: Tensor, b: Tensor, log_depth: Tensor, groups: int) -> Tensor:
    """`sweep` in plain PyTorch, one pair of views at a time: what they need in between stays small, and is reused."""
    channels, planes = features.shape[1], log_depth.shape[1]
    own = features.unflatten(1, (groups, -1))[:, :, :, None]
    matches = []
    for s in range(source.shape[1]):
        grid = in_neighbor(log_depth, A[:, s], b[:, s])[0].flatten(2, 3)
        for r, other in enumerate(source[:, s].tolist()):
            warped = F.grid_sample(features[other][None], grid[r][None], mode="bilinear", align_corners=False)
            matches.append((own[r] * warped.view(groups, channels // groups, planes, *features.shape[2:])).sum(1))
    return mean_and_best(torch.stack(matches).unflatten(0, (source.shape[1], -1)).transpose(0, 1))


def in_neighbor(log_depth: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel, put at `log_depth` [R, D, h, w], falls in one neighbour with `A` [R, 3, 3] and `b` [R, 3].

    Returns positions [R, D, h, w, 2] as `grid_sample` counts them, -1 and 1 being the outer edges of the image, far
    outside for what lies behind the neighbour; and its depth there over its depth here [R, D, h, w], 1 for the same.
    """
    rows, planes, h, w = log_depth.shape
    y, x = torch.meshgrid(torch.arange(h, device=A.device) + 0.5, torch.arange(w, device=A.device) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    inverse_depth = torch.exp(-log_depth).view(rows, 1, planes, h * w)
    point = (A @ pixels)[:, :, None] + b[:, :, None, None] * inverse_depth
    ahead = point[:, 2] > 1e-6
    ratio = torch.where(ahead, point[:, 2], 1.0)
    u = torch.where(ahead, point[:, 0] / ratio * (2 / w) - 1, -9.0)
    v = torch.where(ahead, point[:, 1] / ratio * (2 / h) - 1, -9.0)
    return torch.stack([u, v], -1).clamp(-9, 9).unflatten(2, (h, w)), ratio.unflatten(2, (h, w))


def peak(logits: Tensor, radius: int = 2) -> tuple[Tensor, Tensor]:
    """Position [R, h, w] of the strongest peak among planes [R, D, h, w], and the probability mass around it.

    The mean is taken within `radius` planes of the best one: a mean over all planes would lie between two peaks.
    """
    probability = logits.softmax(1)
    planes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    best = logits.argmax(1, keepdim=True)
    window = probability * ((planes - best).abs() <= radius)
    mass = window.sum(1)
    return (window * planes).sum(1) / mass.clamp_min(1e-8), mass
