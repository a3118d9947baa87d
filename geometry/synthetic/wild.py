"""Views of one scene as many people take them on different days: other tones, another sky, somebody in the way.

Photos of a landmark agree about little but the landmark (NeRF in the Wild, Martin-Brualla et al. 2021). All this is
painted over finished views, each for itself: what one photo alone shows no other one confirms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dice import Dice, constant
from .textures import lookup, side

SPOTS = 24  # ellipses in a view with something in front: so many leaves, or half as many people
KINDS = (0.35, 0.35, 0.3)  # weights of a free view, people, leaves before the lens
HIDES = 0.98  # what is this much nearer than the surface behind it hides it
Z, TINT = 5, 6  # columns of a spot, after its ellipse's centre, half axes and turn: z-depth and colour (3)


def in_the_wild(
    seed: int, images: Tensor, depth: Tensor, valid: Tensor, inputs: int, atlas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`images` [B, V, 3, H, W] in [0, 1], z-`depth` and `valid` [B, V, H, W] whose first `inputs` views are changed.

    Nobody can know on which day a target is taken: the others stay as they are. Depth is finite, that of the sky (not
    `valid`) behind all else. A pure function of the seed on each kind of device; nothing is read back to the host.
    `atlas` is one of `make_atlas`.
    """
    before = images, depth, valid
    images, depth, valid = (part[:, :inputs].flatten(0, 1) for part in before)
    dice = Dice(seed, len(images), images.device)
    images = torch.where(valid[:, None], images, other_sky(dice, images, atlas))
    images, depth, valid = put_in_front(dice, images, depth, valid, atlas)
    changed = other_tones(dice, images, inputs), depth, valid
    return tuple(
        torch.cat([new.unflatten(0, (-1, inputs)), old[:, inputs:]], 1)
        for new, old in zip(changed, before, strict=True)
    )


def other_sky(dice: Dice, images: Tensor, atlas: Tensor) -> Tensor:
    """Images [R, 3, H, W] of a sky with clouds, blue to grey, each mixed with what `images` has there."""
    clouds = surface(dice, images, atlas, repeats=(0.15, 1.2))
    blue, bright = dice.uniform(high=0.6), dice.log_uniform(low=0.35, high=1.0)
    tint = torch.stack([1 - blue, 1 - 0.5 * blue, torch.ones_like(blue)], -1) * bright[:, None]
    contrast = dice.uniform(1, 1, 1, high=0.8)
    sky = tint[..., None, None] * (1 - contrast + contrast * clouds)
    return torch.lerp(images, sky, dice.uniform(1, 1, 1))


