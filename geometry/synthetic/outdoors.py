"""Scenes in the open: a statue, a house front, a street, land from above, and loose clutter."""

from __future__ import annotations

import math

import torch

from .dice import Dice, constant
from .intersect import Counts
from .parts import (
    CYLINDER,
    SHEET,
    SPHERE,
    Layout,
    Matter,
    blob,
    ground,
    heap,
    leaves,
    only,
    room,
    round_shapes,
    rows,
    slots,
    terrain,
    view,
)


def statue(dice: Dice, counts: Counts) -> Layout:
    """A figure on a base out of doors: a lumpy body with limbs, walls and trees behind."""
    tall = dice.log_uniform(1, low=0.3, high=2.5)
    base = dice.uniform(1, low=0.05, high=0.6) * tall
    pedestal = rows(dice, 1, (0.0, 0.0, base / 2), (tall * 0.45, tall * 0.45, base / 2))
    step = rows(dice, 1, (0.0, 0.0, base / 8), (tall * 0.65, tall * 0.65, base / 8), matter=Matter.WALL)
    body, waves = blob(dice, (0.0, 0.0, base + tall * 0.62), (tall * 0.5, tall * 0.5, tall * 0.9))
    n = min(10, counts.rounds)
    limb = dice.log_uniform(n, low=0.08, high=0.35) * tall
    angles = (dice.uniform(n, high=6.28), dice.normal(n, std=0.8), dice.normal(n, std=0.5))
    joint = tuple(dice.normal(n, std=s) * tall for s in (0.22, 0.22, 0.3))
    limbs = rows(
        dice, n, (joint[0], joint[1], base + 0.6 * tall + joint[2]),
        (limb * dice.uniform(n, low=0.3, high=0.9), limb * 0.5, limb), angles,
        round_shapes(dice, n, (6, 1, 1, 2, 0, 0, 1)),
    )  # fmt: skip
    limbs = only(dice, limbs, dice.chance(0.7, n))
    n = counts.rounds - n
    far, turn = dice.uniform(n, low=2.5, high=9) * tall, dice.uniform(n, high=6.28)
    crown = dice.uniform(n, low=0.5, high=1.6) * tall
    trees_at = (far * torch.cos(turn), far * torch.sin(turn), dice.uniform(n, low=0.2, high=2) * tall)
    trees = rows(dice, n, trees_at, (crown, crown, crown * 1.2), shape=SPHERE, matter=Matter.FOLIAGE)
    n = counts.boxes - 3
    far, turn = dice.uniform(n, low=1.6, high=12) * tall, dice.uniform(n, high=6.28)
    size = dice.log_uniform(n, low=0.05, high=0.14) * far
    high = size * dice.log_uniform(n, low=0.4, high=4)
    blocks_at = (far * torch.cos(turn), far * torch.sin(turn), high)
    blocks = rows(
        dice, n, blocks_at, (size, size * dice.uniform(n, low=0.2), high), (dice.uniform(n, high=6.28), 0.0, 0.0)
    )
    soil, soil_waves = terrain(dice, 30.0, 0.12 * tall)
    bumpy = dice.chance(0.5)
    slab = ground(dice)
    slab[:, :, 2] -= torch.where(bumpy[:, None], 0.12 * tall, 0.0)
    grass_at = (0.0, 0.0, 0.08 * tall)
    grass = leaves(dice, counts.panels, grass_at, (1.2 * tall, 1.2 * tall, 0.05 * tall), (0.05, 0.2))
    return Layout(
        slots(dice, counts.boxes, slab, pedestal, step, only(dice, blocks, dice.chance(0.6, n))),
        slots(dice, counts.rounds, limbs, trees),
        slots(dice, counts.panels, only(dice, grass, dice.chance(0.6))),
        slots(dice, counts.implicits, only(dice, body, dice.chance(0.8)), only(dice, soil, bumpy)),
        torch.cat([waves, soil_waves], 1)[:, : counts.implicits],
        *view(dice, (0.0, 0.0, base + tall * 0.6), tall * dice.uniform(1, low=0.6, high=1.1), 0.08 * tall, 30.0,
              elevation=(-0.1, 0.7)),
        torch.zeros(dice.batch, device=dice.device),
    )  # fmt: skip


