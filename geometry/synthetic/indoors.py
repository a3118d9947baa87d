"""Scenes near or within walls: a table, a room, a shelf, a plant (a layout is a function of dice alone)."""

from __future__ import annotations

import math

import torch

from .dice import Dice, constant
from .intersect import Counts
from .parts import (
    CYLINDER,
    SHEET,
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
    view,
)


def tabletop(dice: Dice, counts: Counts) -> Layout:
    """A table with clutter in a room, or out of doors."""
    inside = dice.chance(0.75)
    shell, pictures, (half_x, half_y, _) = room(dice, 9, 8)
    shell = only(dice, shell, inside)
    slab = only(dice, ground(dice), ~inside)
    top, wide, deep = (dice.uniform(1, low=a, high=b) for a, b in ((0.45, 0.95), (0.4, 0.9), (0.35, 0.6)))
    board = rows(dice, 1, (0.0, 0.0, top - 0.02), (wide, deep, 0.02), matter=Matter.WALL)
    leg = dice.log_uniform(1, low=0.02, high=0.3)
    corner = constant(((-1, -1), (-1, 1), (1, -1), (1, 1)), dice.device)
    legs_at = (corner[:, 0] * (wide - leg), corner[:, 1] * (deep - leg), 0.5 * top - 0.03)
    legs = rows(dice, 4, legs_at, (leg, leg, 0.5 * top - 0.02))
    place, half, angles = heap(dice, 16, (wide * 0.9, deep * 0.9), top, (0.012, 0.13))
    matter = torch.where(dice.chance(0.3, 16), Matter.PICTURE, Matter.THING)
    boxes = only(dice, rows(dice, 16, place, half, angles, matter=matter), dice.uniform(16) < dice.uniform(1, low=0.2))
    place, half, angles = heap(dice, 16, (wide * 0.9, deep * 0.9), top, (0.012, 0.12))
    half = (half[0], half[0], half[2])
    place = (*place[:2], top + half[2])
    rounds = rows(dice, 16, place, half, angles, round_shapes(dice, 16))
    rounds = only(dice, rounds, dice.uniform(16) < dice.uniform(1, low=0.2))
    sheets_at = (wide * dice.uniform(5, low=-0.8, high=0.8), deep * dice.uniform(5, low=-0.8, high=0.8))
    stack = torch.arange(5, device=dice.device) * 2e-3 + 2e-3
    size = dice.log_uniform(5, low=0.04, high=0.25)
    sheets = rows(
        dice, 5, (*sheets_at, top + stack), (size, size * 0.7, 1.0), (dice.uniform(5, high=6.28), 0.0, 0.0),
        SHEET, Matter.PICTURE,
    )  # fmt: skip
    sprig = (wide * dice.uniform(1, low=-0.6, high=0.6), deep * dice.uniform(1, low=-0.6, high=0.6), top + 0.2)
    foliage = only(dice, leaves(dice, counts.panels - 13, sprig, (0.07, 0.07, 0.08), (0.02, 0.07)), dice.chance(0.5))
    lump = dice.log_uniform(1, low=0.04, high=0.16)
    row, waves = blob(dice, (wide * dice.uniform(1, low=-0.5, high=0.5), deep * 0.3, top + 0.6 * lump), (lump,) * 3)
    body = slots(dice, counts.implicits, only(dice, row, dice.chance(0.5)))
    reach = torch.minimum(half_x, half_y) * 0.95
    focus = (dice.uniform(1, low=-0.3, high=0.3) * wide, dice.uniform(1, low=-0.3, high=0.3) * deep, top + 0.06)
    return Layout(
        slots(dice, counts.boxes, shell, slab, board, legs, boxes),
        slots(dice, counts.rounds, rounds),
        slots(dice, counts.panels, only(dice, pictures, inside), sheets, foliage),
        body,
        waves.expand(-1, counts.implicits, -1, -1),
        *view(dice, focus, dice.log_uniform(1, low=0.22, high=0.8), 0.06, reach, elevation=(0.15, 1.2)),
        inside.float(),
    )


