"""Two sets of the same cameras, each in its own world: the similarity between them, and how they differ.

Camera centres decide where they can (Umeyama, 1991), as published. Where they cannot, for one view, two, or all in a
line, orientations take their part by a fixed rule: there is always an answer, and rounding never decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from geometry.cameras import Cameras, transform

ROBUST_VIEWS = 10  # from here on single wrong cameras are left out, unless asked otherwise
# Centres whose second extent is below this share of the first, as squares, are in a line: 3 % of its length aside.
_LINE = 1e-3
_TRIALS, _SEED = 10, 42


@dataclass(frozen=True)
class Similarity:
    """The motion x -> scale * rotation @ x + translation of the world.

    Shapes: `rotation` [..., 3, 3], `translation` [..., 3], `scale` [...] > 0. Gaussians follow by
    `splat.gaussians.transform`, depths by `scale`.
    """

    rotation: Tensor
    translation: Tensor
    scale: Tensor

    def points(self, points: Tensor) -> Tensor:
        """Points [..., N, 3] moved."""
        turned = points @ self.rotation.transpose(-1, -2)
        return self.scale[..., None, None] * turned + self.translation[..., None, :]

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras [..., V] moved with their world; pictures stay the same."""
        return transform(cameras, self.rotation[..., None, :, :], self.translation[..., None, :], self.scale[..., None])

    def inverse(self) -> Similarity:
        rotation, scale = self.rotation.transpose(-1, -2), 1 / self.scale
        return Similarity(rotation, -scale[..., None] * (rotation @ self.translation[..., None])[..., 0], scale)

    def then(self, other: Similarity) -> Similarity:
        """This motion followed by `other`."""
        translation = other.points(self.translation[..., None, :])[..., 0, :]
        return Similarity(other.rotation @ self.rotation, translation, other.scale * self.scale)

    def to(self, *args, **kwargs) -> Similarity:
        return Similarity(
            self.rotation.to(*args, **kwargs), self.translation.to(*args, **kwargs), self.scale.to(*args, **kwargs)
        )


def align_cameras(
    source: Cameras,
    target: Cameras,
    robust: bool | None = None,
    scale: float = 1.0,
    turn_by: Literal["centers", "orientations"] = "centers",
) -> Similarity:
    """The similarity that takes cameras `source` [V] to `target` [V], by least squares over their centres.

    With `turn_by` "orientations" the rotation is the mean turn from source to target orientations instead, and scale
    and translation follow it. That is better for few views: a hundredth of their baseline, by which centres may be off,
    turns the world by half a degree.

    `robust` (by default from 10 views on) first fits to halves of the views, drawn by a generator of their own, and
    goes by those that the best fit explains (RANSAC), as published. The rule where centres do not determine a rotation:

    - two views, or all centres in a line: the rotation is the mean turn from source to target orientations, the scale
      still that of least squares (for two views the ratio of their baselines), and the means of the centres meet;
    - one view, or centres that all coincide in either set: the same with `scale`, for nothing tells it.

    Moving either set by a similarity moves the result with it (but for `scale`). Computed in float64 on the host,
    without gradient, returned in the dtype and on the device of `target`. Raises ValueError when the sets differ in
    number, are empty, are not [V] or hold NaN.
    """
    if source.w2c.ndim != 3 or source.shape != target.shape or len(source.w2c) == 0:
        raise ValueError(
            f"align_cameras takes two sets [V] of the same cameras, got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    x, y = (c.to("cpu", torch.float64).c2w.detach() for c in (source, target))
    if not bool((x.isfinite() & y.isfinite()).all()):
        raise ValueError("cameras to align hold NaN or infinity")
    rounding = max(torch.finfo(c.w2c.dtype).eps for c in (source, target))
    fit = _fit(x, y, scale, rounding, turn_by)
    if (len(x) >= ROBUST_VIEWS if robust is None else robust) and len(x) >= 3:
        fit = _fit_robust(x, y, fit, scale, rounding, turn_by)
    return fit.to(target.w2c)


def rotation_error(predicted: Cameras, true: Cameras) -> Tensor:
    """Median over pairs of views [V] of the angle between predicted and true relative rotation, degrees."""

    def relative(cameras: Cameras) -> Tensor:
        R = cameras.w2c[:, :3, :3].double()
        i, j = torch.triu_indices(len(R), len(R), 1, device=R.device)
        return R[i] @ R[j].mT

    cosine = ((relative(predicted) * relative(true)).sum((-1, -2)) - 1) / 2
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).median()


def _fit(x: Tensor, y: Tensor, scale: float, rounding: float, turn_by: str) -> Similarity:
    """Least squares from camera-to-world matrices x [V, 4, 4] to y [V, 4, 4], with the rule of `align_cameras`."""
    mean_x, mean_y = x[:, :3, 3].mean(0), y[:, :3, 3].mean(0)
    a, b = x[:, :3, 3] - mean_x, y[:, :3, 3] - mean_y
    spread_x, spread_y = a.square().sum(1).mean(), b.square().sum(1).mean()
    covariance = b.T @ a / len(x)
    extent = torch.linalg.svdvals(covariance)
    extent[2] *= torch.linalg.det(covariance).sign()
    # Centres that differ by less than their own rounding are one.
    apart = all(
        float(s.sqrt()) > 16 * rounding * float(c[:, :3, 3].abs().max()) for s, c in ((spread_x, x), (spread_y, y))
    )
    related = apart and float(extent[0]) > 1e-6 * float((spread_x * spread_y).sqrt())
    if turn_by == "centers" and related and float(extent[1]) > _LINE * float(extent[0]):
        rotation = nearest_rotation(covariance)
    else:
        rotation = nearest_rotation((y[:, :3, :3] @ x[:, :3, :3].transpose(1, 2)).sum(0))
    if related:
        scale = float(extent.sum() / spread_x)
    scale = torch.tensor(scale, dtype=x.dtype)
    return Similarity(rotation, mean_y - scale * rotation @ mean_x, scale)


def nearest_rotation(matrices: Tensor) -> Tensor:
    """The rotations [..., 3, 3] nearest to matrices [..., 3, 3], averages of rotations for instance."""
    U, _, Vt = torch.linalg.svd(matrices)
    mirror = torch.ones_like(matrices[..., 0])
    mirror[..., 2] = torch.linalg.det(U @ Vt)
    return (U * mirror[..., None, :]) @ Vt


def _fit_robust(x: Tensor, y: Tensor, plain: Similarity, scale: float, rounding: float, turn_by: str) -> Similarity:
    """The best of ten fits to random halves, fitted again to the views that it brings near their target if those are 3.

    Near is the median distance, after the fit to all, from a source centre to the nearest target centre.
    """
    near = torch.cdist(plain.points(x[:, :3, 3]), y[:, :3, 3]).amin(1)
    near = float(np.median(near.numpy()))
    generator = np.random.default_rng(_SEED)
    best, fit, kept = (0, 0.0), plain, torch.zeros(len(x), dtype=torch.bool)
    for _ in range(_TRIALS):
        chosen = generator.choice(len(x), max(3, (len(x) + 1) // 2), replace=False)
        trial = _fit(x[chosen], y[chosen], scale, rounding, turn_by)
        error = torch.linalg.vector_norm(trial.points(x[:, :3, 3]) - y[:, :3, 3], dim=1)
        inside = error <= near
        if bool(inside.any()) and (score := (int(inside.sum()), -float(error[inside].mean()))) > best:
            best, fit, kept = score, trial, inside
    return _fit(x[kept], y[kept], scale, rounding, turn_by) if int(kept.sum()) >= 3 else fit
