"""The plane sweep, as of `geometry.sweep.reference_sweep`, in one loop: no warped features are ever written."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from geometry.cpu import KERNEL, in_threads
from geometry.cpu.lanes import WIDTH, load, total

RUN = 16  # cells that are written at once, plane by plane: one at a time, each would wait for its piece of memory
PARTS = 4  # of a view, one task each: threads finish together
ZERO, HALF, ONE, AHEAD = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-6)


def compiled_sweep(features: Tensor, source: Tensor, A: Tensor, b: Tensor, log_depth: Tensor, groups: int) -> Tensor:
    """`geometry.sweep.reference_sweep` on the CPU, without gradient."""
    rows, _, h, w = features.shape
    planes = log_depth.shape[1]
    # Channels last, so that a sample is one contiguous read; eight of each group beside each other, as lanes.
    packed = features.detach().float().flatten(2).unflatten(1, (groups, -1))
    packed = F.pad(packed, (0, 0, 0, -packed.shape[2] % WIDTH)).unflatten(2, (-1, WIDTH))
    packed = packed.permute(0, 2, 4, 1, 3).contiguous().numpy()  # [R, C / 8, h*w, groups, 8]
    A, b, source = A.detach().float().contiguous().numpy(), b.detach().float().contiguous().numpy(), source.numpy()
    log_depth = log_depth.detach().float().flatten(2).contiguous().numpy()
    out = torch.empty(rows, planes, h * w, 2 * groups)  # channels last, as the convolutions after it like them

    def match(task: tuple[int, int]) -> None:
        row, part = task
        cells = part * h * w // PARTS, (part + 1) * h * w // PARTS
        _correlate(packed, row, source[row], A[row], b[row], log_depth[row], w, *cells, out[row].numpy())

    in_threads(match, [(row, part) for row in range(rows) for part in range(PARTS)])
    return out.view(rows, planes, h, w, 2 * groups).movedim(-1, 1)


@njit(
    "void(float32[:, :, :, :, ::1], int64, int64[::1], float32[:, :, ::1], float32[:, ::1], float32[:, ::1], int64, "
    "int64, int64, float32[:, :, ::1])",
    **KERNEL,
)
def _correlate(features, own, others, A, b, log_depth, w, first, last, out):
    """Write to `out` [D, h*w, 2G], at the cells from first to last, mean and best over the neighbours `others`.

    `features` [R, K, h*w, G, 8] of all views; other names as in `geometry.sweep.sweep`.
    """
    _, blocks, cells, groups, _ = features.shape
    planes, count, h, size = len(log_depth), len(others), cells // w, groups * WIDTH
    right, bottom, share = np.float32(w), np.float32(h), ONE / np.float32(count)
    nearness, scores = np.empty(planes, np.float32), np.empty((count, planes, groups), np.float32)
    kept = np.empty((planes, RUN, 2 * groups), np.float32)
    corners, weights = np.empty((4, planes), np.int32), np.empty((4, planes), np.float32)
    for cell in range(first, last):
        x, y = np.float32(cell % w) + HALF, np.float32(cell // w) + HALF
        scores[:] = ZERO
        for d in range(planes):
            nearness[d] = math.exp(-log_depth[d, cell])
        for s in range(count):
            at0 = A[s, 0, 0] * x + A[s, 0, 1] * y + A[s, 0, 2]
            at1 = A[s, 1, 0] * x + A[s, 1, 1] * y + A[s, 1, 2]
            at2 = A[s, 2, 0] * x + A[s, 2, 1] * y + A[s, 2, 2]
            b0, b1, b2 = b[s, 0], b[s, 1], b[s, 2]
            for d in range(planes):
                ahead = at2 + b2 * nearness[d]
                u, v = (at0 + b0 * nearness[d]) / ahead - HALF, (at1 + b1 * nearness[d]) / ahead - HALF
                # False for NaN as well. What lies outside takes part as the first cell, and weighs nothing.
                inside = ahead > AHEAD and -ONE < u < right and -ONE < v < bottom
                u, v = u if inside else ZERO, v if inside else ZERO
                left, top = np.floor(u), np.floor(v)
                fx, fy = u - left, v - top
                wx0, wx1 = ONE - fx if left >= ZERO else ZERO, fx if left + ONE < right else ZERO
                wy0, wy1 = ONE - fy if top >= ZERO else ZERO, fy if top + ONE < bottom else ZERO
                wy0, wy1 = wy0 if inside else ZERO, wy1 if inside else ZERO
                x0, x1 = np.int32(max(left, ZERO)), np.int32(min(left + ONE, right - ONE))
                y0, y1 = np.int32(max(top, ZERO)) * np.int32(w), np.int32(min(top + ONE, bottom - ONE)) * np.int32(w)
                corners[0, d], corners[1, d], corners[2, d], corners[3, d] = y0 + x0, y0 + x1, y1 + x0, y1 + x1
                weights[0, d], weights[1, d] = wx0 * wy0, wx1 * wy0
                weights[2, d], weights[3, d] = wx0 * wy1, wx1 * wy1
            for k in range(blocks):
                mine, theirs = ((own * blocks + k) * cells + cell) * size, (others[s] * blocks + k) * cells
                for d in range(planes):
                    w00, w01, w10, w11 = weights[0, d], weights[1, d], weights[2, d], weights[3, d]
                    c00, c01 = (theirs + corners[0, d]) * size, (theirs + corners[1, d]) * size
                    c10, c11 = (theirs + corners[2, d]) * size, (theirs + corners[3, d]) * size
                    for g in range(groups):
                        c = g * WIDTH
                        upper = w00 * load(features, c00 + c) + w01 * load(features, c01 + c)
                        lower = w10 * load(features, c10 + c) + w11 * load(features, c11 + c)
                        scores[s, d, g] += total(load(features, mine + c) * (upper + lower))
        for d in range(planes):
            for g in range(groups):
                mean, best = ZERO, scores[0, d, g]
                for s in range(count):
                    mean += share * scores[s, d, g]
                    best = max(best, scores[s, d, g])
                kept[d, cell % RUN, g], kept[d, cell % RUN, groups + g] = mean, best
        if cell % RUN == RUN - 1 or cell == last - 1:
            begin = max(cell - cell % RUN, first)
            for d in range(planes):
                for c in range(begin, cell + 1):
                    for g in range(2 * groups):
                        out[d, c, g] = kept[d, c % RUN, g]
