"""Gaussians to screen splats: projection, blur and colour.

Eight Gaussians at a time, in float32. The covariance is never formed in 3D: with U = J W Q (2x3), cov2d =
sum_k s_k^2 U_k U_k^T. Letters: `W` the rotation of w2c, `Q` the Gaussian's, `J` the Jacobian of the pinhole (EWA
splatting, Zwicker et al. 2001). What of this can be done to numbers and to lanes alike, `splat.cpu.projection_vjp` uses
as well.
"""

import numpy as np
from numba import njit, prange

from geometry.cpu import HELPER
from geometry.cpu.lanes import WIDTH, ceil, fabs, fill, floor, log, pick, sqrt, store_rows, where
from splat.sh import C0, C1, C2_XX, C2_XY, C2_ZZ, C3_XYZ, C3_Y, C3_YZZ, C3_ZXX, C3_ZZZ

# The columns of a splat, as many as fill a cache line. A, B, C: the conic over 16, 8, 16, so that A dx^2 + B dx dy +
# C dy^2 is the exponent over 8; LIMIT: the value of that at which alpha falls to MIN_ALPHA; RED is followed by green
# and blue; X0 to Y1: the pixels that it may touch, ends excluded, whole numbers.
X, Y, A, B, C, OPACITY, LIMIT, RED, DEPTH, X0, X1, Y0, Y1, COLUMNS = 0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 16

MIN_ALPHA = 1 / 255  # a splat fainter than this in a pixel is skipped there
EXTENT = 3.33  # standard deviations: an opacity of 1 reaches MIN_ALPHA just before; caps opacities above 1
BLUR = 0.3  # px^2, added to the screen covariance
FRUSTUM_MARGIN = 0.15  # of the image size over focal length: J is taken at most this far outside the image
LARGEST = 1e38  # what is larger is not finite enough to be drawn
MARGIN = 0.01  # px: bounds are this much too wide, so that only the test in the pixel decides
BLOCKS = 64  # Gaussians are cut into so many parts, whatever the number of threads

CAMERA = "float64[:, ::1], float64[::1], float64[::1], int64, int64"
GAUSSIANS = "float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[:, :, ::1]"
KERNEL = {"parallel": True, "cache": True, **HELPER}


@njit(**HELPER)
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(**HELPER)
def mix(s, a, t, b):
    """s a + t b."""
    return s * a[0] + t * b[0], s * a[1] + t * b[1], s * a[2] + t * b[2]


@njit(**HELPER)
def rotation_columns(q):
    """The columns of the rotation of a unit quaternion wxyz."""
    w, x, y, z = q
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
        (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
        (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)),
    )


@njit(**HELPER)
def band_1(x, y, z):
    """Spherical harmonics in a unit direction (see splat.sh), of numbers or lanes."""
    return -C1 * y, C1 * z, -C1 * x


@njit(**HELPER)
def band_2(x, y, z):
    return C2_XY * x * y, -C2_XY * y * z, C2_ZZ * (3 * z * z - 1), -C2_XY * x * z, C2_XX * (x * x - y * y)


@njit(**HELPER)
def band_3(x, y, z):
    return (
        -C3_Y * y * (3 * x * x - y * y),
        C3_XYZ * x * y * z,
        -C3_YZZ * y * (5 * z * z - 1),
        C3_ZZZ * z * (5 * z * z - 3),
        -C3_YZZ * x * (5 * z * z - 1),
        C3_ZXX * z * (x * x - y * y),
        -C3_Y * x * (x * x - 3 * y * y),
    )


@njit(**HELPER)
def _add_band(color, weights, sh, at):
    """`color` (RGB, lanes) and the coefficients from sh[at] on, of 8 Gaussians, times their `weights`."""
    red, green, blue = color
    step = 3 * sh.shape[1]
    for weight in weights:
        red, green = red + weight * pick(sh, at, step), green + weight * pick(sh, at + 1, step)
        blue = blue + weight * pick(sh, at + 2, step)
        at += 3
    return red, green, blue


