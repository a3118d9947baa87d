"""Cameras into tokens and out of them (paper section 3.2), and the unit of length that the network expects.

A camera is encoded as 9 numbers of its camera-to-world pose: centre (3), quaternion x, y, z, w (4), and the vertical
and horizontal field of view in radians. The principal point is dropped: decoded cameras have theirs in the middle of
the image.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from geometry.backbone import Block
from geometry.cameras import Cameras, invert_rigid, relative_to_first
from geometry.presets import CameraConfig
from geometry.rotations import matrices_from_quats, quats_from_matrices


def normalize_cameras(cameras: Cameras, least: float | None = None) -> tuple[Cameras, Tensor]:
    """Cameras [..., V] in the frame of the first view and in the network's unit, and that unit [...] in the caller's.

    The unit is the lower median of the distances from the first camera, its own zero among them. Where that is zero, as
    for two views, it is the largest distance, and 1 where all centres coincide: whatever the caller's unit, the network
    sees the same. `least` is the published rule instead, with 0.1: no unit is smaller, so two views always have that.
    """
    rounding = 64 * torch.finfo(cameras.w2c.dtype).eps * cameras.centers.abs().amax((-1, -2))
    cameras = relative_to_first(cameras)
    centers = cameras.centers
    distance = torch.linalg.vector_norm(centers - centers[..., :1, :], dim=-1)
    unit = distance.median(-1).values
    if least is not None:
        unit = unit.clamp_min(least)
    else:
        farthest = distance.amax(-1)
        unit = torch.where(unit > 1e-4 * farthest, unit, farthest)
        unit = torch.where(farthest > rounding, unit, 1.0)
    w2c = cameras.w2c.clone()
    w2c[..., :3, 3] /= unit[..., None, None]
    return Cameras(w2c, cameras.K, cameras.size), unit


def encode_cameras(cameras: Cameras) -> Tensor:
    """Pose encodings [..., 9]."""
    c2w, (height, width) = cameras.c2w, cameras.size
    quats = quats_from_matrices(c2w[..., :3, :3]).roll(-1, -1)
    fov_h = 2 * torch.atan(height / 2 / cameras.K[..., 1, 1])
    fov_w = 2 * torch.atan(width / 2 / cameras.K[..., 0, 0])
    return torch.cat([c2w[..., :3, 3], quats, fov_h[..., None], fov_w[..., None]], -1)


def decode_cameras(encoding: Tensor, size: tuple[int, int]) -> Cameras:
    """Cameras [...] of images of `size` (height, width) from pose encodings [..., 9].

    The quaternion may have any length but zero.
    """
    height, width = size
    c2w = torch.zeros(*encoding.shape[:-1], 4, 4, dtype=encoding.dtype, device=encoding.device)
    c2w[..., :3, :3] = matrices_from_quats(encoding[..., 3:7].roll(1, -1))
    c2w[..., :3, 3] = encoding[..., :3]
    c2w[..., 3, 3] = 1
    tangent = torch.tan(encoding[..., 7:] / 2).clamp_min(1e-6)
    K = torch.zeros_like(c2w[..., :3, :3])
    K[..., 0, 0] = width / 2 / tangent[..., 1]
    K[..., 1, 1] = height / 2 / tangent[..., 0]
    K[..., 0, 2] = width / 2
    K[..., 1, 2] = height / 2
    K[..., 2, 2] = 1
    return Cameras(invert_rigid(c2w), K, size)


class CameraEncoder(nn.Module):
    """Given cameras [B, V], normalised, to one token per view [B, V, dim]."""

    def __init__(self, dim: int, config: CameraConfig):
        super().__init__()
        self.pose_branch = Mlp(9, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.Sequential(*(Block(dim, config.heads, layer_scale=0.01) for _ in range(config.depth)))
        self.trunk_norm = nn.LayerNorm(dim)

    def forward(self, cameras: Cameras) -> Tensor:
        return self.trunk_norm(self.trunk(self.token_norm(self.pose_branch(encode_cameras(cameras)))))


class CameraDecoder(nn.Module):
    """Camera features [B, V, dim] to pose encodings [B, V, 9]."""

    def __init__(self, dim: int):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        x = self.backbone(features)
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], -1)
