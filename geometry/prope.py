"""Projective positional encoding (PRoPE) for cross-view attention.

Li et al., "Cameras as Relative Positional Encoding" (2025): half of each attention head is moved by the 4x4 projection
matrix of the token's view, so that a query and a key meet in the relative projection between their two cameras. `nano`
uses it as a further form of pose conditioning beside DA3's camera token; the published presets do not have it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geometry.cameras import Cameras, invert_intrinsics


class RelativeCameras:
    """Moves queries, keys and values [B, heads, V*T, C] of cross-view attention; C must be a multiple of 8.

    Built once per forward from normalised cameras [B, V] (first view at the origin, baselines of order 1).
    """

    def __init__(self, cameras: Cameras):
        h, w = cameras.size
        # Intrinsics in units of the image, so that the entries are of order 1 at any resolution.
        K = cameras.K.float() / cameras.K.new_tensor([w, h, 1.0])[:, None]
        projection = torch.zeros_like(cameras.w2c, dtype=torch.float32)
        projection[..., :3, :] = K @ cameras.w2c[..., :3, :].float()
        projection[..., 3, 3] = 1
        inverse = cameras.c2w.float()
        inverse[..., :3, :3] = inverse[..., :3, :3] @ invert_intrinsics(K)
        self.projection = projection
        self.inverse = inverse

    def before(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            _move(q, self.projection.transpose(-1, -2)),
            _move(k, self.inverse),
            _move(v, self.inverse),
        )

    def after(self, out: Tensor) -> Tensor:
        return _move(out, self.projection)


def _move(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the first half of the channels, taken four by four, by each view's matrix [B, V, 4, 4]."""
    batch, heads, tokens, channels = x.shape
    views = matrix.shape[1]
    half = channels // 2
    # Autocast would run this product in bfloat16 and with it round the cameras.
    with torch.autocast(x.device.type, enabled=False):
        vectors = x[..., :half].float().reshape(batch, heads, views, tokens // views, half // 4, 4)
        moved = torch.einsum("bvij,bhvtcj->bhvtci", matrix, vectors).reshape(batch, heads, tokens, half)
    return torch.cat([moved.to(x.dtype), x[..., half:]], -1)
