"""Constant tensors that depend on sizes alone, built once per size and device, never with a read from the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import torch
import torch.nn.functional as F
from torch import Tensor


def cached_table(build: Callable) -> Callable:
    """Remember the tensors that `build` returns for its (hashable) arguments."""

    # A tensor made in inference mode could not take part in a later training step.
    @lru_cache(maxsize=64)
    @wraps(build)
    def table(*args):
        with torch.inference_mode(False), torch.no_grad():
            return build(*args)

    return table


@cached_table
def image_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet mean and standard deviation of RGB in [0, 1], each [3, 1, 1]."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return mean.to(device), std.to(device)


@cached_table
def resize_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """Bicubic resampling [target, source] of one axis of the position embedding.

    DINOv2 samples at the scale (target + 0.1) / source, which differs visibly from target / source.
    """
    identity = torch.eye(source, device=device)[None, None]
    return F.interpolate(identity, scale_factor=((target + 0.1) / source, 1.0), mode="bicubic")[0, 0]


@cached_table
def rope_of_patches(rows: int, columns: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, 2, head_dim / 4] of a view's tokens: camera at (0, 0), patch (r, c) at (r + 1, c + 1)."""
    y = torch.arange(rows, device=device).repeat_interleave(columns) + 1.0
    x = torch.arange(columns, device=device).repeat(rows) + 1.0
    return _rope(F.pad(torch.stack([y, x], -1), (0, 0, 1, 0)), head_dim)


@cached_table
def rope_of_camera(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [1, 2, head_dim / 4] of a camera token seen from patches that all share one position."""
    return _rope(torch.full((1, 2), -1.0, device=device), head_dim)


def _rope(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, 2, head_dim / 4] for (y, x) positions [T, 2]; base frequency 100."""
    width = head_dim // 2
    frequency = 100.0 ** (-torch.arange(0, width, 2, device=positions.device) / width)
    angle = positions[..., None] * frequency
    return angle.cos(), angle.sin()


@cached_table
def uv_encoding(
    height: int, width: int, channels: int, image_size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """0.1 times the sinusoidal position of each pixel of a map, as its two separable halves.

    Returns [channels / 2, 1, width], which the first half of the channels receives, and [channels / 2, height, 1] for
    the second. Positions span the image with a diagonal of 2, so they depend on the aspect of `image_size` (height,
    width).
    """
    aspect = image_size[1] / image_size[0]
    diagonal = (aspect**2 + 1) ** 0.5
    quarter = channels // 4
    frequency = 100.0 ** (-torch.arange(quarter, device=device, dtype=torch.float64) / quarter)

    def half(extent: float, count: int) -> Tensor:
        end = extent / diagonal * (count - 1) / count
        angle = frequency[:, None] * torch.linspace(-end, end, count, device=device, dtype=torch.float64)
        return 0.1 * torch.cat([angle.sin(), angle.cos()]).float()

    return half(aspect, width)[:, None], half(1.0, height)[:, :, None]
