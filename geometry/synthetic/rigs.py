"""Cameras as people hold them: arcs, sidesteps, approaches and clouds of viewpoints, tried out before use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dice import Dice, constant
from .intersect import Counts, first_hit
from .parts import UNUSED, Layout, places
from .shade import FIELD
from .transforms import apply, inverse, product, rigid

PROBE = 8  # candidates are judged by PROBE x PROBE rays a view
SHRINK = (1.0, 1.0, 1.0, 0.8, 0.55, 0.3)  # of the baseline, candidate by candidate
RIGS = ("arc", "sideways", "upwards", "approach", "cloud", "turn")
FOCAL = (0.3, 3.0)  # shortest and longest lens of a view with one of its own, in longer sides of the image
CRAMPED = 0.15  # of the median depth: views with something nearer are avoided


def sample_intrinsics(
    dice: Dice, views: int, size: tuple[int, int], fov: tuple[float, float], lenses: float
) -> tuple[Tensor, Tensor]:
    """K [B, V, 3, 3] for images of `size`, and the field of view [B] in radians across the longer side.

    In a share `lenses` of the scenes every view's is another, about that one.
    """
    angle = torch.deg2rad(dice.uniform(low=fov[0], high=fov[1]))
    focal = 0.5 * max(size) / torch.tan(0.5 * angle)
    zoom = 1 + torch.where(dice.chance(0.2), 1.0, 0.0)[:, None] * dice.normal(views, std=0.03)
    if lenses > 0:  # without, nothing is drawn for them, so that scenes of a seed stay what they were
        own = torch.where(dice.chance(lenses, 1), dice.log_uniform(views, low=0.5, high=2.0), 1.0)
        zoom = (zoom * own * focal[:, None]).clamp(*(n * max(size) for n in FOCAL)) / focal[:, None]
    stretch = 1 + torch.where(dice.chance(0.3), 1.0, 0.0) * dice.normal(std=0.01)
    shift = torch.where(dice.chance(0.5, 1), 1.0, 0.0) * dice.normal(2, std=0.015)
    K = torch.zeros(dice.batch, views, 3, 3, device=dice.device)
    K[..., 0, 0] = focal[:, None] * zoom
    K[..., 1, 1] = K[..., 0, 0] * stretch[:, None]
    K[..., 0, 2] = (0.5 + shift[:, :1]) * size[1]
    K[..., 1, 2] = (0.5 + shift[:, 1:]) * size[0]
    K[..., 2, 2] = 1
    return K, angle


def normalize(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def path(
    dice: Dice, views: int, targets: int, baseline: tuple[float, float], weights: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """How the views of every candidate stand about its base, and how far they turn to what is looked at.

    Returns offsets [B, R, V, 3] right, up and forward of the base, in units of its distance to the target, and the
    amount [B] of turning: 1 looks at the target, 0 is parallel, below 0 outwards. The last `targets` views lie
    between the others, some beyond them or nearer.
    """
    contexts = views - targets
    rig = dice.choice(weights)
    step = dice.log_uniform(low=baseline[0], high=baseline[1])
    total = step * max(contexts - 1, 1)
    # An arc may open 90 degrees; what moves without turning soon leaves the others' sight.
    cap = constant((math.pi / 2, 1.3, 0.9, 0.8, 1.3, 0.6), dice.device)[rig]
    reach = 0.5 * torch.minimum(total, cap)[:, None, None] * constant(SHRINK, dice.device)[:, None]

    even = torch.linspace(-1, 1, contexts, device=dice.device) if contexts > 1 else torch.zeros(1, device=dice.device)
    jitter = dice.normal(contexts, std=0.25 / max(contexts - 1, 1))
    along = torch.where((rig == 4)[:, None], dice.uniform(contexts, low=-1), even + jitter)
    order = dice.uniform(contexts) * torch.where(dice.chance(0.5, 1), 1.0, 0.0)
    along = along.gather(1, (order + torch.arange(contexts, device=dice.device) * 1e-6).argsort(-1))
    kind = dice.uniform(targets)
    beyond = torch.where(dice.chance(0.5, targets), -1.0, 1.0) * dice.uniform(targets, low=1, high=1.35)
    between = dice.uniform(targets, low=-0.95, high=0.95)
    along = torch.cat([along, torch.where(kind < 0.15, beyond, between)], 1)[:, None]
    aside, third = dice.uniform(views, low=-1)[:, None], dice.uniform(views, low=-1)[:, None]
    closer = torch.cat(
        [
            torch.zeros(dice.batch, contexts, device=dice.device),
            torch.where(kind > 0.8, dice.uniform(targets, high=0.35), 0.0),
        ],
        1,
    )[:, None]

    s, a, b = reach * along, reach * aside, reach * third
    small = 0.15
    moves = {
        "arc": (torch.sin(s), small * a, 1 - torch.cos(s)),
        "sideways": (s, small * a, small * b),
        "upwards": (small * a, s, small * b),
        "approach": (2 * small * a, small * b, s),
        "cloud": (s, 0.7 * a, 0.4 * b),
        "turn": (s, small * a, small * b),
    }
    moves = torch.stack([torch.stack(torch.broadcast_tensors(*moves[name]), -1) for name in RIGS], 1)
    offset = moves[torch.arange(dice.batch, device=dice.device), rig]
    offset = offset + torch.stack([torch.zeros_like(closer), torch.zeros_like(closer), closer], -1)
    offset = offset + 0.03 * reach[..., None] * dice.normal(1, views, 3)
    inward = dice.uniform()
    inward = torch.where(rig == 0, dice.uniform(low=0.85, high=1.0), inward)
    inward = torch.where(rig == 5, -0.4 * inward, inward)
    return offset, inward


def candidates(dice: Dice, layout: Layout, offset: Tensor, inward: Tensor, fov: Tensor) -> Tensor:
    """c2w [B, R, V, 4, 4] of every candidate's views."""
    tries, views = offset.shape[1:3]
    target = layout.target[:, None] + layout.spread[:, None, None] * dice.normal(tries, 3)
    azimuth = dice.uniform(tries, low=layout.azimuth[:, :1], high=layout.azimuth[:, 1:])
    elevation = dice.uniform(tries, low=layout.elevation[:, :1], high=layout.elevation[:, 1:])
    distance = layout.extent[:, None] / torch.tan(0.5 * fov)[:, None] * dice.log_uniform(tries, low=0.7, high=1.7)
    distance = torch.minimum(distance, layout.farthest[:, None] * dice.uniform(tries, low=0.8, high=1))
    ca, sa, ce, se = torch.cos(azimuth), torch.sin(azimuth), torch.cos(elevation), torch.sin(elevation)
    back = torch.stack([ca * ce, sa * ce, se], -1)
    right = torch.stack([-sa, ca, torch.zeros_like(sa)], -1)
    up = torch.stack([-ca * se, -sa * se, ce], -1)
    axes = torch.stack([right, up, -back], -1)[:, :, None]
    eye = target[:, :, None] + distance[..., None, None] * (back[:, :, None] + apply(axes, offset))
    straight = -back[:, :, None]
    look = straight + inward[:, None, None, None] * (normalize(target[:, :, None] - eye) - straight)
    look = normalize(normalize(look) + dice.normal(1, views, 3, std=0.06) * torch.tan(0.5 * fov)[:, None, None, None])
    # A few scenes are photographed with the camera turned on its side.
    turned = dice.choice((0.94, 0.03, 0.03), 1, 1)
    roll = dice.normal(1, views, std=0.03) + (math.pi / 2) * ((turned == 1).float() - (turned == 2).float())
    x = normalize(torch.linalg.cross(look, up[:, :, None].expand_as(look)))
    y = torch.linalg.cross(look, x)
    cos, sin = torch.cos(roll)[..., None], torch.sin(roll)[..., None]
    return rigid(torch.stack([cos * x + sin * y, cos * y - sin * x, look], -1), eye)


