"""Photos of one place, taken in different light or with other settings, brought to one exposure and white balance.

Splats of a wall that is brighter in one photo than in the next make a patchwork. Wherever depth says that two views
show the same surface, the ratio of their colours is an equation between two exposures, as in stitched panoramas (Brown
and Lowe, 2007, section 6); all equations together give every view a gain for each colour channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras
from geometry.cue import neighbors
from geometry.presets import PATCH
from geometry.reprojection import reproject

NEIGHBORS = 3  # views with which each is compared, at most
SAME_SURFACE = 0.9  # the fine channel of `reproject` is nearer to 0: depths agree within 4 %
DARK, BRIGHT = 0.04, 0.96  # values beyond are noise, or cut off
DOUBT = 4.0  # gains are held to 1 as if by so many cells, of four in a patch
SLIGHT = 0.03  # gains closer to 1 than this are more likely a gloss or a shadow, and fade


def exposures(images: Tensor, log_depth: Tensor, cameras: Cameras) -> Tensor:
    """How much brighter each view [B, V, 3] is than the views of its scene are on average, by colour channel; above 0.

    Shapes: `images` [B, V, 3, H, W] in [0, 1], `log_depth` [B, V, H, W] of z-depth in the unit of `cameras` [B, V]; H
    and W multiples of 14. The geometric mean over the views is about 1; it is 1 for views that share nothing with
    others. No gradient.
    """
    batch, views, _, height, width = images.shape
    if views == 1:
        return images.new_ones(batch, 1, 3)
    # Autocast would round the equations.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        # Means over 7x7 pixels, so that noise and a depth that is a little wrong count less.
        size = (2 * height // PATCH, 2 * width // PATCH)
        small = F.interpolate(images.float().flatten(0, 1), size, mode="area").unflatten(0, (batch, views))
        depth = F.interpolate(log_depth.float(), size, mode="nearest").exp()
        index, _ = neighbors(cameras, NEIGHBORS)
        seen = reproject(small, depth, cameras, index)
        ours = small[:, :, None]
        theirs = ours - seen[:, :, :, 3:]
        usable = (seen[:, :, :, 0] > 0) & (seen[:, :, :, 2].abs() < SAME_SURFACE)
        for colors in (ours, theirs):
            usable = usable & (colors.amin(3) > DARK) & (colors.amax(3) < BRIGHT)
        ratio = ours.clamp_min(DARK).log() - theirs.clamp_min(DARK).log()
        ratio = torch.where(usable[:, :, :, None], ratio, torch.nan).flatten(4)
        # Of what two views see of each other, most is the same surface in the same light; a median leaves out the rest.
        ratio = ratio.nanmedian(-1).values.nan_to_num(0.0).flatten(1, 2)  # [B, V * S, 3]
        weight = usable.flatten(3).sum(-1).flatten(1, 2)[..., None]

        itself = torch.eye(views, device=images.device)
        difference = (itself[:, None] - itself[index]).flatten(1, 2)  # [B, V * S, V]
        weighted = (weight * difference).transpose(1, 2)
        # The checks of `torch.linalg.solve` would wait for the GPU; held to 1, the equations always have a solution.
        gain = torch.linalg.solve_ex(weighted @ difference + DOUBT * itself, weighted @ ratio).result
        gain = gain - gain.mean(1, keepdim=True)
        return torch.exp(gain * gain.square() / (gain.square() + SLIGHT**2))


def evened(images: Tensor, exposure: Tensor) -> Tensor:
    """Images [..., V, 3, H, W] in [0, 1] as they would be at the mean `exposure` [..., V, 3] of their scene."""
    return (images / exposure[..., None, None].to(images)).clamp(0, 1)