def put_in_front(
    dice: Dice, images: Tensor, depth: Tensor, valid: Tensor, atlas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Images [R, 3, H, W], depth and `valid` [R, H, W] with people who stand in the scene, or leaves near the lens."""
    height, width = depth.shape[-2:]
    x = (torch.arange(width, device=depth.device) + 0.5) / max(height, width)
    y = (torch.arange(height, device=depth.device)[:, None] + 0.5) / max(height, width)
    frame = (width / max(height, width), height / max(height, width))
    kind = dice.choice(KINDS)[:, None]
    people, leaves = people_in(dice, depth, valid, frame), leaves_before(dice, depth, frame)
    spots = torch.where((kind == 1)[..., None], people, leaves)
    spots[..., Z].masked_fill_(kind == 0, torch.inf)
    order = spots[..., Z].argsort(1, descending=True)  # the nearest last
    spots = spots.gather(1, order[..., None].expand_as(spots))

    front, shown = depth, torch.full_like(depth, -1, dtype=torch.int64)
    for k in range(SPOTS):
        left, top, wide, tall, turn, z = spots[:, k, :TINT, None, None].unbind(1)
        along = ((x - left) * torch.cos(turn) + (y - top) * torch.sin(turn)) / wide
        across = ((y - top) * torch.cos(turn) - (x - left) * torch.sin(turn)) / tall
        here = (along.square() + across.square() < 1) & (z < HIDES * front)
        front, shown = torch.where(here, z, front), shown.masked_fill(here, k)
    painted = shown >= 0
    tints = spots[..., TINT:].gather(1, shown.clamp_min(0).flatten(1)[..., None].expand(-1, -1, 3))
    tints = tints.unflatten(1, (height, width)).movedim(-1, 1)
    cloth = surface(dice, images, atlas, repeats=(2.0, 12.0))
    images = torch.where(painted[:, None], (tints * (0.4 + cloth)).clamp(0, 1), images)
    return images, front, valid | painted


def people_in(dice: Dice, depth: Tensor, valid: Tensor, frame: tuple[float, float]) -> Tensor:
    """Bodies and heads [R, SPOTS, 9] of people who stand where a surface is seen; those without one are at infinity.

    Lengths count in longer sides of the image, of which `frame` (width, height) is the size.
    """
    n = SPOTS // 2
    foot_x, foot_y = dice.uniform(n, high=frame[0]), dice.uniform(n, low=0.4 * frame[1], high=frame[1])
    tall = dice.log_uniform(1, low=0.08, high=0.5) * dice.log_uniform(n, low=0.8, high=1.25)
    row = (foot_y / frame[1] * depth.shape[-2]).long().clamp_max(depth.shape[-2] - 1)
    column = (foot_x / frame[0] * depth.shape[-1]).long().clamp_max(depth.shape[-1] - 1)
    stands = row * depth.shape[-1] + column
    z = depth.flatten(1).gather(1, stands)
    there = valid.flatten(1).gather(1, stands) & (dice.uniform(n) < dice.uniform(1, low=0.1, high=0.7))
    z = torch.where(there, 0.97 * z, torch.inf)
    lean = dice.normal(n, std=0.05)
    body = (foot_x, foot_y - 0.42 * tall, dice.uniform(n, low=0.1, high=0.2) * tall, 0.42 * tall, lean, z)
    head = (foot_x, foot_y - 0.92 * tall, 0.07 * tall, 0.08 * tall, lean, z)
    both = [torch.stack(torch.broadcast_tensors(*part), -1) for part in (body, head)]
    tints = dice.log_uniform(2 * n, 1, low=0.05, high=1.0) * dice.uniform(2 * n, 3, low=0.5)
    return torch.cat([torch.cat(both, 1), tints], -1)


def leaves_before(dice: Dice, depth: Tensor, frame: tuple[float, float]) -> Tensor:
    """Leaves of a branch [R, SPOTS, 9], as in `people_in`, that reaches in from a border, nearer than all else."""
    n = SPOTS
    reach = constant(frame, depth.device) * dice.uniform(2, low=-0.05, high=1.05)
    at_side = dice.choice((2, 1, 1))[:, None]  # from above, the left, the right
    border = torch.cat([torch.where(at_side == 1, 0.0, frame[0]), torch.zeros_like(reach[:, :1])], 1)
    held = torch.cat([at_side > 0, at_side == 0], 1)  # the coordinate that is the border's
    anchor = torch.where(held, border, reach)
    spread = dice.log_uniform(1, 1, low=0.04, high=0.2)
    center = anchor[:, None] + spread * dice.normal(n, 2)
    long = dice.log_uniform(1, low=0.15, high=0.6) * spread[..., 0] * dice.log_uniform(n, low=0.7, high=1.4)
    z = depth.flatten(1).amin(1)[:, None] * dice.uniform(1, low=0.2, high=0.85) * dice.uniform(n, low=0.9, high=1.1)
    shape = (long, long * dice.uniform(n, low=0.3, high=0.7), dice.uniform(n, high=math.pi), z)
    green = constant((0.6, 1.0, 0.35), depth.device).lerp(constant((1.0, 1.0, 1.0), depth.device), dice.uniform(1, 1))
    tints = green * dice.log_uniform(1, 1, low=0.05, high=0.7) * dice.uniform(n, 1, low=0.6)
    return torch.cat([center, torch.stack(shape, -1), tints], -1)


def surface(dice: Dice, images: Tensor, atlas: Tensor, repeats: tuple[float, float]) -> Tensor:
    """A texture of the atlas over each whole image [R, 3, H, W], so many times along its longer side."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    count = dice.log_uniform(1, 1, low=repeats[0], high=repeats[1])
    u = count / longer * torch.arange(width, device=images.device) + dice.uniform(1, 1)
    v = count / longer * torch.arange(height, device=images.device)[:, None] + dice.uniform(1, 1)
    u, v = torch.broadcast_tensors(u, v)
    texture = torch.floor(dice.uniform(1, 1, high=len(atlas))).int().expand_as(u)
    level = torch.log2(count * side(atlas) / longer).expand_as(u)
    return torch.stack(lookup(atlas, texture, u, v, level), 1)


def other_tones(dice: Dice, images: Tensor, inputs: int) -> Tensor:
    """Images [B * inputs, 3, H, W] in the brightness, contrast and colours of other cameras and hours.

    Some change little. The mean over the inputs of a scene stays, as the best guess at the tones of a target.
    """

    def about_mean(log: Tensor) -> Tensor:
        log = log.unflatten(0, (-1, inputs))
        return (log - log.mean(1, keepdim=True)).flatten(0, 1)

    amount = dice.uniform(1, 1, 1)
    gamma = torch.exp(about_mean(amount * dice.normal(1, 1, 1, std=0.3)))
    gain = torch.exp(about_mean(amount * (dice.normal(1, 1, 1, std=0.2) + dice.normal(3, 1, 1, std=0.08))))
    return (images.clamp_min(1e-4) ** gamma * gain).clamp(0, 1)