def facade(dice: Dice, counts: Counts) -> Layout:
    """A house front with rows of windows, ledges and columns, poles and bushes before it."""
    wide, high = dice.uniform(1, low=4, high=12), dice.uniform(1, low=3, high=9)
    wall = rows(dice, 1, (0.0, 1.0, high), (wide, 1.0, high), matter=Matter.WALL)
    columns, levels = 6, counts.panels // 6
    across = torch.arange(columns * levels, device=dice.device) % columns
    upward = torch.arange(columns * levels, device=dice.device) // columns
    x = ((across + 0.5) / columns * 2 - 1) * wide
    z = (upward + dice.uniform(1, low=0.4, high=0.6)) / levels * 2 * high
    window_x, window_z = (
        wide / columns * dice.uniform(1, low=0.3, high=0.7),
        high / levels * dice.uniform(1, low=0.4, high=0.75),
    )
    glass = torch.where(dice.chance(0.7), Matter.GLASS, Matter.PICTURE)[:, None]
    windows = rows(
        dice, columns * levels, (x, -0.015, z), (window_x, window_z, 1.0), (0.0, math.pi / 2, 0.0), SHEET, glass
    )  # fmt: skip
    windows = only(dice, windows, dice.chance(0.85, columns * levels))
    n = min(18, columns * levels)
    depth = dice.log_uniform(1, low=0.04, high=0.35)
    ledge_z = (z - window_z - 0.1)[:, :n]
    ledges = rows(dice, n, (x[:, :n], 0.0, ledge_z), (window_x * 1.2, depth, dice.uniform(1, low=0.04, high=0.15)))
    bands = rows(
        dice, 3, (0.0, 0.0, high * dice.uniform(3, high=2)), (wide, dice.uniform(3, high=0.3), 0.15), matter=Matter.WALL
    )
    pillars = rows(
        dice, 4, (wide * dice.uniform(4, low=-1, high=1), 0.0, high),
        (dice.uniform(1, low=0.1, high=0.5), dice.uniform(1, low=0.05, high=0.5), high), matter=Matter.WALL,
    )  # fmt: skip
    n = counts.boxes - n - 9
    place, half, angles = heap(dice, n, (wide, 1.5), 0.0, (0.15, 0.8))
    clutter = only(dice, rows(dice, n, (place[0], place[1] - 2.6, place[2]), half, angles), dice.chance(0.6, n))
    n = counts.rounds // 2
    poles_at = (wide * dice.uniform(n, low=-1, high=1), dice.uniform(n, low=-5, high=-0.5), 1.5)
    thin = dice.log_uniform(n, low=0.02, high=0.2)
    poles = only(dice, rows(dice, n, poles_at, (thin, thin, 1.5), shape=CYLINDER), dice.chance(0.5, n))
    m = counts.rounds - n
    size = dice.uniform(m, low=0.2, high=0.9)
    bushes_at = (wide * dice.uniform(m, low=-1, high=1), dice.uniform(m, low=-3, high=-0.4), size * 0.8)
    bushes = only(dice, rows(dice, m, bushes_at, (size,) * 3, shape=SPHERE, matter=Matter.FOLIAGE), dice.chance(0.5, m))
    size = dice.uniform(1, low=0.4, high=1.2)
    rock, waves = blob(dice, (wide * dice.uniform(1, low=-0.5, high=0.5), -2.0, size * 0.6), (size,) * 3)
    close = dice.log_uniform(1, low=1.2, high=6)
    focus = (wide * dice.uniform(1, low=-0.5, high=0.5), 0.0, dice.uniform(1, low=1.2, high=5).clamp_max(high * 1.5))
    away = rows(dice, 1, (dice.uniform(1, low=-25, high=25), 16.0, 6.0), (9.0, 5.0, 8.0), matter=Matter.WALL)
    return Layout(
        slots(dice, counts.boxes, ground(dice), wall, bands, pillars, ledges, away, clutter),
        slots(dice, counts.rounds, poles, bushes),
        slots(dice, counts.panels, windows),
        slots(dice, counts.implicits, only(dice, rock, dice.chance(0.3))),
        waves.expand(-1, counts.implicits, -1, -1),
        *view(dice, focus, close, 0.2, 25.0, (-math.pi / 2 - 0.7, -math.pi / 2 + 0.7), (-0.25, 0.3)),
        torch.zeros(dice.batch, device=dice.device),
    )


