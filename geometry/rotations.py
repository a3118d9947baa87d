"""Rotations as quaternions, wxyz, in batches and without reads from the device."""

from __future__ import annotations

import torch
from torch import Tensor


def quats_from_matrices(R: Tensor) -> Tensor:
    """Unit quaternions [..., 4] with w >= 0 of rotation matrices [..., 3, 3]."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = R.flatten(-2).unbind(-1)
    # Row k is the quaternion times 4 q_k, so the row of the largest component is the well-conditioned one.
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m20 + m02, m21 + m12, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quats = rows.take_along_dim(best[..., None, None], -2)[..., 0, :]
    quats = quats / torch.linalg.vector_norm(quats, dim=-1, keepdim=True)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def matrices_from_quats(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] of any length but zero."""
    w, x, y, z = quats.unbind(-1)
    s = 2 / quats.square().sum(-1)
    rows = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def left_product_matrices(quats: Tensor) -> Tensor:
    """Matrices [..., 4, 4] that multiply a quaternion by `quats` [..., 4] from the left (Hamilton product)."""
    w, x, y, z = quats.unbind(-1)
    rows = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
