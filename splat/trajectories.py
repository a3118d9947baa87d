"""Camera paths for videos, as published: from the cameras of the views [V] to the cameras of the frames [F].

Here intrinsics are in pixels, rotations are rotations (smoothing used to leave them up to 2 % off), and one view or
very many have a path as well. All is computed in float64 on the host, without gradient. Another path, closed and made
for Gaussians that have holes beside the views, is `splat.camera_path.orbit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.alignment import nearest_rotation
from geometry.cameras import Cameras, invert_rigid

_WINDOW = 50  # frames that smoothing averages over
_PARALLEL = 1e-4  # view axes whose cosine is so near to 1 have no focus


def trajectory(cameras: Cameras, mode: str) -> Cameras:
    """Cameras [F] of the path `mode` past cameras [V], one of TRAJECTORIES; ValueError, listing them, for another.

    - original: the views themselves; smooth: the same, smoothed in time;
    - interpolate, interpolate_smooth: from view to view, slow at each of them, in some 40 to 380 frames;
    - extend: interpolate_smooth, which halts in the middle for a small wander and a dolly zoom;
    - wander, dolly_zoom: about the first view;
    - wobble_inter: through every third view, circling meanwhile.
    """
    if mode not in TRAJECTORIES:
        raise ValueError(f"the path must be one of {', '.join(TRAJECTORIES)}, got {mode!r}")
    if cameras.w2c.ndim != 3 or len(cameras.w2c) == 0:
        raise ValueError(f"a path takes cameras [V], at least one, got {tuple(cameras.shape)}")
    return TRAJECTORIES[mode](cameras)


def smooth(cameras: Cameras, window: int = _WINDOW) -> Cameras:
    """Cameras [V] averaged over `window` neighbours in time; intrinsics stay."""
    c2w = smoothed_matrices(_c2w(cameras), window)
    c2w[:, :3, :3] = nearest_rotation(c2w[:, :3, :3])
    return _cameras(c2w, cameras.K, cameras)


def smoothed_matrices(c2w: Tensor, window: int) -> Tensor:
    """Camera-to-world [V, 4, 4] after Gaussian smoothing of centres and of x and y axes, which get length 1 again.

    As published: x and y are not quite at right angles then, and z is their product. The window is made odd and cut to
    V; the ends are mirrored.
    """
    import cv2

    views = len(c2w)
    window = min(window + 1 - window % 2, views - 1 + views % 2)
    window = max(window, min(3, views - 1 + views % 2))
    kernel = torch.from_numpy(cv2.getGaussianKernel(window, 0)).to(c2w)
    values = c2w[:, :3, [0, 1, 3]].flatten(1).T[:, None]
    values = F.conv1d(F.pad(values, (window // 2, window // 2), mode="reflect"), kernel.view(1, 1, -1))
    x, y, center = values[:, 0].T.unflatten(1, (3, 3)).unbind(-1)
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    out = torch.eye(4).to(c2w).repeat(views, 1, 1)
    out[:, :3] = torch.stack([x, y, torch.linalg.cross(x, y), center], -1)
    return out


def interpolate(cameras: Cameras) -> Cameras:
    """From view to view, turning about what both look at; 8 frames a gap, more if they are few, fewer if many."""
    gaps = len(cameras.w2c) - 1
    if gaps == 0:
        return cameras
    length = 8
    if gaps * 8 > 432:
        length = 240 // gaps
    elif gaps * 8 < 48:
        length = 48 // gaps
    length = max(2, length)  # one frame a gap would leave a single one in all
    t = torch.linspace(0, 1, length, dtype=torch.float64)
    if length > 2:
        t = (1 - torch.cos(math.pi * t)) / 2
    return _between(cameras, t)


def interpolate_smooth(cameras: Cameras) -> Cameras:
    return smooth(interpolate(cameras))


def extend(cameras: Cameras) -> Cameras:
    """`interpolate_smooth` with a wander and a dolly zoom at its middle frame."""
    path = interpolate_smooth(cameras)
    middle = len(path.w2c) // 2
    frames = max(36, min(60, middle // 2))
    halt = path[middle : middle + 1]
    parts = [path[:middle], wander(halt, frames, 24.0), dolly_zoom(halt, frames), path[middle:]]
    return Cameras(torch.cat([p.w2c for p in parts]), torch.cat([p.K for p in parts]), cameras.size)


def wander(cameras: Cameras, frames: int = 120, shift: float = 48.0) -> Cameras:
    """An ellipse before the first view, which comes first and last as well: `frames` + 2 in all.

    Its radius moves what lies at a depth of 1 by `shift` pixels.
    """
    angle = torch.linspace(0, 2 * math.pi, frames, dtype=torch.float64)
    offset = -torch.stack([angle.sin(), angle.cos() / 3, angle.cos() / 3], -1) * (shift / float(cameras.K[0, 0, 0]))
    return _about_first(cameras, F.pad(offset, (0, 0, 1, 1)))


def dolly_zoom(cameras: Cameras, frames: int = 120, distance: float = 0.1, focus: float = 10.0) -> Cameras:
    """The first view drawn back by `distance` and returned, its focal lengths shrinking by focus / (focus + back).

    That is what was published; to keep the size of things at depth `focus` they would have to grow.
    """
    back = distance * (1 - torch.cos(math.pi * torch.linspace(0, 2, frames, dtype=torch.float64))) / 2
    path = _about_first(cameras, F.pad(-back[:, None], (2, 0)))
    K = path.K.clone()
    K[:, [0, 1], [0, 1]] *= (focus / (focus + back)).to(K)[:, None]
    return Cameras(path.w2c, K, path.size)


def wobble_inter(cameras: Cameras, skip: int = 3, length: int = 10) -> Cameras:
    """Through every `skip`-th view (of fewer, the first and the last), once round the way in each gap.

    The circle's radius is half the length of the gap, averaged with those before.
    """
    skip = min(skip, len(cameras.w2c) - 1)
    if skip == 0:
        return cameras
    keys = cameras[::skip]
    steps = torch.linalg.vector_norm(keys.centers.double().diff(dim=0), dim=-1).tolist()
    radius = [steps[0] / 2]
    for step in steps[1:]:
        radius.append((radius[-1] + step / 2) / 2)
    t = torch.linspace(0, 1, skip * length, dtype=torch.float64)
    circle = torch.stack([(2 * math.pi * t).sin(), -(2 * math.pi * t).cos(), torch.zeros_like(t)], -1)
    return _between(keys, t, torch.tensor(radius, dtype=torch.float64)[:, None, None] * circle)


TRAJECTORIES: dict[str, Callable[[Cameras], Cameras]] = {
    "original": lambda cameras: cameras,
    "smooth": smooth,
    "interpolate": interpolate,
    "interpolate_smooth": interpolate_smooth,
    "extend": extend,
    "wander": lambda cameras: wander(cameras, shift=24.0),
    "dolly_zoom": lambda cameras: dolly_zoom(cameras, distance=2.0, focus=30.0),
    "wobble_inter": wobble_inter,
}


def _c2w(cameras: Cameras) -> Tensor:
    return cameras.c2w.detach().to("cpu", torch.float64)


def _cameras(c2w: Tensor, K: Tensor, like: Cameras) -> Cameras:
    return Cameras(invert_rigid(c2w).to(like.w2c), K.detach().to(like.K), like.size)


def _about_first(cameras: Cameras, offset: Tensor) -> Cameras:
    """The first view moved by `offset` [F, 3] in its own axes."""
    c2w = _c2w(cameras)[:1].repeat(len(offset), 1, 1)
    c2w[:, :3, 3] += offset @ c2w[0, :3, :3].T
    return _cameras(c2w, cameras.K[:1].expand(len(offset), 3, 3), cameras)


def _between(cameras: Cameras, t: Tensor, offset: Tensor | None = None) -> Cameras:
    """At fractions `t` [T] of every gap between cameras [V]; all gaps but the first leave out their first frame.

    `offset` [V - 1, T, 3] moves frames in their own axes.
    """
    c2w, K = _c2w(cameras), cameras.K.detach().to("cpu", torch.float64)
    path = pivot(c2w[:-1], c2w[1:], t)
    if offset is not None:
        path[..., :3, 3] += (path[..., :3, :3] @ offset[..., None])[..., 0]
    K = torch.lerp(K[:-1, None], K[1:, None], t[:, None, None])
    path, K = (torch.cat([x[0], x[1:, 1:].flatten(0, 1)]) for x in (path, K))
    return _cameras(path, K, cameras)


def pivot(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Camera-to-world [G, T, 4, 4] at fractions `t` [T] of the way from `start` to `end`, both [G, 4, 4].

    A camera is described by its angles in a frame on the plane of both view axes (yaw in that plane, roll, and a pitch
    that only nearly parallel axes have), and by where it then sees the focus, the point nearest to both axes. These
    change evenly. Parallel axes have the middle between the centres for a focus.
    """
    ends = torch.stack([start, end], 1)
    rotation, center, look = ends[..., :3, :3], ends[..., :3, 3], ends[..., :3, 2]
    focus, frame = _focus(center, look)[:, None], _plane(look[:, 0], look[:, 1])[:, None]
    local = frame.transpose(-1, -2) @ rotation
    yaw = torch.atan2(local[..., 0, 2], local[..., 2, 2])
    pitch = -torch.asin(local[..., 1, 2].clamp(-1, 1))
    roll = torch.atan2(local[..., 1, 0], local[..., 1, 1])
    seen = (frame @ _turn(yaw, 1)).transpose(-1, -2) @ (focus - center)[..., None]

    angles = torch.stack([yaw, pitch, roll], -1)
    way = torch.remainder(angles[:, 1] - angles[:, 0] + math.pi, 2 * math.pi) - math.pi
    yaw, pitch, roll = (angles[:, :1] + t[:, None] * way[:, None]).unbind(-1)
    level = frame @ _turn(yaw, 1)
    c2w = torch.eye(4).to(start).repeat(*yaw.shape, 1, 1)
    c2w[..., :3, :3] = level @ _turn(pitch, 0) @ _turn(roll, 2)
    c2w[..., :3, 3] = focus - (level @ torch.lerp(seen[:, :1], seen[:, 1:], t[:, None, None]))[..., 0]
    return c2w


