"""Pixels looked up in their neighbours, as of `geometry.reprojection.reference_lookup`, view by neighbour."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from geometry.cpu import KERNEL, in_threads
from geometry.reprojection import CHANNELS, COARSE, FINE

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
AHEAD, MOST = np.float32(1e-6), np.float32(80)  # an exponent that float32 can still take


def compiled_lookup(images: Tensor, depth: Tensor, source: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """`geometry.reprojection.reference_lookup` on the CPU."""
    # Four channels, so that a pixel is one aligned read.
    maps = torch.cat([images, depth.log()[:, None]], 1).permute(0, 2, 3, 1).contiguous().numpy()
    depth, A, b, source = depth.contiguous().numpy(), A.contiguous().numpy(), b.contiguous().numpy(), source.numpy()
    seen = torch.empty(*source.shape, *depth.shape[1:], CHANNELS)  # channels last, as the layer after it likes them

    def look_up(task: tuple[int, int]) -> None:
        row, s = task
        _look_up(depth[row], maps[row], maps[source[row, s]], A[row, s], b[row, s], seen[row, s].numpy())

    in_threads(look_up, list(np.ndindex(*source.shape)))
    return seen.movedim(-1, 2)


@njit(
    "void(float32[:, ::1], float32[:, :, ::1], float32[:, :, ::1], float32[:, ::1], float32[::1], float32[:, :, ::1])",
    **KERNEL,
)
def _look_up(depth, ours, theirs, A, b, seen):
    """Fill `seen` [H, W, 6], by colour and log depth of both, [H, W, 4]."""
    height, width, _ = ours.shape
    right, bottom = np.float32(width), np.float32(height)
    for y in range(height):
        v0 = np.float32(y) + HALF
        for x in range(width):
            u0, log_depth, out = np.float32(x) + HALF, ours[y, x, 3], seen[y, x]
            nearness = ONE / depth[y, x]
            ahead = A[2, 0] * u0 + A[2, 1] * v0 + A[2, 2] + b[2] * nearness
            inverse = ONE / ahead
            u = (A[0, 0] * u0 + A[0, 1] * v0 + A[0, 2] + b[0] * nearness) * inverse
            v = (A[1, 0] * u0 + A[1, 1] * v0 + A[1, 2] + b[1] * nearness) * inverse
            if not (ahead > AHEAD and ZERO <= u <= right and ZERO <= v <= bottom):
                out[:] = ZERO
                continue
            left, top = min(max(u - HALF, ZERO), right - ONE), min(max(v - HALF, ZERO), bottom - ONE)
            x0, y0 = int(left), int(top)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            fx, fy = left - np.float32(x0), top - np.float32(y0)
            w11 = fx * fy
            w00, w01, w10 = ONE - fx - fy + w11, fx - w11, fy - w11
            for c in range(3):
                upper = w00 * theirs[y0, x0, c] + w01 * theirs[y0, x1, c]
                out[3 + c] = ours[y, x, c] - (upper + w10 * theirs[y1, x0, c] + w11 * theirs[y1, x1, c])
            found = w00 * theirs[y0, x0, 3] + w01 * theirs[y0, x1, 3]
            found += w10 * theirs[y1, x0, 3] + w11 * theirs[y1, x1, 3]
            # tanh(k log r) = 1 - 2 / (r^2k + 1), where r = ahead * depth / theirs
            farther = math.exp(min(max(np.float32(2 * COARSE) * (log_depth - found), -MOST), MOST))
            farther *= ahead ** (2 * COARSE)
            out[0] = ONE
            out[1] = ONE - TWO / (farther + ONE)
            out[2] = ONE - TWO / (farther ** (FINE // COARSE) + ONE)
