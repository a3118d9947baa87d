"""Guided upsampling: every pixel chooses which of the nine cells around it its value comes from.

The learned convex mixture of RAFT (Teed and Deng, 2020, section 3.3), for sizes whose ratio need not be whole. Depth
wants it: bilinear interpolation rounds off the edges of things, and the nearest cell turns them into stairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geometry.pointwise import Pointwise
from geometry.tables import cached_table


class GuidedUpsampling(nn.Module):
    """Maps [R, C, h, w] to [R, C, H, W] by a guide [R, G, H, W]; untrained, by distance alone.

    `sharpness` is how much the near cells outweigh the far ones before the guide has its say: 1 is smooth, much more is
    the nearest cell.
    """

    def __init__(self, guide_channels: int, sharpness: float):
        super().__init__()
        self.sharpness = sharpness
        self.weigh = Pointwise(guide_channels, 9)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, coarse: Tensor, guide: Tensor) -> Tensor:
        size = tuple(guide.shape[-2:])
        prior = log_spline(tuple(coarse.shape[-2:]), size, coarse.device)
        weights = (self.weigh(guide).float() + self.sharpness * prior).softmax(1)
        cells = F.unfold(F.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3)
        cells = cells.view(*coarse.shape[:2], 9, *coarse.shape[-2:])
        return torch.stack(
            [(F.interpolate(channel, size, mode="nearest-exact") * weights).sum(1) for channel in cells.unbind(1)], 1
        )


class PixelGuide(nn.Module):
    """Images [R, 3, H, W] in [0, 1] and features [R, F, h, w] to a guide [R, G, H, W] for upsampling."""

    def __init__(self, features: int, channels: int):
        super().__init__()
        self.image = nn.Conv2d(3, channels, 3, padding=1)
        self.features = Pointwise(features, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        size = images.shape[-2:]
        # Full-size maps of few channels: on the CPU convolutions take half as long with channels last.
        x = self.image((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        x = x + F.interpolate(self.features(features), size, mode="bilinear")
        return F.relu(self.mix(F.relu(x, inplace=True)), inplace=True)


@cached_table
def log_spline(coarse: tuple[int, int], fine: tuple[int, int], device: torch.device) -> Tensor:
    """Logarithms [9, H, W] of the quadratic B-spline weights of the 3x3 cells around each fine pixel, row by row."""
    axes = []
    for cells, pixels in zip(coarse, fine, strict=True):
        away = (torch.arange(pixels, device=device, dtype=torch.float32) + 0.5) * (cells / pixels) % 1 - 0.5
        weights = torch.stack([(0.5 - away).square() / 2, 0.75 - away.square(), (0.5 + away).square() / 2])
        axes.append(weights.clamp_min(1e-3).log())
    rows, columns = axes
    return (rows[:, None, :, None] + columns[None, :, None, :]).flatten(0, 1)
