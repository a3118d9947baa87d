"""Which views are drawn, and that photos, cameras and depth move together."""

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras, project
from geometry.view_selection import pose_distance
from tests.synthetic_photos import arc, dot, dot_position, pinhole
from train import sampling
from train.augment import Augmentation, develop, draw, look_up, mirror, place, resample, tone_table
from train.sampling import farthest, sample_views, window

NOTHING = Augmentation(mirror=0, gamma=1, gain=0)


def line(count: int) -> np.ndarray:
    w2c = np.tile(np.eye(4), (count, 1, 1))
    w2c[:, 0, 3] = -0.3 * np.arange(count)
    return w2c


@pytest.mark.parametrize("kind", ["window", "farthest"])
def test_inputs_and_targets_never_overlap_and_follow_the_seed(kind):
    w2c = arc(25)
    drawn = [sample_views(w2c, 6, 3, kind, np.random.default_rng(seed)) for seed in range(120)]
    again = [sample_views(w2c, 6, 3, kind, np.random.default_rng(seed)) for seed in range(120)]
    assert drawn == again and len({tuple(views) for views in drawn}) > 100
    assert all(len(set(views)) == 9 and min(views) >= 0 and max(views) < 25 for views in drawn)
    assert {i for views in drawn for i in views[:6]} == set(range(25)), "every view has its turn"
    assert {i for views in drawn for i in views[6:]} >= set(range(4, 21))
    assert sorted(sample_views(arc(9), 6, 3, kind, np.random.default_rng(0))) == list(range(9))
    with pytest.raises(ValueError, match="cannot give"):
        sample_views(arc(8), 6, 3, kind, np.random.default_rng(0))


