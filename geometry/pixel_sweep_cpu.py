"""The sweep over pixels as one compiled loop for the CPU; threads as in `geometry.sweep_cpu`."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geometry.compiled import compiling
from geometry.pixel_sweep import BEST, CAUTION, LONGEST_STEP, SHARPNESS, UNSEEN


def compiled_offsets(depth: Tensor, images: Tensor, source: Tensor, A: Tensor, b: Tensor, planes: int) -> Tensor:
    """`geometry.pixel_sweep.reference_offsets` on the CPU."""
    offsets = torch.empty(depth.shape)
    # Four channels, so that a pixel is one aligned read.
    packed = torch.nn.functional.pad(images.permute(0, 2, 3, 1), (0, 1)).contiguous().numpy()
    depth, A, b, source = depth.contiguous().numpy(), A.contiguous().numpy(), b.contiguous().numpy(), source.tolist()
    differences, choose = _kernels()

    def refine(row: int) -> None:
        step = np.empty(depth.shape[1:], np.float32)
        found = np.empty((len(source[row]), planes, *step.shape), np.float32)
        differences(packed, row, np.array(source[row]), A[row], b[row], depth[row], step, found)
        choose(found, step, offsets[row].numpy())

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(refine, range(len(depth))))
    return offsets


@lru_cache(maxsize=1)
def _kernels() -> tuple[Callable, Callable]:
    try:
        from numba import njit
    except ImportError as error:
        raise ImportError("a plane sweep without CUDA needs numba: pip install numba") from error
    options = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp", "reassoc"}}
    maps = "float32[:, ::1], float32[:, ::1]"
    differences = (
        "void(float32[:, :, :, ::1], int64, int64[::1], float32[:, :, ::1], float32[:, ::1], float32[:, ::1], "
        "float32[:, ::1], float32[:, :, :, ::1])"
    )
    with compiling("the sweep over pixels", 3, [Path(__file__)]):
        return njit(differences, **options)(_differences), njit(f"void(float32[:, :, :, ::1], {maps})", **options)(
            _choose
        )


ZERO, ONE, THIRD = np.float32(0), np.float32(1), np.float32(1 / 3)


def _differences(images, row, source, A, b, depth, step, out):
    """Fill `step` [H, W] and `out` [S, D, H, W], how images[row] differs from its neighbours `source` over planes."""
    count, planes, height, width = out.shape
    first = -(planes // 2)
    for y in range(height):
        for x in range(width):
            px, py, inverse_depth = x + 0.5, y + 0.5, 1 / np.float64(depth[y, x])
            motion = 0.0
            for s in range(count):
                at2 = A[s, 2, 0] * px + A[s, 2, 1] * py + A[s, 2, 2] + b[s, 2] * inverse_depth
                if at2 <= 1e-6:
                    continue
                u = (A[s, 0, 0] * px + A[s, 0, 1] * py + A[s, 0, 2] + b[s, 0] * inverse_depth) / at2
                v = (A[s, 1, 0] * px + A[s, 1, 1] * py + A[s, 1, 2] + b[s, 1] * inverse_depth) / at2
                motion += math.hypot(u * b[s, 2] - b[s, 0], v * b[s, 2] - b[s, 1]) * inverse_depth / at2
            pitch = min(count / max(motion, 1e-6), LONGEST_STEP)
            step[y, x] = pitch
            shrink = math.exp(-pitch)
            nearest = inverse_depth * math.exp(-pitch * first)
            red, green, blue = images[row, y, x, 0], images[row, y, x, 1], images[row, y, x, 2]
            for s in range(count):
                other = source[s]
                at0 = A[s, 0, 0] * px + A[s, 0, 1] * py + A[s, 0, 2]
                at1 = A[s, 1, 0] * px + A[s, 1, 1] * py + A[s, 1, 2]
                at2 = A[s, 2, 0] * px + A[s, 2, 1] * py + A[s, 2, 2]
                nearness = nearest
                for d in range(planes):
                    ahead = at2 + b[s, 2] * nearness
                    u, v = -1.0, -1.0
                    if ahead > 1e-6:
                        u = (at0 + b[s, 0] * nearness) / ahead
                        v = (at1 + b[s, 1] * nearness) / ahead
                    nearness *= shrink
                    if not (0 <= u <= width and 0 <= v <= height):
                        out[s, d, y, x] = UNSEEN
                        continue
                    u, v = min(max(u - 0.5, 0.0), width - 1.0), min(max(v - 0.5, 0.0), height - 1.0)
                    x0, y0 = int(u), int(v)
                    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                    fx, fy = np.float32(u - x0), np.float32(v - y0)
                    w00, w01, w10, w11 = (ONE - fx) * (ONE - fy), fx * (ONE - fy), (ONE - fx) * fy, fx * fy
                    r = w00 * images[other, y0, x0, 0] + w01 * images[other, y0, x1, 0]
                    g = w00 * images[other, y0, x0, 1] + w01 * images[other, y0, x1, 1]
                    c = w00 * images[other, y0, x0, 2] + w01 * images[other, y0, x1, 2]
                    r += w10 * images[other, y1, x0, 0] + w11 * images[other, y1, x1, 0]
                    g += w10 * images[other, y1, x0, 1] + w11 * images[other, y1, x1, 1]
                    c += w10 * images[other, y1, x0, 2] + w11 * images[other, y1, x1, 2]
                    out[s, d, y, x] = THIRD * (abs(r - red) + abs(g - green) + abs(c - blue))


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
