"""The sweep over pixels, as of `geometry.pixel_sweep.reference_offsets`, in loops over the pixels of a view."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from geometry.cpu import KERNEL, in_threads
from geometry.pixel_sweep import BEST, CAUTION, LONGEST_STEP, SHARPNESS, UNSEEN

ZERO, HALF, ONE, THIRD = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1 / 3)
AHEAD, LEAST_MOTION = np.float32(1e-6), np.float32(1e-6)


def compiled_offsets(depth: Tensor, images: Tensor, source: Tensor, A: Tensor, b: Tensor, planes: int) -> Tensor:
    """`geometry.pixel_sweep.reference_offsets` on the CPU."""
    offsets = torch.empty(depth.shape)
    # Four channels, so that a pixel is one aligned read.
    packed = torch.nn.functional.pad(images.permute(0, 2, 3, 1), (0, 1)).contiguous().numpy()
    depth, A, b, source = depth.contiguous().numpy(), A.contiguous().numpy(), b.contiguous().numpy(), source.tolist()

    def refine(row: int) -> None:
        step = np.empty(depth.shape[1:], np.float32)
        found = np.empty((len(source[row]), planes, *step.shape), np.float32)
        _differences(packed, row, np.array(source[row]), A[row], b[row], depth[row], step, found)
        _choose(found, step, offsets[row].numpy())

    in_threads(refine, range(len(depth)))
    return offsets


@njit(
    "void(float32[:, :, :, ::1], int64, int64[::1], float32[:, :, ::1], float32[:, ::1], float32[:, ::1], "
    "float32[:, ::1], float32[:, :, :, ::1])",
    **KERNEL,
)
def _differences(images, row, source, A, b, depth, step, out):
    """Fill `step` [H, W] and `out` [S, D, H, W], how images[row] differs from its neighbours `source` over planes.

    Row by row: arithmetic without look-ups is in loops of its own, which the compiler vectorises.
    """
    count, planes, height, width = out.shape
    nearness, now, shrink = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    u, v, at = np.empty(width, np.float32), np.empty(width, np.float32), np.empty((count, 3, width), np.float32)
    right, bottom = np.float32(width), np.float32(height)
    for y in range(height):
        motion = step[y]
        for x in range(width):
            nearness[x] = ONE / depth[y, x]
            motion[x] = ZERO
        for s in range(count):
            for k in range(3):
                slope, start = A[s, k, 0], A[s, k, 1] * (np.float32(y) + HALF) + A[s, k, 2]
                for x in range(width):
                    at[s, k, x] = slope * (np.float32(x) + HALF) + start
            b0, b1, b2 = b[s, 0], b[s, 1], b[s, 2]
            for x in range(width):
                ahead = at[s, 2, x] + b2 * nearness[x]
                inverse = ONE / ahead
                along = (at[s, 0, x] + b0 * nearness[x]) * inverse * b2 - b0
                down = (at[s, 1, x] + b1 * nearness[x]) * inverse * b2 - b1
                moved = math.sqrt(along * along + down * down) * nearness[x] * inverse
                motion[x] += moved if ahead > AHEAD else ZERO
        for x in range(width):
            step[y, x] = min(np.float32(count) / max(motion[x], LEAST_MOTION), np.float32(LONGEST_STEP))
            shrink[x] = math.exp(-step[y, x])
            now[x] = nearness[x] * math.exp(step[y, x] * np.float32(planes // 2))
        for d in range(planes):
            for s in range(count):
                b0, b1, b2, other = b[s, 0], b[s, 1], b[s, 2], images[source[s]]
                for x in range(width):
                    ahead = at[s, 2, x] + b2 * now[x]
                    inverse = ONE / ahead
                    u[x] = (at[s, 0, x] + b0 * now[x]) * inverse if ahead > AHEAD else -ONE
                    v[x] = (at[s, 1, x] + b1 * now[x]) * inverse if ahead > AHEAD else -ONE
                for x in range(width):
                    if not (ZERO <= u[x] <= right and ZERO <= v[x] <= bottom):
                        out[s, d, y, x] = UNSEEN
                        continue
                    left, top = min(max(u[x] - HALF, ZERO), right - ONE), min(max(v[x] - HALF, ZERO), bottom - ONE)
                    x0, y0 = int(left), int(top)
                    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                    fx, fy = left - np.float32(x0), top - np.float32(y0)
                    w11 = fx * fy
                    w00, w01, w10 = ONE - fx - fy + w11, fx - w11, fy - w11
                    unlike = ZERO
                    for c in range(4):  # the fourth is 0 everywhere
                        upper = w00 * other[y0, x0, c] + w01 * other[y0, x1, c]
                        lower = w10 * other[y1, x0, c] + w11 * other[y1, x1, c]
                        unlike += abs(upper + lower - images[row, y, x, c])
                    out[s, d, y, x] = THIRD * unlike
            for x in range(width):
                now[x] *= shrink[x]


@njit("void(float32[:, :, :, ::1], float32[:, ::1], float32[:, ::1])", **KERNEL)
def _choose(differences, step, offsets):
    """Write `offsets` [H, W] for `differences` [S, D, H, W], which become means of 3x3 pixels, replicated outside."""
    count, planes, height, width = differences.shape
    across = np.empty((height, width), np.float32)
    for s in range(count):
        for d in range(planes):
            values = differences[s, d]
            for y in range(height):
                across[y, 0] = THIRD * (values[y, 0] + values[y, 0] + values[y, min(1, width - 1)])
                for x in range(1, width - 1):
                    across[y, x] = THIRD * (values[y, x - 1] + values[y, x] + values[y, x + 1])
                across[y, width - 1] = THIRD * (
                    values[y, max(width - 2, 0)] + values[y, width - 1] + values[y, width - 1]
                )
            for y in range(height):
                above, below = max(y - 1, 0), min(y + 1, height - 1)
                for x in range(width):
                    values[y, x] = THIRD * (across[above, x] + across[y, x] + across[below, x])
    best = np.empty(planes, np.float32)
    for y in range(height):
        for x in range(width):
            least = np.float32(1e9)
            for d in range(planes):
                one, two = np.float32(1e9), np.float32(1e9)
                for s in range(count):
                    value = differences[s, d, y, x]
                    if value < one:
                        one, two = value, one
                    elif value < two:
                        two = value
                best[d] = one if count < BEST else np.float32(0.5) * (one + two)
                best[d] += CAUTION * (d - planes // 2) ** 2
                least = min(least, best[d])
            total, moment = 0.0, 0.0
            for d in range(planes):
                weight = math.exp(SHARPNESS * (least - best[d]))
                total += weight
                moment += weight * (d - planes // 2)
            offsets[y, x] = step[y, x] * moment / total
