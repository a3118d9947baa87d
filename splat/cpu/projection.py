"""Gaussians to screen splats and back: projection, blur, colour, and the gradients of all of it.

One Gaussian at a time, in float64: scalar code is as quick in it, and no literal needs a cast. The covariance is never
formed in 3D: with U = J W Q (2x3), cov2d = sum_k s_k^2 U_k U_k^T. Letters: `W` the rotation of w2c, `Q` the Gaussian's,
`J` the Jacobian of the pinhole (EWA splatting, Zwicker et al. 2001), `v_x` the gradient of the loss with respect to x.
"""

import math

import numpy as np
from numba import njit, prange

from splat.sh import C0, C1, C2_XX, C2_XY, C2_ZZ, C3_XYZ, C3_Y, C3_YZZ, C3_ZXX, C3_ZZZ

# The columns of a splat, as many as fill a cache line. A, B, C: the conic over 16, 8, 16, so that A dx^2 + B dx dy +
# C dy^2 is the exponent over 8; LIMIT: the value of that at which alpha falls to MIN_ALPHA; RED is followed by green
# and blue; X0 to Y1: the pixels that it may touch, ends excluded, whole numbers.
X, Y, A, B, C, OPACITY, LIMIT, RED, DEPTH, X0, X1, Y0, Y1, COLUMNS = 0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 16
# The columns of a splat's gradient: with respect to x, y, the true conic, opacity, colour, depth.
GRADIENTS = 10

MIN_ALPHA = 1 / 255  # a splat fainter than this in a pixel is skipped there
EXTENT = 3.33  # standard deviations: an opacity of 1 reaches MIN_ALPHA just before; caps opacities above 1
BLUR = 0.3  # px^2, added to the screen covariance
FRUSTUM_MARGIN = 0.15  # of the image size over focal length: J is taken at most this far outside the image
MARGIN = 0.01  # px: bounds are this much too wide, so that only the test in the pixel decides
BLOCKS = 64  # Gaussians are cut into so many parts, whatever the number of threads

_CAMERA = "float64[:, ::1], float64[::1], float64[::1], int64, int64"
_GAUSSIANS = "float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[:, :, ::1]"
_HELPER = {"error_model": "numpy", "fastmath": {"contract", "nsz", "arcp", "reassoc"}}
_KERNEL = {"parallel": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp", "reassoc"}}


@njit(**_HELPER)
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(**_HELPER)
def _mix(s, a, t, b):
    """s a + t b."""
    return s * a[0] + t * b[0], s * a[1] + t * b[1], s * a[2] + t * b[2]


@njit(**_HELPER)
def _row(array, i):
    return np.float64(array[i, 0]), np.float64(array[i, 1]), np.float64(array[i, 2])


@njit(**_HELPER)
def _rotation_columns(q):
    """The columns of the rotation of a unit quaternion wxyz."""
    w, x, y, z = q
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
        (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
        (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)),
    )


@njit(**_HELPER)
def _unit_quaternion(quats, i):
    """The normalised quaternion and 1 / norm; NaN or infinite when the norm is 0."""
    w, (x, y, z) = np.float64(quats[i, 0]), (np.float64(quats[i, 1]), np.float64(quats[i, 2]), np.float64(quats[i, 3]))
    inverse = 1 / math.sqrt(w * w + x * x + y * y + z * z)
    return (w * inverse, x * inverse, y * inverse, z * inverse), inverse


@njit(**_HELPER)
def _clamp_to_frustum(slope, focal, center, extent):
    """x / z limited to the image and its margin: (slope, whether it was inside)."""
    margin = FRUSTUM_MARGIN * extent / focal
    low, high = -center / focal - margin, (extent - center) / focal + margin
    return min(max(slope, low), high), low <= slope <= high


@njit(**_HELPER)
def _screen_axes(W, Q, z, slope_x, slope_y, fx, fy):
    """T = J W as two rows, and U = T Q as two rows; U's columns are the Gaussian's axes on the screen."""
    T0 = _mix(fx / z, W[0], -fx * slope_x / z, W[2])
    T1 = _mix(fy / z, W[1], -fy * slope_y / z, W[2])
    U0 = (_dot(T0, Q[0]), _dot(T0, Q[1]), _dot(T0, Q[2]))
    U1 = (_dot(T1, Q[0]), _dot(T1, Q[1]), _dot(T1, Q[2]))
    return T0, T1, U0, U1


