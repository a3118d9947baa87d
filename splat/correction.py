"""A look of the network at its own pictures of the inputs: what they lack goes back into the Gaussians.

One pass from pixels to Gaussians cannot know how the splats of several views will blend. Rendered at the inputs, they
show it. Each Gaussian then takes the mean of what is missing in the pixels that show it, from whichever view, into its
colour: one step of simultaneous iterative reconstruction (SIRT, Gilbert 1972), as in tomography. As there, what goes
back is filtered first, because the way there and the way back both blur. Its opacity and size take a step the way that
brings the pictures nearer. A small network sees the same sums and the picture's own error, and corrects the rest. Error
feedback for feed-forward splats is the idea of ReSplat (Xu et al., 2025). A second look, and a third, bring less, but
more the more views there are; they are the same network again, so `splat.predict` chooses their number.
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
FAINT = 0.03  # what a Gaussian weighs in a tile, below which that tile is left out: 0.14 to 0.44 of all
LEAST = 0.2  # a Gaussian with a smaller share in all pixels together takes less of what they lack
DETAIL = 4.0  # the finest detail of what is missing goes back 1 + this times (docs/nano.md has the choice)
STEPS = (0.15, 0.1)  # the longest, of the logit of opacity and of that of the size
SEEN, ERRORS = 14, 7  # channels of what `look_back` tells, and how many of them, at first, are errors


class Correction(nn.Module):
    """What to add to raw values, from errors at the inputs; untrained, one step of each kind."""

    def __init__(self, channels: int, hidden: int = 16):
        super().__init__()
        self.state = Pointwise(channels, hidden)
        self.seen = nn.Conv2d(SEEN, hidden, 3, padding=1)
        self.mix = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.change = Pointwise(hidden, channels)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, raw: Tensor, seen: Tensor) -> Tensor:
        """Corrected values, as `raw` [B, V, H, W, C + 1] of `splat.gs_head.GaussianHead`, by what `look_back` saw."""
        views = raw.shape[:2]
        state = raw.flatten(0, 1).permute(0, 3, 1, 2)
        errors, rest = seen.split((ERRORS, SEEN - ERRORS), 2)
        # Errors are hundredths, and a layer learns slowly from inputs so small: they count ten times.
        weight = torch.cat([10 * self.seen.weight[:, :ERRORS], self.seen.weight[:, ERRORS:]], 1)
        x = F.conv2d(seen.flatten(0, 1), weight, self.seen.bias, padding=1)
        x = F.relu(x.add_(self.state(state)), inplace=True)
        change = self.change(self.mix(x)).float().permute(0, 2, 3, 1).unflatten(0, views)
        bases = (raw.shape[-1] - 11) // 3
        by_opacity, by_size = rest[:, :, :2].unbind(2)
        raw = change.add_(raw)  # in place: fresh memory of this size costs as much as the sum
        raw[..., 9 : 9 + 3 * bases : bases].add_(errors[:, :, :3].movedim(2, -1), alpha=1 / C0)  # band 0 of each colour
        raw[..., 2:5].add_(by_size[..., None], alpha=STEPS[1])
        raw[..., -1].add_(by_opacity, alpha=STEPS[0])
        return raw


def look_back(gaussians: Gaussians, images: Tensor, cameras: Cameras) -> Tensor:
    """How pictures of the Gaussians [B, V*H*W] differ from the `images` [B, V, 3, H, W] that they were made of.

    [B, V, 14, H, W], without gradient, for the Gaussian of every pixel: what the pixels that show it lack on average
    (RGB, see `more_detail`) and the mean size of the error there; what its own pixel lacks (RGB); whether it should be
    more opaque, and larger (-1 to 1); the logarithm of 1 + its share in the pixels; the image around 0 (RGB); the
    picture's alpha.
    """
    with torch.autocast(images.device.type, enabled=False):
        seen = back_project(gaussians, cameras, images, near=NEAR, faint=FAINT, emphasis=more_detail)
        lack = seen.lack * (seen.share / LEAST).clamp_max(1)[..., None]
        by_both = torch.stack([seen.by_opacity, seen.by_size], -1)
        # Per pixel and error they are of one size in all scenes, a tenth for a clear case.
        by_both = torch.tanh(10 * by_both / ((seen.share + 0.1) * (seen.size + 0.01))[..., None])
        pixels = images.float().movedim(2, -1)
        lack, size, by_both, share = (
            part.unflatten(1, pixels.shape[1:4])
            for part in (lack, seen.size[..., None], by_both, seen.share.log1p()[..., None])
        )
        parts = [lack, size, pixels - seen.color, by_both, share, pixels - 0.5, seen.alpha[..., None]]
        return torch.cat(parts, -1).movedim(-1, 2)  # so channels lie last in memory, as convolutions on the CPU like it


def more_detail(lack: Tensor) -> Tensor:
    """What is missing [..., H, W, 3] with its detail of a pixel or two raised, as filtered back projection does."""
    blurred = lack
    for axis in (-3, -2):
        # Weights of 1, 2, 1 are a blur of 0.7 px, about that of a small splat on the screen. In place: fresh memory
        # takes longer than the sums.
        last = lack.shape[axis] - 1
        sharp, blurred = blurred, 0.5 * blurred
        for to, neighbor in ((1, 0), (0, 1)):
            blurred.narrow(axis, to, last).add_(sharp.narrow(axis, neighbor, last), alpha=0.25)
        for edge in (0, last):
            blurred.narrow(axis, edge, 1).add_(sharp.narrow(axis, edge, 1), alpha=0.25)
    return torch.lerp(blurred, lack, 1 + DETAIL)
