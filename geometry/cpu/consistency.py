"""Depth on which views agree, as of `geometry.consistency.reference_depth`, in loops over the pixels of a view."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from geometry.consistency import AGREE, MARGIN, MOST, NEARER
from geometry.cpu import HELPER, KERNEL, in_threads

_MAPS, _MAP = "float32[:, :, ::1]", "float32[:, ::1]"
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
AHEAD, SHARPNESS, ENOUGH = np.float32(1e-6), np.float32(1 / AGREE**2), MOST - 1e-3


def compiled_depth(depth: Tensor, source: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """`geometry.consistency.reference_depth` on the CPU."""
    chosen, mean = torch.empty(depth.shape), torch.empty(depth.shape)
    back = torch.linalg.inv(A).contiguous().numpy()
    depth, A, b, source = (x.contiguous().numpy() for x in (depth, A, b, source))

    def choose(row: int) -> None:
        seen = np.empty((source.shape[1], *depth.shape[1:]), np.float32)
        for s, other in enumerate(source[row]):
            _seen_by_neighbor(depth[other], back[row, s], b[row, s], seen[s])
        changed = np.empty(depth.shape[1:], np.bool_)
        _choose(depth, row, source[row], A[row], b[row], seen, changed, chosen[row].numpy())

    def average(row: int) -> None:
        _mean(chosen.numpy(), row, source[row], A[row], b[row], mean[row].numpy())

    for step in (choose, average):
        in_threads(step, range(len(depth)))
    return mean


@njit(f"void({_MAP}, {_MAP}, float32[::1], {_MAP})", **KERNEL)
def _seen_by_neighbor(depth, back, b, seen):
    """Fill `seen` [H, W] with what a neighbour of this `depth` [H, W] sees, in our view; infinite where nothing."""
    height, width = seen.shape
    seen[:] = np.inf
    for y in range(height):
        for x in range(width):
            z = depth[y, x]
            p0, p1, p2 = z * (np.float32(x) + HALF) - b[0], z * (np.float32(y) + HALF) - b[1], z - b[2]
            ahead = back[2, 0] * p0 + back[2, 1] * p1 + back[2, 2] * p2
            u = (back[0, 0] * p0 + back[0, 1] * p1 + back[0, 2] * p2) / ahead
            v = (back[1, 0] * p0 + back[1, 1] * p1 + back[1, 2] * p2) / ahead
            if ahead > ZERO and ZERO <= u < width and ZERO <= v < height:
                column, row = int(u), int(v)
                seen[row, column] = min(seen[row, column], ahead)


@njit(**HELPER)
def _ask(z, x, y, depth, others, A, b):
    """How far the neighbours bear out depth z in pixel (x, y): the sums of `geometry.consistency.ask_neighbors`."""
    height, width = depth.shape[1:]
    total, shift = ZERO, ZERO
    u, v, nearness = np.float32(x) + HALF, np.float32(y) + HALF, ONE / z
    for s in range(len(others)):
        ahead = A[s, 2, 0] * u + A[s, 2, 1] * v + A[s, 2, 2] + b[s, 2] * nearness
        if not ahead > AHEAD:
            continue
        column = (A[s, 0, 0] * u + A[s, 0, 1] * v + A[s, 0, 2] + b[s, 0] * nearness) / ahead
        row = (A[s, 1, 0] * u + A[s, 1, 1] * v + A[s, 1, 2] + b[s, 1] * nearness) / ahead
        if ZERO <= column <= width and ZERO <= row <= height:
            theirs = depth[others[s], min(int(row), height - 1), min(int(column), width - 1)]
            farther = math.log(theirs / (ahead * z))
            weight = math.exp(-SHARPNESS * farther * farther)
            total += weight
            shift += weight * farther
    return total, shift


@njit(f"void({_MAPS}, int64, int64[::1], {_MAPS}, {_MAP}, {_MAPS}, boolean[:, ::1], {_MAP})", **KERNEL)
def _choose(depth, own, others, A, b, seen, changed, chosen):
    """Write to `chosen` [H, W] what is borne out most: ours, or of `seen` [S, H, W] where most of 3x3 pixels change."""
    height, width = chosen.shape
    for y in range(height):
        for x in range(width):
            ours = depth[own, y, x]
            chosen[y, x], most = ours, -ONE
            for s in range(len(others)):
                if seen[s, y, x] < NEARER * ours:
                    if most < ZERO:  # how far ours is borne out matters only now
                        most = _ask(ours, x, y, depth, others, A, b)[0] + np.float32(MARGIN)
                    borne_out = _ask(seen[s, y, x], x, y, depth, others, A, b)[0]
                    if borne_out > most:
                        chosen[y, x], most = seen[s, y, x], borne_out
            changed[y, x] = chosen[y, x] != ours
    for y in range(height):
        for x in range(width):
            if changed[y, x]:
                around, count = 0, 0
                for row in range(max(y - 1, 0), min(y + 2, height)):
                    for column in range(max(x - 1, 0), min(x + 2, width)):
                        around, count = around + 1, count + changed[row, column]
                if count < ENOUGH * around:
                    chosen[y, x] = depth[own, y, x]


@njit(f"void({_MAPS}, int64, int64[::1], {_MAPS}, {_MAP}, {_MAP})", **KERNEL)
def _mean(depth, own, others, A, b, mean):
    """Write to `mean` [H, W] the mean of our depth and of what those neighbours see that bear it out."""
    height, width = mean.shape
    for y in range(height):
        for x in range(width):
            z = depth[own, y, x]
            total, shift = _ask(z, x, y, depth, others, A, b)
            mean[y, x] = z * math.exp(shift / (ONE + total))
