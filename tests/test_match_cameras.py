"""Cameras from matches: of made-up photos, from a guess that is far off."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from geometry import match_cameras
from geometry.cameras import Cameras
from geometry.images import to_tensor, to_uint8
from geometry.match_cameras import _pairs, cameras_from_matches, photos_to_match
from geometry.matches import MatchedPair, match_photos
from geometry.scene import open_scene, views
from geometry.sfm import PosesNotFound
from splat import pipeline
from splat import predict as predict_module
from splat.predict import predict
from tests.synthetic_photos import arc, look_at, pinhole, render_corner
from tests.test_bundle import turn_errors
from tests.tiny_networks import tiny_model

SIZE = (182, 252)
FOCAL = 240.0
UNIT = 5.0  # about how far the corner is


def photos(w2c: np.ndarray, times: int = 1) -> torch.Tensor:
    size = (SIZE[0] * times, SIZE[1] * times)
    return to_tensor([render_corner(w, pinhole(size, FOCAL * times), size) for w in w2c])


def cameras(w2c: np.ndarray, focal: float = FOCAL) -> Cameras:
    return Cameras(torch.tensor(w2c), torch.tensor(np.stack([pinhole(SIZE, focal)] * len(w2c))), SIZE)


def guessed(views: int, focal: float = FOCAL) -> tuple[Cameras, torch.Tensor]:
    """What a poor network says: all photos from one place, of a wall."""
    return cameras(np.stack([np.eye(4)] * views), focal), torch.full((views, *SIZE), UNIT)


def relative(cameras: Cameras) -> Cameras:
    return Cameras(cameras.w2c @ torch.linalg.inv(cameras.w2c[0]), cameras.K, cameras.size)


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, torch.Tensor]:
    w2c = arc(4, degrees=30)
    return w2c, photos(w2c)


@pytest.mark.parametrize(("times", "most_off"), [(1, 0.3), (3, 0.12)])
def test_matches_have_the_pixels_of_the_same_points(scene, times, most_off):
    w2c, _ = scene
    (pair,) = match_photos(to_uint8(photos(w2c[:2], times)), [(0, 1)])
    assert pair.views == (0, 1) and pair.pixels.shape == (2, pair.keypoints.shape[1], 2)
    pixels = pair.pixels / times
    assert (pixels >= 0).all() and (pixels <= SIZE[::-1]).all()
    K = np.linalg.inv(pinhole(SIZE, FOCAL))
    motion = w2c[1] @ np.linalg.inv(w2c[0])
    x, y, z = motion[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ motion[:3, :3]
    a, b = (np.c_[at, np.ones(len(at))] for at in pixels)
    lines = a @ (K.T @ essential @ K).T
    distance = np.abs((b * lines).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)
    assert np.median(distance) < most_off and len(distance) > 100


@pytest.mark.parametrize("known", [True, False])
def test_cameras_from_a_poor_guess(scene, known):
    w2c, images = scene
    guess, depth = guessed(4, FOCAL if known else 1.5 * FOCAL)
    found = cameras_from_matches(images, guess, depth, focal_known=known)
    true = relative(cameras(w2c))
    assert found.placed == (0, 1, 2, 3) and found.error < 0.5
    assert turn_errors(found.cameras, true).max() < 0.5
    torch.testing.assert_close(found.cameras.w2c[0], torch.eye(4).double(), rtol=0, atol=1e-9)
    ratio = found.cameras.centers[1:].norm(dim=-1) / true.centers[1:].norm(dim=-1)
    assert (ratio / ratio.mean() - 1).abs().max() < 0.03 and 0.5 < ratio.mean() < 2
    if known:
        torch.testing.assert_close(found.cameras.K, guess.K, rtol=0, atol=0)
    else:
        assert (found.cameras.K[:, [0, 1], [0, 1]] / FOCAL - 1).abs().max() < 0.06


def test_the_unit_is_that_of_the_depth(scene):
    _, images = scene
    guess, depth = guessed(4)
    small, large = (cameras_from_matches(images, guess, k * depth, True).cameras.centers for k in (1, 10))
    torch.testing.assert_close(large, 10 * small, rtol=1e-3, atol=1e-3)


def test_a_view_of_something_else_stays_where_it_was_guessed(scene):
    w2c, images = scene
    guess, depth = guessed(4)
    guess.w2c[:, 0, 3] = -torch.arange(4.0).double()
    images = torch.cat([images[:2], torch.full_like(images[:1], 0.5), images[3:]])
    found = cameras_from_matches(images, guess, depth, True)
    assert found.placed == (0, 1, 3)
    kept = found.cameras.w2c @ torch.linalg.inv(found.cameras.w2c[1])
    torch.testing.assert_close(kept[2], guess.w2c[2] @ torch.linalg.inv(guess.w2c[1]))
    assert turn_errors(relative(found.cameras[[0, 1, 3]]), relative(cameras(w2c[[0, 1, 3]]))).max() < 0.5


def wrong_pair(views: tuple[int, int], count: int) -> MatchedPair:
    """Matches that agree with each other, on a motion that is not that of the views."""
    generator = np.random.default_rng(1)
    points = np.c_[generator.uniform(-2, 2, (count, 2)), generator.uniform(4, 8, count)]
    turned = points @ look_at((0, 0, 0), (1, 0.5, 2))[:3, :3].T + (0.5, 1, 3)
    pixels = [(x @ pinhole(SIZE, FOCAL).T / x[:, 2:])[:, :2] for x in (points, turned)]
    return MatchedPair(views, np.stack([10_000 + np.arange(count)] * 2), np.stack(pixels))


def with_pairs(monkeypatch, change) -> None:
    def changed(photos, pairs):
        return change(match_photos(photos, pairs))

    monkeypatch.setattr(match_cameras, "match_photos", changed)


def test_a_view_that_few_wrong_matches_hold_is_not_placed(scene, monkeypatch):
    w2c, images = scene
    with_pairs(monkeypatch, lambda pairs: [p for p in pairs if 3 not in p.views] + [wrong_pair((0, 3), 18)])
    found = cameras_from_matches(images, *guessed(4), True)
    assert found.placed == (0, 1, 2)
    assert turn_errors(relative(found.cameras[:3]), relative(cameras(w2c[:3]))).max() < 0.5


def test_a_view_that_sees_a_spot_is_not_placed(scene, monkeypatch):
    """All that it has in common with the others lies so close together that many poses fit."""
    _, images = scene

    def spot(pair: MatchedPair) -> MatchedPair:
        at = pair.pixels[1]
        near = np.argsort(np.linalg.norm(at - np.median(at, axis=0), axis=1))[:24]
        return MatchedPair(pair.views, pair.keypoints[:, near], pair.pixels[:, near])

    def only_there(pairs: list[MatchedPair]) -> list[MatchedPair]:
        return [spot(pair) if pair.views == (2, 3) else pair for pair in pairs if pair.views not in ((0, 3), (1, 3))]

    with_pairs(monkeypatch, only_there)
    found = cameras_from_matches(images, *guessed(4), True)
    assert found.placed == (0, 1, 2)


def test_one_bad_link_is_got_around(scene, monkeypatch):
    """Two-view geometry has the best-matched pair wrong: the chain along other pairs is the one that fits."""
    w2c, images = scene
    two_view = match_cameras._two_view

    def wrong_once(pair: MatchedPair, *known):
        count, motion = two_view(pair, *known)
        return (10_000, look_at((2, 1, 3), (0, 3, 0), (1, 0, 0))) if pair.views == (1, 2) else (count, motion)

    monkeypatch.setattr(match_cameras, "_two_view", wrong_once)
    found = cameras_from_matches(images, *guessed(4), True)
    assert found.placed == (0, 1, 2, 3)
    assert turn_errors(found.cameras, relative(cameras(w2c))).max() < 0.5


def test_nothing_to_match():
    guess, depth = guessed(3)
    noise = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    for images in (torch.full((3, 3, *SIZE), 0.5), noise):
        assert cameras_from_matches(images, guess, depth) is None


def test_a_turn_on_the_spot_does_not_break_it():
    w2c = np.stack([look_at((0, 0, -5), (x, 0.1 * x, 0)) for x in (-0.4, 0.0, 0.4)])
    guess, depth = guessed(3)
    found = cameras_from_matches(photos(w2c), guess, depth, True)
    assert found is None or turn_errors(relative(found.cameras), relative(cameras(w2c))).max() < 2


def test_pairs_of_many_views_do_not_grow_with_the_square():
    assert len(list(_pairs(16))) == 120
    many = list(_pairs(100))
    assert len(many) < 700 and {j - i for i, j in many} == {1, 2, 4, 8, 16, 32, 64}


def test_a_network_runs_again_with_the_cameras_found(scene):
    w2c, images = scene
    network = tiny_model("a")
    got = predict(images, None, network, cameras_from="matches")
    assert "place 4 of 4 views" in got.notes[0]
    assert turn_errors(got.cameras.to(torch.float64), relative(cameras(w2c))).max() < 3
    given = predict(images, got.cameras, network)
    torch.testing.assert_close(got.depth, given.depth)
    torch.testing.assert_close(got.gaussians.means, given.gaussians.means)
    with_K = predict(images, None, network, ("cameras",), K=cameras(w2c).K.float(), cameras_from="matches")
    torch.testing.assert_close(with_K.cameras.K, cameras(w2c).K.float())


def test_the_networks_own_cameras_where_matches_tell_nothing(scene):
    w2c, images = scene
    network = tiny_model("a")
    blank = torch.full_like(images, 0.5)
    got, own = (predict(blank, None, network, cameras_from=way) for way in ("matches", "decoder"))
    assert "too few keypoints match" in got.notes[0]
    torch.testing.assert_close(got.cameras.w2c, own.cameras.w2c)
    torch.testing.assert_close(got.gaussians.means, own.gaussians.means)
    known = cameras(w2c).to(torch.float32)
    assert predict(images, known, network, cameras_from="matches").notes == ()
    assert predict(images[:1], None, network, cameras_from="matches").notes == ()
    images = torch.cat([images[:2], blank[:1], images[3:]])
    assert "where view 2 stands" in predict(images, None, network, cameras_from="matches").notes[0]


def test_a_fault_of_opencv_costs_no_pair(scene, monkeypatch):
    """Its version 5.0 fails an assertion of its own in MAGSAC where two views are nearly equal."""
    (before,) = match_photos(to_uint8(scene[1][:2]), [(0, 1)])
    honest = cv2.findFundamentalMat

    def faulty(a, b, method, *options):
        if method == cv2.USAC_MAGSAC:
            raise cv2.error("Assertion failed: !model.empty()")
        return honest(a, b, method, *options)

    monkeypatch.setattr(cv2, "findFundamentalMat", faulty)
    (after,) = match_photos(to_uint8(scene[1][:2]), [(0, 1)])
    assert after.pixels.shape[1] > 0.9 * before.pixels.shape[1]


def test_larger_photos_tell_cameras_more_exactly(scene):
    w2c, images = scene
    guess, depth = guessed(4)
    true = relative(cameras(w2c))
    small, large = (
        turn_errors(cameras_from_matches(seen, guess, depth, focal_known=True).cameras, true).max()
        for seen in (images, photos(w2c, 3))
    )
    assert large < min(0.1, small)
    wrong = photos(w2c[:2], 2)[:, :, :-2]
    with pytest.raises(ValueError, match=r"photos must be the images \(2, 3, 182, 252\), larger by one factor, got"):
        predict(images[:2], None, tiny_model("a"), cameras_from="matches", photos=wrong)


@pytest.mark.parametrize(("times", "size", "matched"), [(1, 252, 252), (3, 252, 756), (3, 112, 784), (3, 756, 756)])
def test_photos_are_matched_as_large_as_they_are(scene, tmp_path, times, size, matched):
    for i, picture in enumerate(to_uint8(photos(scene[0][:2], times))):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    opened = open_scene(tmp_path)
    images, _ = views(opened, size=size, multiple=14)
    large = photos_to_match(opened, [0, 1], images.shape[-2:])
    assert large.shape[-1] == matched and large.shape[-2] * images.shape[-1] == matched * images.shape[-2]
    back = torch.nn.functional.interpolate(large, images.shape[-2:], mode="area")
    assert (back - images).abs().mean() < 0.02


@pytest.fixture
def folder(scene, tmp_path):
    for i, picture in enumerate(to_uint8(scene[1])):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    return tmp_path


def test_where_structure_from_motion_fails_matches_place_the_views(scene, folder, monkeypatch):
    def none_found(photos, progress):
        raise PosesNotFound("no camera poses found")

    monkeypatch.setattr(pipeline, "reconstruct_poses", none_found)
    said = []
    result = pipeline.reconstruct(folder, "nano", size=SIZE[1], report=said.append)
    assert any("no poses found" in line for line in said) and "place 4 of 4 views" in result.notes[-1]
    assert turn_errors(result.cameras.to(torch.float64), relative(cameras(scene[0]))).max() < 1


def test_cameras_from_what_is_asked_for(scene, folder, monkeypatch):
    """Neither of these looks for poses by structure from motion; EXIF tells the matching the focal length."""
    monkeypatch.setattr(pipeline, "reconstruct_poses", None)
    monkeypatch.setattr(pipeline, "exif_focal", lambda file: FOCAL)
    seen = []
    honest = predict_module.cameras_from_matches

    def watched(images, *args, **options):
        seen.append(images.shape)
        return honest(images, *args, **options)

    monkeypatch.setattr(predict_module, "cameras_from_matches", watched)
    pipeline.reconstruct(folder, "nano", size=84, cameras_from="matches")
    assert seen == [(4, 3, 3 * 56, 3 * 84)]  # as large as the files
    matched = pipeline.reconstruct(folder, "nano", size=SIZE[1], cameras_from="matches")
    assert "place 4 of 4 views" in matched.notes[0]
    torch.testing.assert_close(matched.cameras.K, cameras(scene[0]).K.float())
    own = pipeline.reconstruct(folder, "nano", size=SIZE[1], cameras_from="decoder")
    assert own.notes == () and not torch.allclose(own.cameras.K, matched.cameras.K)
