"""The Gaussian head: patch features and the image itself to raw Gaussian parameters per pixel (paper section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geometry.dpt import Pyramid, add_position, in_chunks, resample
from geometry.pointwise import Pointwise
from geometry.presets import GaussianHeadConfig
from geometry.reprojection import CHANNELS
from splat.correction import Correction

LARGEST_LOGIT = 9.2  # of opacity, where it is corrected: 0.0001 to 0.9999


class GaussianHead(Pyramid):
    """A dense head that also sees the image at full resolution; parameter names are those of the checkpoints."""

    def __init__(self, dim_in: int, config: GaussianHeadConfig):
        super().__init__(dim_in, config, channels_out=config.channels + 1)
        features = config.features
        # Half of a patch feature is the raw residual stream, whose size training does not bound.
        self.norm = nn.LayerNorm(dim_in) if config.token_norm else nn.Identity()
        self.images_merger = nn.Sequential(
            nn.Conv2d(3, features // 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(features // 8, features // 4, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(features // 4, features // 2, 3, padding=1),
            nn.GELU(),
        )
        self.agreement = ViewAgreement(features // 2) if config.reprojection else None
        self.correction = Correction(config.channels + 1) if config.looks else None
        if config.convention == "exact":
            self.start_as_plain_splats(config)

    def start_as_plain_splats(self, config: GaussianHeadConfig) -> None:
        """Untrained, give a round splat of 0.6 px on every pixel: training starts from a picture, not from fog."""
        last = self.scratch.output_conv2[-1]
        with torch.no_grad():
            last.weight *= 0.1
            last.bias.zero_()
            last.bias[2:5] = torch.tensor(3.0 / config.scale_max).logit()  # the unit of scale is a fifth of a pixel
            last.bias[8] = 1.0  # w of the quaternion
            last.bias[-1] = 1.5  # opacity 0.82

    def forward(
        self,
        patches: tuple[Tensor, ...],
        images: Tensor,
        *,
        lateral: Tensor | None = None,
        reprojected: Tensor | None = None,
    ) -> Tensor:
        """Raw values [B, V, H, W, C + 1]: the C of `splat.adapter`, then the logit of opacity.

        Shapes: four `patches` [B, V, P, dim_in]; normalised `images` [B, V, 3, H, W]; `lateral` [B*V, F, 4ph, 4pw];
        `reprojected` [B, V, S, 6, H, W] (see `geometry.reprojection`), read where `config.reprojection`.
        """
        lead, size = images.shape[:2], tuple(images.shape[-2:])

        def run(lateral: Tensor | None, reprojected: Tensor | None, images: Tensor, *tokens: Tensor) -> list[Tensor]:
            x = resample(
                self.scratch.output_conv1(self.fuse(self.levels([self.norm(t) for t in tokens], size, lateral))), size
            )
            # Full-size maps of few channels: on the CPU convolutions take half as long with channels last.
            x += self.images_merger(images.contiguous(memory_format=torch.channels_last))
            if reprojected is not None:
                x += self.agreement(reprojected)
            x = self.scratch.output_conv2(add_position(x, size))
            return [x.float().permute(0, 2, 3, 1)]

        reprojected = None if reprojected is None else reprojected.flatten(0, 1)
        flat = (tokens.flatten(0, 1) for tokens in patches)
        (raw,) = in_chunks(run, lateral, reprojected, images.flatten(0, 1), *flat)
        if self.correction is not None:
            raw[..., -1].clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)  # it reads them, and goes back from there
        return raw.unflatten(0, lead)


class ViewAgreement(nn.Module):
    """What the neighbours say of each pixel, [R, S, 6, H, W] of `geometry.reprojection`, to features [R, F, H, W].

    Mean and best over the neighbours, so that their number and order do not matter. Untrained, nothing is added.
    """

    def __init__(self, features: int):
        super().__init__()
        self.each = nn.Sequential(Pointwise(CHANNELS, 16), Pointwise(16, 16))
        self.all = nn.Sequential(
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, features, 3, padding=1)
        )
        nn.init.zeros_(self.all[-1].weight)
        nn.init.zeros_(self.all[-1].bias)

    def forward(self, reprojected: Tensor) -> Tensor:
        total = best = None
        for x in reprojected.unbind(1):
            for layer in self.each:
                x = F.relu(layer(x), inplace=True)
            total, best = (x, x) if total is None else (total + x, torch.maximum(best, x))
        return self.all(torch.cat([total / reprojected.shape[1], best], 1))
