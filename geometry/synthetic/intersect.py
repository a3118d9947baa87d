"""First intersections of pinhole rays with solids, panels and implicit surfaces, as reductions over primitives.

Every primitive lives in a unit frame: boxes fill [-1, 1]^3, rounds are solids of revolution about z, panels are
outlines in z = 0, implicits are zero sets within [-1, 1]^3. A ray is (origin, direction) in that frame. Directions
have unit z in the camera, so a ray's parameter is the z-depth and needs no conversion.

Written for torch.compile: the [rays, primitives] matrices are reduced where they are produced and are never stored.
Vectors are triples of tensors, since a trailing axis of 3 would make the compiler compute everything three times.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]

INDEX_BITS = 127  # an index rides in the low 7 bits of the depth's float pattern: at most 127 primitives
MISS = 2**31 - 1  # the key of a ray that hits nothing
NEAREST = 1e-6


class Counts(NamedTuple):
    """How many slots of each sort a scene has; primitives are stored in this order."""

    boxes: int
    rounds: int
    panels: int
    implicits: int

    @property
    def total(self) -> int:
        return sum(self)


def dot(a: Triple, b: Triple) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def along(origin: Triple, direction: Triple, t: Tensor) -> Triple:
    return origin[0] + t * direction[0], origin[1] + t * direction[1], origin[2] + t * direction[2]


def slab(origin: Triple, direction: Triple) -> tuple[Tensor, Tensor]:
    """Parameters at which a ray enters and leaves the unit box; no hit where the first exceeds the second."""
    near = far = None
    for o, d in zip(origin, direction, strict=True):
        inverse = 1 / torch.where(d.abs() < 1e-12, 1e-12, d)
        middle, half = -o * inverse, inverse.abs()
        near = middle - half if near is None else torch.maximum(near, middle - half)
        far = middle + half if far is None else torch.minimum(far, middle + half)
    return near, far


def hit_boxes(origin: Triple, direction: Triple, inverted: Tensor) -> Tensor:
    """Parameter of the hit, infinity if none; `inverted` > 0 marks boxes that are seen from inside (rooms)."""
    near, far = slab(origin, direction)
    t = torch.where(inverted > 0, far, near)
    return torch.where((near < far) & (t > NEAREST), t, torch.inf)


def hit_rounds(origin: Triple, direction: Triple, profile: Triple) -> Tensor:
    """Hit with x^2 + y^2 = p0 + p1 z + p2 z^2 between z = -1 and 1, closed by flat caps; infinity if none."""
    dx, dy, dz = direction
    p0, p1, p2 = profile
    # From the point nearest the centre the quadratic is well conditioned even for thin, far primitives.
    closest = -dot(origin, direction) / dot(direction, direction)
    ox, oy, oz = along(origin, direction, closest)
    a = dx * dx + dy * dy - p2 * dz * dz
    b = ox * dx + oy * dy - dz * (p2 * oz + 0.5 * p1)
    c = ox * ox + oy * oy - p0 - oz * (p1 + p2 * oz)
    discriminant = b * b - a * c
    root = torch.sqrt(discriminant.clamp_min(0))
    inverse = 1 / torch.where(a.abs() < 1e-12, 1e-12, a)
    inverse_z = 1 / torch.where(dz.abs() < 1e-12, 1e-12, dz)
    best = torch.full_like(root, torch.inf)
    for sign in (-1, 1):
        t = (sign * root - b) * inverse
        inside = (discriminant > 0) & ((oz + t * dz).abs() <= 1) & (t + closest > NEAREST)
        best = torch.where(inside, torch.minimum(best, t), best)
        t = (sign - oz) * inverse_z
        x, y = ox + t * dx, oy + t * dy
        inside = (x * x + y * y <= p0 + sign * p1 + p2) & (t + closest > NEAREST)
        best = torch.where(inside, torch.minimum(best, t), best)
    return best + closest


def hit_panels(origin: Triple, direction: Triple, shape: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Hit with a flat outline in z = 0; infinity if none.

    `shape` is (taper, roundness, bars, duty): the outline is mix(|v|, v^2, roundness) <= 1 - taper u^2, so a sheet
    (0, 0), a disc (1, 1) or a leaf (1, 0); of it `bars` strips in u (a grid if negative) of width `duty` remain.
    """
    taper, roundness, bars, duty = shape
    dz = direction[2]
    t = -origin[2] / torch.where(dz.abs() < 1e-12, 1e-12, dz)
    u, v = origin[0] + t * direction[0], origin[1] + t * direction[1]
    height = v.abs() + roundness * (v * v - v.abs())
    inside = (u.abs() <= 1) & (v.abs() <= 1) & (height <= 1 - taper * u * u)
    n = bars.abs()
    strip_u = u * n - torch.floor(u * n) < duty
    strip_v = v * n - torch.floor(v * n) < duty
    inside = inside & (strip_u | (strip_v & (bars < 0)))
    return torch.where(inside & (t > NEAREST), t, torch.inf)


