"""Gaussians to pictures: one function, whatever the device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Render:
    """What cameras see: `color` [..., V, H, W, 3], `depth` [..., V, H, W] expected z-depth, `alpha` [..., V, H, W] in 0..1."""

    color: Tensor
    depth: Tensor
    alpha: Tensor
