"""The plane sweep as one compiled loop for the CPU: no warped features are ever written. Forward only.

Each view and neighbour is a task of its own for a few threads; the loop holds no lock and starts none of numba's own
threads, so it may run beside anything else.
"""

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


def compiled_sweep(
    features: Tensor, source: Tensor, A: Tensor, b: Tensor, start: Tensor, step: float, planes: int, groups: int
) -> Tensor:
    """`geometry.sweep.sweep` on the CPU, without gradient."""
    rows, channels, h, w = features.shape
    # Channels last, so that one sample is one contiguous read.
    packed = features.detach().float().permute(0, 2, 3, 1).reshape(rows, h * w, channels).contiguous().numpy()
    A, b = A.detach().float().contiguous().numpy(), b.detach().float().contiguous().numpy()
    start = start.detach().float().reshape(rows, h * w).contiguous().numpy()
    out = torch.empty(rows, source.shape[1], groups, planes, h, w)
    flat = out.view(rows, source.shape[1], groups, planes, h * w).numpy()
    correlate = _kernel()

    def match(task: tuple[int, int, int]) -> None:
        row, s, other = task
        correlate(packed[row], packed[other], A[row, s], b[row, s], start[row], step, w, flat[row, s])

    tasks = [(row, s, other) for row, others in enumerate(source.tolist()) for s, other in enumerate(others)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(match, tasks))
    return out


@lru_cache(maxsize=1)
def _kernel() -> Callable:
    try:
        from numba import njit
    except ImportError as error:
        raise ImportError("a plane sweep without CUDA needs numba: pip install numba") from error
    signature = (
        "void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[::1], float64, int64, "
        "float32[:, :, ::1])"
    )
    fast = {"contract", "nsz", "arcp", "reassoc"}
    with compiling("the plane sweep", 2, [Path(__file__)]):
        return njit(signature, nogil=True, cache=True, error_model="numpy", fastmath=fast)(_correlate)


ZERO, ONE = np.float32(0), np.float32(1)


def _correlate(own, other, A, b, start, step, w, out):
    """Write `out` [G, D, h*w] for features `own` and `other` [h*w, C]; names as in `geometry.sweep.sweep`."""
    cells, channels = own.shape
    groups, planes, _ = out.shape
    h, size = cells // w, channels // groups
    products = np.empty(channels, np.float32)
    shrink = np.empty(planes, np.float32)
    for d in range(planes):
        shrink[d] = math.exp(-step * d)
    for cell in range(cells):
        x, y = cell % w + 0.5, cell // w + 0.5
        at0 = A[0, 0] * x + A[0, 1] * y + A[0, 2]
        at1 = A[1, 0] * x + A[1, 1] * y + A[1, 2]
        at2 = A[2, 0] * x + A[2, 1] * y + A[2, 2]
        mine = own[cell]
        nearness = math.exp(-np.float64(start[cell]))
        for d in range(planes):
            inverse_depth = nearness * shrink[d]
            depth = at2 + b[2] * inverse_depth
            u, v = -2.0, -2.0
            if depth > 1e-6:
                u = (at0 + b[0] * inverse_depth) / depth - 0.5
                v = (at1 + b[1] * inverse_depth) / depth - 0.5
            if not (-1 < u < w and -1 < v < h):  # true for NaN as well
                for g in range(groups):
                    out[g, d, cell] = 0
                continue
            left, top = math.floor(u), math.floor(v)
            fx, fy = np.float32(u - left), np.float32(v - top)
            # Corners outside the image weigh nothing.
            x0, x1, y0, y1 = max(left, 0), min(left + 1, w - 1), max(top, 0), min(top + 1, h - 1)
            wx0, wx1 = ONE - fx if left >= 0 else ZERO, fx if left + 1 < w else ZERO
            wy0, wy1 = ONE - fy if top >= 0 else ZERO, fy if top + 1 < h else ZERO
            w00, w01, w10, w11 = wx0 * wy0, wx1 * wy0, wx0 * wy1, wx1 * wy1
            f00, f01, f10, f11 = other[y0 * w + x0], other[y0 * w + x1], other[y1 * w + x0], other[y1 * w + x1]
            for c in range(channels):
                products[c] = mine[c] * (w00 * f00[c] + w01 * f01[c] + w10 * f10[c] + w11 * f11[c])
            for g in range(groups):
                total, c = ZERO, g * size
                for k in range(size):
                    total += products[c + k]
                out[g, d, cell] = total