def implicit_value(point: Triple, roundness: Tensor, waves: Tensor) -> Tensor:
    """Signed value at a point: a plane (roundness 0) or a sphere (1) displaced by sine waves.

    `waves` [C, 5, W] holds wave vector, phase and amplitude; a negative value is inside.
    """
    x, y, z = point
    expand = (slice(None),) + (None,) * (x.dim() - 1)
    w = [[waves[:, i, k][expand] for i in range(5)] for k in range(waves.shape[2])]
    value = z + roundness * (torch.sqrt(dot(point, point) + 1e-12) - 0.7 - z)
    for kx, ky, kz, phase, amplitude in w:
        value = value + amplitude * torch.sin(kx * x + ky * y + kz * z + phase)
    return value


def implicit_gradient(point: Triple, roundness: Tensor, waves: Tensor) -> Triple:
    """Gradient of `implicit_value` [C, N] by the point."""
    x, y, z = point
    radius = torch.sqrt(dot(point, point) + 1e-12)
    gx, gy, gz = roundness * x / radius, roundness * y / radius, 1 + roundness * (z / radius - 1)
    for k in range(waves.shape[2]):
        kx, ky, kz, phase, amplitude = (waves[:, i, k, None] for i in range(5))
        slope = amplitude * torch.cos(kx * x + ky * y + kz * z + phase)
        gx, gy, gz = gx + slope * kx, gy + slope * ky, gz + slope * kz
    return gx, gy, gz


def hit_implicit(origin: Triple, direction: Triple, roundness: Tensor, waves: Tensor, steps: int) -> Tensor:
    """Hit of rays [C, N] with one implicit surface: the first of `steps` samples inside, then bisection and a secant.

    Samples are denser near the entry, where a step covers more pixels.
    """
    near, far = slab(origin, direction)
    start = near.clamp_min(NEAREST)
    span = (far - start).clamp_min(0)
    number = torch.arange(steps, device=start.device)
    fraction = (number / (steps - 1)) ** 1.5
    t = start[..., None] + span[..., None] * fraction
    point = along(tuple(o[..., None] for o in origin), tuple(d[..., None] for d in direction), t)
    value = implicit_value(point, roundness[..., None], waves)
    first = torch.where(value < 0, number, steps).amin(-1)
    found = (first < steps) & (near < far) & (far > NEAREST)

    def at(index: Tensor) -> Tensor:
        return start + span * (index.clamp(0, steps - 1) / (steps - 1)) ** 1.5

    low, high = at(first - 1), at(first)
    for _ in range(6):
        middle = 0.5 * (low + high)
        inside = implicit_value(along(origin, direction, middle), roundness, waves) < 0
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    f_low = implicit_value(along(origin, direction, low), roundness, waves)
    f_high = implicit_value(along(origin, direction, high), roundness, waves)
    share = (f_low / (f_low - f_high).clamp_min(1e-9)).clamp(0, 1)
    t = torch.where(first == 0, start, low + share * (high - low))
    return torch.where(found, t, torch.inf)


def keys(t: Tensor, index: Tensor | int) -> Tensor:
    """Integers that sort like the parameters t > 0 and carry the index of the primitive; MISS where t is infinite."""
    return torch.where(t < torch.inf, (t.view(torch.int32) & ~INDEX_BITS) | index, MISS)


def nearest(t: Tensor, offset: int) -> Tensor:
    """Smallest key [C, N] of hits [C, N, P] with the primitives from `offset` on."""
    return keys(t, torch.arange(offset, offset + t.shape[-1], device=t.device, dtype=torch.int32)).amin(-1)


