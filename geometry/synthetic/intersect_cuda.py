"""The three loops over primitives on CUDA, one Triton kernel each: first hit, shadow and contact.

Every program takes a block of samples of one strip and walks the primitives, so that nothing of size samples x
primitives is ever written. The formulas are those of intersect.py and shade.py, which are the reference; see there for
what they mean.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128


def first_hit(to_local, eye, shape, waves, x, y, counts, steps) -> tuple[Tensor, Tensor]:
    """`intersect.first_hit`."""
    rows, samples = x.shape
    depth = torch.empty_like(x)
    index = torch.empty_like(x, dtype=torch.int64)
    tensors = (
        to_local.contiguous(),
        eye.contiguous(),
        shape.contiguous(),
        waves.contiguous(),
        x.contiguous(),
        y.contiguous(),
    )
    _first_hit[(triton.cdiv(samples, BLOCK), rows)](
        *tensors, depth, index, samples, to_local.shape[2], counts.boxes, counts.rounds, counts.panels,
        counts.implicits, waves.shape[3], steps, BLOCK=BLOCK,
    )  # fmt: skip
    return depth, index


def blocked(point, light, frames, shape, counts) -> Tensor:
    """`intersect.blocked`."""
    rows, samples = point[0].shape
    dark = torch.empty(rows, samples, dtype=torch.bool, device=frames.device)
    triples = [v.expand(rows, samples).contiguous() for v in (*point, *light)]
    _blocked[(triton.cdiv(samples, BLOCK), rows)](
        *triples, frames.contiguous(), shape.contiguous(), dark, samples, frames.shape[2], counts.boxes, counts.rounds,
        counts.panels, BLOCK=BLOCK,
    )  # fmt: skip
    return dark


def contact(point, normal, index, table, reach, counts) -> Tensor:
    """`shade.contact`; `table` [C, F, P] starts with frames and half sizes, `reach` is the row of that name."""
    rows, samples = index.shape
    share = torch.empty(rows, samples, device=table.device)
    triples = [v.expand(rows, samples).contiguous() for v in (*point, *normal)]
    _contact[(triton.cdiv(samples, BLOCK), rows)](
        *triples, index.contiguous(), table.contiguous(), share, samples, table.shape[1], table.shape[2], reach,
        counts.boxes + counts.rounds, BLOCK=BLOCK,
    )  # fmt: skip
    return share


@triton.jit
def _nonzero(v):
    return tl.where(tl.abs(v) < 1e-12, 1e-12, v)


@triton.jit
def _slab(ox, oy, oz, dx, dy, dz):
    ix, iy, iz = 1.0 / _nonzero(dx), 1.0 / _nonzero(dy), 1.0 / _nonzero(dz)
    near = tl.maximum(tl.maximum(-ox * ix - tl.abs(ix), -oy * iy - tl.abs(iy)), -oz * iz - tl.abs(iz))
    far = tl.minimum(tl.minimum(-ox * ix + tl.abs(ix), -oy * iy + tl.abs(iy)), -oz * iz + tl.abs(iz))
    return near, far


@triton.jit
def _box(ox, oy, oz, dx, dy, dz, inverted):
    near, far = _slab(ox, oy, oz, dx, dy, dz)
    t = tl.where(inverted > 0, far, near)
    return tl.where((near < far) & (t > 1e-6), t, float("inf"))


@triton.jit
def _round(ox, oy, oz, dx, dy, dz, p0, p1, p2):
    closest = -(ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
    ox, oy, oz = ox + closest * dx, oy + closest * dy, oz + closest * dz
    a = dx * dx + dy * dy - p2 * dz * dz
    b = ox * dx + oy * dy - dz * (p2 * oz + 0.5 * p1)
    c = ox * ox + oy * oy - p0 - oz * (p1 + p2 * oz)
    discriminant = b * b - a * c
    root = tl.sqrt(tl.maximum(discriminant, 0.0))
    inverse = 1.0 / _nonzero(a)
    inverse_z = 1.0 / _nonzero(dz)
    best = tl.full(root.shape, float("inf"), tl.float32)
    for side in tl.static_range(2):
        sign = 2.0 * side - 1.0
        t = (sign * root - b) * inverse
        inside = (discriminant > 0) & (tl.abs(oz + t * dz) <= 1) & (t + closest > 1e-6)
        best = tl.where(inside, tl.minimum(best, t), best)
        t = (sign - oz) * inverse_z
        x, y = ox + t * dx, oy + t * dy
        inside = (x * x + y * y <= p0 + sign * p1 + p2) & (t + closest > 1e-6)
        best = tl.where(inside, tl.minimum(best, t), best)
    return best + closest


@triton.jit
def _panel(ox, oy, oz, dx, dy, dz, taper, roundness, bars, duty):
    t = -oz / _nonzero(dz)
    u, v = ox + t * dx, oy + t * dy
    height = tl.abs(v) + roundness * (v * v - tl.abs(v))
    inside = (tl.abs(u) <= 1) & (tl.abs(v) <= 1) & (height <= 1 - taper * u * u)
    n = tl.abs(bars)
    strip_u = u * n - tl.floor(u * n) < duty
    strip_v = v * n - tl.floor(v * n) < duty
    inside = inside & tl.where(bars < 0, strip_u | strip_v, strip_u)
    return tl.where(inside & (t > 1e-6), t, float("inf"))


@triton.jit
def _value(x, y, z, roundness, waves, W):
    value = z + roundness * (tl.sqrt(x * x + y * y + z * z + 1e-12) - 0.7 - z)
    for k in range(W):
        phase = tl.load(waves + k) * x + tl.load(waves + W + k) * y + tl.load(waves + 2 * W + k) * z
        value += tl.load(waves + 4 * W + k) * tl.sin(phase + tl.load(waves + 3 * W + k))
    return value


@triton.jit
def _at(start, span, number, steps):
    fraction = number / (steps - 1.0)
    return start + span * fraction * tl.sqrt(fraction)


@triton.jit
def _implicit(ox, oy, oz, dx, dy, dz, roundness, waves, W, steps):
    near, far = _slab(ox, oy, oz, dx, dy, dz)
    start = tl.maximum(near, 1e-6)
    span = tl.maximum(far - start, 0.0)
    first = tl.full(ox.shape, 1.0, tl.float32) * steps
    for n in range(steps):
        number = tl.full(ox.shape, 1.0, tl.float32) * n
        t = _at(start, span, number, steps)
        value = _value(ox + t * dx, oy + t * dy, oz + t * dz, roundness, waves, W)
        first = tl.where((value < 0) & (number < first), number, first)
    found = (first < steps) & (near < far) & (far > 1e-6)
    low = _at(start, span, tl.minimum(tl.maximum(first - 1, 0.0), steps - 1.0), steps)
    high = _at(start, span, tl.minimum(first, steps - 1.0), steps)
    for _ in range(6):
        middle = 0.5 * (low + high)
        inside = _value(ox + middle * dx, oy + middle * dy, oz + middle * dz, roundness, waves, W) < 0
        low, high = tl.where(inside, low, middle), tl.where(inside, middle, high)
    f_low = _value(ox + low * dx, oy + low * dy, oz + low * dz, roundness, waves, W)
    f_high = _value(ox + high * dx, oy + high * dy, oz + high * dz, roundness, waves, W)
    share = tl.minimum(tl.maximum(f_low / tl.maximum(f_low - f_high, 1e-9), 0.0), 1.0)
    t = tl.where(first == 0, start, low + share * (high - low))
    return tl.where(found, t, float("inf"))


@triton.jit
def _pinhole(to_local, eye, p, P, x, y):
    """Origin (scalars as blocks) and direction of the samples' rays in the frame of primitive p."""
    m = to_local + p
    dx = tl.load(m) * x + tl.load(m + P) * y + tl.load(m + 2 * P)
    dy = tl.load(m + 3 * P) * x + tl.load(m + 4 * P) * y + tl.load(m + 5 * P)
    dz = tl.load(m + 6 * P) * x + tl.load(m + 7 * P) * y + tl.load(m + 8 * P)
    zero = x * 0
    return zero + tl.load(eye + p), zero + tl.load(eye + P + p), zero + tl.load(eye + 2 * P + p), dx, dy, dz