def interior(dice: Dice, counts: Counts) -> Layout:
    """A room seen across: furniture, doors, windows, pictures, lamps."""
    shell, pictures, (half_x, half_y, height) = room(dice, 15, counts.panels - 6)
    n = counts.boxes - 15
    place, half, angles = heap(dice, n, (half_x * 0.7, half_y * 0.7), 0.0, (0.06, 0.7))
    half = (*half[:2], half[2].clamp_max(0.9))
    furniture = rows(dice, n, (*place[:2], half[2]), half, angles)
    furniture = only(dice, furniture, dice.uniform(n) < dice.uniform(1, low=0.2))
    place, half, angles = heap(dice, counts.rounds, (half_x * 0.8, half_y * 0.8), 0.0, (0.05, 0.5))
    lift = torch.where(dice.chance(0.6, counts.rounds), half[2], dice.uniform(counts.rounds, low=0.4, high=2.2))
    half = (half[0] * 0.7, half[0] * 0.7, half[2])
    rounds = rows(dice, counts.rounds, (*place[:2], lift), half, angles, round_shapes(dice, counts.rounds))
    rounds = only(dice, rounds, dice.chance(0.6, counts.rounds))
    rugs_at = (half_x * dice.uniform(6, low=-0.7, high=0.7), half_y * dice.uniform(6, low=-0.7, high=0.7))
    size = dice.log_uniform(6, low=0.3, high=1.4)
    lift = 0.012 + 0.003 * torch.arange(6, device=dice.device)
    rugs = rows(dice, 6, (*rugs_at, lift), (size, size * 0.6, 1.0), shape=SHEET, matter=Matter.PICTURE)
    lump = dice.log_uniform(1, low=0.15, high=0.5)
    body, waves = blob(dice, (half_x * dice.uniform(1, low=-0.6, high=0.6), half_y * 0.5, lump * 0.7), (lump,) * 3)
    azimuth = dice.uniform(1, high=6.28)
    reach = torch.minimum(half_x, half_y)
    focus = (half_x * -0.45 * torch.cos(azimuth), half_y * -0.45 * torch.sin(azimuth), height * 0.8)
    return Layout(
        slots(dice, counts.boxes, shell, furniture),
        slots(dice, counts.rounds, rounds),
        slots(dice, counts.panels, pictures, rugs),
        slots(dice, counts.implicits, only(dice, body, dice.chance(0.4))),
        waves.expand(-1, counts.implicits, -1, -1),
        *view(dice, focus, reach, 0.25, reach * 1.35, (azimuth - 0.35, azimuth + 0.35), (-0.1, 0.35)),
        torch.ones(dice.batch, device=dice.device),
    )


def shelf(dice: Dice, counts: Counts) -> Layout:
    """Boards on a wall with rows of books and things on them."""
    wide, gap = dice.uniform(1, low=0.5, high=1.2), dice.uniform(1, low=0.25, high=0.42)
    deep = dice.uniform(1, low=0.1, high=0.2)
    levels = 3
    wall = rows(dice, 1, (0.0, 0.5, 1.0), (8.0, 0.5, 4.0), matter=Matter.WALL)
    floor = ground(dice)
    floor[:, :, 2] -= 0.6
    number = torch.arange(levels + 1, device=dice.device)
    boards = rows(dice, levels + 1, (0.0, -deep, number * gap), (wide, deep, 0.012))
    sides = constant((-1.0, 1.0), dice.device)
    uprights = rows(dice, 2, (sides * wide, -deep, gap * levels / 2), (0.012, deep, gap * levels / 2))
    uprights = only(dice, uprights, dice.chance(0.7))
    n = counts.boxes - levels - 5
    number = torch.arange(n, device=dice.device)
    per_level = math.ceil(n / levels)
    level, place = number // per_level, number % per_level
    thick = 0.5 * wide / per_level * dice.uniform(n, low=0.3, high=1.0)
    tall = gap * dice.uniform(n, low=0.2, high=0.45)
    x = (place + 0.5) / per_level * wide * dice.uniform(1, low=1.0, high=2.0) - wide
    lean = dice.chance(0.25, n).float() * dice.normal(n, std=0.12)
    depth = deep * dice.uniform(n, low=0.5, high=0.95)
    books = rows(
        dice, n, (x + 0.3 * thick, -deep - (deep - depth) * dice.uniform(n, low=-0.5), level * gap + tall + 0.014),
        (thick, depth, tall), (0.0, 0.0, lean), matter=torch.where(dice.chance(0.5, n), Matter.PICTURE, Matter.THING),
    )  # fmt: skip
    books = only(dice, books, dice.uniform(n) < dice.uniform(1, low=0.3, high=1.1))
    n = counts.rounds
    size = gap * dice.uniform(n, low=0.08, high=0.35)
    level = torch.floor(dice.uniform(n, high=levels + 1))
    tall = size * dice.uniform(n, low=0.6, high=1.2)
    at = (
        wide * dice.uniform(n, low=-0.9, high=0.9),
        -deep * dice.uniform(n, low=1.0, high=1.7),
        level * gap + tall + 0.012,
    )
    rounds = only(dice, rows(dice, n, at, (size, size, tall), shape=round_shapes(dice, n)), dice.chance(0.7, n))
    half = counts.panels // 2
    size = dice.log_uniform(half, low=0.06, high=0.4)
    at = (dice.uniform(half, low=-2.5, high=2.5), -0.006, dice.uniform(half, low=-0.3, high=2.2))
    posters = rows(dice, half, at, (size, size * 1.3, 1.0), (0.0, math.pi / 2, 0.0), SHEET, Matter.PICTURE)
    sprig = (wide * dice.uniform(1, low=-0.7, high=0.7), -deep, gap * levels + 0.16)
    foliage = only(dice, leaves(dice, counts.panels - half, sprig, (0.1, 0.07, 0.09), (0.03, 0.1)), dice.chance(0.6))
    lump = gap * dice.uniform(1, low=0.2, high=0.4)
    body, waves = blob(
        dice, (wide * dice.uniform(1, low=-0.6, high=0.6), -deep, gap * levels + 0.7 * lump), (lump,) * 3
    )
    focus = (wide * dice.uniform(1, low=-0.5, high=0.5), -deep, gap * dice.uniform(1, low=0.5, high=2.5))
    return Layout(
        slots(dice, counts.boxes, wall, floor, boards, uprights, books),
        slots(dice, counts.rounds, rounds),
        slots(dice, counts.panels, posters, foliage),
        slots(dice, counts.implicits, only(dice, body, dice.chance(0.5))),
        waves.expand(-1, counts.implicits, -1, -1),
        *view(dice, focus, dice.log_uniform(1, low=0.25, high=1.0), 0.08, 3.0, (-math.pi / 2 - 0.8, -math.pi / 2 + 0.8),
              (-0.2, 0.6)),
        torch.ones(dice.batch, device=dice.device),
    )  # fmt: skip


