"""How near pictures come to photos, for losses: gradients pass through. Reported scores come from splat.metrics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def splatting_loss(pictures: Tensor, photos: Tensor, dissimilar: float = 0.2) -> Tensor:
    """The loss of 3D Gaussian splatting (Kerbl et al., 2023) on [N, 3, H, W]: 0.8 L1 + `dissimilar` (1 - SSIM)."""
    return 0.8 * (pictures - photos).abs().mean() + dissimilar * (1 - structural_similarity(pictures, photos))


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Differentiable mean SSIM of images [N, C, H, W] in [0, 1]: 11x11 Gaussian window of 1.5 px, inner pixels."""
    offsets = torch.arange(-5, 6, device=a.device, dtype=a.dtype)
    window = torch.exp(-offsets.square() / 4.5)
    window = window / window.sum()
    channels = a.shape[1]
    kernel_y = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    kernel_x = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, kernel_y, groups=channels), kernel_x, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a.square()
    var_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    return (numerator / ((mean_a.square() + mean_b.square() + 1e-4) * (var_a + var_b + 9e-4))).mean()
