"""The plane sweep as one Triton kernel each way: no warped volume is ever written.

Each program takes a block of pixels of one (view, neighbour) and walks the planes. The forward keeps the view's own
features in registers; the backward sums their gradient there and scatters the neighbour's with atomics. Both maps fit
in the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def fused_sweep(features: Tensor, source: Tensor, A: Tensor, b: Tensor, log_depth: Tensor, groups: int) -> Tensor:
    """What `geometry.sweep.sweep` takes the mean and the best of [R, S, G, D, h, w], on CUDA.

    The backward adds with atomics: its rounding differs from run to run.
    """
    return _Sweep.apply(features, source, A, b, log_depth, groups)


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, source, A, b, log_depth, groups):
        (rows, channels, h, w), planes = features.shape, log_depth.shape[1]
        # Channels last, so that one sample is one contiguous read.
        packed = features.float().permute(0, 2, 3, 1).contiguous()
        source = source.int().contiguous()
        A, b, log_depth = (x.float().contiguous() for x in (A, b, log_depth))
        out = torch.empty(rows, source.shape[1], groups, planes, h, w, device=features.device)
        block = 32
        grid = (triton.cdiv(h * w, block), rows * source.shape[1])
        _forward[grid](
            packed,
            source,
            A,
            b,
            log_depth,
            out,
            h,
            w,
            source.shape[1],
            planes,
            channels,
            groups,
            BLOCK=block,
            num_warps=4,
        )
        ctx.save_for_backward(packed, source, A, b, log_depth)
        ctx.groups = groups
        return out

    @staticmethod
    def backward(ctx, grad):
        packed, source, A, b, log_depth = ctx.saved_tensors
        (rows, h, w, channels), planes = packed.shape, log_depth.shape[1]
        grad_packed = torch.zeros_like(packed)
        block = 32
        grid = (triton.cdiv(h * w, block), rows * source.shape[1])
        _backward[grid](
            packed, source, A, b, log_depth, grad.float().contiguous(), grad_packed, h, w,
            source.shape[1], planes, channels, ctx.groups, BLOCK=block, num_warps=4,
        )  # fmt: skip
        return grad_packed.permute(0, 3, 1, 2), None, None, None, None, None


@triton.jit
def _pixel(pixel, w, row, A, b):
    """Homogeneous position at infinity and the baseline's image, of pixels of one (view, neighbour) pair."""
    x = (pixel % w).to(tl.float32) + 0.5
    y = (pixel // w).to(tl.float32) + 0.5
    base = A + row * 9
    p0 = tl.load(base) * x + tl.load(base + 1) * y + tl.load(base + 2)
    p1 = tl.load(base + 3) * x + tl.load(base + 4) * y + tl.load(base + 5)
    p2 = tl.load(base + 6) * x + tl.load(base + 7) * y + tl.load(base + 8)
    return p0, p1, p2, tl.load(b + row * 3), tl.load(b + row * 3 + 1), tl.load(b + row * 3 + 2)


@triton.jit
def _corner(p0, p1, p2, b0, b1, b2, inverse_depth):
    """Top left texel and fractions of the sample at one plane; far outside when it lies behind the neighbour."""
    depth = p2 + b2 * inverse_depth
    ahead = depth > 1e-6
    scale = 1.0 / tl.where(ahead, depth, 1.0)
    u = tl.where(ahead, (p0 + b0 * inverse_depth) * scale, -1e4) - 0.5
    v = tl.where(ahead, (p1 + b1 * inverse_depth) * scale, -1e4) - 0.5
    u = tl.minimum(tl.maximum(u, -1e4), 1e4)
    v = tl.minimum(tl.maximum(v, -1e4), 1e4)
    left = tl.floor(u)
    top = tl.floor(v)
    return left.to(tl.int32), top.to(tl.int32), u - left, v - top


@triton.jit
def _forward(features, source, A, b, log_depth, out, h, w, S, D, C: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(1)
    view = row // S
    other = tl.load(source + row)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < h * w
    channel = tl.arange(0, C)
    p0, p1, p2, b0, b1, b2 = _pixel(pixel, w, row, A, b)
    size = h * w
    own = tl.load(features + (view * size + pixel)[:, None] * C + channel[None], mask=inside[:, None], other=0.0)
    planes = log_depth + view * D * size + pixel
    plane_base = features + other * size * C
    group = tl.arange(0, G)
    for d in range(D):
        nearness = tl.exp(-tl.load(planes + d * size, mask=inside, other=0.0))
        left, top, fx, fy = _corner(p0, p1, p2, b0, b1, b2, nearness)
        value = tl.zeros([BLOCK, C], tl.float32)
        for corner in tl.static_range(4):
            cx = left + (corner % 2)
            cy = top + (corner // 2)
            weight = (fx if corner % 2 == 1 else 1.0 - fx) * (fy if corner // 2 == 1 else 1.0 - fy)
            seen = inside & (cx >= 0) & (cx < w) & (cy >= 0) & (cy < h)
            texel = tl.load(plane_base + (cy * w + cx)[:, None] * C + channel[None], mask=seen[:, None], other=0.0)
            value += weight[:, None] * texel
        score = tl.sum(tl.reshape(own * value, [BLOCK, G, C // G]), 2)
        where = ((row * G + group[None]) * D + d) * size + pixel[:, None]
        tl.store(out + where, score, mask=inside[:, None])


@triton.jit
def _backward(
    features, source, A, b, log_depth, grad, grad_features, h, w, S, D,
    C: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    view = row // S
    other = tl.load(source + row)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < h * w
    channel = tl.arange(0, C)
    p0, p1, p2, b0, b1, b2 = _pixel(pixel, w, row, A, b)
    size = h * w
    own = tl.load(features + (view * size + pixel)[:, None] * C + channel[None], mask=inside[:, None], other=0.0)
    planes = log_depth + view * D * size + pixel
    plane_base = other * size * C
    group = channel // (C // G)
    own_grad = tl.zeros([BLOCK, C], tl.float32)
    for d in range(D):
        nearness = tl.exp(-tl.load(planes + d * size, mask=inside, other=0.0))
        left, top, fx, fy = _corner(p0, p1, p2, b0, b1, b2, nearness)
        where = ((row * G + group[None]) * D + d) * size + pixel[:, None]
        upstream = tl.load(grad + where, mask=inside[:, None], other=0.0)
        for corner in tl.static_range(4):
            cx = left + (corner % 2)
            cy = top + (corner // 2)
            weight = (fx if corner % 2 == 1 else 1.0 - fx) * (fy if corner // 2 == 1 else 1.0 - fy)
            seen = inside & (cx >= 0) & (cx < w) & (cy >= 0) & (cy < h)
            at = plane_base + (cy * w + cx)[:, None] * C + channel[None]
            texel = tl.load(features + at, mask=seen[:, None], other=0.0)
            own_grad += weight[:, None] * texel * upstream
            tl.atomic_add(grad_features + at, weight[:, None] * own * upstream, mask=seen[:, None], sem="relaxed")
    at = (view * size + pixel)[:, None] * C + channel[None]
    tl.atomic_add(grad_features + at, own_grad, mask=inside[:, None], sem="relaxed")