def plant(dice: Dice, counts: Counts) -> Layout:
    """Leaves, flowers and stems at close range before a wall, in a room or in the open."""
    tall = dice.log_uniform(1, low=0.25, high=1.2)
    spread = tall * dice.uniform(1, low=0.2, high=0.5)
    inside, walled = dice.chance(0.4), dice.chance(0.6)
    shell, pictures, (half_x, half_y, _) = room(dice, 10, 6)
    slab = only(dice, ground(dice), ~inside)
    back = rows(dice, 1, (0.0, tall * dice.uniform(1, low=1, high=4) + 1, 1.5), (12.0, 1.0, 3.0), matter=Matter.WALL)
    back = only(dice, back, walled & ~inside)
    pot = rows(dice, 1, (0.0, 0.0, tall * 0.15), (tall * 0.25, tall * 0.25, tall * 0.15), shape=round_shapes(dice, 1))
    n = counts.rounds - 1
    angles = (dice.uniform(n, high=6.28), dice.normal(n, std=0.3), dice.normal(n, std=0.3))
    thin = tall * dice.log_uniform(n, low=0.006, high=0.025)
    stems_at = (
        spread * dice.normal(n, std=0.4),
        spread * dice.normal(n, std=0.4),
        tall * dice.uniform(n, low=0.4, high=0.8),
    )
    stems = rows(
        dice, n, stems_at, (thin, thin, tall * dice.uniform(n, low=0.2, high=0.5)), angles, CYLINDER, Matter.FOLIAGE
    )
    n = counts.panels - 12
    crown = (0.0, 0.0, tall * 0.7)
    foliage = leaves(dice, n, crown, (spread, spread, tall * 0.28), (0.04, 0.22))
    foliage[..., 3:5] *= tall[..., None]
    blossoms = leaves(dice, 6, crown, (spread, spread, tall * 0.3), (0.04, 0.1), Matter.THING)
    blossoms[..., 3:5] *= tall[..., None]
    n = counts.boxes - 12
    place, half, angles = heap(dice, n, (3.0, 3.0), 0.0, (0.03, 0.5))
    clutter = only(dice, rows(dice, n, place, half, angles), dice.chance(0.5, n))
    clutter = only(dice, clutter, clutter[..., :2].norm(dim=-1) > 0.9 * tall)
    lump = tall * dice.uniform(1, low=0.1, high=0.25)
    body, waves = blob(dice, (0.5 * tall, 0.3 * tall, lump * 0.7), (lump,) * 3)
    reach = torch.where(inside[:, None], torch.minimum(half_x, half_y) * 0.9, 20.0)
    return Layout(
        slots(dice, counts.boxes, only(dice, shell, inside), slab, back, clutter),
        slots(dice, counts.rounds, pot, stems),
        slots(dice, counts.panels, only(dice, pictures, inside), foliage, blossoms),
        slots(dice, counts.implicits, only(dice, body, dice.chance(0.5))),
        waves.expand(-1, counts.implicits, -1, -1),
        *view(dice, (0.0, 0.0, tall * 0.6), tall * dice.uniform(1, low=0.35, high=0.8), 0.08 * tall, reach,
              (-math.pi / 2 - 0.7, -math.pi / 2 + 0.7), (-0.1, 0.8)),
        inside.float(),
    )  # fmt: skip
