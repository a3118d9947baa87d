"""Real spherical harmonics up to degree 3, in the basis and order of 3D Gaussian splatting (K = 1, 4, 9 or 16 bands).

Signs follow the Condon-Shortley phase: band 1 is (-y, z, -x). A constant colour c is one coefficient, (c - 0.5) / C0.
"""

from __future__ import annotations

import torch
from torch import Tensor

C0 = 0.28209479177387814  # 1 / (2 sqrt(pi))
C1 = 0.4886025119029199  # sqrt(3 / (4 pi))
C2_XY = 1.0925484305920792  # sqrt(15 / (4 pi)): xy, yz, xz
C2_ZZ = 0.31539156525252005  # sqrt(5 / (16 pi)): 3 zz - 1
C2_XX = 0.5462742152960396  # sqrt(15 / (16 pi)): xx - yy
C3_Y = 0.5900435899266435  # sqrt(35 / (32 pi)): y (3 xx - yy), x (xx - 3 yy)
C3_XYZ = 2.890611442640554  # sqrt(105 / (4 pi)): xyz
C3_YZZ = 0.4570457994644658  # sqrt(21 / (32 pi)): y (5 zz - 1), x (5 zz - 1)
C3_ZZZ = 0.3731763325901154  # sqrt(7 / (16 pi)): z (5 zz - 3)
C3_ZXX = 1.445305721320277  # sqrt(105 / (16 pi)): z (xx - yy)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """The basis [..., (degree + 1)^2] in unit `directions` [..., 3]. ValueError unless the degree is 0 to 3."""
    if degree not in (0, 1, 2, 3):
        raise ValueError(f"spherical harmonics are implemented for degrees 0 to 3, got {degree}")
    x, y, z = directions.unbind(-1)
    bands = [torch.full_like(x, C0)]
    if degree >= 1:
        bands += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        bands += [C2_XY * x * y, -C2_XY * y * z, C2_ZZ * (3 * z * z - 1), -C2_XY * x * z, C2_XX * (x * x - y * y)]
    if degree >= 3:
        bands += [-C3_Y * y * (3 * x * x - y * y), C3_XYZ * x * y * z, -C3_YZZ * y * (5 * z * z - 1)]
        bands += [C3_ZZZ * z * (5 * z * z - 3), -C3_YZZ * x * (5 * z * z - 1)]
        bands += [C3_ZXX * z * (x * x - y * y), -C3_Y * x * (x * x - 3 * y * y)]
    return torch.stack(bands, -1)


def sh_to_color(sh: Tensor, directions: Tensor) -> Tensor:
    """Colours [..., 3] of coefficients `sh` [..., K, 3] seen along `directions` [..., 3] (any length), not below 0.

    Directions run from the camera centre to the Gaussian; colour = 0.5 + sum(sh * basis), clamped at 0.
    Raises ValueError for another number of bands.
    """
    degree = {1: 0, 4: 1, 9: 2, 16: 3}.get(sh.shape[-2])
    if degree is None:
        raise ValueError(f"sh must have 1, 4, 9 or 16 bands, got shape {tuple(sh.shape)}")
    basis = sh_basis(torch.nn.functional.normalize(directions, dim=-1), degree)
    return ((basis[..., None] * sh).sum(-2) + 0.5).clamp_min(0)
