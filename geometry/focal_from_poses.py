"""The focal length of a camera whose poses are known: the one that brings matches nearest to their epipolar lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from geometry.images import read_image, resize_array
from geometry.matches import match_photos
from geometry.pose_check import epipolar_distance, rays_of

LONG_SIDE = 960  # of the photos that are matched
GROUPS, NEIGHBOURS = 5, 4  # groups of photos that follow each other, spread over the scene
RANGE = (0.4, 1.6)  # of focal length over width: 102 to 35 degrees across
MIN_MATCHES = 300
OUTLIER = 4.0  # px from where on a match counts no more
CLEAR = 1.01  # the error at 10 % less or more must be so many times that of the best, or the photos do not tell


def focal_over_width(photos: Sequence[Path], w2c: np.ndarray) -> float | None:
    """Focal length over image width of `photos` of one camera, with square pixels and a centred principal point.

    `w2c` [V, 4, 4] (OpenCV) are trusted, their unit does not matter. None when the photos match too little, or fit any
    focal length alike (motion straight ahead without turning). Raises OSError naming a photo that does not decode.
    """
    starts = np.linspace(0, max(0, len(photos) - NEIGHBOURS), GROUPS).round().astype(int)
    matches = []  # (relative [4, 4], pixels_i [N, 2], pixels_j [N, 2]) from the centre, over the width
    for start in sorted(set(starts.tolist())):
        views = range(start, min(start + NEIGHBOURS, len(photos)))
        images = [_small(read_image(photos[view], upright=False)) for view in views]
        if len({image.shape for image in images}) > 1:
            continue
        height, width = images[0].shape[:2]
        center = np.array([width / 2, height / 2])
        for pair in match_photos(images, combinations(range(len(images)), 2)):
            relative = _relative(*(w2c[views[k]] for k in pair.views))
            if np.linalg.norm(relative[:3, 3]) > 0:
                matches.append((relative, *(pair.pixels - center) / width))
    if sum(len(pixels) for _, pixels, _ in matches) < MIN_MATCHES:
        return None
    step = 1.02
    tried = np.exp(np.arange(np.log(RANGE[0]), np.log(RANGE[1]), np.log(step)))
    best = float(tried[int(np.argmin([_error(matches, focal) for focal in tried]))])
    fine = best * np.linspace(1 / step, step, 41)
    best = float(fine[int(np.argmin([_error(matches, focal) for focal in fine]))])
    beside = min(_error(matches, best / 1.1), _error(matches, best * 1.1))
    return best if RANGE[0] * step < best < RANGE[1] / step and beside > CLEAR * _error(matches, best) else None


def _error(matches: list, focal: float) -> float:
    """Mean distance to the epipolar lines in px at LONG_SIDE, cut at OUTLIER."""
    K = np.diag([focal, focal, 1.0])
    distances = [
        epipolar_distance(rays_of(a, K), rays_of(b, K), relative, K, K) * LONG_SIDE for relative, a, b in matches
    ]
    return float(np.minimum(np.concatenate(distances), OUTLIER).mean())


def _relative(w2c_i: np.ndarray, w2c_j: np.ndarray) -> np.ndarray:
    """[4, 4] from camera i to camera j; without an inverse, since poses that are not rigid are reported elsewhere."""
    relative = np.eye(4)
    relative[:3, :3] = w2c_j[:3, :3] @ w2c_i[:3, :3].T
    relative[:3, 3] = w2c_j[:3, 3] - relative[:3, :3] @ w2c_i[:3, 3]
    return relative


def _small(image: np.ndarray) -> np.ndarray:
    scale = min(1.0, LONG_SIDE / max(image.shape[:2]))
    return resize_array(image, tuple(round(side * scale) for side in image.shape[:2]))
