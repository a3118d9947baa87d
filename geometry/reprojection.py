"""Where views contradict each other: every pixel, put at its depth, looked up in its neighbours' images and depths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from geometry.cameras import Cameras, unproject

CHANNELS = 6  # seen, whether in front of or behind the neighbour's surface (coarsely, finely), difference in RGB


def reproject(images: Tensor, depth: Tensor, cameras: Cameras, index: Tensor) -> Tensor:
    """How the neighbours `index` [B, V, S] of each view see what it sees: [B, V, S, 6, H, W], no gradient.

    Shapes: `images` [B, V, 3, H, W], z-depth `depth` [B, V, H, W] above 0 in the unit of `cameras` [B, V].

    The channels: 1 where the neighbour's image holds the point, else all are 0; tanh of 4 and of 40 times the logarithm
    of the point's depth in the neighbour over the neighbour's own depth there (above 0: the point is hidden from it;
    below: the neighbour sees through the point); the pixel's colour minus the neighbour's.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        height, width = depth.shape[-2:]
        depth, images = depth.float(), images.float()
        points = unproject(depth, cameras).flatten(2, 3)
        maps = torch.cat([images, depth.log()[:, :, None]], 2)
        scene = torch.arange(len(index), device=index.device)[:, None]
        seen = []
        for s in range(index.shape[2]):
            other = index[:, :, s]
            w2c, K = cameras.w2c[scene, other].float(), cameras.K[scene, other].float()
            local = points @ w2c[..., :3, :3].mT + w2c[..., None, :3, 3]
            z = local[..., 2]
            ahead = z > 1e-6
            u, v = ((local @ K.mT)[..., :2] / z.clamp_min(1e-6)[..., None]).unbind(-1)
            # Coordinates of grid_sample: -1 and 1 are the outer edges of the image. Behind the camera: far outside.
            grid = torch.stack([u * (2 / width) - 1, v * (2 / height) - 1], -1)
            grid = torch.where(ahead[..., None], grid, -9.0).clamp(-9, 9)
            grid = rearrange(grid, "b v (h w) c -> (b v) h w c", h=height)
            found = F.grid_sample(maps[scene, other].flatten(0, 1), grid, padding_mode="border", align_corners=False)
            inside = (grid.abs() <= 1).all(-1)[:, None]
            behind = z.clamp_min(1e-6).log().view(-1, 1, height, width) - found[:, 3:]
            difference = images.flatten(0, 1) - found[:, :3]
            seen.append(inside * torch.cat([inside.float(), (4 * behind).tanh(), (40 * behind).tanh(), difference], 1))
        return torch.stack(seen, 1).unflatten(0, depth.shape[:2])
