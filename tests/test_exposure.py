"""Photos brought to one exposure by the surfaces that they share."""

import re

import pytest
import torch

from geometry.cameras import Cameras
from geometry.exposure import evened, exposures
from splat.model import GaussianModel
from splat.pipeline import _refined as refine_result
from splat.reconstruct import reconstruct
from splat.render import render

SIZE = (56, 84)
WALL = 4.0
GAINS = torch.tensor([[0.8, 0.8, 0.8], [1.0, 1.1, 1.2], [1.25, 1.2, 1.1], [1.0, 0.95, 0.95]])


@pytest.fixture(scope="module")
def nano():
    return GaussianModel.from_pretrained("nano")


def wall(views: int = 4) -> tuple[torch.Tensor, torch.Tensor, Cameras]:
    """A painted wall seen by cameras side by side: images [1, V, 3, H, W], log depth [1, V, H, W], cameras [1, V]."""
    w2c = torch.eye(4).repeat(1, views, 1, 1)
    w2c[0, :, 0, 3] = -0.3 * torch.arange(views)
    K = torch.tensor([[80.0, 0, SIZE[1] / 2], [0, 80.0, SIZE[0] / 2], [0, 0, 1]]).expand(1, views, 3, 3)
    x = (torch.arange(SIZE[1]) + 0.5 - SIZE[1] / 2) / 80 * WALL + 0.3 * torch.arange(views)[:, None, None]
    y = (torch.arange(SIZE[0])[:, None] + 0.5 - SIZE[0] / 2) / 80 * WALL
    images = torch.stack([0.5 + 0.2 * torch.sin(k * x + y) * torch.cos(y - k) for k in (1.0, 2.0, 3.0)], 1)[None]
    return images, torch.full((1, views, *SIZE), WALL).log(), Cameras(w2c, K, SIZE)


def off_mean(gains: torch.Tensor) -> torch.Tensor:
    return gains / gains.log().mean(-2, keepdim=True).exp()


def test_gains_are_found_and_taken_out():
    images, depth, cameras = wall()
    photos = images * GAINS[..., None, None]
    found = exposures(photos, depth, cameras)
    torch.testing.assert_close(found[0], off_mean(GAINS), rtol=0.02, atol=0)
    left = exposures(evened(photos, found), depth, cameras)
    assert (left - 1).abs().max() < 0.002


def test_somebody_in_the_way_and_what_is_cut_off_do_not_count():
    images, depth, cameras = wall()
    photos = (images * GAINS[..., None, None]).clone()
    photos[0, 1, :, 10:50, 20:45] = 0.1  # as dark, at the wall's depth
    photos[0, 2, :, :20] = 1.0  # burnt out
    photos[0, 3, :, :, :30], depth[0, 3, :, :30] = 0.3, 0.3  # close before the lens
    found = exposures(photos, depth, cameras)
    torch.testing.assert_close(found[0], off_mean(GAINS), rtol=0.04, atol=0)


def test_equal_photos_stay_and_slight_gains_fade():
    images, depth, cameras = wall()
    assert (exposures(images, depth, cameras) - 1).abs().max() < 1e-4
    gains = 1 + 0.01 * torch.tensor([-1.0, 1, -1, 1])[:, None].expand(4, 3)
    assert (exposures(images * gains[..., None, None], depth, cameras) - 1).abs().max() < 0.002


def test_views_that_share_nothing_have_the_exposure_1():
    images, depth, cameras = wall(3)
    photos = images * GAINS[:3, :, None, None]
    turned = cameras.w2c.clone()
    turned[:, 1, [0, 2]] *= -1  # looks the other way
    found = exposures(photos, depth, Cameras(turned, cameras.K, SIZE))
    others = GAINS[[0, 2]].log()
    expected = torch.stack([others[0] - others[1], 0 * others[0], others[1] - others[0]]) / 2
    torch.testing.assert_close(found[0], expected.exp(), rtol=0.02, atol=0)
    alone = exposures(photos[:, :1], depth[:, :1], cameras[:, :1])
    assert alone.shape == (1, 1, 3) and bool((alone == 1).all())


def test_the_unit_of_length_drops_out_and_scenes_of_a_batch_do_not_meet():
    images, depth, cameras = wall()
    photos = images * GAINS[..., None, None]
    w2c = cameras.w2c.clone()
    w2c[..., :3, 3] *= 7
    both = Cameras(torch.cat([w2c, cameras.w2c]), torch.cat([cameras.K] * 2), SIZE)
    depths = torch.cat([depth + torch.tensor(7.0).log(), depth])
    found = exposures(torch.cat([photos, images]), depths, both)
    torch.testing.assert_close(found[:1], exposures(photos, depth, cameras), rtol=1e-3, atol=0)
    assert (found[1] - 1).abs().max() < 1e-3


def test_no_gradient_comes_back():
    images, depth, cameras = wall()
    assert not exposures(images.requires_grad_(), depth.requires_grad_(), cameras).requires_grad


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    images, depth, cameras = wall()
    photos = images * GAINS[..., None, None]
    got = exposures(photos.cuda(), depth.cuda(), cameras.to("cuda"))
    torch.testing.assert_close(got.cpu(), exposures(photos, depth, cameras), rtol=1e-3, atol=0)


def test_reconstructions_have_the_mean_exposure_and_say_so(nano):
    images, _, cameras = wall()
    photos, cameras = images[0] * GAINS[..., None, None], cameras[0]
    result = reconstruct(photos, cameras, nano)
    torch.testing.assert_close(result.exposure, off_mean(GAINS), rtol=0.05, atol=0)
    torch.testing.assert_close(result.images, photos)  # which are kept as they were
    assert [note for note in result.notes if "up to 2" in note and "off their mean" in note]
    with torch.no_grad():
        shown = render(result.gaussians, cameras).color.movedim(-1, -3)
    assert (shown - result.evened).abs().mean() < 0.02 < (shown - photos).abs().mean()

    even = reconstruct(images[0], cameras, nano)
    assert not even.notes and (even.evened - images[0]).abs().max() < 0.005
    assert reconstruct(photos, None, nano).exposure is None  # poses decide which surfaces are the same


def test_refinement_does_not_bring_the_patchwork_back(nano):
    images, _, cameras = wall()
    result = reconstruct(images[0] * GAINS[..., None, None], cameras[0], nano)
    refined, note = refine_result(result, 3)
    before, after = (float(x) for x in re.findall(r"[\d.]+(?= dB|$)", note))
    assert after >= before > 30
    with torch.no_grad():
        shown = render(refined.gaussians, refined.cameras).color.movedim(-1, -3)
    assert (shown - result.evened).abs().mean() < 0.02
