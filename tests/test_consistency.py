"""Depth on which views agree: a wall with a thing before it, seen by three cameras in a row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from geometry import consistency
from geometry.compiled import kernels
from geometry.consistency import consistent_depth, reference_depth, seen_by_neighbors
from geometry.cue import neighbors
from geometry.normalize import rescale
from geometry.sweep import homographies
from splat.model import GaussianModel
from splat.predict import predict
from tests.test_cue import cameras_along_x
from tests.train_run import TINY

SIDE, WALL, THING, STEP = 56, 8.0, 4.0, 1.0  # the wall moves by 7 pixels from view to view, the thing by 14
VIEWS = 3


@pytest.fixture(scope="module")
def scene():
    """Depth [1, 3, 56, 56], cameras, and each view's neighbours."""
    cameras = cameras_along_x(views=VIEWS, step=STEP, size=(SIDE, SIDE), focal=float(SIDE))
    depth = torch.full((1, VIEWS, SIDE, SIDE), WALL)
    for view in range(VIEWS):
        left = 30 - round(SIDE * STEP * view / THING)
        depth[0, view, 20:36, left : left + 12] = THING
    return depth, cameras, neighbors(cameras, 2)[0][0]


def test_what_is_right_stays(scene):
    depth, cameras, source = scene
    torch.testing.assert_close(consistent_depth(depth, cameras, source), depth, rtol=1e-5, atol=0)


def test_a_thing_that_one_view_took_for_the_wall_is_found(scene):
    depth, cameras, source = scene
    wrong = depth.clone()
    wrong[0, 1] = WALL
    found = consistent_depth(wrong, cameras, source)
    assert ((wrong / depth - 1).abs() > 1e-4).sum() == 16 * 12
    # In two columns both neighbours would see the wall past the thing, and so bear out the one as well as the other; of
    # the rectangles beside them the corners are in a minority.
    assert ((found / depth - 1).abs() > 1e-4).sum() == 16 * 2 + 8


def test_single_pixels_do_not_change(scene, monkeypatch):
    depth, cameras, source = scene
    speck = torch.full_like(depth, WALL)
    speck[0, 0, 8, 36] = speck[0, 2, 8, 8] = THING  # one point, which the middle view would see in column 22
    speck[0, 0, 8, 29] = 3.0  # one that hides from view 0 the wall which the middle view sees in its place
    assert (consistent_depth(speck, cameras, source)[0, 1] / WALL - 1).abs().max() < 1e-4
    monkeypatch.setattr(consistency, "MOST", 0.0)
    found = reference_depth(speck[0], source, *homographies(cameras, source, (SIDE, SIDE)))
    assert found[1, 8, 22] == pytest.approx(THING, rel=1e-4)


def test_one_view_alone_convinces_nobody(scene):
    depth, cameras, source = scene
    wrong = depth.clone()
    wrong[0, 1, 2:6, 10:40] = 2.0
    found = consistent_depth(wrong, cameras, source)
    # What the others say of these pixels is farther; nor do they believe in them.
    assert (found[0, [0, 2]] / depth[0, [0, 2]] - 1).abs().max() < 1e-4


def test_errors_of_their_own_are_averaged(scene):
    depth, cameras, source = scene
    noise = torch.exp(0.03 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(0)))
    found = consistent_depth(depth * noise, cameras, source)
    inside = (slice(None), 1, slice(None), slice(14, 42))  # where both neighbours look
    before, after = ((d / depth).log()[inside].abs().median() for d in (depth * noise, found))
    assert after < 0.75 * before, (before, after)


def test_the_unit_of_length_does_not_matter(scene):
    depth, cameras, source = scene
    larger = rescale(cameras, torch.tensor([50.0]))
    noisy = depth * torch.exp(0.03 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(1)))
    one, fifty = consistent_depth(noisy, cameras, source), consistent_depth(50 * noisy, larger, source)
    torch.testing.assert_close(50 * one, fifty, rtol=1e-4, atol=0)


def test_what_lies_behind_a_neighbour_is_not_seen(scene):
    depth, cameras, source = scene
    turned = replace(cameras, w2c=cameras.w2c.clone())
    turned.w2c[0, 1] = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])) @ turned.w2c[0, 1]  # looks the other way
    A, b = homographies(turned, source, (SIDE, SIDE))
    seen = seen_by_neighbors(depth[0].log(), source, A, b)
    assert seen[1].isinf().all() and not seen[0, source[0].tolist().index(2)].isinf().all()
    assert consistent_depth(depth, turned, source).isfinite().all()


def test_predicted_depth_is_so_but_gaussians_are_not(monkeypatch):
    """Asked for Gaussians alone, the network does not take the time; asked for both, it gives the same ones."""
    torch.manual_seed(0)
    model = GaussianModel(TINY).eval().requires_grad_(False)
    images = torch.rand(3, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    cameras = cameras_along_x(views=3, step=0.4, size=(28, 42), focal=40.0)[0]
    both = predict(images, cameras, model, ("depth", "gaussians"))
    monkeypatch.setattr("splat.predict.consistent_depth", lambda depth, *_: depth)
    before = predict(images, cameras, model, ("depth", "gaussians"))
    assert not torch.equal(both.depth, before.depth)
    assert torch.equal(both.gaussians.means, before.gaussians.means)
    monkeypatch.setattr("splat.predict.consistent_depth", None)
    assert torch.equal(predict(images, cameras, model, ("gaussians",)).gaussians.means, both.gaussians.means)


def test_compiled_and_plain_agree(scene):
    depth, cameras, source = scene
    generator = torch.Generator().manual_seed(2)
    # Noise that views bear out, and blocks that they do not.
    noise = torch.exp(0.03 * torch.randn(depth.shape, generator=generator))
    blocks = 1 - 0.4 * (torch.rand(1, VIEWS, SIDE // 7, SIDE // 7, generator=generator) > 0.8)
    inputs = (
        (depth * noise * blocks.repeat_interleave(7, 2).repeat_interleave(7, 3))[0],
        source,
        *homographies(cameras, source, (SIDE, SIDE)),
    )
    plain, compiled = reference_depth(*inputs), kernels("consistency").compiled_depth(*inputs)
    assert ((plain / inputs[0]).log().abs() > 0.1).float().mean() > 0.02
    # Rounding decides which pixel a point between two of them fills.
    assert ((plain / compiled).log().abs() > 1e-5).float().mean() < 0.01


@pytest.mark.cuda
def test_cuda_agrees(scene):
    depth, cameras, source = scene
    noisy = depth * torch.exp(0.03 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(1)))
    on_cpu = consistent_depth(noisy, cameras, source)
    on_cuda = consistent_depth(noisy.cuda(), cameras.to("cuda"), source.cuda()).cpu()
    # A point that falls on the border of two pixels may fill the other one.
    assert ((on_cuda / on_cpu - 1).abs() < 1e-4).float().mean() > 0.99
