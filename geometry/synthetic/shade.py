"""From a first hit to light: textured albedo, one lamp with shadow, ambient light with contact shadows, gloss, sky.

Colours are linear light throughout; vectors and colours are triples of tensors (see intersect.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .intersect import Counts, Triple, along, blocked, dot, first_hit, implicit_gradient
from .textures import lookup, side

# Rows of the primitives' table [B, len(FIELDS), P].
FIELDS = (
    *(f"frame{i}" for i in range(12)),  # world -> unit frame: nine of the matrix, row major, three of the shift
    "half_x", "half_y", "half_z",  # half sizes: unit frame -> lengths
    "shape0", "shape1", "shape2", "shape3",  # see intersect.py for each sort's meaning
    "texture_a", "texture_b",  # indices into the atlas
    "scale_a", "scale_b",  # repeats per unit of length
    "cos", "sin", "shift_u", "shift_v",  # how textures are turned and shifted
    "red", "green", "blue",  # tint
    "contrast_a", "contrast_b",  # 0: plain tint, 1: all texture
    "gloss", "specular", "mirror",  # highlight exponent, its strength, reflection of the surroundings
    "emission", "reach",  # light of its own; length over which it darkens its neighbours
)  # fmt: skip
FIELD = {name: i for i, name in enumerate(FIELDS)}

# Rows of the surroundings' table [B, len(AMBIENCE)].
AMBIENCE = (
    "lamp_x", "lamp_y", "lamp_z", "lamp_size",  # position, radius
    "lamp_r", "lamp_g", "lamp_b", "falloff",  # light at the target; 0: sun, 1: inverse square from the target on
    "lamp_d2",  # squared distance lamp - target
    "sky_r", "sky_g", "sky_b", "horizon_r", "horizon_g", "horizon_b", "ground_r", "ground_g", "ground_b",
    "cloud", "cloud_scale", "cloud_contrast",  # texture, repeats, strength
    "ambient", "haze",  # strength of ambient light; 1 / distance at which air has replaced 63 % of the light
    "shadow",  # how much of the lamp's light a shadow takes
)  # fmt: skip
AMBIENT = {name: i for i, name in enumerate(AMBIENCE)}


class World(NamedTuple):
    """Scenes as the ray caster wants them, one row per strip of an image."""

    table: Tensor  # [C, len(FIELDS), P]
    waves: Tensor  # [C, I, 5, W]
    ambience: Tensor  # [C, len(AMBIENCE)]
    to_local: Tensor  # [C, 9, P]
    eye_local: Tensor  # [C, 3, P]
    c2w: Tensor  # [C, 3, 4]
    lens: Tensor  # [C, 4] fx, fy, cx, cy


def scale(a: Triple, s: Tensor | float) -> Triple:
    return a[0] * s, a[1] * s, a[2] * s


def normalize(a: Triple) -> Triple:
    return scale(a, torch.rsqrt(dot(a, a) + 1e-20))


def blend(a: Triple, b: Triple, share: Tensor) -> Triple:
    return tuple(p + share * (q - p) for p, q in zip(a, b, strict=True))


def trace(
    world: World,
    begin: Tensor,  # [C] int32, number of a strip's first sample, counted along the rows of its grid
    width: Tensor,  # [] int32, samples in a row of the grid; samples are half a pixel apart, from the very corner on
    count: int,  # N samples in a strip
    atlas: Tensor,
    counts: Counts,
    steps: int,
    shadows: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Linear light r, g, b [C, N] and z-depth [C, N] (infinity: sky) of samples."""
    number = begin[:, None] + torch.arange(count, dtype=torch.int32, device=begin.device)
    row, column = number // width, number % width
    fx, fy, cx, cy = world.lens.T[..., None]
    x, y = (0.5 * column - cx) / fx, (0.5 * row - cy) / fy
    spacing = 0.5 / fx
    table, shape = world.table, world.table[:, FIELD["shape0"] : FIELD["shape0"] + 4]
    depth, index = first_hit(world.to_local, world.eye_local, shape, world.waves, x, y, counts, steps)
    seen = depth < torch.inf
    t = torch.where(seen, depth, 1.0)

    def pick(name: str) -> Tensor:
        return table[:, FIELD[name]].gather(1, index)

    def around(name: str) -> Tensor:
        return world.ambience[:, AMBIENT[name], None]

    c2w = world.c2w[..., None]
    ray = tuple(c2w[:, i, 0] * x + c2w[:, i, 1] * y + c2w[:, i, 2] for i in range(3))
    eye = tuple(c2w[:, i, 3] for i in range(3))
    point = along(eye, ray, t)
    length2 = dot(ray, ray)
    to_eye = scale(ray, -torch.rsqrt(length2))

    # The unit frame of the primitive: local point, and the normal as a covector pulled back to the world.
    frame = [pick(f"frame{i}") for i in range(12)]
    local = tuple(
        frame[3 * i] * point[0] + frame[3 * i + 1] * point[1] + frame[3 * i + 2] * point[2] + frame[9 + i]
        for i in range(3)
    )
    profile = tuple(pick(f"shape{i}") for i in range(3))
    gradient = local_normal(local, index, profile, world.waves, counts)
    half = (pick("half_x"), pick("half_y"), pick("half_z"))
    normal = normalize(tuple(sum(frame[3 * j + i] * gradient[j] for j in range(3)) for i in range(3)))
    facing = dot(normal, to_eye)
    normal = scale(normal, torch.where(facing < 0, -1.0, 1.0))
    facing = facing.abs()

    # Box mapping: the texture lies along the axis that the normal is nearest to; (a, b) are lengths on the surface.
    metric = tuple(q * h for q, h in zip(local, half, strict=True))
    gx, gy, gz = (g.abs() / h for g, h in zip(gradient, half, strict=True))
    on_x, on_z = (gx > gy) & (gx > gz), (gz >= gx) & (gz >= gy)
    a = torch.where(on_x, metric[1], metric[0])
    b = torch.where(on_z, metric[1], metric[2])
    cos, sin = pick("cos"), pick("sin")
    a, b = cos * a + sin * b, cos * b - sin * a
    footprint = t * spacing * side(atlas) * torch.rsqrt(facing.clamp_min(0.05))
    albedo = (pick("red"), pick("green"), pick("blue"))
    for name, shift in (("a", 0.0), ("b", 0.37)):
        repeats, contrast = pick(f"scale_{name}"), pick(f"contrast_{name}")
        u, v = a * repeats + pick("shift_u") + shift, b * repeats + pick("shift_v") + shift
        level = torch.log2((footprint * repeats).clamp_min(1e-6))
        texel = lookup(atlas, pick(f"texture_{name}").int(), u, v, level)
        # Texels are display values: squared they are light; 2.5 keeps the mean of a muted texture near 1.
        albedo = tuple(c * (1 + contrast * (2.5 * s * s - 1)) for c, s in zip(albedo, texel, strict=True))
    albedo = tuple(c.clamp(0.0, 1.0) for c in albedo)

    # The lamp is a square seen at four points, one per sample of a pixel: half shadows at no cost.
    side_x, side_y = (column % 2).float() - 0.5, (row % 2).float() - 0.5
    size = around("lamp_size")
    lamp = (around("lamp_x") + size * side_x, around("lamp_y") + size * side_y, around("lamp_z") + 0 * side_x)
    lifted = along(point, normal, 2e-3 * t)
    light = tuple(q - p for p, q in zip(lifted, lamp, strict=True))
    light2 = dot(light, light)
    toward = scale(light, torch.rsqrt(light2))
    falloff = around("falloff")
    strength = 1 / (1 - falloff + falloff * (0.1 + 0.9 * light2 / around("lamp_d2")))
    if shadows:
        dark = blocked(lifted, light, table[:, :12], shape, counts)
        strength = strength * (1 - around("shadow") * dark.float())
    lambert = dot(normal, toward).clamp_min(0) * strength

    open_sky = contact(point, normal, index, table, counts)
    open_sky = open_sky * creases(local, half, gradient, profile[0], index < counts.boxes)
    up = 0.5 + 0.5 * normal[2]
    sky = (around("sky_r"), around("sky_g"), around("sky_b"))
    ground = (around("ground_r"), around("ground_g"), around("ground_b"))
    ambient = scale(blend(ground, sky, up), around("ambient") * open_sky)
    lamp_color = (around("lamp_r"), around("lamp_g"), around("lamp_b"))
    middle = normalize(tuple(p + q for p, q in zip(toward, to_eye, strict=True)))
    gloss = pick("gloss")
    highlight = dot(normal, middle).clamp_min(1e-4) ** gloss * pick("specular") * (gloss + 8) * 0.04 * (lambert > 0)
    emission = 1 + pick("emission")
    radiance = tuple(
        c * (amb + lam * lambert) * emission + lam * highlight * strength
        for c, amb, lam in zip(albedo, ambient, lamp_color, strict=True)
    )

    # One look at the surroundings serves both: sky where nothing was hit, a reflection elsewhere.
    bounce = 2 * dot(normal, to_eye)
    away = tuple(torch.where(seen, bounce * n - e, -e) for n, e in zip(normal, to_eye, strict=True))
    scenery = surroundings(away, seen, world.ambience, atlas)
    fresnel = pick("mirror") * (0.25 + 0.75 * (1 - facing) ** 4) * (0.3 + 0.7 * open_sky)
    radiance = blend(radiance, scenery, torch.where(seen, fresnel, 1.0))
    horizon = (around("horizon_r"), around("horizon_g"), around("horizon_b"))
    air = torch.where(seen, 1 - torch.exp(-t * around("haze")), 0.0)
    red, green, blue = blend(radiance, horizon, air)
    return red, green, blue, depth


