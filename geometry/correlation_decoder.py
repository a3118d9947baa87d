"""Cameras of views that come without, told from where the patches of each view are found in the reference view.

The published camera decoder reads a token in which attention across views has gathered what they say of their poses. A
network that was trained in minutes has nothing there, but its plane sweeps have features by which patches of two views
are told to be the same: most patches that both views see are found within a few pixels. `nano` finds them everywhere in
the other view, not only along rays, and a small transformer over what was found says how the view is turned, where it
stands and how wide it sees.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geometry.backbone import Block
from geometry.precision import in_float32
from geometry.presets import PATCH, CorrelationConfig

MOST_PATCHES = 18  # along the longer side; larger photos are compared at this size, that of its training
SHARPNESS = 20.0  # of the mean over the cells around the best one, by likeness
BESIDE = 2  # cells around the best one that are no rivals of it
FOUND = 8  # values per patch


def compared_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Patches (rows, columns) at which photos of `size` (height, width) px are compared."""
    rows, columns = size[0] / PATCH, size[1] / PATCH
    shrink = min(1.0, MOST_PATCHES / max(rows, columns))
    return max(1, round(rows * shrink)), max(1, round(columns * shrink))


class CorrelationDecoder(nn.Module):
    """What cells of all views look like to pose encodings [B, V, 9], see `geometry.camera_heads`."""

    def __init__(self, config: CorrelationConfig):
        super().__init__()
        dim = config.dim
        self.embed = nn.Sequential(nn.Linear(FOUND, dim), nn.GELU(), nn.Linear(dim, dim))
        self.sides = nn.Parameter(0.02 * torch.randn(2, 1, dim))  # found in the reference view, and the way back
        self.summary = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.patches = nn.Sequential(*(Block(dim, config.heads) for _ in range(config.depth)))
        self.views = Block(dim, config.heads)  # lenses and the unit of length are the same for all views
        self.norm = nn.LayerNorm(dim)
        self.pose = nn.Linear(dim, 7)
        self.fov = nn.Linear(dim, 2)
        # At first no view is moved or turned (quaternion x, y, z, w), and all see 57 degrees.
        for layer, start in ((self.pose, (0.0, 0, 0, 0, 0, 0, 1)), (self.fov, (-0.76, -0.76))):
            nn.init.zeros_(layer.weight)
            layer.bias.data = torch.tensor(start)

    def forward(self, cells: Tensor, reference: Tensor) -> Tensor:
        """`cells` [B, V, G, C, 2h, 2w], groups of length 1, two cells a patch; `reference` [B], a view of each scene.

        That view is the world. No gradient goes to the cells: they are learnt by the plane sweeps.
        """
        batch, views = cells.shape[:2]
        with torch.no_grad(), in_float32(cells):  # bfloat16 would make neighbouring cells equally alike
            first = cells[torch.arange(batch, device=cells.device), reference][:, None].expand_as(cells).flatten(0, 1)
            cells = cells.flatten(0, 1)
            pairs = [find_patches(cells, first), find_patches(first, cells)]
        tokens = [self.embed(found) + side for found, side in zip(pairs, self.sides)]
        tokens = torch.cat([self.summary.expand(batch * views, -1, -1), *tokens], 1)
        seen = self.views(self.patches(tokens)[:, 0].unflatten(0, (batch, views)))
        with in_float32(cells):
            seen = self.norm(seen.float())
            pose, fov = self.pose(seen), math.pi * self.fov(seen).sigmoid()
        # Were the world's own pose learnt too, every other one would be learnt to be like it first.
        world = (torch.arange(views, device=cells.device) == reference[:, None])[..., None]
        unmoved = F.pad(torch.ones_like(pose[..., :1]), (6, 0))
        return torch.cat([torch.where(world, unmoved, pose), fov], -1)


def find_patches(cells: Tensor, others: Tensor) -> Tensor:
    """Where each patch of a view lies in another one, [N, h*w, FOUND]; both as `cells` [N, G, C, 2h, 2w].

    Values: the patch's own place, from there to where it is found, how alike both are (a cosine), by how much more than
    elsewhere, whether the way back leads here again, and how far from here it leads. Lengths are in units of half the
    longer side.
    """
    height, width = others.shape[-2:]
    patches = F.normalize(F.avg_pool2d(cells.flatten(1, 2), 2).unflatten(1, cells.shape[1:3]), dim=2)
    here, there = places(height // 2, width // 2, cells.device), places(height, width, cells.device)
    alike = torch.einsum("ngcp,ngcq->npq", patches.flatten(3), others.flatten(3)) / cells.shape[1]
    best, cell = alike.max(-1)
    near = around(cell, 1, height, width)
    weight = (SHARPNESS * alike.gather(-1, near)).softmax(-1)
    shift = (weight[..., None] * there[near]).sum(-2) - here
    back = alike.argmax(1).gather(1, cell)
    astray = torch.linalg.vector_norm(here[back] - here, dim=-1)
    returns = astray < 3 / max(height // 2, width // 2)  # one and a half patches
    rival = alike.scatter(-1, around(cell, BESIDE, height, width), -1.0).amax(-1)
    values = torch.stack([best, best - rival, returns.to(best.dtype), astray.clamp_max(1)], -1)
    return torch.cat([here.expand_as(shift), shift, values], -1)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """The middles [H*W, 2] of the cells of a grid, x and y from its middle, in units of half its longer side."""
    rows, columns = (torch.arange(n, device=device) + 0.5 - n / 2 for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1) * (2 / max(height, width))


def around(cell: Tensor, reach: int, height: int, width: int) -> Tensor:
    """Numbers [..., (2 reach + 1)^2] of the cells around `cell` [...]; those at the border stand for what is beyond."""
    offsets = torch.arange(-reach, reach + 1, device=cell.device)
    rows = (cell[..., None] // width + offsets).clamp(0, height - 1)
    columns = (cell[..., None] % width + offsets).clamp(0, width - 1)
    return (rows[..., :, None] * width + columns[..., None, :]).flatten(-2)
