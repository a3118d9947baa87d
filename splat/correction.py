"""A look of the network at its own pictures of the inputs: what they lack goes back into the Gaussians.

One pass from pixels to Gaussians cannot know how the splats of several views will blend. Rendered at the inputs, they
show it. Each Gaussian then takes the mean of what is missing in the pixels that show it, from whichever view, into its
colour: one step of simultaneous iterative reconstruction (SIRT, Gilbert 1972), as in tomography. A small network sees
the same sums and the picture's own error, and corrects the rest. Error feedback for feed-forward splats is the idea of
ReSplat (Xu et al., 2025).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geometry.cameras import Cameras
from geometry.pointwise import Pointwise
from splat.gaussians import Gaussians
from splat.render import back_project
from splat.sh import C0

NEAR = 0.1  # nothing nearer is drawn, in the unit of the network's cameras: one splat would fill the picture
LEAST = 0.2  # a Gaussian with a smaller share in all pixels together takes less of what they lack
SEEN = 12  # channels of what `look_back` tells


class Correction(nn.Module):
    """What to add to raw values and opacity logits, from errors at the inputs; untrained, the mean error alone."""

    def __init__(self, channels: int, hidden: int = 24):
        super().__init__()
        self.state = Pointwise(channels, hidden)
        self.seen = nn.Conv2d(SEEN, hidden, 3, padding=1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.change = Pointwise(hidden, channels)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, raw: Tensor, opacity: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected `raw` [B, V, H, W, C] (see `splat.adapter`) and `opacity` [B, V, H, W], by what `look_back` saw."""
        views = raw.shape[:2]
        logit = torch.logit(opacity.float(), 1e-4)
        state = torch.cat([raw, logit[..., None]], -1).flatten(0, 1).permute(0, 3, 1, 2)
        x = F.relu(self.state(state) + self.seen(seen.flatten(0, 1)), inplace=True)
        change = self.change(F.relu(self.mix(x), inplace=True)).float().permute(0, 2, 3, 1).unflatten(0, views)
        lack = (seen[:, :, :3] / C0).permute(0, 1, 3, 4, 2)
        bases = (raw.shape[-1] - 10) // 3
        raw = raw + change[..., :-1]
        colors = 9 + bases * torch.arange(3, device=raw.device)  # band 0 of each colour
        return raw.index_add(-1, colors, lack.to(raw.dtype)), torch.sigmoid(logit + change[..., -1])


def look_back(gaussians: Gaussians, images: Tensor, cameras: Cameras) -> Tensor:
    """How pictures of the Gaussians [B, V*H*W] differ from the `images` [B, V, 3, H, W] that they were made of.

    [B, V, 12, H, W], without gradient, for the Gaussian of every pixel: what the pixels that show it lack on average
    (RGB) and the mean size of that; the logarithm of 1 + its share in them; what its own pixel lacks (RGB); the image
    around 0 (RGB); the picture's alpha.
    """
    with torch.autocast(images.device.type, enabled=False):
        seen = back_project(gaussians, cameras, images, near=NEAR)
        lack = seen.lack * (seen.share / LEAST).clamp_max(1)[..., None]
        of_splats = torch.cat([lack, seen.size[..., None], seen.share.log1p()[..., None]], -1)
        of_splats = of_splats.unflatten(1, images.shape[1:2] + images.shape[3:]).movedim(-1, 2)
        images = images.float()
        error = images - seen.color.movedim(-1, 2)
        return torch.cat([of_splats, error, images - 0.5, seen.alpha[:, :, None]], 2)