def local_normal(local: Triple, index: Tensor, profile: Triple, waves: Tensor, counts: Counts) -> Triple:
    """Gradient of the surface at a hit, in the unit frame (not normalised, sign arbitrary)."""
    x, y, z = local
    ax, ay, az = x.abs(), y.abs(), z.abs()
    box_x, box_z = (ax > ay) & (ax > az), (az >= ax) & (az >= ay)
    box = (box_x.float(), (~box_x & ~box_z).float(), box_z.float())
    cap = az > 1 - 1e-4
    round_ = (torch.where(cap, 0.0, x), torch.where(cap, 0.0, y))
    round_ = (*round_, torch.where(cap, 1.0, -0.5 * profile[1] - profile[2] * z))
    first = counts.boxes
    gradient = tuple(torch.where(index < first, p, q) for p, q in zip(box, round_, strict=True))
    first += counts.rounds
    panel = (0.0, 0.0, 1.0)
    gradient = tuple(torch.where(index < first, p, q) for p, q in zip(gradient, panel, strict=True))
    first += counts.panels
    for i in range(counts.implicits):
        wavy = implicit_gradient(local, profile[0], waves[:, i])
        gradient = tuple(torch.where(index == first + i, p, q) for p, q in zip(wavy, gradient, strict=True))
    return gradient