def shape_of(shape: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """The four shape numbers [C, 1, P] of the slots in a range; `shape` is [C, 4, P]."""
    return tuple(shape[:, i, None, start:stop] for i in range(4))


def first_hit(
    to_local: Tensor,  # [C, 9, P] camera directions -> unit frames, row major
    eye: Tensor,  # [C, 3, P] camera centres in the unit frames
    shape: Tensor,  # [C, 4, P]
    waves: Tensor,  # [C, I, 5, W]
    x: Tensor,  # [C, N] (u - cx) / fx
    y: Tensor,  # [C, N]
    counts: Counts,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """z-depth [C, N] of the first surface (infinity: none) and the index [C, N] of its primitive (any, if none)."""
    if x.is_cuda:
        from . import intersect_cuda

        return intersect_cuda.first_hit(to_local, eye, shape, waves, x, y, counts, steps)
    xs, ys = x[..., None], y[..., None]

    def ray(start: int, stop: int) -> tuple[Triple, Triple]:
        m = [to_local[:, i, None, start:stop] for i in range(9)]
        direction = tuple(m[3 * i] * xs + m[3 * i + 1] * ys + m[3 * i + 2] for i in range(3))
        return tuple(eye[:, i, None, start:stop] for i in range(3)), direction

    # Only keys are reduced: one consumer of each hit matrix, so that it lives in registers alone.
    stop = counts.boxes
    key = nearest(hit_boxes(*ray(0, stop), shape_of(shape, 0, stop)[0]), 0)
    start, stop = stop, stop + counts.rounds
    key = torch.minimum(key, nearest(hit_rounds(*ray(start, stop), shape_of(shape, start, stop)[:3]), start))
    start, stop = stop, stop + counts.panels
    key = torch.minimum(key, nearest(hit_panels(*ray(start, stop), shape_of(shape, start, stop)), start))
    lumps = []
    for i in range(stop, counts.total):
        origin, direction = (tuple(v[..., 0] for v in side) for side in ray(i, i + 1))
        lumps.append(hit_implicit(origin, direction, shape[:, 0, i, None], waves[:, i - stop], steps))
        key = torch.minimum(key, keys(lumps[-1], i))

    # A key holds its parameter to 16 bits only: the winner alone is intersected once more.
    index = (key & INDEX_BITS).long().clamp_max(counts.total - 1)
    m = [to_local[:, i].gather(1, index) for i in range(9)]
    direction = tuple(m[3 * i] * x + m[3 * i + 1] * y + m[3 * i + 2] for i in range(3))
    origin = tuple(eye[:, i].gather(1, index) for i in range(3))
    own = tuple(shape[:, i].gather(1, index) for i in range(4))
    depth = hit_panels(origin, direction, own)
    depth = torch.where(index < counts.boxes + counts.rounds, hit_rounds(origin, direction, own[:3]), depth)
    depth = torch.where(index < counts.boxes, hit_boxes(origin, direction, own[0]), depth)
    for i, lump in enumerate(lumps):
        depth = torch.where(index == stop + i, lump, depth)
    return torch.where(key < MISS, depth, torch.inf), index


def blocked(
    point: Triple,  # [C, N] each, already lifted off the surface
    light: Triple,  # [C, N] each, from the point to the lamp
    frames: Tensor,  # [C, 12, P] world -> unit frames: nine of the matrix, three of the shift
    shape: Tensor,  # [C, 4, P]
    counts: Counts,
) -> Tensor:
    """bool [C, N]: a box, round or panel stands between a point and the lamp (rooms and implicits cast no shadow)."""
    if frames.is_cuda:
        from . import intersect_cuda

        return intersect_cuda.blocked(point, light, frames, shape, counts)

    def ray(start: int, stop: int) -> tuple[Triple, Triple]:
        m = [frames[:, i, None, start:stop] for i in range(12)]
        px, py, pz = (p[..., None] for p in point)
        lx, ly, lz = (v[..., None] for v in light)
        origin = tuple(m[3 * i] * px + m[3 * i + 1] * py + m[3 * i + 2] * pz + m[9 + i] for i in range(3))
        return origin, tuple(m[3 * i] * lx + m[3 * i + 1] * ly + m[3 * i + 2] * lz for i in range(3))

    stop = counts.boxes
    inverted = shape_of(shape, 0, stop)[0]
    t = hit_boxes(*ray(0, stop), inverted * 0)
    nearest_t = torch.where(inverted > 0, torch.inf, t).amin(-1)
    start, stop = stop, stop + counts.rounds
    t = hit_rounds(*ray(start, stop), shape_of(shape, start, stop)[:3])
    nearest_t = torch.minimum(nearest_t, t.amin(-1))
    start, stop = stop, stop + counts.panels
    t = hit_panels(*ray(start, stop), shape_of(shape, start, stop))
    return torch.minimum(nearest_t, t.amin(-1)) < 1
