"""Photographs to depth and sky, each image alone: the monocular networks of Depth Anything 3 (paper section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geometry.backbone import Backbone
from geometry.dpt import DPT
from geometry.network import Features, check_images, normalize_images
from geometry.precision import of_heads
from geometry.presets import MonocularConfig

SKY = 0.3  # a pixel is sky from here on
MIN_PIXELS = 10  # of sky and of the rest; where there are no more, nothing is concluded from them
FAR = 0.99  # sky is as deep as this quantile of the rest


@dataclass(frozen=True)
class MonocularGeometry:
    """What a monocular network knows of V views.

    Shapes: `depth` [..., V, H, W] z-depth above 0, right up to a factor; `sky` [..., V, H, W] from 0, about 1 in the
    sky. Raises ValueError when shapes disagree.
    """

    depth: Tensor
    sky: Tensor

    def __post_init__(self):
        if self.depth.ndim < 3 or self.sky.shape != self.depth.shape:
            raise ValueError(
                f"MonocularGeometry.depth and .sky must both be [..., V, H, W], got {tuple(self.depth.shape)} and "
                f"{tuple(self.sky.shape)}"
            )

    def to(self, *args, **kwargs) -> MonocularGeometry:
        return MonocularGeometry(self.depth.to(*args, **kwargs), self.sky.to(*args, **kwargs))


class MonocularNetwork(nn.Module):
    """Depth and sky of images that do not see each other. Precision: see `geometry.precision`."""

    def __init__(self, config: MonocularConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.head = DPT(config.backbone.dim, config.head)

    def encode(self, images: Tensor, *, export_layers: tuple[int, ...] = ()) -> Features:
        """Features of images [B, V, 3, H, W] in [0, 1]; see `GeometryNetwork.encode`."""
        check_images(images)
        tokens = self.backbone(normalize_images(images), export_layers=export_layers)
        return Features(images, None, tokens.patches, tokens.camera, None, tokens.reference, tokens.layers)

    def decode(self, features: Features) -> MonocularGeometry:
        """Depth and sky from features; the sky lies as deep as the far end of the rest of the V views."""
        with of_heads(features.images, "float32"):
            depth, sky = self.head(features.patches, features.size)
        return MonocularGeometry(fill_sky(depth, sky), sky)

    def forward(self, images: Tensor) -> MonocularGeometry:
        """`encode`, then `decode`."""
        return self.decode(self.encode(images))


def fill_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """Depth [B, V, H, W] with its 0.99-quantile outside the sky put into the sky.

    Batch elements are filled one by one, and stay as they are unless both kinds have more than 10 pixels.
    """
    is_sky = sky >= SKY
    pixels, above = is_sky[0].numel(), is_sky.flatten(1).sum(1)
    enough = (above > MIN_PIXELS) & (pixels - above > MIN_PIXELS)
    far = quantile(depth, ~is_sky, FAR)
    return torch.where(is_sky & enough[:, None, None, None], far[:, None, None, None], depth)


def quantile(x: Tensor, where: Tensor, q: float) -> Tensor:
    """The q-quantile [B] of x [B, ...] `where` a mask holds, interpolated; infinite where it holds nowhere.

    Exact at any size, which `torch.quantile` is not in every version, and without a read from the device.
    """
    count = where.flatten(1).sum(1)
    ranked = x.masked_fill(~where, torch.inf).flatten(1).sort(1).values
    rank = q * (count - 1).clamp_min(0).double()
    below, above = rank.floor().long(), rank.ceil().long()
    low, high = ranked.gather(1, below[:, None])[:, 0], ranked.gather(1, above[:, None])[:, 0]
    return torch.where(above > below, low.lerp(high, (rank - below).to(x.dtype)), low)