@njit(**HELPER)
def _seen_color(sh, i, x, y, z):
    """The colours of the 8 Gaussians from i on in the unit directions x, y, z."""
    bands, half = sh.shape[1], fill(0.5)
    at = 3 * bands * i
    color = _add_band((half, half, half), (fill(C0),), sh, at)
    if bands > 1:
        color = _add_band(color, band_1(x, y, z), sh, at + 3)
    if bands > 4:
        color = _add_band(color, band_2(x, y, z), sh, at + 12)
    if bands > 9:
        color = _add_band(color, band_3(x, y, z), sh, at + 27)
    return color


@njit(**HELPER)
def _clamp(x, low, high):
    x = where(x >= low, x, low)
    return where(x <= high, x, high)


@njit(**HELPER)
def _three(values, i):
    return values[i], values[i + 1], values[i + 2]


@njit(**HELPER)
def _project_eight(
    means, scales, quats, opacities, sh, i, camera, width, height, near, far, antialiased, splats
):  # fmt: skip
    """`project` for the 8 Gaussians from i on, in float32.

    `camera` is the rotation of w2c (9), the centre and what its rounding took (3, 3), and fx, fy, cx, cy.
    """
    W = _three(camera, 0), _three(camera, 3), _three(camera, 6)
    (c0, c1, c2), (r0, r1, r2) = _three(camera, 9), _three(camera, 12)
    fx, fy, cx, cy = camera[15], camera[16], camera[17], camera[18]
    width, height = np.float32(width), np.float32(height)
    # From the camera's centre on there is little to round off, wherever in the world it stands.
    d = pick(means, 3 * i, 3) - c0 - r0, pick(means, 3 * i + 1, 3) - c1 - r1, pick(means, 3 * i + 2, 3) - c2 - r2
    z = dot(W[2], d)
    nearness = 1 / z
    slope_x, slope_y = dot(W[0], d) * nearness, dot(W[1], d) * nearness
    x, y = fx * slope_x + cx, fy * slope_y + cy
    margin_x, margin_y = FRUSTUM_MARGIN * width / fx, FRUSTUM_MARGIN * height / fy
    slope_x = _clamp(slope_x, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    slope_y = _clamp(slope_y, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    T0 = mix(fx * nearness, W[0], -fx * slope_x * nearness, W[2])
    T1 = mix(fy * nearness, W[1], -fy * slope_y * nearness, W[2])
    qw, qx = pick(quats, 4 * i, 4), pick(quats, 4 * i + 1, 4)
    qy, qz = pick(quats, 4 * i + 2, 4), pick(quats, 4 * i + 3, 4)
    norm = 1 / sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    Q = rotation_columns((qw * norm, qx * norm, qy * norm, qz * norm))
    s0, s1, s2 = pick(scales, 3 * i, 3), pick(scales, 3 * i + 1, 3), pick(scales, 3 * i + 2, 3)
    u0, u1, u2 = s0 * dot(T0, Q[0]), s1 * dot(T0, Q[1]), s2 * dot(T0, Q[2])
    v0, v1, v2 = s0 * dot(T1, Q[0]), s1 * dot(T1, Q[1]), s2 * dot(T1, Q[2])
    xx, xy, yy = u0 * u0 + u1 * u1 + u2 * u2, u0 * v0 + u1 * v1 + u2 * v2, v0 * v0 + v1 * v1 + v2 * v2
    # xx yy - xy^2, without the difference, of which float32 would leave nothing for a long and thin one.
    m0, m1, m2 = u0 * v1 - u1 * v0, u0 * v2 - u2 * v0, u1 * v2 - u2 * v1
    sharp = m0 * m0 + m1 * m1 + m2 * m2
    det = sharp + BLUR * (xx + yy) + BLUR * BLUR
    xx, yy = xx + BLUR, yy + BLUR
    opacity = pick(opacities, i, 1)
    if antialiased:
        opacity = opacity * sqrt(sharp / det)
    reach = 2 * log(opacity / MIN_ALPHA)
    reach = where(reach <= EXTENT * EXTENT, reach, EXTENT * EXTENT)
    half_x, half_y = sqrt(reach * xx) + MARGIN, sqrt(reach * yy) + MARGIN
    inverse = 1 / sqrt(dot(d, d))
    red, green, blue = _seen_color(sh, i, d[0] * inverse, d[1] * inverse, d[2] * inverse)
    # All of these are false for NaN.
    seen = (z >= near) & (z <= far) & (det > 0) & (det <= LARGEST) & (opacity >= MIN_ALPHA) & (opacity <= LARGEST)
    seen = seen & (x + half_x > 0) & (width > x - half_x) & (y + half_y > 0) & (height > y - half_y)
    seen = seen & (fabs(red) + fabs(green) + fabs(blue) <= LARGEST)
    left, right = ceil(_clamp(x - half_x - 0.5, 0, width)), floor(_clamp(x + half_x + 0.5, 0, width))
    top, bottom = ceil(_clamp(y - half_y - 0.5, 0, height)), floor(_clamp(y + half_y + 0.5, 0, height))
    zero = fill(0)
    red, green, blue = where(red >= 0, red, 0), where(green >= 0, green, 0), where(blue >= 0, blue, 0)
    a, b, c = yy / det / 16, xy / det / -8, xx / det / 16
    store_rows(splats, COLUMNS * i, COLUMNS, (x, y, a, b, c, opacity, reach / 16, red))
    pixels = where(seen, left, 0), where(seen, right, 0), where(seen, top, 0), where(seen, bottom, 0)
    store_rows(splats, COLUMNS * i + WIDTH, COLUMNS, (green, blue, z, *pixels, zero))


@njit(**HELPER)
def _first_of_eight(rows):
    """Rows [n, C], and zeros up to eight of them."""
    eight = np.zeros((WIDTH, rows.shape[1]), np.float32)
    eight[: len(rows)] = rows
    return eight


@njit(f"void({GAUSSIANS}, {CAMERA}, float64, float64, boolean, float32[:, ::1])", **KERNEL)
def project(means, scales, quats, opacities, sh, w2c, K, center, width, height, near, far, antialiased, splats):
    """Fill `splats` [N, COLUMNS] for one camera; what cannot be seen, or is not finite, touches no pixels.

    `w2c` [3, 4], `K` (fx, fy, cx, cy), `center` [3], to more digits than float32 has.
    """
    n = len(means)
    eights = -(-n // WIDTH)
    camera = np.empty(19, np.float32)
    for k in range(9):
        camera[k] = w2c[k // 3, k % 3]
    for k in range(3):
        camera[9 + k] = center[k]
        camera[12 + k] = center[k] - camera[9 + k]
    camera[15:] = K
    for block in prange(BLOCKS):
        for eight in range(block * eights // BLOCKS, (block + 1) * eights // BLOCKS):
            i = WIDTH * eight
            if i + WIDTH <= n:
                _project_eight(
                    means, scales, quats, opacities, sh, i, camera, width, height, near, far, antialiased, splats
                )
                continue
            m, s = _first_of_eight(means[i:]), _first_of_eight(scales[i:])
            q, o = _first_of_eight(quats[i:]), _first_of_eight(opacities[i:].reshape(-1, 1)).reshape(-1)
            h = _first_of_eight(sh[i:].reshape(n - i, -1)).reshape(WIDTH, sh.shape[1], 3)
            few = np.empty((WIDTH, COLUMNS), np.float32)
            _project_eight(m, s, q, o, h, 0, camera, width, height, near, far, antialiased, few)
            splats[i:] = few[: n - i]
