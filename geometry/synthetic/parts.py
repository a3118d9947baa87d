"""The parts that scenes are built of, as rows of primitives.

Lengths are metres, z is up, the ground is at z = 0. A primitive is a row of ROW numbers: centre, half sizes, angles
(rotation Rz Rx Ry), four shape numbers (see intersect.py) and a Matter, which decides its looks.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from .dice import Dice, constant
from .transforms import apply, rotations

ROW = 14
WAVES = 6
OUTLYING, UNUSED_SIZE = 1e4, 1e-3  # slots that are not used lie down here, a millimetre wide
UNUSED = (0.0, 0.0, -OUTLYING, *(UNUSED_SIZE,) * 3, *(0.0,) * 6, 1.0, 0.0)

SPHERE, CYLINDER, CONE = (1, 0, -1, 0), (1, 0, 0, 0), (0.25, -0.5, 0.25, 0)
BARREL, VASE, BOWL, PEAR = (1, 0, -0.4, 0), (0.45, -0.1, 0.45, 0), (0.5, 0.5, 0, 0), (0.55, -0.45, -0.1, 0)
ROUNDS = (SPHERE, CYLINDER, CONE, BARREL, VASE, BOWL, PEAR)
ROOM = (1, 0, 0, 0)
SHEET, DISC, LEAF = (0, 0, 0, 1), (1, 1, 0, 1), (1, 0, 0, 1)


class Matter(IntEnum):
    THING = 0
    WALL = 1
    GROUND = 2
    FOLIAGE = 3
    LAMP = 4
    PICTURE = 5
    GLASS = 6


class Layout(NamedTuple):
    """Primitives of B scenes and where a camera may stand, before it is known which views are good."""

    boxes: Tensor  # [B, boxes, ROW]
    rounds: Tensor  # [B, rounds, ROW]
    panels: Tensor  # [B, panels, ROW]
    implicits: Tensor  # [B, implicits, ROW]
    waves: Tensor  # [B, implicits, 5, WAVES] wave vector, phase, amplitude in the unit frame
    target: Tensor  # [B, 3] what is looked at
    spread: Tensor  # [B] standard deviation of the point looked at
    extent: Tensor  # [B] half size of what the picture should hold
    farthest: Tensor  # [B] largest distance from the target
    azimuth: Tensor  # [B, 2] range of the direction from the target to the camera, radians
    elevation: Tensor  # [B, 2] the same above the horizon
    indoor: Tensor  # [B] 1 where the room box is there


def rows(dice: Dice, n: int, center, half, angles=(0.0, 0.0, 0.0), shape=(0, 0, 0, 1), matter=Matter.THING) -> Tensor:
    """Primitives [B, n, ROW]; each entry is a number or a tensor that broadcasts to [B, n], `shape` also [B, n, 4]."""
    row = torch.zeros(dice.batch, n, ROW, device=dice.device)
    whole = isinstance(shape, Tensor)
    for i, value in enumerate((*center, *half, *angles, *((0, 0, 0, 0) if whole else shape), matter)):
        if isinstance(value, Tensor):
            row[..., i] = value
        elif value:
            row[..., i].fill_(value)
    if whole:
        row[..., 9:13] = shape
    return row


def unused(dice: Dice, n: int) -> Tensor:
    """Rows [B, n, ROW] that no ray meets."""
    return constant(UNUSED, dice.device).expand(dice.batch, n, ROW)


def places(row: Tensor) -> Tensor:
    """Where primitives [B, n, ROW] are and how large, as a table's first fields [B, 15, n] (see shade.FIELDS)."""
    center, half = row[..., :3], row[..., 3:6]
    frame = rotations(row[..., 6:9]).transpose(-1, -2) / half[..., None]
    return torch.cat([frame.flatten(-2), -apply(frame, center), half], -1).transpose(1, 2)


def slots(dice: Dice, count: int, *parts: Tensor) -> Tensor:
    """Parts joined into exactly `count` slots [B, count, ROW]; what is too much is dropped."""
    missing = count - sum(part.shape[1] for part in parts)
    return torch.cat([*parts, unused(dice, max(missing, 0))], 1)[:, :count]


