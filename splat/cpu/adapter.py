"""Raw values to Gaussians, as of `splat.adapter.reference_gaussians`, over eight pixels of a row at a time."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from geometry.cameras import Cameras, invert_intrinsics
from geometry.cpu import HELPER, KERNEL, in_threads
from geometry.cpu.lanes import WIDTH, exp, load, ramp, sqrt, store, store_mixed, transpose, where
from geometry.presets import GaussianHeadConfig
from splat.adapter import MAX_LOG_OFFSET, MAX_OFFSET, SHORTEST, footprint, quat_matrix, weighted_turn
from splat.gaussians import Gaussians
from splat.sh import C0

PARTS = 4  # of a view, one task each: threads finish together
ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
OFFSET, LOG_OFFSET, PER_COLOR = np.float32(MAX_OFFSET), np.float32(MAX_LOG_OFFSET), np.float32(1 / C0)
SCALES, QUAT, HARMONICS = 2, 5, 9  # the first raw value of each; before them is the offset, the last is that of depth

_MAP, _MAPS = "float32[:, ::1]", "float32[:, :, ::1]"


def compiled_gaussians(
    raw: Tensor, opacity: Tensor, depth: Tensor, cameras: Cameras, config: GaussianHeadConfig, images: Tensor | None
) -> Gaussians:
    """`splat.adapter.reference_gaussians` on the CPU, without gradient, "exact", of images at least 8 pixels wide."""
    (batch, views), (height, width), bases = cameras.shape, cameras.size, config.sh_bases
    c2w, K_inverse = cameras.c2w.float(), invert_intrinsics(cameras.K.float())
    rotation, unit = c2w[..., :3, :3], footprint(K_inverse)
    sizes = torch.stack([config.scale_min * unit, (config.scale_max - config.scale_min) * unit], -1)
    turns = quat_matrix(rotation, "exact"), weighted_turn(rotation, config.sh_degree)
    camera = [_array(x) for x in (rotation @ K_inverse, c2w[..., :3, 3], sizes, *turns)]
    images = images if config.rgb_residual else torch.empty(batch, views, 0, height, width)
    raw = raw if raw.stride(-1) == 1 else raw.contiguous()
    raw, depth, images = raw.detach().float().flatten(0, 1).numpy(), _array(depth), _array(images)
    made = [torch.empty(batch * views, height * width, n) for n in (3, 3, 4, 3 * bases)]

    def fill(task: tuple[int, int]) -> None:
        view, part = task
        rows = part * height // PARTS, (part + 1) * height // PARTS
        inputs = raw[view], depth[view], images[view], *(x[view] for x in camera)
        _fill(*inputs, *rows, *(x[view].numpy() for x in made))

    in_threads(fill, [(view, part) for view in range(batch * views) for part in range(PARTS)])
    means, scales, quats, sh = (x.unflatten(0, (batch, views)).flatten(1, 2) for x in made)
    return Gaussians(means, scales, quats, opacity.float().flatten(1), sh.unflatten(-1, (bases, 3)))


def _array(x: Tensor) -> np.ndarray:
    """[B, V, ...] as [B*V, ...]."""
    return x.detach().float().flatten(0, 1).contiguous().numpy()


@njit(**HELPER)
def _bounded(x, most):
    """most tanh(x / most), to 1e-7 of `most`."""
    return most - TWO * most / (exp(TWO / most * x) + ONE)


@njit(**HELPER)
def _get(values, k):
    """Value k of eight pixels, of `values` [_, 8]."""
    return load(values, k * WIDTH)


@njit(**HELPER)
def _coordinate(to_world, center, i, u, v, z):
    return center[i] + (to_world[i, 0] * u + to_world[i, 1] * v + to_world[i, 2]) * z


@njit(**HELPER)
def _mean(values, x, y, z, to_world, center):
    """The eight at depth z from pixel (x, y) on, moved by their offsets."""
    u = (np.float32(x) + HALF) + ramp() + _bounded(_get(values, 0), OFFSET)
    v = (np.float32(y) + HALF) + _bounded(_get(values, 1), OFFSET)
    return (
        _coordinate(to_world, center, 0, u, v, z),
        _coordinate(to_world, center, 1, u, v, z),
        _coordinate(to_world, center, 2, u, v, z),
    )


@njit(**HELPER)
def _scale(values, i, z, sizes):
    """From the least of `sizes` up, by at most the other one, at unit depth."""
    return (sizes[0] + sizes[1] / (ONE + exp(ZERO - _get(values, SCALES + i)))) * z


@njit(**HELPER)
def _quat(values, turn):
    x, y, z, w = _get(values, QUAT), _get(values, QUAT + 1), _get(values, QUAT + 2), _get(values, QUAT + 3)
    length = sqrt(x * x + y * y + z * z + w * w)
    inverse = ONE / where(length <= SHORTEST, SHORTEST, length)
    x, y, z, w = x * inverse, y * inverse, z * inverse, w * inverse
    return (
        x * turn[0, 0] + y * turn[1, 0] + z * turn[2, 0] + w * turn[3, 0],
        x * turn[0, 1] + y * turn[1, 1] + z * turn[2, 1] + w * turn[3, 1],
        x * turn[0, 2] + y * turn[1, 2] + z * turn[2, 2] + w * turn[3, 2],
        x * turn[0, 3] + y * turn[1, 3] + z * turn[2, 3] + w * turn[3, 3],
    )


@njit(**HELPER)
def _turn_harmonics(values, turn, sh):
    """Fill `sh` [3K, 8], colours last, where raw values have them first; `turn` [K, K] mixes what is of one band."""
    bases, first, last = len(turn), 0, 1
    for i in range(bases):
        if i == last:
            first, last = last, 2 * last - first + 2
        for color in range(3):
            at = HARMONICS + color * bases
            total = turn[i, first] * _get(values, at + first)
            for j in range(first + 1, last):
                total = total + turn[i, j] * _get(values, at + j)
            store(sh, (3 * i + color) * WIDTH, total)


@njit(
    f"void(float32[:, :, :], {_MAP}, {_MAPS}, {_MAP}, float32[::1], float32[::1], {_MAP}, {_MAP}, int64, int64, "
    f"{_MAP}, {_MAP}, {_MAP}, {_MAP})",
    **KERNEL,
)
def _fill(raw, depth, image, to_world, center, sizes, quat, turn, top, bottom, means, scales, quats, sh):
    """Fill what rows top to bottom of an image add to `means`, `scales`, `quats`, `sh` [H*W, _].

    `raw` [H, W, C] (the values of a pixel side by side), `depth` [H, W], `image` [3, H, W], or [0, H, W] where colours
    are not added. Values of eight pixels are turned into lanes, and back.
    """
    _, width, channels = raw.shape
    next_row, next_pixel = raw.strides[0] // raw.itemsize, raw.strides[1] // raw.itemsize
    values, turned = np.empty((channels, WIDTH), np.float32), np.empty((sh.shape[1], WIDTH), np.float32)
    for y in range(top, bottom):
        for x in range(0, width, WIDTH):
            x = min(x, width - WIDTH)  # the last eight of a row overlap with those before
            i = y * width + x
            for c in range(0, channels, WIDTH):
                c = min(c, channels - WIDTH)
                transpose(raw, y * next_row + x * next_pixel + c, next_pixel, values, c * WIDTH, WIDTH)
            z = load(depth, i) * exp(_bounded(_get(values, channels - 1), LOG_OFFSET))
            store_mixed(means, 3 * i, _mean(values, x, y, z, to_world, center))
            s = _scale(values, 0, z, sizes), _scale(values, 1, z, sizes), _scale(values, 2, z, sizes)
            store_mixed(scales, 3 * i, s)
            store_mixed(quats, 4 * i, _quat(values, quat))
            _turn_harmonics(values, turn, turned)
            for c in range(len(image)):
                color = load(image, c * depth.size + i) - HALF
                store(turned, c * WIDTH, _get(turned, c) + PER_COLOR * color)
            if len(turn) == 1:
                store_mixed(sh, 3 * i, (_get(turned, 0), _get(turned, 1), _get(turned, 2)))
                continue
            for c in range(0, len(turned), WIDTH):
                c = min(c, len(turned) - WIDTH)
                transpose(turned, c * WIDTH, WIDTH, sh, len(turned) * i + c, len(turned))
