"""What pictures of Gaussians lack, brought back to them, and what a network makes of it."""

import dataclasses

import pytest
import torch

from geometry.cameras import Cameras
from splat import raster_cuda
from splat.adapter import adapt
from splat.correction import DETAIL, SEEN, STEPS, Correction, look_back, more_detail
from splat.gaussians import Gaussians
from splat.metrics import psnr
from splat.model import GaussianModel
from splat.predict import predict
from splat.render import back_project, render
from splat.sh import C0
from tests.test_refine import some_gaussians, walk
from tests.train_run import TINY, Planes
from train.batch import Shape
from train.config import LossWeights
from train.objective import Forward, Objective, draw, into_network

NETWORK = dataclasses.replace(TINY, gs=dataclasses.replace(TINY.gs, looks=2))


def sums_by_gradient(gaussians: Gaussians, cameras: Cameras, images: torch.Tensor) -> torch.Tensor:
    """Sums [N, 6] over pixels as gradients of the picture: lack by colour, weight, lack by logit and by log of size."""
    sh, logit = gaussians.sh.clone().requires_grad_(), torch.logit(gaussians.opacities).requires_grad_()
    size = torch.zeros_like(logit).requires_grad_()
    scales = gaussians.scales * size.exp()[:, None]
    color = render(dataclasses.replace(gaussians, sh=sh, opacities=logit.sigmoid(), scales=scales), cameras).color
    lack = (images.movedim(-3, -1) - color).detach()
    lacks, *others = torch.autograd.grad((color * lack).sum(), (sh, logit, size), retain_graph=True)
    weights = torch.autograd.grad(color[..., 0].sum(), sh)[0][:, 0, :1]
    return torch.cat([lacks[:, 0] / C0, weights / C0, torch.stack(others, 1)], 1)


@pytest.fixture(scope="module")
def photos():
    gaussians, cameras = some_gaussians(), walk(3)
    gaussians.means[:50, 2] *= -1  # behind all cameras
    images = torch.rand(3, 3, 36, 48, generator=torch.Generator().manual_seed(4))
    return gaussians, cameras, images