def only(dice: Dice, part: Tensor, keep: Tensor) -> Tensor:
    """`part` [B, n, ROW] with those rows out of sight where `keep` [B] or [B, n] is false."""
    keep = keep[:, None] if keep.dim() == 1 else keep
    return torch.where(keep[..., None], part, unused(dice, part.shape[1]))


def round_shapes(dice: Dice, n: int, weights: tuple[float, ...] = (3, 3, 1, 2, 1, 1, 1)) -> Tensor:
    """Shape numbers [B, n, 4] of random solids of revolution."""
    return constant(ROUNDS, dice.device)[dice.choice(weights, n)]


def heap(dice: Dice, n: int, area, floor, size: tuple[float, float]) -> tuple[tuple, tuple, tuple]:
    """Centre, half sizes and angles of n things that stand on `floor` within +-area (x, y), apart on a jittered grid.

    Sizes are half lengths, log-uniform in `size`; a few lie tilted.
    """
    side = math.ceil(math.sqrt(n))
    order = dice.uniform(side * side).argsort(-1)[:, :n]
    x = ((order % side) + dice.uniform(n, low=0.1, high=0.9)) / side * 2 - 1
    y = ((order // side) + dice.uniform(n, low=0.1, high=0.9)) / side * 2 - 1
    large = dice.log_uniform(n, low=size[0], high=size[1])
    half = tuple(large * dice.log_uniform(n, low=0.45, high=1.3) for _ in range(3))
    lying = dice.chance(0.12, n).float()
    angles = (dice.uniform(n, high=2 * math.pi), lying * dice.normal(n, std=0.5), lying * dice.normal(n, std=0.5))
    return (x * area[0], y * area[1], floor + half[2]), half, angles


def on_wall(dice: Dice, n: int, half_x: Tensor, half_y: Tensor, low, high) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, z and yaw [B, n] of things on the four walls of a room [B, 1]; with that yaw, -y points into the room."""
    wall = torch.floor(dice.uniform(n, high=4))
    yaw = wall * (math.pi / 2)
    even = (wall % 2) < 0.5
    distance = torch.where(even, half_y, half_x)
    place = torch.where(even, half_x, half_y) * dice.uniform(n, low=-0.85, high=0.85)
    x, y = place * torch.cos(yaw) - distance * torch.sin(yaw), place * torch.sin(yaw) + distance * torch.cos(yaw)
    return x, y, dice.uniform(n, low=low, high=high), yaw


def room(dice: Dice, boxes: int, panels: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """A furnished shell: the boxes [B, boxes], the wall panels [B, panels] and the half sizes (x, y, height)."""
    half_x, half_y = dice.uniform(1, low=1.8, high=5), dice.uniform(1, low=1.8, high=5)
    height = dice.uniform(1, low=1.15, high=1.7)
    shell = rows(dice, 1, (0.0, 0.0, height), (half_x, half_y, height), shape=ROOM, matter=Matter.WALL)
    floor = rows(dice, 1, (0.0, 0.0, 0.0), (half_x, half_y, 0.01), matter=Matter.GROUND)
    n = boxes - 2
    x, y, z, yaw = on_wall(dice, n, half_x, half_y, 0.1, 2.0)
    standing = dice.chance(0.5, n)
    wide, deep = dice.log_uniform(n, low=0.15, high=1.0), dice.log_uniform(n, low=0.02, high=0.4)
    tall = dice.log_uniform(n, low=0.05, high=1.1)
    z = torch.where(standing, tall, z)
    matter = torch.where(dice.chance(0.7, n), Matter.THING, Matter.PICTURE)
    fixtures = rows(dice, n, (x, y, z), (wide, deep, tall), (yaw, 0.0, 0.0), matter=matter)
    x, y, z, yaw = on_wall(dice, panels, half_x - 0.012, half_y - 0.012, 0.9, 2.0)
    size = dice.log_uniform(panels, low=0.12, high=0.8)
    kind = dice.choice((5, 2, 2), panels)
    matter = constant((Matter.PICTURE, Matter.LAMP, Matter.GLASS), dice.device)[kind]
    pictures = rows(
        dice, panels, (x, y, z), (size, size * dice.uniform(panels, low=0.6, high=1.5), 1.0),
        (yaw, math.pi / 2, 0.0), SHEET, matter,
    )  # fmt: skip
    return torch.cat([shell, floor, fixtures], 1), pictures, (half_x, half_y, height)


def ground(dice: Dice, size: float = 60.0) -> Tensor:
    """A flat slab [B, 1] whose top is z = 0."""
    return rows(dice, 1, (0.0, 0.0, -0.5), (size, size, 0.5), matter=Matter.GROUND)


def terrain(dice: Dice, size: float, height: Tensor) -> tuple[Tensor, Tensor]:
    """Bumpy ground [B, 1] within +-size and +-height [B, 1] about z = 0, with its waves [B, 1, 5, WAVES]."""
    row = rows(dice, 1, (0.0, 0.0, 0.0), (size, size, height), shape=(0, 0, 0, 0), matter=Matter.GROUND)
    direction = dice.uniform(WAVES, high=2 * math.pi)
    number = dice.log_uniform(WAVES, low=2.0, high=25.0)
    amplitude = number**-0.8 * dice.uniform(WAVES, low=0.5, high=1)
    amplitude = 0.9 * amplitude / amplitude.sum(-1, keepdim=True)
    phase = dice.uniform(WAVES, high=2 * math.pi)
    zero = torch.zeros_like(phase)
    waves = torch.stack([number * torch.cos(direction), number * torch.sin(direction), zero, phase, amplitude], 1)
    return row, waves[:, None]


def blob(dice: Dice, center, half, matter: Matter = Matter.THING) -> tuple[Tensor, Tensor]:
    """A lumpy body [B, 1] as of rock, fruit or sculpture, with its waves [B, 1, 5, WAVES]."""
    row = rows(dice, 1, center, half, (dice.uniform(1, high=6.28), 0.0, 0.0), (1, 0, 0, 0), matter)
    vector = dice.normal(3, WAVES) * dice.log_uniform(WAVES, low=1.5, high=9)[:, None]
    amplitude = 0.3 / (1 + vector.norm(dim=1)) * dice.uniform(WAVES, low=0.3, high=1.5)
    phase = dice.uniform(WAVES, high=2 * math.pi)
    return row, torch.cat([vector, phase[:, None], amplitude[:, None]], 1)[:, None]


def leaves(dice: Dice, n: int, center, radius, size: tuple[float, float], matter: Matter = Matter.FOLIAGE) -> Tensor:
    """n leaves [B, n] of all directions, scattered about a centre with standard deviation `radius` (x, y, z)."""
    place = tuple(c + r * dice.normal(n).clamp(-1.8, 1.8) for c, r in zip(center, radius, strict=True))
    length = dice.log_uniform(1, low=size[0], high=size[1]) * dice.uniform(n, low=0.6, high=1.4)
    angles = (dice.uniform(n, high=6.28), dice.normal(n, std=0.7), dice.normal(n, std=0.7))
    kinds = constant((LEAF, DISC, SHEET), dice.device)
    shape = kinds[dice.choice((6, 2, 1), 1)]
    return rows(dice, n, place, (length, length * dice.uniform(1, low=0.15, high=0.7), 1.0), angles, shape, matter)


def view(dice: Dice, target, extent, spread, farthest, azimuth=(0.0, 6.28), elevation=(0.1, 1.0)) -> tuple:
    """The last fields of a Layout from numbers or tensors [B, 1]."""

    def column(value) -> Tensor:
        return (value if isinstance(value, Tensor) else constant((value,), dice.device)).expand(dice.batch, 1)[:, 0]

    def pair(value) -> Tensor:
        return torch.stack([column(v) for v in value], -1)

    return pair(target), column(spread), column(extent), column(farthest), pair(azimuth), pair(elevation)
