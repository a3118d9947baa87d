"""One photo file with the camera that some program wrote for it: its real size, its orientation, its lens distortion.

Three things differ between the camera on paper and the file: the file is a smaller copy, the program looked at the
raster without its EXIF turn, or the lens is not a pinhole. This module settles all three, so that readers only parse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from geometry.images import image_size, read_image

BORDER_SAMPLES = 64  # per side of the picture, when looking for blank pixels
ZOOM_RANGE = (0.5, 2.0)


def calibrated_photo(
    path: Path, K: np.ndarray, camera_size: tuple[int, int] | None, distortion: np.ndarray
) -> tuple[tuple[int, int], np.ndarray, Callable[[], np.ndarray]]:
    """(size, K, load): the pinhole picture of the file at `path`.

    `K` [3, 3] is in pixels of `camera_size` (None: of the file); `distortion` holds OpenCV's k1 k2 p1 p2 k3. The
    picture keeps the file's size; of a distorted lens it is undistorted at the widest focal length that leaves no
    blank border. Raises OSError for the file, ValueError when its shape is not the camera's or the distortion folds
    the picture.
    """
    raw = image_size(path, upright=False)
    # Programs that write cameras see the raster as stored, unless the size on paper tells otherwise.
    upright = camera_size is not None and not _same_shape(raw, camera_size)
    size = image_size(path, upright)
    if camera_size is not None:
        if not _same_shape(size, camera_size):
            raise ValueError(
                f"{path}: the photo is {size[1]}x{size[0]} but its camera {camera_size[1]}x{camera_size[0]}; "
                "the aspect ratios differ, so the intrinsics do not belong to this file"
            )
        K = np.diag([size[1] / camera_size[1], size[0] / camera_size[0], 1.0]) @ K
    if not np.any(distortion):
        return size, K, lambda: read_image(path, upright)
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        raise ValueError(f"{path}: focal length {K[0, 0]:g}, {K[1, 1]:g} px must be above 0")
    pinhole = pinhole_of(K, distortion, size, path)
    return size, pinhole, lambda: undistort(read_image(path, upright), K, distortion, pinhole)


def pinhole_of(K: np.ndarray, distortion: np.ndarray, size: tuple[int, int], name: Path | str) -> np.ndarray:
    """The pinhole K [3, 3], same principal point and size, that sees the most without blank pixels."""
    zoom = _widest_zoom(K.tobytes(), np.asarray(distortion, dtype=np.float64).tobytes(), tuple(size))
    if zoom is None:
        raise ValueError(f"{name}: the lens distortion {np.round(distortion, 4).tolist()} is too strong to undo")
    return K * np.array([[zoom, zoom, 1], [zoom, zoom, 1], [1, 1, 1]])


def undistort(image: np.ndarray, K: np.ndarray, distortion: np.ndarray, pinhole: np.ndarray) -> np.ndarray:
    """[H, W, 3] as the camera `pinhole` without distortion sees it."""
    import cv2

    half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # OpenCV counts pixel centres from 0, we from 0.5
    size = (image.shape[1], image.shape[0])
    maps = cv2.initUndistortRectifyMap(K - half, distortion, None, pinhole - half, size, cv2.CV_32FC1)
    return cv2.remap(image, *maps, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=1024)
def _widest_zoom(K_bytes: bytes, distortion_bytes: bytes, size: tuple[int, int]) -> float | None:
    """Smallest factor on the focal length for which every pixel of the pinhole picture falls into the photo."""
    K, distortion = np.frombuffer(K_bytes).reshape(3, 3), np.frombuffer(distortion_bytes)
    height, width = size
    x, y = np.linspace(0.5, width - 0.5, BORDER_SAMPLES), np.linspace(0.5, height - 0.5, BORDER_SAMPLES)
    border = np.concatenate(
        [np.stack([x, np.full_like(x, edge)], 1) for edge in (y[0], y[-1])]
        + [np.stack([np.full_like(y, edge), y], 1) for edge in (x[0], x[-1])]
    )
    rays = (border - K[:2, 2]) / K[[0, 1], [0, 1]]

    def no_blank(zoom: float) -> bool:
        distorted, growth = _distort(rays / zoom, distortion)
        pixels = distorted * K[[0, 1], [0, 1]] + K[:2, 2]
        inside = (pixels >= 0) & (pixels <= (width, height))
        return bool(inside.all() and (growth > 0).all())

    narrow, wide = ZOOM_RANGE[1], ZOOM_RANGE[0]
    if not no_blank(narrow):
        return None
    for _ in range(30):
        middle = (narrow + wide) / 2
        narrow, wide = (middle, wide) if no_blank(middle) else (narrow, middle)
    return narrow


def _distort(rays: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's polynomial on ray slopes [N, 2]; and d(distorted radius)/d(radius) [N], above 0 where nothing folds."""
    k1, k2, p1, p2, k3 = distortion
    x, y = rays.T
    r2 = (rays**2).sum(1)
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    distorted = np.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2), y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y], 1
    )
    # Folding may begin inside the picture, so the slope is tested along the whole radius.
    along = np.linspace(0, 1, 16)[:, None] ** 2 * r2
    growth = (1 + along * (3 * k1 + along * (5 * k2 + along * 7 * k3))).min(0)
    return distorted, growth


def _same_shape(size: tuple[int, int], camera_size: tuple[int, int]) -> bool:
    """Whether the aspect ratios agree to the rounding of a small copy (two pixels of the shorter file)."""
    if min(camera_size) <= 0:
        return False
    scale_y, scale_x = size[0] / camera_size[0], size[1] / camera_size[1]
    return abs(scale_x / scale_y - 1) <= 2 / min(size) + 1e-3