def into_frames(table: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Camera directions -> unit frames [M, 9, P] and centres there [M, 3, P], of M cameras c2w [B, ..., 4, 4]."""
    frame = table[:, :9].unflatten(1, (3, 3)).permute(0, 3, 1, 2)[:, None]  # [B, 1, P, 3, 3]
    c2w = c2w.flatten(1, -3)[:, :, None]  # [B, M / B, 1, 4, 4]
    to_local = product(frame, c2w[..., :3, :3]).flatten(-2).transpose(-1, -2)
    eye = apply(frame, c2w[..., :3, 3]).transpose(-1, -2) + table[:, None, 9:12]
    return to_local.flatten(0, 1).contiguous(), eye.flatten(0, 1).contiguous()


def clearances(table: Tensor, eye_local: Tensor, counts: Counts) -> Tensor:
    """Distances [B, M, P] from camera centres [B M, 3, P] to the primitives' bounds; negative outside a room."""
    batch = table.shape[0]
    half = table[:, None, 12:15]
    place = eye_local.unflatten(0, (batch, -1)) * half
    room = (torch.arange(half.shape[-1], device=table.device) < counts.boxes) & (table[:, FIELD["shape0"]] > 0)
    outside = (place.abs() - half).clamp_min(0).square().sum(-2).sqrt()
    inside = (half - place.abs()).amin(-2)
    # A bumpy ground fills its bounds to some 60 %.
    return torch.where(room[:, None], inside, outside)


def choose(
    c2w: Tensor,  # [B, R, V, 4, 4]
    K: Tensor,  # [B, V, 3, 3]
    size: tuple[int, int],
    contexts: int,
    table: Tensor,
    waves: Tensor,
    counts: Counts,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """The candidate whose views see enough of each other, of solid things, and keep clear of them.

    Returns its index [B] and the median depth [B, V] of its views.
    """
    batch, tries, views = c2w.shape[:3]
    to_local, eye_local = into_frames(table, c2w)
    line = (torch.arange(PROBE, device=c2w.device) + 0.5) / PROBE
    v, u = torch.meshgrid(line * size[0], line * size[1], indexing="ij")
    x = (u.flatten() - K[..., 0, 2, None]) / K[..., 0, 0, None]
    y = (v.flatten() - K[..., 1, 2, None]) / K[..., 1, 1, None]
    x, y = (n[:, None].expand(-1, tries, -1, -1) for n in (x, y))

    def per_camera(values: Tensor) -> Tensor:
        return values.repeat_interleave(tries * views, 0)

    shape = per_camera(table[:, FIELD["shape0"] : FIELD["shape0"] + 4])
    depth, _ = first_hit(to_local, eye_local, shape, per_camera(waves), x.flatten(0, 2), y.flatten(0, 2), counts, steps)
    depth = depth.view(batch, tries, views, -1)
    solid = depth < torch.inf
    z = torch.where(solid, depth, 0.0)
    points = apply(c2w[..., None, :3, :3], torch.stack([x * z, y * z, z], -1)) + c2w[..., None, :3, 3]

    # Where does every probe fall in every context view, and is that view's own probe there as deep?
    w2c = inverse(c2w[:, :, None, :contexts, None])
    local = apply(w2c[..., :3, :3], points[:, :, :, None]) + w2c[..., :3, 3]
    front = local[..., 2] > 1e-6
    uv = local[..., :2] / local[..., 2:].clamp_min(1e-6)
    K_context = K[:, None, None, :contexts, None]
    uv = uv * torch.stack([K_context[..., 0, 0], K_context[..., 1, 1]], -1) + K_context[..., :2, 2]
    cell = torch.floor(uv / constant((size[1], size[0]), uv.device) * PROBE)
    within = ((cell >= 0) & (cell < PROBE)).all(-1) & front
    number = (cell[..., 1] * PROBE + cell[..., 0]).clamp(0, PROBE * PROBE - 1).long()
    other = depth[:, :, None, :contexts].expand(-1, -1, views, -1, -1).gather(-1, number)
    covered = within & (local[..., 2] < 1.3 * other) & solid[:, :, :, None]
    itself = torch.arange(views, device=uv.device)[:, None] == torch.arange(contexts, device=uv.device)
    seen = (covered & ~itself[:, :, None]).any(3).float().sum(-1) / solid.sum(-1).clamp_min(1)
    if contexts == 1:
        seen[:, :, 0] = 1
    share = solid.float().mean(-1)
    median = torch.where(solid, depth, torch.nan).nanmedian(-1).values.nan_to_num(0.0)
    room = clearances(table, eye_local, counts).amin(-1).view(batch, tries, views)
    cramped = torch.minimum(room, depth.amin(-1)) < CRAMPED * median
    score = seen.amin(-1).clamp_max(0.55) + 0.5 * seen.mean(-1).clamp_max(0.8) + share.amin(-1).clamp_max(0.5)
    score = score - 3.0 * cramped.float().mean(-1) - 1e-3 * torch.arange(tries, device=score.device)
    best = score.argmax(-1)
    return best, median[torch.arange(batch, device=best.device), best]


def clear_of(median: Tensor, c2w: Tensor, contexts: int) -> Tensor:
    """Distance [B, V] within which no slender thing stands before views c2w [B, V, 4, 4] of these median depths.

    What is nearer than half the way to the next context views is hardly ever in their sight.
    """
    if contexts == 1:
        return CRAMPED * median
    centers = c2w[..., :3, 3]
    apart = (centers[:, :, None] - centers[:, None, :contexts]).norm(dim=-1)
    itself = torch.eye(*apart.shape[1:], dtype=torch.bool, device=apart.device)
    apart = apart.masked_fill(itself, torch.inf).topk(min(3, contexts - 1), largest=False).values
    return torch.maximum(CRAMPED * median, 0.5 * apart.mean(-1))


def without_obstacles(table: Tensor, c2w: Tensor, reach: Tensor, counts: Counts) -> Tensor:
    """`table` less the slender things nearer than `reach` [B, V] to one of the views c2w [B, V, 4, 4].

    In a thicket no candidate is clear of all stems, yet nobody photographs through one a hand's breadth away.
    """
    _, eye_local = into_frames(table, c2w)
    width = table[:, 12:15].median(1).values  # the middle one of three
    near = (clearances(table, eye_local, counts) < reach[..., None]) & (width[:, None] < reach[..., None])
    away = table.clone()
    away[:, :15] = places(constant(UNUSED, table.device)[None, None])
    return torch.where(near.any(1)[:, None], away, table)
