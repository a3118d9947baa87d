"""Cameras from the rays that the network predicts (paper section 3.1): a pinhole fitted to each view's rays.

A pinhole sends pixel p along the ray d ~ A p with A = R K^-1, R its camera-to-world rotation. A is found robustly from
small groups of rays, refined on all that agree, and factorised. There are two solvers:

- "qr", the default. K^-1 is upper triangular, so a QR decomposition gives R and K wherever the principal point lies;
  where it is in the middle, "ql" would give the same. Errors are angles: turning the world turns the cameras, and rays
  may point anywhere.
- "ql", what was published, for the same figures. A lower triangular factor is right for a centred principal point only:
  with one that is 10 % of the half size off, cameras are turned by up to 7 degrees. Errors are distances on the plane
  z = 1 of the world, where rays across the z-axis have no place.

Pixels are measured here in half image sizes from the image's centre, so that they lie in -1..1.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras, invert_intrinsics, invert_rigid

Solver = Literal["qr", "ql"]
MIN_RAYS = 8

_CONFIDENT = 0.3  # models are made from this share of the rays, the most confident ones
_MODELS = {"qr": (256, 5), "ql": (100, 8)}  # how many, and of how many rays each
_ANGLE = 0.05  # radians; further from a model of "qr" a ray does not support it
_DISTANCE = 0.2  # the same for "ql", on the plane z = 1
_MIN_Z = 1e-4
_REFITS = 6
# "qr" takes every n-th ray where there are more: noise averages out long before.
_RAYS_SCORED, _RAYS_FITTED = 4096, 32768
_VIEWS_AT_ONCE, _VALUES_AT_ONCE = 8, 2**22


def cameras_from_rays(
    rays: Tensor,
    confidence: Tensor,
    size: tuple[int, int],
    solver: Solver = "qr",
    samples: Tensor | None = None,
) -> Cameras:
    """Cameras [B, V] of images of `size` (height, width) from rays [B, V, h, w, 6] with confidence [B, V, h, w].

    A ray is a direction of any length and the camera's centre, in the world. Rays that are not finite, or whose
    confidence is not above 0, do not count. `samples` [G, n], n >= 4, are the groups of rays that models are made of,
    as ranks in the order of falling confidence; by default they are drawn by a generator of their own, always alike.
    Skew is taken as 0. Computed in float64 without gradient, returned in float32. Raises ValueError for shapes that do
    not fit, and naming the view where fewer than 8 rays count or where they make no pinhole (parallel ones, say).
    """
    if rays.ndim != 5 or rays.shape[-1] != 6 or confidence.shape != rays.shape[:-1]:
        raise ValueError(
            "rays must be [B, V, h, w, 6] and confidence [B, V, h, w], "
            f"got {tuple(rays.shape)} and {tuple(confidence.shape)}"
        )
    if solver not in _MODELS:
        raise ValueError(f"solver must be one of {', '.join(_MODELS)}, got {solver!r}")
    lead, (height, width) = rays.shape[:2], size
    with torch.no_grad(), torch.autocast(rays.device.type, enabled=False):
        pixels = _pixels(*rays.shape[2:4], rays.device)
        chunks = zip(
            rays.reshape(-1, len(pixels), 6).split(_VIEWS_AT_ONCE),
            confidence.flatten(2).flatten(0, 1).split(_VIEWS_AT_ONCE),
        )
        fits = [_fit(*chunk, pixels, solver, samples) for chunk in chunks]
        counts, A, centers = (torch.cat(x) for x in zip(*fits))
        _refuse(counts < MIN_RAYS, lead, f"fewer than {MIN_RAYS} of its rays are finite with a confidence above 0")
        sizes = torch.linalg.svdvals(A)
        _refuse(sizes[:, 2] < 1e-5 * sizes[:, 0], lead, "its rays make no pinhole camera; do they all run in parallel?")
        rotation, focal, principal = factor_qr(A) if solver == "qr" else factor_ql(A)

        half = torch.tensor([width / 2, height / 2], dtype=A.dtype, device=A.device)
        K, c2w = torch.zeros_like(A), torch.eye(4, dtype=A.dtype, device=A.device).repeat(len(A), 1, 1)
        K[:, [0, 1], [0, 1]], K[:, :2, 2], K[:, 2, 2] = focal * half, (principal + 1) * half, 1
        c2w[:, :3, :3], c2w[:, :3, 3] = rotation, centers
        return Cameras(invert_rigid(c2w).unflatten(0, lead).float(), K.unflatten(0, lead).float(), (height, width))


def factor_qr(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation [..., 3, 3], focal lengths and principal point [..., 2], in half sizes, with A ~ R K^-1, det A > 0."""
    rotation, upper = _positive_qr(A)
    K = invert_intrinsics(upper / upper[..., 2:, 2:])
    return rotation, K[..., [0, 1], [0, 1]], K[..., :2, 2]


