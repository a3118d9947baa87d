"""Distances between cameras, farthest points, and windows for evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from geometry.view_selection import farthest_points, pose_distance, windows


def cameras(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w2c = np.tile(np.eye(4), (count, 1, 1))
    w2c[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    w2c[:, :3, 3] = rng.normal(size=(count, 3))
    return w2c


def line(count: int) -> np.ndarray:
    """Cameras at x = 0, 1, 2, ... that look the same way."""
    w2c = np.tile(np.eye(4), (count, 1, 1))
    w2c[:, 0, 3] = -np.arange(count)
    return w2c


def test_distance_of_known_cameras():
    w2c = line(3)
    w2c[2, :3, :3] = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    w2c[2, :3, 3] = -w2c[2, :3, :3] @ [2, 0, 0]
    np.testing.assert_allclose(pose_distance(w2c), [[0, 0.5, 1.5], [0.5, 0, 1], [1.5, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_distance_ignores_frame_and_scale(seed):
    w2c = cameras(8, seed)
    distance = pose_distance(w2c)
    np.testing.assert_allclose(distance, distance.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(distance), 0, atol=1e-12)
    assert distance.min() >= 0 and distance.max() <= 2
    world = np.eye(4)
    world[:3, :3] = Rotation.random(random_state=9).as_matrix()
    world[:3, 3] = (5, -2, 7)
    moved = w2c.copy()
    moved[:, :3, 3] *= 37.0
    np.testing.assert_allclose(pose_distance(moved @ world), distance, atol=1e-9)
    np.testing.assert_allclose(pose_distance(torch.tensor(w2c)), distance)


def test_half_turns_and_coinciding_cameras():
    w2c = np.tile(np.eye(4), (2, 1, 1))
    assert pose_distance(w2c).tolist() == [[0, 0], [0, 0]]
    w2c[1] = np.diag([1, -1, -1, 1])
    assert pose_distance(w2c)[0, 1] == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_farthest_points_maximise_the_gap(count, seed):
    distance = pose_distance(cameras(count, seed))
    first = seed % count
    chosen = farthest_points(distance, count, first)
    assert sorted(chosen) == list(range(count)) and chosen[0] == first
    for k in range(1, count):
        gaps = distance[:, chosen[:k]].min(1)
        assert gaps[chosen[k]] == max(gaps[i] for i in range(count) if i not in chosen[:k])


def test_farthest_points_of_duplicates_and_bad_counts():
    assert farthest_points(np.zeros((4, 4)), 3, first=2) == [2, 0, 1]
    for count, first in ((5, 0), (0, 0), (2, 4)):
        with pytest.raises(ValueError, match="out of 4"):
            farthest_points(np.zeros((4, 4)), count, first)


def test_windows_on_a_line_ask_for_interpolation():
    found = windows(line(20), context=4, targets=2, groups=2)
    assert found == [([0, 1, 4, 5], [2, 3]), ([14, 15, 18, 19], [16, 17])]


@pytest.mark.parametrize("count", [6, 7, 25])
def test_windows_are_deterministic_and_disjoint_inside(count):
    w2c = cameras(count, 4)
    found = windows(w2c, context=4, targets=2, groups=3)
    assert found == windows(torch.tensor(w2c), context=4, targets=2, groups=3) and len(found) == 3
    for context, targets in found:
        assert len({*context, *targets}) == 6 and context == sorted(context) and targets == sorted(targets)
        assert all(type(i) is int for i in (*context, *targets))


def test_too_few_views():
    with pytest.raises(ValueError, match="4 context and 2 target views are asked for, but there are 5 views"):
        windows(line(5))
