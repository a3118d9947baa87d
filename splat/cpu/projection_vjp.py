"""The way back of `splat.cpu.projection`: gradients of the splats to gradients of the Gaussians and of the camera.

One Gaussian at a time, in float64: sums over many pixels and products of many factors meet here. Letters as there, and
`v_x` is the gradient of the loss with respect to x.
"""

import math

import numpy as np
from numba import njit, prange

from geometry.cpu import HELPER
from splat.cpu.projection import (
    BLOCKS,
    BLUR,
    CAMERA,
    FRUSTUM_MARGIN,
    GAUSSIANS,
    KERNEL,
    band_1,
    band_2,
    band_3,
    dot,
    mix,
    rotation_columns,
)
from splat.sh import C0, C1, C2_XX, C2_XY, C2_ZZ, C3_XYZ, C3_Y, C3_YZZ, C3_ZXX, C3_ZZZ

# The columns of a splat's gradient: with respect to x, y, the true conic, opacity, colour, depth.
GRADIENTS = 10


@njit(**HELPER)
def _row(array, i):
    return np.float64(array[i, 0]), np.float64(array[i, 1]), np.float64(array[i, 2])


@njit(**HELPER)
def _unit_quaternion(quats, i):
    """The normalised quaternion and 1 / norm; NaN or infinite when the norm is 0."""
    w, (x, y, z) = np.float64(quats[i, 0]), (np.float64(quats[i, 1]), np.float64(quats[i, 2]), np.float64(quats[i, 3]))
    inverse = 1 / math.sqrt(w * w + x * x + y * y + z * z)
    return (w * inverse, x * inverse, y * inverse, z * inverse), inverse


@njit(**HELPER)
def _clamp_to_frustum(slope, focal, center, extent):
    """x / z limited to the image and its margin: (slope, whether it was inside)."""
    margin = FRUSTUM_MARGIN * extent / focal
    low, high = -center / focal - margin, (extent - center) / focal + margin
    return min(max(slope, low), high), low <= slope <= high


@njit(**HELPER)
def _screen_axes(W, Q, z, slope_x, slope_y, fx, fy):
    """T = J W as two rows, and U = T Q as two rows; U's columns are the Gaussian's axes on the screen."""
    T0 = mix(fx / z, W[0], -fx * slope_x / z, W[2])
    T1 = mix(fy / z, W[1], -fy * slope_y / z, W[2])
    U0 = (dot(T0, Q[0]), dot(T0, Q[1]), dot(T0, Q[2]))
    U1 = (dot(T1, Q[0]), dot(T1, Q[1]), dot(T1, Q[2]))
    return T0, T1, U0, U1


@njit(**HELPER)
def _fill_basis(d, basis):
    """Spherical harmonics in the unit direction d, as many as basis has room for."""
    x, y, z = d
    bands = len(basis)
    basis[0] = C0
    if bands > 1:
        basis[1], basis[2], basis[3] = band_1(x, y, z)
    if bands > 4:
        basis[4], basis[5], basis[6], basis[7], basis[8] = band_2(x, y, z)
    if bands > 9:
        basis[9], basis[10], basis[11], basis[12], basis[13], basis[14], basis[15] = band_3(x, y, z)


@njit(**HELPER)
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


@njit(**HELPER)
def _color(sh, i, basis):
    red, green, blue = 0.5, 0.5, 0.5
    for k in range(len(basis)):
        red += basis[k] * sh[i, k, 0]
        green += basis[k] * sh[i, k, 1]
        blue += basis[k] * sh[i, k, 2]
    return red, green, blue


@njit(
    f"void({GAUSSIANS}, {CAMERA}, boolean, float32[:, ::1], int64[::1], {GAUSSIANS}, float64[:, ::1], float64[::1])",
    **KERNEL,
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
            z = dot(W[2], mean) + w2c[2, 3]
            raw_x, raw_y = (dot(W[0], mean) + w2c[0, 3]) / z, (dot(W[1], mean) + w2c[1, 3]) / z
            slope_x, free_x = _clamp_to_frustum(raw_x, fx, cx, width)
            slope_y, free_y = _clamp_to_frustum(raw_y, fy, cy, height)
            q, inverse_norm = _unit_quaternion(quats, i)
            Q = rotation_columns(q)
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
            D0, D1, D2 = mix(v_U0[0], T0, v_U1[0], T1), mix(v_U0[1], T0, v_U1[1], T1), mix(v_U0[2], T0, v_U1[2], T1)
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
            v_T0 = mix(1.0, mix(v_U0[0], Q[0], v_U0[1], Q[1]), v_U0[2], Q[2])
            v_T1 = mix(1.0, mix(v_U1[0], Q[0], v_U1[1], Q[1]), v_U1[2], Q[2])
            v_J02, v_J12 = dot(v_T0, W[2]), dot(v_T1, W[2])
            v_W0 = mix(fx / z, v_T0, 0.0, v_T0)
            v_W1 = mix(fy / z, v_T1, 0.0, v_T1)
            v_W2 = mix(-fx * slope_x / z, v_T0, -fy * slope_y / z, v_T1)
            v_x, v_y = v[0] * fx / z, v[1] * fy / z
            v_z = v[9] - v_x * raw_x - v_y * raw_y
            v_z -= (fx * (dot(v_T0, W[0]) - slope_x * v_J02) + fy * (dot(v_T1, W[1]) - slope_y * v_J12)) / (z * z)
            if free_x:
                v_x -= fx / (z * z) * v_J02
                v_z += fx / (z * z) * v_J02 * slope_x
            if free_y:
                v_y -= fy / (z * z) * v_J12
                v_z += fy / (z * z) * v_J12 * slope_y

            # colour
            d = (mean[0] - center[0], mean[1] - center[1], mean[2] - center[2])
            inverse = 1 / math.sqrt(dot(d, d))
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
                v_d = mix(inverse, v_d, -inverse * dot(v_d, d), d)

            v_mean = mix(1.0, mix(v_x, W[0], v_y, W[1]), v_z, W[2])
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