def street(dice: Dice, counts: Counts) -> Layout:
    """A road between two rows of houses, with cars, poles, signs and trees."""
    lane = dice.uniform(1, low=2.5, high=6)
    n = 12
    number = torch.arange(n, device=dice.device)
    along, across = (number // 2) * 7.0 - 8 + dice.uniform(n, low=-1, high=1), (number % 2) * 2.0 - 1
    high, deep = dice.uniform(n, low=1.5, high=7), dice.uniform(n, low=2, high=5)
    houses_at = (across * (lane + deep + dice.uniform(n, low=1, high=3)), along, high)
    houses = rows(dice, n, houses_at, (deep, dice.uniform(n, low=2, high=3.8), high), matter=Matter.WALL)
    side = constant((-1.0, 1.0), dice.device)
    walks = rows(dice, 2, (side * (lane + 4.0), 20.0, 0.0), (4.0, 45.0, 0.12), matter=Matter.GROUND)
    end = rows(dice, 1, (0.0, 38.0, 5.0), (16.0, 3.0, 7.0), matter=Matter.WALL)
    n = 8
    size = dice.uniform(n, low=0.6, high=1.0)
    place = dice.uniform(n, low=-2, high=22)
    kerb = torch.where(dice.chance(0.5, n), -1.0, 1.0) * (lane - 0.9)
    cars = rows(dice, n, (kerb, place, size * 0.7), (size, size * 2.2, size * 0.45))
    cabins = rows(dice, n, (kerb, place, size * 1.35), (size * 0.85, size * 1.2, size * 0.35), matter=Matter.GLASS)
    parked = dice.chance(0.5, n)
    cars, cabins = only(dice, cars, parked), only(dice, cabins, parked)
    n = 6
    thin, tall = dice.log_uniform(n, low=0.03, high=0.12), dice.uniform(n, low=1, high=3)
    kerb = torch.where(dice.chance(0.5, n), -1.0, 1.0) * (lane + 0.4)
    place = dice.uniform(n, low=0, high=18)
    poles = rows(dice, n, (kerb, place, tall), (thin, thin, tall), shape=CYLINDER)
    signs = rows(
        dice, n, (kerb, place - 0.15, 2 * tall - 0.3), (0.4, 0.35, 1.0), (dice.normal(n, std=0.3), math.pi / 2, 0.0),
        SHEET, Matter.PICTURE,
    )  # fmt: skip
    m = counts.rounds - n
    size = dice.uniform(m, low=0.5, high=1.6)
    kerb = torch.where(dice.chance(0.5, m), -1.0, 1.0) * (lane + dice.uniform(m, low=0.2, high=2))
    trees_at = (kerb, dice.uniform(m, low=0, high=25), dice.uniform(m, low=0.5, high=3.5))
    trees = only(dice, rows(dice, m, trees_at, (size,) * 3, shape=SPHERE, matter=Matter.FOLIAGE), dice.chance(0.7, m))
    n = counts.panels - n
    turned = torch.where(dice.chance(0.5, n), -1.0, 1.0)
    panes_at = (turned * (lane + 0.9), dice.uniform(n, low=-5, high=25), dice.uniform(n, low=1, high=6))
    upright = (-turned * math.pi / 2, math.pi / 2, 0.0)
    panes = rows(dice, n, panes_at, (0.6, dice.uniform(1, low=0.5, high=1), 1.0), upright, SHEET, Matter.GLASS)
    focus = (lane * dice.uniform(1, low=-0.6, high=0.6), dice.uniform(1, low=3, high=10), 1.5)
    size = dice.uniform(1, low=0.3, high=0.8)
    rock, waves = blob(dice, (lane * 0.4, 3.0, size * 0.6), (size,) * 3)
    return Layout(
        slots(dice, counts.boxes, ground(dice), walks, end, houses, cars, cabins),
        slots(dice, counts.rounds, poles, trees),
        slots(dice, counts.panels, signs, panes),
        slots(dice, counts.implicits, only(dice, rock, dice.chance(0.3))),
        waves.expand(-1, counts.implicits, -1, -1),
        *view(dice, focus, lane * dice.uniform(1, low=0.7, high=1.6), 0.3, 12.0,
              (-math.pi / 2 - 0.4, -math.pi / 2 + 0.4), (-0.03, 0.2)),
        torch.zeros(dice.batch, device=dice.device),
    )  # fmt: skip


def aerial(dice: Dice, counts: Counts) -> Layout:
    """Land from a drone: houses, trees, roads and fields on flat or rolling ground."""
    bumpy = dice.chance(0.6)
    height = dice.log_uniform(1, low=0.3, high=5)
    soil, soil_waves = terrain(dice, 60.0, height)
    slab = ground(dice)
    slab[:, :, 2] -= torch.where(bumpy[:, None], height, 0.0)
    n = counts.boxes - 1
    area = dice.uniform(1, low=10, high=30)
    place, half, _ = heap(dice, n, (area, area), 0.0, (0.8, 5.0))
    turn = dice.uniform(1, high=6.28) + (math.pi / 2) * torch.floor(dice.uniform(n, high=4))
    half = (*half[:2], half[2] * dice.log_uniform(1, low=0.5, high=3))
    houses = rows(dice, n, (*place[:2], half[2] * 0.8), half, (turn, 0.0, 0.0), matter=Matter.THING)
    houses = only(dice, houses, dice.uniform(n) < dice.uniform(1, low=0.1))
    n = counts.panels // 2
    roofs = rows(
        dice, n, (place[0][:, :n], place[1][:, :n], half[2][:, :n] * 1.8),
        (half[0][:, :n] * 1.1, half[1][:, :n] * 1.1, 1.0),
        (turn[:, :n], dice.uniform(n, low=-0.6, high=0.6), 0.0), SHEET,
    )  # fmt: skip
    roofs = only(dice, roofs, (houses[:, :n, 2] > 0) & dice.chance(0.5, n))
    m = counts.panels - n
    fields_at = (area * dice.uniform(m, low=-1, high=1), area * dice.uniform(m, low=-1, high=1))
    lift = 0.02 + 0.01 * torch.arange(m, device=dice.device)
    size = dice.log_uniform(m, low=1.5, high=12)
    angles = (turn[:, :1], 0.0, 0.0)
    fields = rows(dice, m, (*fields_at, lift), (size * 3, size * 0.6, 1.0), angles, SHEET, Matter.GROUND)
    n = counts.rounds
    size = dice.log_uniform(n, low=0.5, high=3)
    trees_at = (area * dice.uniform(n, low=-1, high=1), area * dice.uniform(n, low=-1, high=1), size * 0.8)
    trees = only(dice, rows(dice, n, trees_at, (size,) * 3, shape=SPHERE, matter=Matter.FOLIAGE), dice.chance(0.8, n))
    rock, waves = blob(dice, (0.0, 0.0, 1.0), (4.0, 4.0, 3.0), Matter.GROUND)
    focus = (area * dice.uniform(1, low=-0.3, high=0.3), area * dice.uniform(1, low=-0.3, high=0.3), 0.5)
    return Layout(
        slots(dice, counts.boxes, slab, houses),
        slots(dice, counts.rounds, trees),
        slots(dice, counts.panels, fields, roofs),
        slots(dice, counts.implicits, only(dice, rock, dice.chance(0.15)), only(dice, soil, bumpy)),
        torch.cat([waves, soil_waves], 1)[:, : counts.implicits],
        *view(dice, focus, dice.uniform(1, low=6, high=20), 1.0, 45.0, elevation=(0.5, 1.5)),
        torch.zeros(dice.batch, device=dice.device),
    )


def clutter(dice: Dice, counts: Counts) -> Layout:
    """Things of all sizes at any place and angle, in a room or in the open: no habit of real scenes holds here."""
    inside, grounded = dice.chance(0.5), dice.chance(0.7)
    shell, pictures, _ = room(dice, 5, 4)
    slab = only(dice, ground(dice), ~inside & grounded)

    def anywhere(n: int) -> tuple:
        place = tuple(dice.normal(n, std=0.8) for _ in range(3))
        angles = tuple(dice.uniform(n, high=6.28) for _ in range(3))
        return (*place[:2], place[2] + 1.2), angles, dice.log_uniform(n, low=0.04, high=0.5)

    n = counts.boxes - 6
    place, angles, size = anywhere(n)
    boxes = rows(dice, n, place, tuple(size * dice.log_uniform(n, low=0.2, high=1.4) for _ in range(3)), angles)
    boxes = only(dice, boxes, dice.uniform(n) < dice.uniform(1, low=0.2))
    n = counts.rounds
    place, angles, size = anywhere(n)
    half = tuple(size * dice.log_uniform(n, low=0.2, high=1.2) for _ in range(3))
    rounds = only(
        dice, rows(dice, n, place, half, angles, round_shapes(dice, n)), dice.uniform(n) < dice.uniform(1, low=0.2)
    )
    n = counts.panels - 4
    place, angles, size = anywhere(n)
    outline = torch.stack([dice.chance(0.5, n).float(), dice.chance(0.5, n).float()], -1)
    bars = torch.where(dice.chance(0.35, n), dice.uniform(n, low=2, high=8), 0.0) * torch.where(
        dice.chance(0.5, n), -1, 1
    )
    shape = torch.cat([outline, bars[..., None], dice.uniform(n, low=0.15, high=0.5)[..., None]], -1)
    matter = torch.where(dice.chance(0.5, n), Matter.PICTURE, Matter.THING)
    panels = rows(dice, n, place, (size * 1.3, size * dice.uniform(n, low=0.3, high=1.3), 1.0), angles, shape, matter)
    panels = only(dice, panels, dice.uniform(n) < dice.uniform(1, low=0.1))
    size = dice.uniform(1, low=0.2, high=0.6)
    body, waves = blob(dice, tuple(dice.uniform(1, low=-0.5, high=0.5) + c for c in (0.0, 0.0, 1.0)), (size,) * 3)
    return Layout(
        slots(dice, counts.boxes, only(dice, shell, inside), slab, boxes),
        slots(dice, counts.rounds, rounds),
        slots(dice, counts.panels, only(dice, pictures, inside), panels),
        slots(dice, counts.implicits, body),
        waves.expand(-1, counts.implicits, -1, -1),
        *view(dice, (0.0, 0.0, 1.1), dice.uniform(1, low=0.6, high=1.5), 0.3, torch.where(inside[:, None], 2.5, 8.0),
              elevation=(-0.3, 1.0)),
        inside.float(),
    )  # fmt: skip
