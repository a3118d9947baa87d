"""A smooth closed path of cameras past the input views, for videos."""

from __future__ import annotations

import torch
from torch import Tensor

from geometry.alignment import nearest_rotation
from geometry.cameras import Cameras, invert_rigid
from geometry.rotations import matrices_from_quats, quats_from_matrices

# Splats have holes where no input view looked; the path leaves the inputs by this share of the focus distance at most.
_SWAY = 0.05
_SWAY_OF_ONE_VIEW = 0.1
# Width of the smoothing, in units of the mean distance between two input views along the path.
_SMOOTHING = 0.25


def orbit(cameras: Cameras, focus: float, frames: int = 120) -> Cameras:
    """A closed path of Cameras [frames] that passes near every input camera [V] and sways a little around it.

    `focus` is the distance, in the world's unit, of what the views look at (the median depth, say); the path sways
    about that point, so what lies there stands still. Inputs that surround the scene give a loop, others a way out and
    back. One view gives a small ellipse around it. Rotations are interpolated on the sphere (SLERP), then smoothed.
    Raises ValueError without cameras, frames, or a positive focus.
    """
    if cameras.w2c.ndim != 3 or len(cameras.w2c) == 0:
        raise ValueError(f"orbit takes cameras [V], at least one, got {tuple(cameras.shape)}")
    if not focus > 0 or frames < 1:
        raise ValueError(f"orbit needs a focus distance > 0 and a frame or more, got {focus} and {frames}")
    c2w, K = (x.detach().to("cpu", torch.float64) for x in (cameras.c2w, cameras.K))
    order = _closed_order(_distances(c2w, focus))
    rotations, centers, K = _walk(c2w[order], K[order], focus, frames)
    rotations, centers, K = (_smooth(x, _SMOOTHING * frames / len(order)) for x in (rotations, centers, K))
    sway = focus * (_SWAY_OF_ONE_VIEW if len(order) == 1 else _SWAY)
    c2w = _sway(nearest_rotation(rotations), centers, focus, sway)
    return Cameras(invert_rigid(c2w).to(cameras.w2c), K.to(cameras.K), cameras.size)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Unit quaternions [..., 4] at the fraction t [...] of the shorter way from `a` to `b`."""
    cosine = (a * b).sum(-1, keepdim=True)
    b, cosine = torch.where(cosine < 0, -b, b), cosine.abs().clamp(max=1)
    angle = torch.acos(cosine)
    t = t[..., None]
    # For tiny angles the sines are too; there the straight line is the arc.
    near = angle < 1e-6
    sine = torch.where(near, torch.ones_like(angle), torch.sin(angle))
    weight_a = torch.where(near, 1 - t, torch.sin((1 - t) * angle) / sine)
    weight_b = torch.where(near, t, torch.sin(t * angle) / sine)
    return torch.nn.functional.normalize(weight_a * a + weight_b * b, dim=-1)


def _distances(c2w: Tensor, focus: float) -> Tensor:
    """How far apart views look [V, V]: the way between the centres over the focus distance, plus the angle."""
    centers, rotations = c2w[:, :3, 3], c2w[:, :3, :3]
    cosine = (torch.einsum("aij,bij->ab", rotations, rotations) - 1) / 2
    return torch.cdist(centers, centers) / focus + torch.acos(cosine.clamp(-1, 1))


def _closed_order(distance: Tensor) -> list[int]:
    """An order of views in which to walk past all of them and come back, short and without leaps."""
    cost = distance.tolist()
    views = len(cost)
    # A chain from one of the two views that are furthest apart, nearest first, then uncrossed (2-opt).
    order = [int(distance.argmax()) // views]
    left = [i for i in range(views) if i != order[0]]
    while left:
        order.append(min(left, key=lambda i: cost[order[-1]][i]))
        left.remove(order[-1])
    improved = True
    while improved:
        improved = False
        for i in range(1, views - 1):
            for j in range(i + 1, views):
                after = order[j + 1] if j + 1 < views else None
                now = cost[order[i - 1]][order[i]] + (cost[order[j]][after] if after is not None else 0)
                then = cost[order[i - 1]][order[j]] + (cost[order[i]][after] if after is not None else 0)
                if then < now - 1e-9:
                    order[i : j + 1] = order[i : j + 1][::-1]
                    improved = True
    steps = [cost[a][b] for a, b in zip(order[:-1], order[1:], strict=True)]
    if views > 2 and cost[order[-1]][order[0]] <= 1.5 * max(steps):
        return order
    return order + order[-2:0:-1]


def _walk(c2w: Tensor, K: Tensor, focus: float, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations [frames, 3, 3], centres and K at an even pace round the closed polygon of key cameras."""
    following = torch.arange(1, len(c2w) + 1) % len(c2w)
    steps = _distances(c2w, focus)[torch.arange(len(c2w)), following].clamp_min(1e-9)
    ends = steps.cumsum(0)
    at = torch.arange(frames, dtype=torch.float64) / frames * ends[-1]
    key = torch.searchsorted(ends, at, right=True).clamp(max=len(c2w) - 1)
    t = (at - (ends - steps)[key]) / steps[key]
    quats = quats_from_matrices(c2w[:, :3, :3])
    rotations = matrices_from_quats(slerp(quats[key], quats[following[key]], t))
    centers = torch.lerp(c2w[key, :3, 3], c2w[following[key], :3, 3], t[:, None])
    return rotations, centers, torch.lerp(K[key], K[following[key]], t[:, None, None])


def _smooth(values: Tensor, sigma: float) -> Tensor:
    """Periodic Gaussian smoothing along the first axis, `sigma` in frames."""
    frequency = torch.fft.rfftfreq(len(values), dtype=torch.float64).reshape(-1, *[1] * (values.ndim - 1))
    response = torch.exp(-2 * (torch.pi * sigma * frequency) ** 2)
    return torch.fft.irfft(torch.fft.rfft(values, dim=0) * response, n=len(values), dim=0)


def _sway(rotations: Tensor, centers: Tensor, focus: float, radius: float) -> Tensor:
    """c2w [frames, 4, 4] moved on a flat ellipse in the camera's plane and turned to keep the focus in the centre."""
    phase = torch.arange(len(centers), dtype=torch.float64) * (2 * torch.pi / len(centers))
    offset = radius * torch.stack([torch.sin(phase), -0.5 * torch.cos(phase), torch.zeros_like(phase)], -1)
    z = torch.nn.functional.normalize(offset.new_tensor([0.0, 0.0, focus]) - offset, dim=-1)
    y = torch.nn.functional.normalize(torch.linalg.cross(z, offset.new_tensor([[1.0, 0.0, 0.0]]).expand_as(z)), dim=-1)
    turn = torch.stack([torch.linalg.cross(y, z), y, z], -1)
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(centers), 1, 1)
    c2w[:, :3, :3] = rotations @ turn
    c2w[:, :3, 3] = centers + (rotations @ offset[..., None])[..., 0]
    return c2w
