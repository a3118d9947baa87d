"""Views of different days: what is painted over a scene's views, and what stays."""

import math

import pytest
import torch

from geometry.synthetic import in_the_wild, make_atlas
from geometry.synthetic import wild as module
from train.batch import Shape
from train.synthetic_source import SyntheticSource

SIZE = (42, 56)


@pytest.fixture(scope="module")
def views():
    """24 scenes of one view: a wall at 5, below a sky at 20."""
    images = torch.full((24, 1, 3, *SIZE), 0.4)
    depth = torch.full((24, 1, *SIZE), 5.0)
    depth[..., : SIZE[0] // 2, :] = 20.0
    return images, depth, depth < 10


@pytest.fixture(scope="module")
def atlas():
    return make_atlas(3, 8, size=64)


def test_a_seed_gives_the_same_views_and_another_one_others(views, atlas):
    first, again, other = (in_the_wild(seed, *views, 1, atlas) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(first, views, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].min() >= 0 and first[0].max() <= 1


def test_what_is_put_in_front_is_nearer_and_has_a_surface(views, atlas):
    _, before, was_valid = views
    _, depth, valid = in_the_wild(1, *views, 1, atlas)
    painted = depth != before
    assert (depth[painted] < before[painted]).all() and valid[painted].all()
    assert torch.equal(valid & ~painted, was_valid & ~painted)
    share = painted.flatten(1).float().mean(1)
    assert 0.2 < (share == 0).float().mean() < 0.8  # some views are free
    assert 0.02 < share[share > 0].mean() < 0.5


def test_people_stand_in_the_scene_and_leaves_are_nearer_than_all_of_it(views, atlas, monkeypatch):
    for kind, least, most in ((1, 4.8, 4.9), (2, 0.5, 4.8)):
        monkeypatch.setattr(module, "KINDS", tuple(float(i == kind) for i in range(3)))
        _, depth, _ = in_the_wild(1, *views, 1, atlas)
        painted = depth[depth != views[1]]
        assert len(painted) and least < painted.min() and painted.max() < most


def test_where_nothing_is_painted_a_surface_changes_its_tone_alone_and_the_sky_its_clouds(views, atlas, monkeypatch):
    monkeypatch.setattr(module, "KINDS", (1.0, 0.0, 0.0))
    before = [part.unflatten(0, (12, 2)).flatten(1, 2) for part in views]
    images, depth, valid = in_the_wild(1, *before, 2, atlas)
    assert torch.equal(depth, before[1]) and torch.equal(valid, before[2])
    wall, sky = images[..., SIZE[0] // 2 :, :], images[..., : SIZE[0] // 2, :]
    assert torch.allclose(wall, wall[..., :1, :1].expand_as(wall))  # one tone in one view
    tone = wall[..., 0, 0]
    assert (tone[:, 0] - tone[:, 1]).std(0).min() > 0.02  # another in the next
    assert (tone.log().mean(1) - math.log(0.4)).abs().mean() < 0.02  # and between them about that of the targets
    assert (sky.flatten(-2).std(-1).amax(-1) > 1e-3).float().mean() > 0.6  # few textures are plain


def test_inputs_of_a_wild_draw_are_changed_and_targets_are_not():
    source = SyntheticSource(torch.device("cpu"), textures=4)
    for turn in (0, 3):
        plain, wild = (source.batch(1, Shape(2, 3, 1, (28, 28), wild=wild), turn) for wild in (False, True))
        for name in ("images", "depth", "valid"):
            assert torch.equal(getattr(plain, name)[:, 3:], getattr(wild, name)[:, 3:])
        assert (plain.images[:, :3] != wild.images[:, :3]).flatten(2).any(-1).all()
        assert torch.equal(plain.cameras.w2c, wild.cameras.w2c)