def contact(point: Triple, normal: Triple, index: Tensor, table: Tensor, counts: Counts) -> Tensor:
    """Share of ambient light [C, N] that boxes and rounds near a point leave, from the distance to their bounds."""
    if table.is_cuda:
        from . import intersect_cuda

        return intersect_cuda.contact(point, normal, index, table, FIELD["reach"], counts)
    stop = counts.boxes + counts.rounds
    rows = [table[:, i, None, :stop] for i in range(15)]
    reach = table[:, FIELD["reach"], None, :stop]
    px, py, pz = (p[..., None] for p in point)
    nx, ny, nz = (n[..., None] for n in normal)
    distance2, inward = 1e-8, 0.0
    for i in range(3):
        half = rows[12 + i]
        place = (rows[3 * i] * px + rows[3 * i + 1] * py + rows[3 * i + 2] * pz + rows[9 + i]) * half
        distance2 = distance2 + (place.abs() - half).clamp_min(0) ** 2
        # -place points to the centre in the primitive's axes, whose rows are frame * half.
        inward = inward - place * half * (rows[3 * i] * nx + rows[3 * i + 1] * ny + rows[3 * i + 2] * nz)
    toward = (inward / reach).clamp(0, 1)
    other = torch.arange(stop, device=index.device) != index[..., None]
    return torch.exp(-(0.9 * toward * torch.exp(-torch.sqrt(distance2) / reach) * other).sum(-1))


def creases(local: Triple, half: Triple, gradient: Triple, inverted: Tensor, is_box: Tensor) -> Tensor:
    """Share of ambient light [C, N] left near the edges of a room."""
    share = 1.0
    for q, h, g in zip(local, half, gradient, strict=True):
        near = torch.exp(-(1 - q.abs()).clamp_min(0) * h / 0.35) * (g == 0)
        share = share * (1 - 0.45 * near)
    return torch.where(is_box & (inverted > 0), share, 1.0)


def surroundings(direction: Triple, blurred: Tensor, ambience: Tensor, atlas: Tensor) -> Triple:
    """Light from far away: a gradient from ground over horizon to zenith, with clouds; softer where `blurred`."""

    def around(name: str) -> Tensor:
        return ambience[:, AMBIENT[name], None]

    dx, dy, dz = direction
    sky = (around("sky_r"), around("sky_g"), around("sky_b"))
    horizon = (around("horizon_r"), around("horizon_g"), around("horizon_b"))
    ground = (around("ground_r"), around("ground_g"), around("ground_b"))
    upper = blend(horizon, sky, dz.clamp(1e-6, 1) ** 0.6)
    color = blend(upper, ground, (-4 * dz).clamp(0, 1))
    repeats = around("cloud_scale") / (dz.abs() + 0.2)
    texture = around("cloud").int().expand_as(dx)
    level = torch.where(blurred, 4.0, 0.0) + 1.0
    cloud = lookup(atlas, texture, dx * repeats + 0.5, dy * repeats + 0.5, level)
    contrast = around("cloud_contrast")
    return tuple(c * (1 + contrast * (2.5 * s * s - 1)) for c, s in zip(color, cloud, strict=True))