@njit(**_HELPER)
def _fill_basis(d, basis):
    """Spherical harmonics in the unit direction d, as many as basis has room for (see splat.sh)."""
    x, y, z = d
    bands = len(basis)
    basis[0] = C0
    if bands > 1:
        basis[1], basis[2], basis[3] = -C1 * y, C1 * z, -C1 * x
    if bands > 4:
        basis[4], basis[5], basis[7] = C2_XY * x * y, -C2_XY * y * z, -C2_XY * x * z
        basis[6], basis[8] = C2_ZZ * (3 * z * z - 1), C2_XX * (x * x - y * y)
    if bands > 9:
        basis[9], basis[15] = -C3_Y * y * (3 * x * x - y * y), -C3_Y * x * (x * x - 3 * y * y)
        basis[10], basis[14] = C3_XYZ * x * y * z, C3_ZXX * z * (x * x - y * y)
        basis[11], basis[13] = -C3_YZZ * y * (5 * z * z - 1), -C3_YZZ * x * (5 * z * z - 1)
        basis[12] = C3_ZZZ * z * (5 * z * z - 3)


@njit(**_HELPER)
def _basis_vjp(d, v):
    """The gradient with respect to the unit direction d, given the gradient v of each band."""
    x, y, z = d
    gx, gy, gz = -C1 * v[3], -C1 * v[1], C1 * v[2]
    if len(v) > 4:
        gx += C2_XY * (y * v[4] - z * v[7]) + 2 * C2_XX * x * v[8]
        gy += C2_XY * (x * v[4] - z * v[5]) - 2 * C2_XX * y * v[8]
        gz += 6 * C2_ZZ * z * v[6] - C2_XY * (y * v[5] + x * v[7])
    if len(v) > 9:
        square = x * x - y * y
        gx += -6 * C3_Y * x * y * v[9] - 3 * C3_Y * square * v[15] - C3_YZZ * (5 * z * z - 1) * v[13]
        gx += C3_XYZ * y * z * v[10] + 2 * C3_ZXX * x * z * v[14]
        gy += -3 * C3_Y * square * v[9] + 6 * C3_Y * x * y * v[15] - C3_YZZ * (5 * z * z - 1) * v[11]
        gy += C3_XYZ * x * z * v[10] - 2 * C3_ZXX * y * z * v[14]
        gz += C3_XYZ * x * y * v[10] + C3_ZXX * square * v[14] + C3_ZZZ * (15 * z * z - 3) * v[12]
        gz += -10 * C3_YZZ * z * (y * v[11] + x * v[13])
    return gx, gy, gz


@njit(**_HELPER)
def _color(sh, i, basis):
    red, green, blue = 0.5, 0.5, 0.5
    for k in range(len(basis)):
        red += basis[k] * sh[i, k, 0]
        green += basis[k] * sh[i, k, 1]
        blue += basis[k] * sh[i, k, 2]
    return red, green, blue


