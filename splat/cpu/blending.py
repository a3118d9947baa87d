"""Splats to pixels, front to back, and back: 8 pixels of a row at a time, tile by tile.

A pixel stops before its transmittance would fall to MIN_TRANSMITTANCE; from then on the transmittance is stored
negated, which also marks the pixels of a tile that lie outside the image. Both passes walk the same way through the
same arithmetic, so the backward pass meets exactly the weights that made the picture. There is no branch in the
pixels: what a splat does not reach goes through the same steps and is masked.
"""

import numpy as np
from numba import njit, prange

from geometry.cpu.lanes import WIDTH, fill, load, ramp, some, store, total, where
from geometry.cpu.turns import TAKERS, take
from splat.cpu.binning import TILE_HEIGHT, TILE_WIDTH, tile_rectangle
from splat.cpu.projection import BLUR, COLUMNS, DEPTH, LIMIT, OPACITY, RED, X0, X1, Y0, Y1, A, B, C, X, Y

MAX_ALPHA = np.float32(0.999)  # as in gsplat 1.5.3; no gradient flows where it clamps
MIN_TRANSMITTANCE = np.float32(1e-4)

STRIDE = TILE_WIDTH + WIDTH  # a tile's row in memory: 8 pixels may start at its last column
PLANE = TILE_HEIGHT * STRIDE
SUMS = 7  # columns of what `gather` writes
# So many splats are copied from where they lie before the first of them is blended: the machine fetches them at once,
# where one by one they would take as long as blending. Between two such copies a tile may turn out to be finished.
AHEAD = 32

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# exp(-s) = 1 + s (E1 + s (E2 + ...)) for s in 0..0.6935, to 1e-8: interpolated at Chebyshev nodes
E1, E2, E3 = np.float32(-0.99999999), np.float32(0.49999913), np.float32(-0.16665199)
E4, E5, E6 = np.float32(0.04157516), np.float32(-0.00807236), np.float32(0.00103605)

_HELPER = {"error_model": "numpy"}
_KERNEL = {"parallel": True, "cache": True, **_HELPER}


@njit(**_HELPER)
def _place(tile, tiles_x, height, width):
    """The corner (left, top) of a tile in the image, and how many of its columns and rows lie in it."""
    left, top = tile % tiles_x * TILE_WIDTH, tile // tiles_x * TILE_HEIGHT
    return left, top, min(TILE_WIDTH, width - left), min(TILE_HEIGHT, height - top)


@njit(**_HELPER)
def _start_transmittance(state, columns, rows):
    """Plane 0 of a tile: 1 in the image, -1 outside."""
    for y in range(TILE_HEIGHT):
        for x in range(STRIDE):
            state[y * STRIDE + x] = ONE if x < columns and y < rows else -ONE


@njit(**_HELPER)
def _finished(state):
    """Whether no pixel of the tile can take more light."""
    for offset in range(0, PLANE, WIDTH):  # noqa: SIM110 (numba has no all())
        if some(load(state, offset) > ZERO):
            return False
    return True


@njit(**_HELPER)
def _fetch(splats, ids, start, end, near):
    """Copy the splats ids[start:end] to the first rows of `near` [AHEAD, COLUMNS]."""
    for k in range(start, end):
        for column in range(0, COLUMNS, WIDTH):
            store(near, (k - start) * COLUMNS + column, load(splats, ids[k] * COLUMNS + column))


@njit(**_HELPER)
def _window(near, i, left, top):
    """The pixels of splat i inside the tile whose corner is (left, top)."""
    x0, x1 = max(int(near[i, X0]) - left, 0), min(int(near[i, X1]) - left, TILE_WIDTH)
    y0, y1 = max(int(near[i, Y0]) - top, 0), min(int(near[i, Y1]) - top, TILE_HEIGHT)
    return x0, x1, y0, y1