def test_sums_are_those_of_the_gradient(photos):
    gaussians, cameras, images = photos
    # Bright enough that no colour is held at 0, where the gradient ends.
    gaussians = dataclasses.replace(gaussians, sh=gaussians.sh.abs() * torch.tensor([1.0, 0, 0, 0]).view(4, 1))
    seen, expected = back_project(gaussians, cameras, images), sums_by_gradient(gaussians, cameras, images)
    picture = render(gaussians, cameras)
    torch.testing.assert_close(seen.color, picture.color)
    torch.testing.assert_close(seen.alpha, picture.alpha)
    torch.testing.assert_close(seen.share, expected[:, 3], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(seen.lack * seen.share[:, None], expected[:, :3], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(seen.by_opacity, expected[:, 4], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(seen.by_size, expected[:, 5], atol=1e-3, rtol=1e-3)
    assert seen.by_opacity.abs().mean() > 0.01 and seen.by_size.abs().mean() > 0.01
    shown = seen.share > 0
    assert shown[50:].float().mean() > 0.9 and not shown[:50].any()
    assert (seen.size >= seen.lack.abs().mean(-1) - 1e-5).all()
    assert seen.lack[~shown].eq(0).all() and seen.size[~shown].eq(0).all()
    thrice = back_project(gaussians, cameras, images, emphasis=lambda lack: 3 * lack)
    torch.testing.assert_close(thrice.lack, 3 * seen.lack)
    assert thrice.size.equal(seen.size) and thrice.color.equal(seen.color)


def test_nothing_goes_back_to_what_is_faint_in_a_tile(photos):
    gaussians, cameras, images = photos
    gaussians = dataclasses.replace(gaussians, opacities=gaussians.opacities.clone())
    gaussians.opacities[50::2] *= 0.02
    every, few = (back_project(gaussians, cameras, images, faint=faint) for faint in (0.0, 0.1))
    assert few.color.equal(every.color) and few.alpha.equal(every.alpha)
    left_out = (few.share == 0) & (every.share > 0)
    assert left_out[50::2].float().mean() > 0.2 > 0.1 > left_out[51::2].float().mean()
    assert every.share[left_out].max() < 0.1 * 18  # six tiles of three views
    clear = every.share > 2
    assert clear.sum() > 20
    torch.testing.assert_close(few.share[clear], every.share[clear], atol=0.2, rtol=0.02)
    torch.testing.assert_close(few.lack[clear], every.lack[clear], atol=0.02, rtol=0)
    assert back_project(gaussians, cameras, images, faint=1e9).share.eq(0).all()


def test_detail_is_raised_and_what_is_flat_stays():
    flat = torch.full((2, 8, 9, 3), 0.3)
    torch.testing.assert_close(more_detail(flat), flat)
    point = torch.zeros(8, 9, 3)
    point[4, 5, 1] = 1.0
    raised = more_detail(point)
    assert raised[..., [0, 2]].eq(0).all()
    torch.testing.assert_close(raised[4, 5, 1].item(), 1 + DETAIL * (1 - 1 / 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(raised[4, 4:7:2, 1], torch.full((2,), -DETAIL / 8))
    torch.testing.assert_close(raised.sum().item(), 1.0, atol=1e-5, rtol=0)


def test_leading_axes_and_nothing_at_all(photos):
    gaussians, cameras, images = photos
    one = back_project(gaussians, cameras, images)
    lead = Gaussians(**{name: value[None, None] for name, value in vars(gaussians).items()})
    two = back_project(lead, Cameras(cameras.w2c[None, None], cameras.K[None, None], cameras.size), images[None, None])
    for name, value in vars(one).items():
        assert vars(two)[name].equal(value[None, None]), name
    none = Gaussians(**{name: value[:0] for name, value in vars(gaussians).items()})
    none = back_project(none, cameras, images)
    assert none.lack.shape == (0, 3) and none.color.shape == (3, 36, 48, 3) and none.color.eq(0).all()


def test_images_must_fit(photos):
    gaussians, cameras, images = photos
    with pytest.raises(ValueError, match=r"images must be \[3, 3, 36, 48\] on cpu, got \[3, 3, 36, 40\]"):
        back_project(gaussians, cameras, images[..., :40])


@pytest.mark.cuda
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_gsplat_agrees_with_the_cpu(photos, at_once, monkeypatch):
    monkeypatch.setattr(raster_cuda, "SPLATS_AT_ONCE", at_once)
    gaussians, cameras, images = photos
    expected = back_project(gaussians, cameras, images, emphasis=more_detail)
    with torch.inference_mode():
        got = back_project(gaussians.to("cuda"), cameras.to("cuda"), images.cuda(), emphasis=more_detail)
    for name, value in vars(expected).items():
        torch.testing.assert_close(vars(got)[name].cpu(), value, atol=2e-3, rtol=2e-3)


@pytest.fixture(scope="module")
def scene():
    """Three views of a plane, in the network's frame: images, cameras, depth, raw values."""
    batch = Planes().batch(0, Shape(1, 3, 0, (28, 42)))
    cameras, depth = into_network(NETWORK, batch, True)
    raw = torch.zeros(1, 3, 28, 42, NETWORK.gs.channels + 1)
    raw[..., 2:5] = -2.0
    raw[..., 8] = 1.0
    raw[..., -1] = 0.4  # an opacity of 0.6
    return batch.images, cameras, depth, raw


def drawn(scene, raw):
    images, cameras, depth, _ = scene
    gaussians = adapt(raw[..., :-1], raw[..., -1].sigmoid(), depth, cameras, NETWORK.gs, images=images)
    return gaussians, render(gaussians, cameras, near=0.1).color.movedim(-1, -3)


def test_untrained_it_takes_in_the_mean_of_what_is_missing(scene):
    images, cameras, _, raw = scene
    gaussians, before = drawn(scene, raw)
    seen = look_back(gaussians, images, cameras)
    assert seen.shape == (1, 3, SEEN, 28, 42)
    better = Correction(NETWORK.gs.channels + 1)(raw, seen).detach()
    assert 0.01 < (better - raw)[..., -1].abs().max() < STEPS[0] + 1e-4
    assert 0.01 < (better - raw)[..., 2:5].abs().max() < STEPS[1] + 1e-4 and (better - raw)[..., 5:9].eq(0).all()
    corrected, after = drawn(scene, better)
    torch.testing.assert_close(corrected.means, gaussians.means)
    moved = (corrected.sh - gaussians.sh)[0, :, 0] * C0
    torch.testing.assert_close(moved.unflatten(0, (3, 28, 42)).movedim(-1, 1), seen[0, :, :3], atol=1e-5, rtol=1e-4)
    assert (corrected.sh - gaussians.sh)[0, :, 1:].eq(0).all()
    assert psnr(after[0], images[0]) > psnr(before[0], images[0]) + 0.3


def test_what_it_sees_has_no_gradient(scene):
    images, cameras, _, raw = scene
    gaussians, picture = drawn(scene, raw.clone().requires_grad_())
    seen = look_back(gaussians, images, cameras)
    assert not seen.requires_grad
    torch.testing.assert_close(seen[:, :, 4:7], images - picture.detach())


def test_it_learns_what_the_mean_cannot_mend(scene):
    """All is half as bright as it should be, because black shows through: the network must close the gaps."""
    torch.manual_seed(0)
    images, cameras, depth, raw = scene
    images = torch.nn.functional.avg_pool2d(images.flatten(0, 1), 7, 1, 3).unflatten(0, (1, 3))
    scene = (images, cameras, depth, raw)
    raw = raw.clone()
    raw[..., 2:5], raw[..., -1] = -5.0, -1.5
    correction = Correction(NETWORK.gs.channels + 1)
    gaussians, _ = drawn(scene, raw)
    seen = look_back(gaussians, images, cameras)
    adam = torch.optim.Adam(correction.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = (drawn(scene, correction(raw, seen))[1] - images).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_model_corrects_what_its_head_made(scene):
    images, cameras, *_ = scene
    torch.manual_seed(0)
    model = GaussianModel(NETWORK).eval()
    with torch.no_grad():
        geometry, corrected = model(images, cameras)
        stages = model.stages(model.encode(images, cameras), geometry)
    assert len(stages) == 3 and corrected.sh.equal(stages[2].sh)
    pictures = [render(g, cameras, near=0.1).color.movedim(-1, -3)[0] for g in stages]
    draft, once, twice = (psnr(picture, images[0]) for picture in pictures)
    assert draft + 0.1 < once and once + 0.01 < twice, (draft, once, twice)


def test_more_looks_or_fewer_may_be_asked_for(scene):
    images, cameras, *_ = scene
    torch.manual_seed(0)
    model = GaussianModel(NETWORK).eval()
    with torch.no_grad():
        features = model.encode(images, cameras)
        geometry = model.decode(features)
        stages = model.stages(features, geometry, 3)
    assert len(stages) == 4
    world = Cameras(cameras.w2c[0], cameras.K[0], cameras.size)
    for looks, stage in ((0, 0), (1, 1), (None, 2), (3, 3)):
        made = predict(images[0], world, model, looks=looks, frame="network", mode="float32").gaussians
        torch.testing.assert_close(made.sh, stages[stage].sh[0], atol=1e-4, rtol=1e-3)
        others = [i for i in range(4) if i != stage]
        assert min((made.sh - stages[i].sh[0]).abs().max() for i in others) > 1e-3


@pytest.mark.parametrize(("views", "looks"), [(4, 2), (5, 4)])
def test_it_looks_once_more_for_every_four_views(views, looks):
    batch = Planes().batch(0, Shape(1, views, 0, (28, 42)))
    cameras, _ = into_network(NETWORK, batch, True)
    torch.manual_seed(0)
    model, world = GaussianModel(NETWORK).eval(), Cameras(cameras.w2c[0], cameras.K[0], cameras.size)
    usual, asked, fewer = (
        predict(batch.images[0], world, model, looks=n).gaussians.sh for n in (None, looks, looks - 1)
    )
    assert usual.equal(asked) and not torch.allclose(usual, fewer, atol=1e-3)


@pytest.mark.parametrize("looks", [0, 1])
def test_a_network_that_takes_no_look_says_so(scene, looks):
    with pytest.raises(ValueError, match=f"tiny does not look at its own pictures, so looks={looks} cannot be asked"):
        predict(scene[0][0], None, GaussianModel(TINY), looks=looks)


def test_a_number_of_looks_is_a_number(scene):
    with pytest.raises(ValueError, match="looks must be 0 to 16, got -1"):
        predict(scene[0][0], None, GaussianModel(NETWORK), looks=-1)


def test_training_asks_for_good_pictures_before_each_look():
    torch.manual_seed(0)
    forward, batch = Forward(GaussianModel(NETWORK), bf16=False), Planes().batch(0, Shape(1, 3, 2, (28, 42)))
    only = LossWeights(depth=0, cue=0, gaussian_depth=0, psnr=0.3, draft=0)
    with_drafts, scalars = Objective(NETWORK, dataclasses.replace(only, draft=0.5))(forward, batch, True, True)
    objective = Objective(NETWORK, only)
    without, few = objective(forward, batch, True, True)
    cameras, _ = into_network(NETWORK, batch, True)
    prediction = forward(batch.images[:, :3], cameras[:, :3])
    values = []
    for looks, draft in enumerate(prediction.drafts):
        pictures = draw(NETWORK, prediction._replace(gaussians=draft), cameras[:, :3], cameras[:, 3:])
        value, seen = objective.picture_loss(pictures, batch.images[:, 3:].flatten(0, 1))
        torch.testing.assert_close(scalars[f"psnr_after_{looks}_looks"], seen["psnr"].detach())
        values.append(value)
    assert len(values) == 2
    torch.testing.assert_close(with_drafts - without, 0.5 * sum(values))
    assert scalars["psnr_after_0_looks"] != scalars["psnr_after_1_looks"] != scalars["psnr"]
    assert "psnr_after_0_looks" not in few


def test_a_network_that_takes_no_look_has_no_drafts():
    forward, batch = Forward(GaussianModel(TINY), bf16=False), Planes().batch(0, Shape(1, 3, 1, (28, 42)))
    cameras, _ = into_network(TINY, batch, True)
    assert forward(batch.images[:, :3], cameras[:, :3]).drafts == ()
    _, scalars = Objective(TINY, LossWeights())(forward, batch, True, True)
    assert "psnr_after_0_looks" not in scalars and scalars["psnr"] > 0
