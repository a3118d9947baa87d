"""Which splats touch which tile, nearest first: a counting sort by tile, then a radix sort of each tile by depth."""

import numpy as np
from numba import njit, prange

from splat.cpu.projection import DEPTH, X0, X1, Y0, Y1

TILE_WIDTH, TILE_HEIGHT = 32, 16  # pixels
_BLOCKS = 16  # splats are counted and placed in so many parts, whatever the number of threads
_KERNEL = {"parallel": True, "cache": True, "error_model": "numpy"}


@njit("UniTuple(int64, 4)(float32[:, ::1], int64)", error_model="numpy")
def tile_rectangle(splats, i):
    """The tiles (x0, x1, y0, y1), ends excluded, that splat i touches; none when it touches no pixels."""
    x0, x1, y0, y1 = int(splats[i, X0]), int(splats[i, X1]), int(splats[i, Y0]), int(splats[i, Y1])
    if x0 >= x1 or y0 >= y1:
        return 0, 0, 0, 0
    return x0 // TILE_WIDTH, (x1 - 1) // TILE_WIDTH + 1, y0 // TILE_HEIGHT, (y1 - 1) // TILE_HEIGHT + 1


@njit("Tuple((int64[::1], int64[::1], int32[::1]))(float32[:, ::1], int64, int64)", **_KERNEL)
def bin_splats(splats, tiles_x, tiles_y):
    """Lists of splats by tile, in the order of the splats.

    Returns `first` [N + 1], where splat i owns the (splat, tile) pairs first[i] to first[i + 1], row by row of its
    tiles; `starts` [tiles + 1]; and `ids`: tile t shows the splats ids[starts[t]:starts[t + 1]].
    """
    n, tiles = len(splats), tiles_x * tiles_y
    first = np.empty(n + 1, np.int64)
    cursors = np.zeros((_BLOCKS, tiles), np.int64)
    for block in prange(_BLOCKS):
        for i in range(block * n // _BLOCKS, (block + 1) * n // _BLOCKS):
            x0, x1, y0, y1 = tile_rectangle(splats, i)
            first[i + 1] = (x1 - x0) * (y1 - y0)
            for ty in range(y0, y1):
                for tx in range(x0, x1):
                    cursors[block, ty * tiles_x + tx] += 1
    first[0] = 0
    for i in range(n):
        first[i + 1] += first[i]
    starts = np.empty(tiles + 1, np.int64)
    starts[0] = 0
    for tile in range(tiles):
        end = starts[tile]
        for block in range(_BLOCKS):
            count = cursors[block, tile]
            cursors[block, tile] = end
            end += count
        starts[tile + 1] = end
    ids = np.empty(starts[tiles], np.int32)
    for block in prange(_BLOCKS):
        for i in range(block * n // _BLOCKS, (block + 1) * n // _BLOCKS):
            x0, x1, y0, y1 = tile_rectangle(splats, i)
            for ty in range(y0, y1):
                for tx in range(x0, x1):
                    ids[cursors[block, ty * tiles_x + tx]] = i
                    cursors[block, ty * tiles_x + tx] += 1
    return first, starts, ids


@njit("void(int64[::1], int32[::1], int32[:, ::1])", **_KERNEL)
def sort_tiles(starts, ids, splat_bits):
    """Sort each tile's list by depth, in place; equal depths keep the order of the splats.

    `splat_bits` are the splats seen as int32: the bits of positive floats sort like the floats.
    """
    for tile in prange(len(starts) - 1):
        start, n = starts[tile], starts[tile + 1] - starts[tile]
        keys, other = np.empty(n, np.int64), np.empty(n, np.int64)
        for k in range(n):
            keys[k] = (np.int64(splat_bits[ids[start + k], DEPTH]) << 32) | ids[start + k]
        count = np.empty(257, np.int64)
        for shift in range(32, 64, 8):
            count[:] = 0
            for k in range(n):
                count[((keys[k] >> shift) & 255) + 1] += 1
            if count.max() == n:  # all share this digit
                continue
            for digit in range(256):
                count[digit + 1] += count[digit]
            for k in range(n):
                digit = (keys[k] >> shift) & 255
                other[count[digit]] = keys[k]
                count[digit] += 1
            keys, other = other, keys
        for k in range(n):
            ids[start + k] = keys[k] & 0x7FFFFFFF


@njit("void(int64[::1], float32[:, ::1], float32[:, ::1])", **_KERNEL)
def add_by_splat(first, pairs, sums):
    """Add the rows of `pairs` [M, C], one per splat and tile, to those of their splats in `sums` [N, C]."""
    for i in prange(len(sums)):
        for row in range(first[i], first[i + 1]):
            for k in range(sums.shape[1]):
                sums[i, k] += pairs[row, k]