def factor_ql(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as published: A ~ R L, with L lower triangular."""
    rotation, upper = _positive_qr(A.flip(-1))
    # A = Q U with the columns of A, of Q, and both sides of U reversed. That changes the sign of det Q, so of det A.
    rotation, lower = rotation.flip(-1), upper.flip(-1, -2)
    lower = lower / lower[..., 2:, 2:]
    return rotation, 1 / lower[..., [0, 1], [0, 1]], lower[..., 2, :2]


def _positive_qr(A: Tensor) -> tuple[Tensor, Tensor]:
    Q, R = torch.linalg.qr(A)
    sign = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(A)
    return Q * sign[..., None, :], R * sign[..., :, None]


def _fit(
    rays: Tensor, confidence: Tensor, pixels: Tensor, solver: Solver, samples: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """How many rays count [V], A [V, 3, 3] with det A > 0, and centres [V, 3] from rays [V, N, 6]."""
    usable = rays.isfinite().all(-1) & confidence.isfinite() & (confidence > 0) & (rays[..., :3] != 0).any(-1)
    rays = torch.where(usable[..., None], rays, 0.0).double()
    weight = torch.where(usable, confidence, 0.0).double()
    ranked = weight.argsort(dim=1, descending=True, stable=True)
    if samples is None:
        samples = _draw(*_MODELS[solver], usable.sum(1))
    samples = samples.to(rays.device).expand(len(rays), -1, -1)
    chosen = ranked.gather(1, samples.flatten(1)).view(samples.shape)
    fit = _fit_by_angle if solver == "qr" else _fit_on_plane
    return usable.sum(1), *fit(rays, weight, pixels, chosen)


def _fit_by_angle(rays: Tensor, weight: Tensor, pixels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    directions = F.normalize(rays[..., :3], dim=-1)
    identity = torch.tensor([1.0, 0, 0, 1, 0, 1], dtype=rays.dtype, device=rays.device)
    form, outer = identity - _products(directions), _products(pixels)
    A = _solve(_pick(form, chosen), outer[chosen], _pick(weight[..., None], chosen)[..., 0])
    step = -(-len(pixels) // _RAYS_SCORED)
    scores = []
    for models in A.float().split(max(1, _VALUES_AT_ONCE // (3 * len(A) * len(pixels[::step]))), 1):
        seen = F.normalize(pixels[::step].float() @ models.transpose(-1, -2), dim=-1)
        chord = (seen - directions[:, None, ::step].float()).square().sum(-1)
        scores.append((weight[:, None, ::step] * (1 - chord / _ANGLE**2).clamp_min(0)).sum(-1))
    A = _best(A, torch.cat(scores, 1))

    step = -(-len(pixels) // _RAYS_FITTED)
    directions, form, weight = directions[:, ::step], form[:, ::step], weight[:, ::step]
    for _ in range(_REFITS):
        seen = pixels[::step] @ A.transpose(-1, -2)
        length = torch.linalg.vector_norm(seen, dim=-1).clamp_min(1e-12)
        chord = torch.linalg.vector_norm(seen / length[..., None] - directions, dim=-1)
        near = torch.where((chord < _ANGLE) & (weight > 0), chord, torch.nan)
        noise = near.nanmedian(1, keepdim=True).values.nan_to_num().clamp_min(1e-9)
        # Geman and McClure's weights: what is far off the noise has no say.
        trust = weight / (1 + (chord / (3 * noise)).square()).square()
        A = _solve(form, outer[::step].expand(len(A), -1, -1), trust / length.square())
    return A, _mean(rays[:, ::step, 3:], trust)


def _fit_on_plane(rays: Tensor, weight: Tensor, pixels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    across = rays[..., 2].abs() <= _MIN_Z
    weight = torch.where(across, 0.0, weight)
    u, v = (rays[..., :2] / torch.where(across, 1.0, rays[..., 2])[..., None]).unbind(-1)
    one, zero = torch.ones_like(u), torch.zeros_like(u)
    form, outer = torch.stack([one, zero, -u, one, -v, u * u + v * v], -1), _products(pixels)
    A = _solve(_pick(form, chosen), outer[chosen], _pick(weight[..., None], chosen)[..., 0])
    scores, uf, vf = [], u.float()[:, None], v.float()[:, None]
    for models in A.float().split(max(1, _VALUES_AT_ONCE // (3 * u.numel())), 1):
        x, y, z = (models @ pixels.float().T).unbind(-2)
        inside = (x - uf * z).square_().add_((y - vf * z).square_()) < _DISTANCE**2 * z.square_()
        scores.append((inside.to(weight) @ weight[..., None])[..., 0])
    A = _best(A, torch.cat(scores, 1))
    x, y, z = (A @ pixels.T).unbind(-2)
    inside = (x - u * z).square() + (y - v * z).square() < (_DISTANCE * z).square()
    return _solve(form, outer.expand(len(A), -1, -1), weight * inside), _mean(rays[..., 3:], weight)


def _solve(form: Tensor, outer: Tensor, weight: Tensor) -> Tensor:
    """A [..., 3, 3] of unit norm and det A >= 0 that minimises the weighted sum of (A p)^T F (A p) over N rays.

    Shapes: the six values of F [..., N, 6] and of p p^T [..., N, 6], `weight` [..., N]. A homography by the direct
    linear transform, as an eigenproblem of size 9.
    """
    moments = (weight[..., None] * form).transpose(-1, -2) @ outer
    six = torch.tensor([[0, 1, 2], [1, 3, 4], [2, 4, 5]], device=form.device)
    normal = moments[..., six[:, None, :, None], six[None, :, None, :]].flatten(-4, -3).flatten(-2)
    A = torch.linalg.eigh(normal).eigenvectors[..., 0].unflatten(-1, (3, 3))
    return torch.where(torch.linalg.det(A)[..., None, None] < 0, -A, A)


def _products(vectors: Tensor) -> Tensor:
    """The six values [..., 6] of the outer products of vectors [..., 3] with themselves: 00, 01, 02, 11, 12, 22."""
    return vectors[..., [0, 0, 0, 1, 1, 2]] * vectors[..., [0, 1, 2, 1, 2, 2]]


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows [V, G, n, C] of values [V, N, C] at index [V, G, n]."""
    return values[torch.arange(len(values), device=values.device)[:, None, None], index]


def _best(models: Tensor, scores: Tensor) -> Tensor:
    """The models [V, 3, 3] with the highest of `scores` [V, G] among models [V, G, 3, 3]."""
    return models.take_along_dim(scores.argmax(1)[:, None, None, None], 1)[:, 0]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (weight[..., None] * values).sum(1) / weight.sum(1, keepdim=True).clamp_min(1e-300)


def _pixels(h: int, w: int, device: torch.device) -> Tensor:
    """Centres [h * w, 3] of a map's pixels, in half image sizes from the image's centre."""
    y = (2 * torch.arange(h, device=device, dtype=torch.float64) + 1) / h - 1
    x = (2 * torch.arange(w, device=device, dtype=torch.float64) + 1) / w - 1
    v, u = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], -1).flatten(0, 1)


def _draw(groups: int, rays: int, usable: Tensor) -> Tensor:
    """Ranks [V, groups, rays] among the confident ones of `usable` [V] rays, no rank twice in a group."""
    # From the host, that every device draws alike; one rank from each of as many equal parts.
    generator = torch.Generator().manual_seed(0)
    place = (torch.rand(groups, rays, generator=generator, dtype=torch.float64) + torch.arange(rays)) / rays
    count = (usable * _CONFIDENT).floor().clamp_min(MIN_RAYS)
    return (place.to(usable.device) * count[:, None, None]).long()


def _refuse(bad: Tensor, lead: torch.Size, reason: str) -> None:
    if bool(bad.any()):
        batch, view = divmod(int(bad.int().argmax()), lead[1])
        name = f"view {view}" if lead[0] == 1 else f"view {view} of scene {batch}"
        raise ValueError(f"{name}: no camera can be had from its rays: {reason}")
