"""Poses as given, inverted and in OpenGL axes are told apart on photos and on tracks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras
from geometry.images import to_tensor
from geometry.pose_check import check_poses
from geometry.scene import SparsePoints
from tests.synthetic_photos import arc, look_at, pinhole, render_corner

SIZE = (180, 240)
K = pinhole(SIZE, 230.0)
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
MISTAKES = {  # what the user hands over when the truth is w2c
    "as given": lambda w2c: w2c,
    "inverted": np.linalg.inv,
    "opengl": lambda w2c: FLIP @ w2c,
    "inverted opengl": lambda w2c: np.linalg.inv(w2c) @ FLIP,
}


def cameras(w2c: np.ndarray) -> Cameras:
    return Cameras(torch.tensor(w2c), torch.tensor(np.stack([K] * len(w2c))), SIZE)


def photos(w2c: np.ndarray) -> torch.Tensor:
    return to_tensor([render_corner(w, K, SIZE) for w in w2c])


@pytest.fixture(scope="module")
def scene():
    w2c = arc(4, degrees=30)
    return w2c, photos(w2c)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_photos_tell_the_mistake(scene, mistake):
    w2c, images = scene
    report = check_poses(images, cameras(MISTAKES[mistake](w2c)).to(torch.float32))
    assert report.verdict == mistake and report.suspicious == (mistake != "as given")
    assert report.scores[mistake] > 0.8 and sorted(report.scores.values())[-2] < 0.5
    assert "\n" not in report.message


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tracks_tell_the_mistake(mistake):
    w2c = arc(5)
    xyz = np.random.default_rng(0).uniform(-1, 1, (200, 3))
    visible = []
    for w in w2c:
        local = (xyz @ w[:3, :3].T + w[:3, 3]) @ K.T
        pixels = local[:, :2] / local[:, 2:]
        visible.append(np.flatnonzero((pixels > 0).all(1) & (pixels < SIZE[::-1]).all(1)))
    blank = torch.zeros(5, 3, *SIZE)
    report = check_poses(blank, cameras(MISTAKES[mistake](w2c)), SparsePoints(xyz, tuple(visible)))
    assert report.verdict == mistake and report.scores[mistake] == 1.0


def test_shuffled_poses_fit_nothing(scene):
    w2c, images = scene
    report = check_poses(images, cameras(w2c[[2, 0, 3, 1]]))
    assert report.verdict == "none" and report.suspicious and "order" in report.message


def test_slightly_wrong_poses_pass(scene):
    w2c, images = scene
    noise = np.random.default_rng(0).normal(0, 0.004, (4, 3))
    w2c = w2c.copy()
    w2c[:, :3, 3] += noise
    assert check_poses(images, cameras(w2c)).verdict == "as given"


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_to_match_is_unknown(count):
    report = check_poses(torch.full((count, 3, *SIZE), 0.5), cameras(arc(3)[:count]))
    assert report.verdict == "unknown" and not report.suspicious


def test_a_pure_rotation_is_not_accused():
    w2c = np.stack([look_at((0, 0, -5), (x, 0.1 * x, 0)) for x in (-0.4, 0.0, 0.4)])
    assert not check_poses(photos(w2c), cameras(w2c)).verdict.startswith(("inverted", "opengl"))


def test_sideways_motion_has_no_up_and_passes():
    w2c = np.stack([look_at((x, 0, -5), (x, 0, 0)) for x in (-0.4, 0.0, 0.4)])
    for given in (w2c, FLIP @ w2c):
        assert check_poses(photos(w2c), cameras(given)).verdict == "as given"
