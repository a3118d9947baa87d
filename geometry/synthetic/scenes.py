"""Draws whole scenes: a layout of some sort, looks for every primitive, and light."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dice import Dice, constant
from .indoors import interior, plant, shelf, tabletop
from .intersect import Counts
from .outdoors import aerial, clutter, facade, statue, street
from .parts import UNUSED_SIZE, Layout, Matter, places
from .shade import FIELD, FIELDS

KINDS = (tabletop, interior, shelf, plant, statue, facade, street, aerial, clutter)


def sample_layout(dice: Dice, counts: Counts, weights: tuple[float, ...]) -> tuple[Layout, Tensor]:
    """A layout per scene and its index in KINDS [B]; all sorts are drawn for all scenes, since that needs no sync."""
    kind = dice.choice(weights)
    drawn = [make(dice, counts) for make in KINDS]
    chosen = []
    for fields in zip(*drawn, strict=True):
        stacked = torch.stack([f.expand(dice.batch, *f.shape[1:]) for f in fields], 1)
        chosen.append(stacked[torch.arange(dice.batch, device=dice.device), kind])
    return Layout(*chosen), kind


def muted(dice: Dice, n: int, saturation: float) -> Tensor:
    """Tints [B, 3, n] of linear light: a hue that scenes tend to share, mostly little saturated."""
    hue = dice.uniform(1) + dice.normal(n, std=0.12) + torch.where(dice.chance(0.25, n), dice.uniform(n), 0.0)
    phase = hue[:, None] + constant((0.0, -1 / 3, 1 / 3), dice.device)[:, None]
    pure = ((phase - phase.round()).abs() * -6 + 2).clamp(0, 1)
    amount = saturation * dice.uniform(1, n) ** 2.2
    return dice.log_uniform(1, n, low=0.06, high=0.85) * (1 - amount * (1 - pure))


def primitive_table(dice: Dice, layout: Layout, textures: int) -> Tensor:
    """The table [B, len(FIELDS), P] of all primitives with their looks drawn (see shade.FIELDS)."""
    row = torch.cat([layout.boxes, layout.rounds, layout.panels, layout.implicits], 1)
    n = row.shape[1]
    half, shape, matter = row[..., 3:6], row[..., 9:13], row[..., 13]
    table = torch.zeros(dice.batch, len(FIELDS), n, device=dice.device)

    def put(name: str, values: Tensor) -> None:
        table[:, FIELD[name]] = values

    table[:, :15] = places(row)
    table[:, FIELD["shape0"] : FIELD["shape0"] + 4] = shape.transpose(1, 2)
    room = torch.zeros(n, dtype=torch.bool, device=dice.device)
    room[: layout.boxes.shape[1]] = True
    room = room & (shape[..., 0] > 0)

    def where(kind: Matter, yes: Tensor | float, no: Tensor | float) -> Tensor:
        return torch.where(matter == kind, yes, no)

    # Few textures recur within a scene, as materials do.
    palette = torch.floor(dice.uniform(12, high=textures))
    put("texture_a", palette.gather(1, dice.choice((1.0,) * 12, n)))
    put("texture_b", torch.floor(dice.uniform(n, high=textures)))
    size = half.amax(-1)
    flat = (matter == Matter.WALL) | (matter == Matter.GROUND)
    repeats = torch.where(flat, dice.log_uniform(n, low=0.08, high=2), dice.log_uniform(n, low=0.15, high=3) / size)
    extent = layout.extent[:, None]
    repeats = torch.where(flat, repeats / extent.clamp(0.5, 8), repeats)
    repeats = where(Matter.PICTURE, 0.5 / size, where(Matter.FOLIAGE, 3 * repeats, repeats))
    put("scale_a", repeats)
    put("scale_b", repeats * dice.log_uniform(n, low=0.3, high=12))
    turn = torch.where(
        dice.chance(0.6, n), torch.floor(dice.uniform(n, high=4)) * (math.pi / 2), dice.uniform(n, high=6.28)
    )
    turn = where(Matter.PICTURE, 0.0, turn)
    put("cos", torch.cos(turn))
    put("sin", torch.sin(turn))
    put("shift_u", where(Matter.PICTURE, 0.5, dice.uniform(n)))
    put("shift_v", where(Matter.PICTURE, 0.5, dice.uniform(n)))

    foliage = matter == Matter.FOLIAGE
    tint = muted(dice, n, 0.75)
    tint = torch.where(flat[:, None], tint.mean(1, keepdim=True).clamp_min(0.12).lerp(tint, 0.5), tint)
    light_walls = dice.log_uniform(1, n, low=0.3, high=0.9) * (0.9 + 0.1 * tint / tint.amax(1, keepdim=True))
    pale = ((matter == Matter.WALL) & dice.chance(0.6, n)) | (matter == Matter.PICTURE)
    tint = torch.where(pale[:, None], light_walls, tint)
    green = torch.stack(
        [dice.uniform(n, low=0.1, high=0.6), dice.uniform(n, low=0.35, high=0.8), dice.uniform(n, low=0.05, high=0.3)],
        1,
    )
    green = green.mean(2, keepdim=True).lerp(green, 0.4) * dice.log_uniform(1, n, low=0.2, high=0.9)
    tint = torch.where(foliage[:, None], green, tint)
    for i, name in enumerate(("red", "green", "blue")):
        put(name, where(Matter.GLASS, 0.05, tint[:, i]))
    plain = dice.chance(0.35, n)
    contrast = torch.where(plain, dice.uniform(n, high=0.3), dice.uniform(n, low=0.4))
    busy = (matter == Matter.PICTURE) | foliage
    contrast = torch.where(busy, dice.uniform(n, low=0.7), contrast)
    put("contrast_a", where(Matter.GLASS, 0.3 * contrast, contrast))
    put("contrast_b", torch.where(dice.chance(0.5, n), dice.uniform(n, high=0.6), dice.uniform(n, high=0.1)))
    put("gloss", dice.log_uniform(n, low=4, high=200))
    shiny = dice.chance(0.35, n) & ~flat & ~foliage
    put("specular", torch.where(shiny, dice.uniform(n, high=0.35), dice.uniform(n, high=0.02)))
    mirror = torch.where(dice.chance(0.12, n), dice.uniform(n, low=0.1, high=0.8), 0.0)
    put(
        "mirror",
        where(Matter.GLASS, dice.uniform(n, low=0.4, high=1.0), torch.where(flat | foliage, 0.3 * mirror, mirror)),
    )
    put("emission", where(Matter.LAMP, dice.log_uniform(n, low=1, high=8), 0.0))
    reach = (0.5 * half.mean(-1)).clamp_max(0.35 * extent)
    put("reach", torch.where(room | (half[..., 0] <= UNUSED_SIZE), 1e-4, reach))
    return table


def ambience_table(dice: Dice, layout: Layout, textures: int) -> Tensor:
    """Lamp, sky and air [B, len(AMBIENCE)] in the order of shade.AMBIENCE."""
    indoor = layout.indoor > 0.5
    azimuth, elevation = dice.uniform(high=6.28), dice.uniform(low=0.25, high=1.4)
    toward = torch.stack(
        [torch.cos(azimuth) * torch.cos(elevation), torch.sin(azimuth) * torch.cos(elevation), torch.sin(elevation)], -1
    )
    far = torch.where(indoor & dice.chance(0.7), dice.uniform(low=0.8, high=2.5), 100.0)
    size = far * dice.log_uniform(low=0.01, high=0.25)
    near_lamp = far < 50
    lamp = layout.target + far[:, None] * toward
    lamp[:, 2] = torch.where(near_lamp, lamp[:, 2].clamp(1.6, 2.2), lamp[:, 2])
    distance2 = (lamp - layout.target).square().sum(-1)
    warm = dice.normal(std=0.12)
    tone = torch.stack([1 + warm, torch.ones_like(warm), 1 - warm], -1)
    overcast = dice.uniform()
    power = dice.log_uniform(low=0.3, high=4) * torch.where(overcast < 0.3, 0.3, 1.0)
    blue = dice.uniform(low=0, high=0.5)
    gray = torch.stack([1 - 0.6 * blue, 1 - 0.3 * blue, torch.ones_like(blue)], -1)
    brightness = dice.log_uniform(1, low=0.5, high=1.6)
    sky = torch.where(indoor[:, None], tone.flip(-1), gray) * brightness
    horizon = sky * 0.5 + 0.5 * brightness * tone.clamp(0.8, 1.2) * dice.uniform(1, low=0.8, high=1.4)
    earth = muted(dice, 1, 0.5)[..., 0] * brightness * 0.7
    columns = [
        lamp, size[:, None], tone * power[:, None], torch.where(near_lamp, 1.0, 0.0)[:, None], distance2[:, None],
        sky, horizon, earth,
        torch.floor(dice.uniform(1, high=textures)), dice.log_uniform(1, low=0.05, high=0.5),
        torch.where(dice.chance(0.7, 1), dice.uniform(1, high=0.6), 0.0),
        dice.uniform(1, low=0.35, high=1.0),
        torch.where(indoor, 1e-5, 1 / (layout.extent * dice.log_uniform(low=25, high=500)))[:, None],
        dice.uniform(1, low=0.6, high=1.0),
    ]  # fmt: skip
    return torch.cat(columns, 1)