@njit(**_HELPER)
def _row_of_pair(near, i, first, tile, tiles_x):
    """Which pair of splat and tile (see bin_splats) that of splat i is, whose pairs begin with `first`."""
    x0, x1, y0, _ = tile_rectangle(near, i)
    return first + (tile // tiles_x - y0) * (x1 - x0) + tile % tiles_x - x0


@njit(**_HELPER)
def _falloff(s):
    """exp(-8 s) for s in 0..0.6935; anything at all elsewhere."""
    square = s * s
    e = (ONE + s * E1) + square * (E2 + s * E3) + square * square * ((E4 + s * E5) + square * E6)
    e = e * e
    e = e * e
    return e * e


@njit(**_HELPER)
def _pass(state, p, s, opacity, limit):
    """Light passes a splat at the 8 pixels from p on, where its exponent is 8 s: their transmittance is moved on.

    Returns the transmittance before, alpha before and after it is clamped, the splat's weight, and where it has one.
    """
    t = load(state, p)
    seen = (s >= ZERO) & (s <= limit) & (t > ZERO)
    e = opacity * _falloff(s)
    alpha = where(e >= MAX_ALPHA, MAX_ALPHA, e)
    taken = alpha * t
    after = t - taken
    light = seen & (after > MIN_TRANSMITTANCE)
    store(state, p, where(seen, where(light, after, ZERO - t), t))
    return t, e, alpha, where(light, taken, ZERO), light


@njit(**_HELPER)
def _blend_tile(tile, splats, starts, ids, tiles_x, color, depth, transmittance, used, faint):
    """`blend` for one tile."""
    left, top, columns, rows = _place(tile, tiles_x, depth.shape[0], depth.shape[1])
    state = np.zeros(5 * PLANE, np.float32)  # transmittance, red, green, blue, depth
    near = np.empty((AHEAD, COLUMNS), np.float32)
    _start_transmittance(state, columns, rows)
    kept = starts[tile]
    for k in range(starts[tile], starts[tile + 1], AHEAD):
        if _finished(state):
            break
        end = min(k + AHEAD, starts[tile + 1])
        used[tile] = end - starts[tile]
        _fetch(splats, ids, k, end, near)
        for i in range(end - k):
            x0, x1, y0, y1 = _window(near, i, left, top)
            a, b, c, opacity, limit = near[i, A], near[i, B], near[i, C], near[i, OPACITY], near[i, LIMIT]
            red, green, blue, z = near[i, RED], near[i, RED + 1], near[i, RED + 2], near[i, DEPTH]
            sum_w = fill(ZERO)
            for x in range(x0, x1, WIDTH):
                dx = (near[i, X] - np.float32(left + x) - HALF) - ramp()
                a_dx2, b_dx = a * dx * dx, b * dx
                for y in range(y0, y1):
                    p = y * STRIDE + x
                    dy = near[i, Y] - np.float32(top + y) - HALF
                    _, _, _, weight, _ = _pass(state, p, a_dx2 + dy * b_dx + dy * dy * c, opacity, limit)
                    store(state, p + PLANE, load(state, p + PLANE) + red * weight)
                    store(state, p + 2 * PLANE, load(state, p + 2 * PLANE) + green * weight)
                    store(state, p + 3 * PLANE, load(state, p + 3 * PLANE) + blue * weight)
                    store(state, p + 4 * PLANE, load(state, p + 4 * PLANE) + z * weight)
                    sum_w = sum_w + weight
            if faint > ZERO and total(sum_w) >= faint:
                ids[kept] = ids[k + i]
                kept += 1
    if faint > ZERO:
        used[tile] = kept - starts[tile]
    for y in range(rows):
        for x in range(columns):
            p = y * STRIDE + x
            transmittance[top + y, left + x] = abs(state[p])
            for channel in range(3):
                color[top + y, left + x, channel] = state[p + (1 + channel) * PLANE]
            depth[top + y, left + x] = state[p + 4 * PLANE]


@njit(
    "void(float32[:, ::1], int64[::1], int32[::1], int64, "
    "float32[:, :, ::1], float32[:, ::1], float32[:, ::1], int64[::1], float32)",
    **_KERNEL,
)
def blend(splats, starts, ids, tiles_x, color, depth, transmittance, used, faint):
    """Fill `color` [H, W, 3], `depth` [H, W] (sum of weight times depth) and `transmittance` [H, W].

    `used` [tiles] becomes the number of splats of each tile that came before all its pixels were finished. With `faint`
    above 0 the lists are left with those alone whose weights in the tile's pixels add up to that, counted by `used`.
    """
    turn = np.zeros(1, np.int64)
    for _taker in prange(TAKERS):
        tile = take(turn)
        while tile < len(used):
            _blend_tile(tile, splats, starts, ids, tiles_x, color, depth, transmittance, used, faint)
            tile = take(turn)


@njit(**_HELPER)
def _blend_vjp_tile(
    tile, splats, first, starts, ids, tiles_x, used,
    color, depth, transmittance, v_color, v_depth, v_transmittance, v_splats,
):  # fmt: skip
    """`blend_vjp` for one tile."""
    left, top, columns, rows = _place(tile, tiles_x, depth.shape[0], depth.shape[1])
    state = np.zeros(6 * PLANE, np.float32)  # transmittance, rest, v_red, v_green, v_blue, v_depth
    near = np.empty((AHEAD, COLUMNS), np.float32)
    _start_transmittance(state, columns, rows)
    for y in range(rows):
        for x in range(columns):
            p, u, v = y * STRIDE + x, left + x, top + y
            rest = transmittance[v, u] * v_transmittance[v, u] + depth[v, u] * v_depth[v, u]
            for channel in range(3):
                rest += color[v, u, channel] * v_color[v, u, channel]
                state[p + (2 + channel) * PLANE] = v_color[v, u, channel]
            state[p + PLANE] = rest
            state[p + 5 * PLANE] = v_depth[v, u]
    last = starts[tile] + used[tile]
    for k in range(starts[tile], last, AHEAD):
        end = min(k + AHEAD, last)
        _fetch(splats, ids, k, end, near)
        for i in range(end - k):
            x0, x1, y0, y1 = _window(near, i, left, top)
            a, b, c, opacity, limit = near[i, A], near[i, B], near[i, C], near[i, OPACITY], near[i, LIMIT]
            red, green, blue, z = near[i, RED], near[i, RED + 1], near[i, RED + 2], near[i, DEPTH]
            # sums over pixels of weight v_..., and of g = d loss / d exponent times 1, dx, dy, dx^2, dx dy, dy^2
            sum_red, sum_green, sum_blue, sum_z = fill(ZERO), fill(ZERO), fill(ZERO), fill(ZERO)
            sum_1, sum_x, sum_y, sum_xx, sum_xy, sum_yy = (
                fill(ZERO), fill(ZERO), fill(ZERO), fill(ZERO), fill(ZERO), fill(ZERO)
            )  # fmt: skip
            for x in range(x0, x1, WIDTH):
                dx = (near[i, X] - np.float32(left + x) - HALF) - ramp()
                a_dx2, b_dx = a * dx * dx, b * dx
                g_1, g_y = fill(ZERO), fill(ZERO)
                for y in range(y0, y1):
                    p = y * STRIDE + x
                    dy = near[i, Y] - np.float32(top + y) - HALF
                    s = a_dx2 + dy * b_dx + dy * dy * c
                    t, e, alpha, weight, light = _pass(state, p, s, opacity, limit)
                    v_red, v_green = load(state, p + 2 * PLANE), load(state, p + 3 * PLANE)
                    v_blue, v_z = load(state, p + 4 * PLANE), load(state, p + 5 * PLANE)
                    q = red * v_red + green * v_green + blue * v_blue + z * v_z
                    rest = load(state, p + PLANE) - weight * q
                    store(state, p + PLANE, rest)
                    free = light & (e <= MAX_ALPHA)
                    g = where(free, e * (rest / (ONE - alpha) - t * q), ZERO)
                    sum_red, sum_green = sum_red + weight * v_red, sum_green + weight * v_green
                    sum_blue, sum_z = sum_blue + weight * v_blue, sum_z + weight * v_z
                    g_1, g_y, sum_yy = g_1 + g, g_y + dy * g, sum_yy + dy * dy * g
                sum_1, sum_x, sum_xx = sum_1 + g_1, sum_x + dx * g_1, sum_xx + dx * dx * g_1
                sum_y, sum_xy = sum_y + g_y, sum_xy + dx * g_y
            row = _row_of_pair(near, i, first[ids[k + i]], tile, tiles_x)
            all_x, all_y = total(sum_x), total(sum_y)
            v_splats[row, 0] = 16 * a * all_x + 8 * b * all_y
            v_splats[row, 1] = 8 * b * all_x + 16 * c * all_y
            v_splats[row, 2] = HALF * total(sum_xx)
            v_splats[row, 3] = total(sum_xy)
            v_splats[row, 4] = HALF * total(sum_yy)
            v_splats[row, 5] = -total(sum_1) / opacity
            v_splats[row, 6] = total(sum_red)
            v_splats[row, 7] = total(sum_green)
            v_splats[row, 8] = total(sum_blue)
            v_splats[row, 9] = total(sum_z)


@njit(
    "void(float32[:, ::1], int64[::1], int64[::1], int32[::1], int64, int64[::1], "
    "float32[:, :, ::1], float32[:, ::1], float32[:, ::1], "
    "float32[:, :, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1])",
    **_KERNEL,
)
def blend_vjp(
    splats, first, starts, ids, tiles_x, used,
    color, depth, transmittance, v_color, v_depth, v_transmittance, v_splats,
):  # fmt: skip
    """Write the gradient of each pair of splat and tile to its row of `v_splats` [M, GRADIENTS] (see bin_splats).

    With q_i = colour_i . v_color + z_i v_depth, the loss changes with alpha_i by T_i q_i - R_i / (1 - alpha_i), where
    the rest R_i is what comes behind: the sum of w_j q_j over j > i, plus T v_transmittance at the end.
    """
    turn = np.zeros(1, np.int64)
    for _taker in prange(TAKERS):
        tile = take(turn)
        while tile < len(used):
            _blend_vjp_tile(
                tile, splats, first, starts, ids, tiles_x, used,
                color, depth, transmittance, v_color, v_depth, v_transmittance, v_splats,
            )  # fmt: skip
            tile = take(turn)


@njit(**_HELPER)
def _gather_tile(tile, splats, starts, ids, tiles_x, first, used, color, values, sums):
    """`gather` for one tile."""
    left, top, columns, rows = _place(tile, tiles_x, values.shape[0], values.shape[1])
    state = np.zeros(6 * PLANE, np.float32)  # transmittance, rest (see blend_vjp), values
    near = np.empty((AHEAD, COLUMNS), np.float32)
    _start_transmittance(state, columns, rows)
    for y in range(rows):
        for x in range(columns):
            p, rest = y * STRIDE + x, ZERO
            for channel in range(4):
                state[p + (2 + channel) * PLANE] = values[top + y, left + x, channel]
            for channel in range(3):
                rest += color[top + y, left + x, channel] * values[top + y, left + x, channel]
            state[p + PLANE] = rest
    last = starts[tile] + used[tile]
    for k in range(starts[tile], last, AHEAD):
        end = min(k + AHEAD, last)
        _fetch(splats, ids, k, end, near)
        for i in range(end - k):
            x0, x1, y0, y1 = _window(near, i, left, top)
            a, b, c, opacity, limit = near[i, A], near[i, B], near[i, C], near[i, OPACITY], near[i, LIMIT]
            red, green, blue = near[i, RED], near[i, RED + 1], near[i, RED + 2]
            # A splat that grows by the factor 1 + f moves the exponent by -f times this quadratic form of dx and
            # dy: twice the exponent, less what the blur, which does not grow, has in it.
            grow_xx = np.float32(16 * a - BLUR * (256 * a * a + 64 * b * b))
            grow_xy = np.float32(16 * b - BLUR * 256 * b * (a + c))
            grow_yy = np.float32(16 * c - BLUR * (256 * c * c + 64 * b * b))
            sum_0, sum_1, sum_2, sum_3, sum_w = fill(ZERO), fill(ZERO), fill(ZERO), fill(ZERO), fill(ZERO)
            sum_opacity, sum_size = fill(ZERO), fill(ZERO)
            for x in range(x0, x1, WIDTH):
                dx = (near[i, X] - np.float32(left + x) - HALF) - ramp()
                a_dx2, b_dx = a * dx * dx, b * dx
                grow_dx2, grow_dx = grow_xx * dx * dx, grow_xy * dx
                for y in range(y0, y1):
                    p = y * STRIDE + x
                    dy = near[i, Y] - np.float32(top + y) - HALF
                    s = a_dx2 + dy * b_dx + dy * dy * c
                    t, e, alpha, weight, light = _pass(state, p, s, opacity, limit)
                    v_red, v_green = load(state, p + 2 * PLANE), load(state, p + 3 * PLANE)
                    v_blue = load(state, p + 4 * PLANE)
                    q = red * v_red + green * v_green + blue * v_blue
                    rest = load(state, p + PLANE) - weight * q
                    store(state, p + PLANE, rest)
                    g = where(light & (e <= MAX_ALPHA), e * (t * q - rest / (ONE - alpha)), ZERO)
                    sum_0, sum_1 = sum_0 + weight * v_red, sum_1 + weight * v_green
                    sum_2, sum_3 = sum_2 + weight * v_blue, sum_3 + weight * load(state, p + 5 * PLANE)
                    sum_w, sum_opacity = sum_w + weight, sum_opacity + g
                    sum_size = sum_size + g * (grow_dx2 + dy * grow_dx + dy * dy * grow_yy)
            row = _row_of_pair(near, i, first[ids[k + i]], tile, tiles_x)
            sums[row, 0], sums[row, 1], sums[row, 2] = total(sum_0), total(sum_1), total(sum_2)
            sums[row, 3], sums[row, 4] = total(sum_3), total(sum_w)
            sums[row, 5], sums[row, 6] = (ONE - opacity) * total(sum_opacity), total(sum_size)


@njit(
    "void(float32[:, ::1], int64[::1], int32[::1], int64, "
    "int64[::1], int64[::1], float32[:, :, ::1], float32[:, :, ::1], float32[:, ::1])",
    **_KERNEL,
)
def gather(splats, starts, ids, tiles_x, first, used, color, values, sums):
    """Write for each pair of splat and tile sums over its pixels to its row of `sums` [M, SUMS] (see bin_splats).

    Of weight times `values` [H, W, 4] (4), of the weight (1), and how colour . values changes with the splat's logit of
    opacity and the logarithm of its size (2), of the picture's `color` [H, W, 3] and the first three values.
    """
    turn = np.zeros(1, np.int64)
    for _taker in prange(TAKERS):
        tile = take(turn)
        while tile < len(used):
            _gather_tile(tile, splats, starts, ids, tiles_x, first, used, color, values, sums)
            tile = take(turn)
