"""Gaussians brought nearer to their photos by optimisation."""

import dataclasses

import pytest
import torch

from geometry.cameras import Cameras
from splat import refine as module
from splat.gaussians import Gaussians, transform
from splat.metrics import psnr
from splat.refine import refine
from splat.render import render


def some_gaussians(count: int = 400) -> Gaussians:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator)

    return Gaussians(
        means=draw(count, 3) * torch.tensor([4.0, 3.0, 2.0]) + torch.tensor([-2.0, -1.5, 3.0]),
        scales=0.05 + 0.15 * draw(count, 3),
        quats=draw(count, 4) - 0.5,
        opacities=0.3 + 0.6 * draw(count),
        sh=draw(count, 4, 3) * torch.tensor([1.5, 0.3, 0.3, 0.3]).view(4, 1) - 0.3,
    )


def walk(views: int) -> Cameras:
    w2c = torch.eye(4).repeat(views, 1, 1)
    w2c[:, 0, 3] = torch.linspace(-0.5, 0.5, views)
    K = torch.tensor([[40.0, 0, 24], [0, 40.0, 18], [0, 0, 1]])
    return Cameras(w2c, K.expand(views, 3, 3).clone(), (36, 48))


def pictures(gaussians: Gaussians, cameras: Cameras) -> torch.Tensor:
    with torch.inference_mode():
        return render(gaussians, cameras).color.movedim(-1, -3).clamp(0, 1)


@pytest.fixture(scope="module")
def scene():
    """Photos of Gaussians, and the same Gaussians with their colours, sizes and places disturbed."""
    true, cameras = some_gaussians(), walk(5)
    generator = torch.Generator().manual_seed(1)
    start = dataclasses.replace(
        true,
        means=true.means + 0.02 * torch.randn(true.means.shape, generator=generator),
        scales=true.scales * 1.3,
        sh=true.sh + 0.2 * torch.randn(true.sh.shape, generator=generator),
    )
    return start, pictures(true, cameras), cameras


def test_views_that_were_not_given_gain_too(scene):
    start, photos, cameras = scene
    given, held = [0, 1, 3, 4], [2]
    better = refine(start, photos[given], cameras[given], 30)
    gains = [
        psnr(pictures(better, cameras[views]), photos[views]) - psnr(pictures(start, cameras[views]), photos[views])
        for views in (given, held)
    ]
    assert gains[0] > 5 and gains[1] > 3
    assert torch.allclose(better.quats.norm(dim=-1), torch.ones(better.count)) and not better.means.requires_grad


def test_what_a_network_made_in_inference_mode_can_be_refined_and_stays_as_it_was(scene):
    start, photos, cameras = scene
    with torch.inference_mode():
        made = Gaussians(**{name: tensor.clone() for name, tensor in vars(start).items()})
        better = refine(made, photos.clone(), cameras, 2)
    assert made.sh.equal(start.sh) and not better.sh.equal(start.sh)


def test_the_unit_of_length_does_not_matter(scene):
    start, photos, cameras = scene
    here = refine(start, photos, cameras, 5)
    w2c = cameras.w2c.clone()
    w2c[:, :3, 3] *= 50
    large = transform(start, torch.eye(3), torch.zeros(3), 50.0)
    there = refine(large, photos, Cameras(w2c, cameras.K, cameras.size), 5)
    torch.testing.assert_close(there.means / 50, here.means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.sh, here.sh, rtol=1e-3, atol=1e-3)


def test_of_many_views_each_is_drawn_in_turn_and_again_the_same(scene, monkeypatch):
    start, photos, cameras = scene
    drawn = []

    def watched(gaussians, chosen):
        drawn.extend(chosen.w2c[:, 0, 3].tolist())
        return render(gaussians, chosen)

    monkeypatch.setattr(module, "VIEWS", 2)
    monkeypatch.setattr(module, "render", watched)
    first = refine(start, photos, cameras, 5)
    assert sorted(drawn) == sorted(2 * cameras.w2c[:, 0, 3].tolist())
    assert refine(start, photos, cameras, 5).sh.equal(first.sh)


def test_splats_that_nobody_can_draw_harm_nobody(scene):
    start, photos, cameras = scene
    poisoned = dataclasses.replace(start, means=start.means.index_fill(0, torch.tensor([3]), torch.nan))
    poisoned = dataclasses.replace(poisoned, opacities=poisoned.opacities.index_fill(0, torch.tensor([5, 6]), 1.0))
    better = refine(poisoned, photos, cameras, 3)
    others = [i for i in range(start.count) if i != 3]
    assert better.means[3].isnan().all()
    assert all(tensor[others].isfinite().all() for tensor in vars(better).values())


def test_pictures_too_small_for_the_loss_are_named(scene):
    start, photos, cameras = scene
    with pytest.raises(ValueError, match="pictures of 10x48 are too small to refine on: 11 px or more"):
        refine(start, photos[..., :10, :], Cameras(cameras.w2c, cameras.K, (10, 48)), 1)