def _turn(angle: Tensor, axis: int) -> Tensor:
    """Rotations [..., 3, 3] by angles [...] about a coordinate axis."""
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.eye(3).to(angle).repeat(*angle.shape, 1, 1)
    matrix[..., a, a] = matrix[..., b, b] = angle.cos()
    matrix[..., b, a] = angle.sin()
    matrix[..., a, b] = -angle.sin()
    return matrix


def _focus(center: Tensor, look: Tensor) -> Tensor:
    """The points [G, 3] nearest to pairs of lines through `center` along unit `look`, both [G, 2, 3]."""
    away = torch.eye(3).to(look) - look[..., :, None] * look[..., None, :]
    parallel = _parallel(look[:, 0], look[:, 1])[:, None]
    normal = torch.where(parallel[..., None], torch.eye(3).to(look), away.sum(1))
    crossing = torch.linalg.solve(normal, (away @ center[..., None]).sum(1))[..., 0]
    return torch.where(parallel, center.mean(1), crossing)


def _parallel(a: Tensor, b: Tensor) -> Tensor:
    return ((a * b).sum(-1).abs() - 1).abs() < _PARALLEL


def _plane(a: Tensor, b: Tensor) -> Tensor:
    """Frames [G, 3, 3] whose z is `a` and whose y stands on the plane of unit vectors `a` and `b` [G, 3]."""
    for axis in (2, 1):
        b = torch.where(_parallel(a, b)[:, None], torch.eye(3).to(a)[axis], b)
    y = F.normalize(torch.linalg.cross(a, b), dim=-1)
    return torch.stack([torch.linalg.cross(y, a), y, a], -1)
