"""Which splats touch which tile, nearest first: a counting sort by tile, then a radix sort of each tile by depth."""

import numpy as np
from numba import njit, prange

from geometry.cpu.turns import TAKERS, take
from splat.cpu.projection import DEPTH, X0, X1, Y0, Y1

TILE_WIDTH, TILE_HEIGHT = 32, 16  # pixels
_BLOCKS = 16  # splats are counted and placed in so many parts, whatever the number of threads
_HELPER = {"error_model": "numpy"}
_KERNEL = {"parallel": True, "cache": True, **_HELPER}


@njit("UniTuple(int64, 4)(float32[:, ::1], int64)", error_model="numpy")
def tile_rectangle(splats, i):
    """The tiles (x0, x1, y0, y1), ends excluded, that splat i touches; none when it touches no pixels."""
    x0, x1, y0, y1 = int(splats[i, X0]), int(splats[i, X1]), int(splats[i, Y0]), int(splats[i, Y1])
    if x0 >= x1 or y0 >= y1:
        return 0, 0, 0, 0
    return x0 // TILE_WIDTH, (x1 - 1) // TILE_WIDTH + 1, y0 // TILE_HEIGHT, (y1 - 1) // TILE_HEIGHT + 1


@njit("Tuple((int64[::1], int64[::1], int64[::1]))(float32[:, ::1], int64, int64)", **_KERNEL)
def bin_splats(splats, tiles_x, tiles_y):
    """Lists of splats by tile, in the order of the splats.

    Returns `first` [N + 1], where splat i owns the (splat, tile) pairs first[i] to first[i + 1], row by row of its
    tiles; `starts` [tiles + 1]; and `keys`: tile t shows the splats of keys[starts[t]:starts[t + 1]], each its depth
    above its number.
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
    keys = np.empty(starts[tiles], np.int64)
    bits = splats.view(np.int32)  # those of positive floats sort like the floats
    for block in prange(_BLOCKS):
        for i in range(block * n // _BLOCKS, (block + 1) * n // _BLOCKS):
            x0, x1, y0, y1 = tile_rectangle(splats, i)
            key = (np.int64(bits[i, DEPTH]) << 32) | i
            for ty in range(y0, y1):
                for tx in range(x0, x1):
                    keys[cursors[block, ty * tiles_x + tx]] = key
                    cursors[block, ty * tiles_x + tx] += 1
    return first, starts, keys


@njit(**_HELPER)
def _sort_tile(tile, starts, keys, ids):
    """`sort_tiles` for one tile."""
    start, n = starts[tile], starts[tile + 1] - starts[tile]
    keys, other = keys[start : start + n], np.empty(n, np.int64)
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


@njit("int32[::1](int64[::1], int64[::1])", **_KERNEL)
def sort_tiles(starts, keys):
    """The splats of each tile, nearest first: ids[starts[t]:starts[t + 1]] are those of tile t. Overwrites `keys`.

    Equal depths keep the order of the splats.
    """
    ids = np.empty(len(keys), np.int32)
    turn = np.zeros(1, np.int64)
    for _taker in prange(TAKERS):
        tile = take(turn)
        while tile < len(starts) - 1:
            _sort_tile(tile, starts, keys, ids)
            tile = take(turn)
    return ids


@njit("void(int64[::1], float32[:, ::1], float32[:, ::1])", **_KERNEL)
def add_by_splat(first, pairs, sums):
    """Add the rows of `pairs` [M, C], one per splat and tile, to those of their splats in `sums` [N, C]."""
    for i in prange(len(sums)):
        for row in range(first[i], first[i + 1]):
            for k in range(sums.shape[1]):
                sums[i, k] += pairs[row, k]
