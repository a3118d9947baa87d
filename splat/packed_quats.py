"""Unit quaternions by three of their components: the largest is left out, because the others tell it."""

from __future__ import annotations

import numpy as np


def leave_out_largest(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The other three components [N, 3], within +-1 / sqrt(2), and which was left out [N], of unit quaternions [N, 4].

    The sign of a quaternion that makes the largest positive is taken: both mean the same rotation.
    """
    largest = np.abs(quats).argmax(-1)
    others = quats[np.arange(4) != largest[:, None]].reshape(-1, 3)
    negative = np.take_along_axis(quats, largest[:, None], -1) < 0
    return np.where(negative, -others, others), largest


def put_back_largest(others: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Quaternions [N, 4] of three components [N, 3] and the place `largest` [N], 0..3, of the one left out."""
    quats = np.empty((len(others), 4), np.float32)
    places = np.arange(4) != largest[:, None]
    quats[places] = others.ravel()
    quats[~places] = np.sqrt(np.maximum(0, 1 - np.square(others).sum(-1)))
    return quats
