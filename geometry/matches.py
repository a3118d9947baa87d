"""Keypoints that photos have in common: SIFT, matched both ways, that some fundamental matrix explains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

MOST_KEYPOINTS = 3000  # of a photo
CONTRAST = 0.01  # a quarter of OpenCV's: small and dim photos have too few keypoints otherwise
EDGE = 20  # twice OpenCV's, for the same reason
LONG_SIDE = 504  # smaller photos are enlarged to it: at 252 px that gives some three times as many right matches
RATIO = 0.8  # of the distances to the nearest and the second descriptor, at most (Lowe, 2004)
MIN_MATCHES = 16  # of a pair
EPIPOLAR_TOLERANCE = 1.5  # px


@dataclass(frozen=True)
class MatchedPair:
    """N keypoints that two views show. Pixels have their origin in the corner of the image, as K has."""

    views: tuple[int, int]
    keypoints: np.ndarray  # [2, N] int, their numbers in the one view and the other
    pixels: np.ndarray  # [2, N, 2]


def match_photos(photos: Sequence[np.ndarray], pairs: Iterable[tuple[int, int]]) -> list[MatchedPair]:
    """Those of `pairs` of `photos` (uint8 [H, W, 3] each) that match well enough to be of one scene.

    A wrong match may remain where it lies near its epipolar line by chance.
    """
    import cv2

    sift = cv2.SIFT_create(MOST_KEYPOINTS, contrastThreshold=CONTRAST, edgeThreshold=EDGE, enable_precise_upscale=True)
    features: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def feature(view: int) -> tuple[np.ndarray, np.ndarray]:
        if view not in features:
            gray = cv2.cvtColor(photos[view], cv2.COLOR_RGB2GRAY)
            scale = max(1.0, LONG_SIDE / max(gray.shape))
            gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            found, descriptors = sift.detectAndCompute(gray, None)
            pixels = (np.array([keypoint.pt for keypoint in found]).reshape(-1, 2) + 0.5) / scale
            if descriptors is not None:  # RootSIFT: the square root tells descriptors apart better
                descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6))
            features[view] = (pixels, descriptors)
        return features[view]

    matched = []
    for i, j in pairs:
        (pixels_i, descriptors_i), (pixels_j, descriptors_j) = feature(i), feature(j)
        if min(len(pixels_i), len(pixels_j)) < MIN_MATCHES:
            continue
        numbers = _nearest_both_ways(descriptors_i, descriptors_j)
        if numbers.shape[1] < MIN_MATCHES:
            continue
        pixels = np.stack([pixels_i[numbers[0]], pixels_j[numbers[1]]])
        inlier = _explained(pixels)
        if inlier.sum() >= MIN_MATCHES:
            matched.append(MatchedPair((i, j), numbers[:, inlier], pixels[:, inlier]))
    return matched


def _explained(pixels: np.ndarray) -> np.ndarray:
    """Which of the matches [2, N, 2] one fundamental matrix explains, [N] bool."""
    import cv2

    options = (EPIPOLAR_TOLERANCE, 0.999, 5000)
    try:
        _, inliers = cv2.findFundamentalMat(*pixels, cv2.USAC_MAGSAC, *options)
    except cv2.error:
        # An assertion of OpenCV 5.0's own fails where two views hardly differ and nearly all of many matches are right.
        _, inliers = cv2.findFundamentalMat(*pixels, cv2.FM_RANSAC, *options)
    return np.zeros(pixels.shape[1], bool) if inliers is None else inliers[:, 0] > 0


def _nearest_both_ways(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Numbers [2, N] of the descriptors of unit length [A, D] and [B, D] that are each other's nearest, by RATIO."""
    alike = a @ b.T
    nearest, back = alike.argmax(1), alike.argmax(0)
    rows = np.arange(len(a))
    first = alike[rows, nearest]
    alike[rows, nearest] = -1
    closer = 1 - first < RATIO**2 * (1 - alike.max(1))  # squared distances are 2 - 2 times the cosine
    kept = np.nonzero(closer & (back[nearest] == rows))[0]
    return np.stack([kept, nearest[kept]])
