"""Small matrices in full float32, whatever autocast or TF32 would make of a matrix product."""

from __future__ import annotations

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product [..., I, K] of a [..., I, J] and b [..., J, K]."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix [..., I, J] times vector [..., J] -> [..., I]."""
    return (matrix * vector[..., None, :]).sum(-1)


def rotations(angles: Tensor) -> Tensor:
    """Rz(a) Rx(b) Ry(c) [..., 3, 3] of angles (a, b, c) [..., 3] in radians."""
    (ca, cb, cc), (sa, sb, sc) = torch.cos(angles).unbind(-1), torch.sin(angles).unbind(-1)
    entries = [
        ca * cc - sa * sb * sc, -sa * cb, ca * sc + sa * sb * cc,
        sa * cc + ca * sb * sc, ca * cb, sa * sc - ca * sb * cc,
        -cb * sc, sb, cb * cc,
    ]  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """[..., 4, 4] of a rotation [..., 3, 3] and a translation [..., 3]."""
    matrix = torch.zeros(*rotation.shape[:-2], 4, 4, device=rotation.device)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def inverse(matrix: Tensor) -> Tensor:
    """Inverse [..., 4, 4] of rigid transforms."""
    back = matrix[..., :3, :3].transpose(-1, -2)
    return rigid(back, -apply(back, matrix[..., :3, 3]))