def test_farthest_inputs_cover_the_scene_and_windows_do_not():
    w2c, far, near = line(60), [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        far.append(np.ptp(sample_views(w2c, 6, 2, "farthest", rng)[:6]))
        near.append(np.ptp(sample_views(w2c, 6, 2, "window", rng)))
    assert min(far) > 50 and max(near) < 20


def test_farthest_inputs_are_far_from_one_another():
    distance = pose_distance(line(60))
    for seed in range(10):
        inputs = farthest(distance, 6, 4, np.random.default_rng(seed))[:6]
        apart = distance[np.ix_(inputs, inputs)] + 9 * np.eye(6)
        assert apart.min() > 4 / 59


def test_windows_hold_neighbours_and_targets_lie_between():
    distance = np.abs(np.arange(30)[:, None] - np.arange(30)[None]).astype(float)
    rng = np.random.default_rng(0)
    spans = []
    for _ in range(50):
        views = window(distance, 4, 2, rng)
        assert len(set(views)) == 6
        spans.append(max(views) - min(views))
        assert min(views[:4]) < min(views[4:]) or max(views[:4]) > max(views[4:])
    assert max(spans) < 16


def test_long_scenes_are_thinned_at_random(monkeypatch):
    monkeypatch.setattr(sampling, "MOST_VIEWS", 10)
    drawn = [sample_views(line(50), 3, 2, "farthest", np.random.default_rng(seed)) for seed in range(60)]
    assert len({i for views in drawn for i in views}) > 40
    assert len(sample_views(line(50), 20, 5, "window", np.random.default_rng(0))) == 25


@pytest.mark.parametrize("old", [(60, 80), (90, 70), (33, 51)])
@pytest.mark.parametrize("seed", range(6))
def test_a_projected_point_lands_on_the_same_content(old, seed):
    """One dot in the photo, one point in space: after any augmentation they still coincide, and so does its depth."""
    rng, size = np.random.default_rng(seed), (42, 56)
    drawn = draw(Augmentation(mirror=0.5, zoom=1.4, shift=0.3, gamma=1, gain=0), rng)
    K, w2c = pinhole(old, 60.0), arc(3)[seed % 3]
    pixel = np.array([old[1], old[0]]) / 2 + rng.uniform(-2, 2, 2)
    z = 3.0
    local = np.array([*((pixel - K[:2, 2]) / 60.0 * z), z])
    point = torch.tensor(w2c[:3, :3].T @ (local - w2c[:3, 3]))
    placed = place(old, size, drawn)
    picture = placed.photo(resample(dot(old, pixel, 2.0), placed))
    assert picture.shape == (*size, 3)
    depth = placed.depth(np.where(dot(old, pixel, 2.0)[..., 0] > 128, np.float32(z), np.float32(0)))
    cameras = Cameras(torch.from_numpy(w2c)[None], torch.from_numpy(placed.K(K))[None], size)
    if drawn.mirrored:
        picture, depth, cameras = picture[:, ::-1], depth[:, ::-1], mirror(cameras)
        point = point * torch.tensor([-1.0, 1, 1])
    landed, landed_depth = project(point[None, None], cameras)
    np.testing.assert_allclose(landed[0, 0].numpy(), dot_position(picture), atol=0.06)
    column, row = landed[0, 0].floor().long().tolist()
    assert depth[row, column] == z and float(landed_depth) == pytest.approx(z)


def test_without_augmentation_the_whole_centre_is_seen():
    for seed in range(3):
        drawn = draw(NOTHING, np.random.default_rng(seed))
        assert not drawn.mirrored and drawn.zoom == 1 and drawn.gamma == 1
        placed = place((270, 480), (252, 448), drawn)
        assert (placed.new, placed.top, placed.left) == ((252, 448), 0, 0)
        picture = np.random.default_rng(seed).integers(0, 256, (1, 1, 4, 5, 3), dtype=np.uint8)
        images = develop(torch.from_numpy(picture), [drawn])
        np.testing.assert_allclose(images.movedim(-3, -1), picture / 255, atol=1e-7)


@pytest.mark.parametrize("halved", [1, 2, 4, 8])
def test_a_window_is_cut_as_it_is_from_what_a_jpeg_decodes_to(halved):
    drawn = draw(NOTHING, np.random.default_rng(0))
    placed = place((270 * halved, 480 * halved), (266, 476), drawn)
    assert (placed.new, placed.top, placed.left) == ((270, 480), 2, 2)
    assert place((270 * halved, 480 * halved), (270, 480), drawn).new == (270, 480)
    # No more than that: a border of a twentieth is worth resampling for, and halves must come out even.
    assert place((285 * halved, 507 * halved), (266, 476), drawn).new == (268, 476)
    assert place((541, 961), (270, 480), drawn).new == (270, 480)


def test_the_window_never_leaves_the_photo():
    rng = np.random.default_rng(0)
    for _ in range(200):
        old = tuple(int(side) for side in rng.integers(20, 200, 2))
        size = tuple(int(side) for side in rng.integers(14, 100, 2))
        placed = place(old, size, draw(Augmentation(zoom=2, shift=1), rng))
        assert placed.photo(np.zeros((*placed.new, 3))).shape[:2] == size
        assert placed.top >= 0 and placed.left >= 0
        assert placed.depth(np.ones((7, 5))).shape == size


def test_pictures_are_developed_scene_by_scene_alike_on_any_device():
    pictures = np.random.default_rng(0).integers(0, 256, (20, 2, 4, 5, 3), dtype=np.uint8)
    drawn = [draw(Augmentation(), np.random.default_rng(seed)) for seed in range(20)]
    images = develop(torch.from_numpy(pictures), drawn)
    assert images.dtype == torch.float32 and images.shape == (20, 2, 3, 4, 5)
    tables = torch.from_numpy(np.stack([tone_table(each) for each in drawn]))
    mirrored = torch.tensor([each.mirrored for each in drawn])
    assert 0 < mirrored.sum() < 20
    assert images.movedim(-3, -1).equal(look_up(torch.from_numpy(pictures), tables, mirrored))
    for each, picture, image in zip(drawn, pictures, images):
        assert 0.8 <= each.gamma <= 1.25 and all(0.85 <= g <= 1.15 for g in each.gain)
        expected = ((picture / 255) ** each.gamma * each.gain).clip(0, 1)
        expected = expected[:, :, ::-1] if each.mirrored else expected
        np.testing.assert_allclose(image.movedim(-3, -1), expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"mirror": 2}, {"zoom": 0.5}, {"gamma": 0.5}, {"shift": -1}, {"gain": 1}])
def test_senseless_augmentation_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Augmentation(**wrong)


def test_mirrored_cameras_see_the_mirrored_world():
    cameras = Cameras(torch.from_numpy(arc(3)), torch.from_numpy(np.stack([pinhole((28, 42), 30.0)] * 3)), (28, 42))
    points = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.5
    pixels, depth = project(points, cameras)
    flipped, depth_too = project(points * torch.tensor([-1.0, 1, 1]), mirror(cameras))
    torch.testing.assert_close(flipped[..., 0], cameras.size[1] - pixels[..., 0])
    torch.testing.assert_close(flipped[..., 1], pixels[..., 1])
    torch.testing.assert_close(depth_too, depth)


def test_resampling_keeps_the_place_of_content():
    """Half a pixel wrong would show here."""
    placed = place((120, 160), (30, 40), draw(NOTHING, np.random.default_rng(0)))
    small = resample(dot((120, 160), (63.5, 40.5), 6.0), placed)
    np.testing.assert_allclose(dot_position(small), np.array([63.5, 40.5]) / 4, atol=0.02)