@triton.jit
def _first_hit(
    to_local, eye, shape, waves, xs, ys, depth, index, N, P, boxes, rounds, panels, implicits, W, steps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < N
    at = row * N + sample
    x = tl.load(xs + at, mask=inside, other=0.0)
    y = tl.load(ys + at, mask=inside, other=0.0)
    to_local += row * 9 * P
    eye += row * 3 * P
    shape += row * 4 * P
    waves += row * implicits * 5 * W
    best = tl.full([BLOCK], float("inf"), tl.float32)
    which = tl.zeros([BLOCK], tl.int64)
    for p in range(boxes):
        ox, oy, oz, dx, dy, dz = _pinhole(to_local, eye, p, P, x, y)
        t = _box(ox, oy, oz, dx, dy, dz, tl.load(shape + p))
        which = tl.where(t < best, p, which)
        best = tl.minimum(best, t)
    for p in range(boxes, boxes + rounds):
        ox, oy, oz, dx, dy, dz = _pinhole(to_local, eye, p, P, x, y)
        t = _round(ox, oy, oz, dx, dy, dz, tl.load(shape + p), tl.load(shape + P + p), tl.load(shape + 2 * P + p))
        which = tl.where(t < best, p, which)
        best = tl.minimum(best, t)
    for p in range(boxes + rounds, boxes + rounds + panels):
        ox, oy, oz, dx, dy, dz = _pinhole(to_local, eye, p, P, x, y)
        s0, s1 = tl.load(shape + p), tl.load(shape + P + p)
        t = _panel(ox, oy, oz, dx, dy, dz, s0, s1, tl.load(shape + 2 * P + p), tl.load(shape + 3 * P + p))
        which = tl.where(t < best, p, which)
        best = tl.minimum(best, t)
    for i in range(implicits):
        p = boxes + rounds + panels + i
        ox, oy, oz, dx, dy, dz = _pinhole(to_local, eye, p, P, x, y)
        near, far = _slab(ox, oy, oz, dx, dy, dz)
        # Marching is dear, and most blocks see no implicit surface.
        if tl.sum(((near < far) & (far > 1e-6)).to(tl.int32), 0) > 0:
            t = _implicit(ox, oy, oz, dx, dy, dz, tl.load(shape + p), waves + i * 5 * W, W, steps)
            which = tl.where(t < best, p, which)
            best = tl.minimum(best, t)
    tl.store(depth + at, best, mask=inside)
    tl.store(index + at, which, mask=inside)


@triton.jit
def _between(frames, p, P, px, py, pz, lx, ly, lz):
    """Point and direction to the lamp in the frame of primitive p."""
    m = frames + p
    m0, m1, m2 = tl.load(m), tl.load(m + P), tl.load(m + 2 * P)
    m3, m4, m5 = tl.load(m + 3 * P), tl.load(m + 4 * P), tl.load(m + 5 * P)
    m6, m7, m8 = tl.load(m + 6 * P), tl.load(m + 7 * P), tl.load(m + 8 * P)
    ox = m0 * px + m1 * py + m2 * pz + tl.load(m + 9 * P)
    oy = m3 * px + m4 * py + m5 * pz + tl.load(m + 10 * P)
    oz = m6 * px + m7 * py + m8 * pz + tl.load(m + 11 * P)
    dx, dy, dz = m0 * lx + m1 * ly + m2 * lz, m3 * lx + m4 * ly + m5 * lz, m6 * lx + m7 * ly + m8 * lz
    return ox, oy, oz, dx, dy, dz


@triton.jit
def _blocked(pxs, pys, pzs, lxs, lys, lzs, frames, shape, dark, N, P, boxes, rounds, panels, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < N
    at = row * N + sample
    px, py, pz = (
        tl.load(pxs + at, mask=inside, other=0.0),
        tl.load(pys + at, mask=inside, other=0.0),
        tl.load(pzs + at, mask=inside, other=0.0),
    )
    lx, ly, lz = (
        tl.load(lxs + at, mask=inside, other=1.0),
        tl.load(lys + at, mask=inside, other=1.0),
        tl.load(lzs + at, mask=inside, other=1.0),
    )
    frames += row * 12 * P
    shape += row * 4 * P
    nearest = tl.full([BLOCK], float("inf"), tl.float32)
    for p in range(boxes):
        ox, oy, oz, dx, dy, dz = _between(frames, p, P, px, py, pz, lx, ly, lz)
        t = _box(ox, oy, oz, dx, dy, dz, 0.0)
        nearest = tl.minimum(nearest, tl.where(tl.load(shape + p) > 0, float("inf"), t))
    for p in range(boxes, boxes + rounds):
        ox, oy, oz, dx, dy, dz = _between(frames, p, P, px, py, pz, lx, ly, lz)
        t = _round(ox, oy, oz, dx, dy, dz, tl.load(shape + p), tl.load(shape + P + p), tl.load(shape + 2 * P + p))
        nearest = tl.minimum(nearest, t)
    for p in range(boxes + rounds, boxes + rounds + panels):
        ox, oy, oz, dx, dy, dz = _between(frames, p, P, px, py, pz, lx, ly, lz)
        s0, s1 = tl.load(shape + p), tl.load(shape + P + p)
        t = _panel(ox, oy, oz, dx, dy, dz, s0, s1, tl.load(shape + 2 * P + p), tl.load(shape + 3 * P + p))
        nearest = tl.minimum(nearest, t)
    tl.store(dark + at, nearest < 1, mask=inside)


@triton.jit
def _contact(pxs, pys, pzs, nxs, nys, nzs, index, table, share, N, F, P, reach, stop, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < N
    at = row * N + sample
    px = tl.load(pxs + at, mask=inside, other=0.0)
    py = tl.load(pys + at, mask=inside, other=0.0)
    pz = tl.load(pzs + at, mask=inside, other=0.0)
    nx = tl.load(nxs + at, mask=inside, other=0.0)
    ny = tl.load(nys + at, mask=inside, other=0.0)
    nz = tl.load(nzs + at, mask=inside, other=0.0)
    own = tl.load(index + at, mask=inside, other=-1)
    table += row * F * P
    total = tl.zeros([BLOCK], tl.float32)
    for p in range(stop):
        m = table + p
        radius = tl.load(m + reach * P)
        distance2 = tl.full([BLOCK], 1e-8, tl.float32)
        inward = tl.zeros([BLOCK], tl.float32)
        for i in tl.static_range(3):
            a, b, c = tl.load(m + 3 * i * P), tl.load(m + (3 * i + 1) * P), tl.load(m + (3 * i + 2) * P)
            half = tl.load(m + (12 + i) * P)
            place = (a * px + b * py + c * pz + tl.load(m + (9 + i) * P)) * half
            outside = tl.maximum(tl.abs(place) - half, 0.0)
            distance2 += outside * outside
            inward -= place * half * (a * nx + b * ny + c * nz)
        toward = tl.minimum(tl.maximum(inward / radius, 0.0), 1.0)
        total += tl.where(own != p, 0.9 * toward * tl.exp(-tl.sqrt(distance2) / radius), 0.0)
    tl.store(share + at, tl.exp(-total), mask=inside)