@njit(f"void({_GAUSSIANS}, {_CAMERA}, float64, float64, boolean, float32[:, ::1])", **_KERNEL)
def project(means, scales, quats, opacities, sh, w2c, K, center, width, height, near, far, antialiased, splats):
    """Fill `splats` [N, COLUMNS] for one camera; what cannot be seen, or is not finite, touches no pixels.

    `w2c` [3, 4], `K` (fx, fy, cx, cy), `center` [3].
    """
    n = len(means)
    fx, fy, cx, cy = K[0], K[1], K[2], K[3]
    for block in prange(BLOCKS):
        W = (_row(w2c, 0), _row(w2c, 1), _row(w2c, 2))
        basis = np.empty(sh.shape[1])
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            splats[i, X0], splats[i, X1], splats[i, Y0], splats[i, Y1] = 0, 0, 0, 0
            mean = _row(means, i)
            z = _dot(W[2], mean) + w2c[2, 3]
            if not (near <= z <= far):  # false for NaN as well
                continue
            slope_x, slope_y = (_dot(W[0], mean) + w2c[0, 3]) / z, (_dot(W[1], mean) + w2c[1, 3]) / z
            x, y = fx * slope_x + cx, fy * slope_y + cy
            slope_x, _ = _clamp_to_frustum(slope_x, fx, cx, width)
            slope_y, _ = _clamp_to_frustum(slope_y, fy, cy, height)
            q, _ = _unit_quaternion(quats, i)
            _, _, U0, U1 = _screen_axes(W, _rotation_columns(q), z, slope_x, slope_y, fx, fy)
            s = _row(scales, i)
            s2 = (s[0] * s[0], s[1] * s[1], s[2] * s[2])
            xx = s2[0] * U0[0] * U0[0] + s2[1] * U0[1] * U0[1] + s2[2] * U0[2] * U0[2]
            xy = s2[0] * U0[0] * U1[0] + s2[1] * U0[1] * U1[1] + s2[2] * U0[2] * U1[2]
            yy = s2[0] * U1[0] * U1[0] + s2[1] * U1[1] * U1[1] + s2[2] * U1[2] * U1[2]
            sharp = xx * yy - xy * xy
            xx, yy = xx + BLUR, yy + BLUR
            det = xx * yy - xy * xy
            opacity = np.float64(opacities[i])
            if antialiased:
                opacity *= math.sqrt(max(sharp / det, 0.0))
            if not (0 < det < 1e38 and MIN_ALPHA <= opacity < 1e38):
                continue
            reach = min(2 * math.log(opacity / MIN_ALPHA), EXTENT * EXTENT)
            half_x, half_y = math.sqrt(reach * xx) + MARGIN, math.sqrt(reach * yy) + MARGIN
            if x + half_x <= 0 or x - half_x >= width or y + half_y <= 0 or y - half_y >= height:
                continue
            d = (mean[0] - center[0], mean[1] - center[1], mean[2] - center[2])
            inverse = 1 / math.sqrt(_dot(d, d))
            _fill_basis((d[0] * inverse, d[1] * inverse, d[2] * inverse), basis)
            red, green, blue = _color(sh, i, basis)
            if not abs(red) + abs(green) + abs(blue) < 1e38:
                continue
            splats[i, X0] = math.ceil(max(x - half_x - 0.5, 0.0))
            splats[i, X1] = math.floor(min(x + half_x + 0.5, np.float64(width)))
            splats[i, Y0] = math.ceil(max(y - half_y - 0.5, 0.0))
            splats[i, Y1] = math.floor(min(y + half_y + 0.5, np.float64(height)))
            splats[i, X], splats[i, Y] = x, y
            splats[i, A], splats[i, B], splats[i, C] = yy / det / 16, -xy / det / 8, xx / det / 16
            splats[i, OPACITY], splats[i, LIMIT] = opacity, reach / 16
            splats[i, RED], splats[i, RED + 1], splats[i, RED + 2] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)
            splats[i, DEPTH] = z


@njit(
    f"void({_GAUSSIANS}, {_CAMERA}, boolean, float32[:, ::1], int64[::1], {_GAUSSIANS}, float64[:, ::1], float64[::1])",
    **_KERNEL,
)
def project_vjp(
    means, scales, quats, opacities, sh, w2c, K, center, width, height, antialiased, v_splats, first,
    v_means, v_scales, v_quats, v_opacities, v_sh, v_w2c, v_center,
):  # fmt: skip
    """Add one camera's gradients to v_means ... v_center.

    `v_splats` [M, GRADIENTS] holds one row per splat and tile; those of Gaussian i are rows first[i] to first[i + 1].
    """
    n = len(means)
    fx, fy, cx, cy = K[0], K[1], K[2], K[3]
    camera = np.zeros((BLOCKS, 15))  # each block's share of v_w2c (12) and v_center (3)
    for block in prange(BLOCKS):
        W = (_row(w2c, 0), _row(w2c, 1), _row(w2c, 2))
        bands = sh.shape[1]
        basis, v_basis, v = np.empty(bands), np.empty(bands), np.empty(GRADIENTS)
        for i in range(block * n // BLOCKS, (block + 1) * n // BLOCKS):
            v[:] = 0
            magnitude = 0.0
            for row in range(first[i], first[i + 1]):
                for k in range(GRADIENTS):
                    v[k] += v_splats[row, k]
                    magnitude += abs(v_splats[row, k])
            if magnitude == 0:  # culled, or hidden in every pixel
                continue

            mean = _row(means, i)
            z = _dot(W[2], mean) + w2c[2, 3]
            raw_x, raw_y = (_dot(W[0], mean) + w2c[0, 3]) / z, (_dot(W[1], mean) + w2c[1, 3]) / z
            slope_x, free_x = _clamp_to_frustum(raw_x, fx, cx, width)
            slope_y, free_y = _clamp_to_frustum(raw_y, fy, cy, height)
            q, inverse_norm = _unit_quaternion(quats, i)
            Q = _rotation_columns(q)
            T0, T1, U0, U1 = _screen_axes(W, Q, z, slope_x, slope_y, fx, fy)
            s = _row(scales, i)
            xx, xy, yy = 0.0, 0.0, 0.0
            for k in range(3):
                xx += s[k] * s[k] * U0[k] * U0[k]
                xy += s[k] * s[k] * U0[k] * U1[k]
                yy += s[k] * s[k] * U1[k] * U1[k]
            sharp = xx * yy - xy * xy
            det = (xx + BLUR) * (yy + BLUR) - xy * xy
            a, b, c = (yy + BLUR) / det, -xy / det, (xx + BLUR) / det

            # conic = inverse(cov): v_cov = -conic v_conic conic, with the off-diagonal gradient halved onto both places
            v_a, v_b, v_c = v[2], v[3] / 2, v[4]
            v_xx = -(a * a * v_a + 2 * a * b * v_b + b * b * v_c)
            v_xy = -2 * (a * b * v_a + (a * c + b * b) * v_b + b * c * v_c)
            v_yy = -(b * b * v_a + 2 * b * c * v_b + c * c * v_c)
            if antialiased:
                # d(sharp / det) / d cov = (1 - ratio) conic - BLUR det(conic) I; 1e-6 as in gsplat, against ratio = 0
                ratio = max(sharp / det, 0.0)
                root = math.sqrt(ratio)
                v_ratio = v[5] * opacities[i] * 0.5 / (root + 1e-6)
                v_xx += v_ratio * ((1 - ratio) * a - BLUR / det)
                v_xy += 2 * v_ratio * (1 - ratio) * b
                v_yy += v_ratio * ((1 - ratio) * c - BLUR / det)
                v_opacities[i] += v[5] * root
            else:
                v_opacities[i] += v[5]

            v_U0 = (s[0] * s[0] * (2 * v_xx * U0[0] + v_xy * U1[0]), s[1] * s[1] * (2 * v_xx * U0[1] + v_xy * U1[1]),
                    s[2] * s[2] * (2 * v_xx * U0[2] + v_xy * U1[2]))  # fmt: skip
            v_U1 = (s[0] * s[0] * (2 * v_yy * U1[0] + v_xy * U0[0]), s[1] * s[1] * (2 * v_yy * U1[1] + v_xy * U0[1]),
                    s[2] * s[2] * (2 * v_yy * U1[2] + v_xy * U0[2]))  # fmt: skip
            for k in range(3):
                v_scales[i, k] += 2 * s[k] * (v_xx * U0[k] * U0[k] + v_xy * U0[k] * U1[k] + v_yy * U1[k] * U1[k])

            # columns of v_Q = T^T v_U, then the quaternion
            D0, D1, D2 = _mix(v_U0[0], T0, v_U1[0], T1), _mix(v_U0[1], T0, v_U1[1], T1), _mix(v_U0[2], T0, v_U1[2], T1)
            w, qx, qy, qz = q
            g0 = 2 * (qx * (D1[2] - D2[1]) + qy * (D2[0] - D0[2]) + qz * (D0[1] - D1[0]))
            g1 = 2 * (qy * (D1[0] + D0[1]) + qz * (D2[0] + D0[2]) + w * (D1[2] - D2[1]) - 2 * qx * (D1[1] + D2[2]))
            g2 = 2 * (qx * (D1[0] + D0[1]) + qz * (D2[1] + D1[2]) + w * (D2[0] - D0[2]) - 2 * qy * (D0[0] + D2[2]))
            g3 = 2 * (qx * (D2[0] + D0[2]) + qy * (D2[1] + D1[2]) + w * (D0[1] - D1[0]) - 2 * qz * (D0[0] + D1[1]))
            along = g0 * w + g1 * qx + g2 * qy + g3 * qz
            v_quats[i, 0] += (g0 - along * w) * inverse_norm
            v_quats[i, 1] += (g1 - along * qx) * inverse_norm
            v_quats[i, 2] += (g2 - along * qy) * inverse_norm
            v_quats[i, 3] += (g3 - along * qz) * inverse_norm

            # T = J W, J = [fx / z, 0, -fx slope_x / z; 0, fy / z, -fy slope_y / z]
            v_T0 = _mix(1.0, _mix(v_U0[0], Q[0], v_U0[1], Q[1]), v_U0[2], Q[2])
            v_T1 = _mix(1.0, _mix(v_U1[0], Q[0], v_U1[1], Q[1]), v_U1[2], Q[2])
            v_J02, v_J12 = _dot(v_T0, W[2]), _dot(v_T1, W[2])
            v_W0 = _mix(fx / z, v_T0, 0.0, v_T0)
            v_W1 = _mix(fy / z, v_T1, 0.0, v_T1)
            v_W2 = _mix(-fx * slope_x / z, v_T0, -fy * slope_y / z, v_T1)
            v_x, v_y = v[0] * fx / z, v[1] * fy / z
            v_z = v[9] - v_x * raw_x - v_y * raw_y
            v_z -= (fx * (_dot(v_T0, W[0]) - slope_x * v_J02) + fy * (_dot(v_T1, W[1]) - slope_y * v_J12)) / (z * z)
            if free_x:
                v_x -= fx / (z * z) * v_J02
                v_z += fx / (z * z) * v_J02 * slope_x
            if free_y:
                v_y -= fy / (z * z) * v_J12
                v_z += fy / (z * z) * v_J12 * slope_y

            # colour
            d = (mean[0] - center[0], mean[1] - center[1], mean[2] - center[2])
            inverse = 1 / math.sqrt(_dot(d, d))
            d = (d[0] * inverse, d[1] * inverse, d[2] * inverse)
            _fill_basis(d, basis)
            red, green, blue = _color(sh, i, basis)
            v_red, v_green, v_blue = v[6] * (red >= 0), v[7] * (green >= 0), v[8] * (blue >= 0)
            for k in range(bands):
                v_basis[k] = v_red * sh[i, k, 0] + v_green * sh[i, k, 1] + v_blue * sh[i, k, 2]
                v_sh[i, k, 0] += basis[k] * v_red
                v_sh[i, k, 1] += basis[k] * v_green
                v_sh[i, k, 2] += basis[k] * v_blue
            v_d = (0.0, 0.0, 0.0)
            if bands > 1:
                v_d = _basis_vjp(d, v_basis)
                v_d = _mix(inverse, v_d, -inverse * _dot(v_d, d), d)

            v_mean = _mix(1.0, _mix(v_x, W[0], v_y, W[1]), v_z, W[2])
            for k in range(3):
                v_means[i, k] += v_mean[k] + v_d[k]
                camera[block, k] += v_W0[k] + v_x * mean[k]
                camera[block, 4 + k] += v_W1[k] + v_y * mean[k]
                camera[block, 8 + k] += v_W2[k] + v_z * mean[k]
                camera[block, 12 + k] -= v_d[k]
            camera[block, 3] += v_x
            camera[block, 7] += v_y
            camera[block, 11] += v_z
    for block in range(BLOCKS):
        for k in range(12):
            v_w2c[k // 4, k % 4] += camera[block, k]
        for k in range(3):
            v_center[k] += camera[block, 12 + k]
