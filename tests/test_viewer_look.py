"""How a scene is drawn: thresholds, pictures of each kind, thinning, the browser's splats, clouds of points."""

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from splat.outputs import psnr
from tests import viewer_scene
from tests.viewer_scene import SIZE, wall
from viewer.cameras_panel import point_cloud
from viewer.exhibit import make_exhibit
from viewer.look import Look, browser_splats, picture, rendered, shown, thin


@pytest.fixture(scope="module")
def exhibit():
    return viewer_scene.exhibit()


def test_thresholds_hide_what_they_say(exhibit):
    gaussians = exhibit.gaussians
    opacities = torch.linspace(0, 1, gaussians.count)
    faded = make_exhibit(
        "f", Gaussians(*[*list(vars(gaussians).values())[:3], opacities, gaussians.sh]), exhibit.cameras
    )
    assert shown(faded, Look(opacity=0.25)).opacities.min() >= 0.25
    assert abs(shown(faded, Look(opacity=0.25)).count - 0.75 * gaussians.count) < 2
    assert shown(faded, Look(degree=0)).sh.shape[1] == 1 and shown(faded, Look(degree=3)).sh.shape[1] == 4


def test_confidence_counts_only_with_a_gaussian_for_each_pixel(exhibit):
    assert exhibit.splat_confidence is None
    assert shown(exhibit, Look(confidence=0.5)).count == exhibit.gaussians.count
    sure = torch.arange(4096.0).reshape(1, 64, 64)
    matched = make_exhibit("m", exhibit.gaussians, exhibit.cameras, confidence=sure)
    left = shown(matched, Look(confidence=0.5))
    assert left.count == 2048 and torch.equal(left.means, exhibit.gaussians.means[2048:])


def test_pictures_of_each_kind(exhibit):
    camera, gaussians = exhibit.cameras[:1], exhibit.gaussians
    color = picture(exhibit, gaussians, camera, Look(background=(0, 0, 0)))
    assert np.abs(color - np.round(255 * exhibit.images[0].permute(1, 2, 0).numpy())).max() <= 1
    alpha = picture(exhibit, gaussians, camera, Look(kind="alpha"))
    assert alpha.shape == (*SIZE, 3) and alpha.max() > 240
    assert picture(exhibit, gaussians, camera, Look(kind="depth")).std() > 5
    clipped = picture(exhibit, gaussians, camera, Look(kind="alpha", near=1.0))
    assert clipped.mean() < alpha.mean()


def test_thinning_keeps_the_picture(exhibit):
    camera, black = exhibit.cameras[:1], Look(background=(0, 0, 0))
    whole = rendered(exhibit, exhibit.gaussians, camera, black).color
    few = thin(exhibit.gaussians, 900)
    assert 890 <= few.count <= 900
    largest = exhibit.gaussians.select(exhibit.gaussians.scales.prod(-1).topk(900).indices)
    ours, naive = (psnr(rendered(exhibit, g, camera, black).color, whole) for g in (few, largest))
    assert ours > naive + 5 and ours > 20
    assert thin(exhibit.gaussians, 10**6) is exhibit.gaussians
    assert torch.equal(few.means, thin(exhibit.gaussians, 900).means)


def test_thinning_always_keeps_what_matters_most():
    gaussians = wall(30)
    scales = gaussians.scales.clone()
    scales[7] *= 500
    big = Gaussians(gaussians.means, scales, gaussians.quats, gaussians.opacities, gaussians.sh)
    assert float(thin(big, 100).scales.max()) == pytest.approx(float(scales[7].max()))


def test_the_browsers_splats_are_ours(exhibit):
    gaussians, eye = exhibit.gaussians, torch.tensor([0.1, 0.2, -3.0])
    splats = browser_splats(gaussians, eye, 2.0)
    assert splats.centers.shape == (4096, 3) and splats.opacities.shape == (4096, 1)
    assert np.allclose(splats.centers, 2 * gaussians.means.numpy())
    assert np.allclose(np.linalg.eigvalsh(splats.covariances[5]), (2 * 2.5 / 64) ** 2, rtol=1e-4)
    # The colour is what the server shows from that eye.
    w2c = torch.eye(4)
    w2c[:3, 3] = -eye
    one = gaussians.select(slice(2080, 2081))
    solid = Gaussians(one.means, 50 * one.scales, one.quats, torch.ones(1), one.sh)
    exact = rendered(exhibit, solid, Cameras(w2c[None], exhibit.cameras.K[:1], SIZE), Look())
    u, v = (exhibit.cameras.K[0] @ ((one.means[0] - eye) / (one.means[0] - eye)[2]))[:2].long().tolist()
    assert np.allclose(exact.color[0, v, u], browser_splats(one, eye, 1.0).rgbs[0], atol=0.01)


def test_what_is_far_is_within_the_browsers_reach_and_looks_the_same(exhibit):
    eye, gaussians = exhibit.cameras.centers[0], exhibit.gaussians.select(slice(0, 200))
    stretch = torch.linspace(1, 3e5, 200)[:, None]
    far = Gaussians(
        eye + stretch * (gaussians.means - eye), stretch * gaussians.scales, *list(vars(gaussians).values())[2:]
    )
    near, here = browser_splats(gaussians, eye, 2.0), browser_splats(far, eye, 2.0)
    ways = [splats.centers - 2 * eye.numpy() for splats in (near, here)]
    distances = [np.linalg.norm(way, axis=1) for way in ways]
    assert distances[1].max() < 500 and (np.diff(distances[1][20:]) > 0).mean() > 0.9
    assert np.allclose(ways[0] / distances[0][:, None], ways[1] / distances[1][:, None], atol=1e-4)
    widths = [np.sqrt(s.covariances[:, 0, 0]) / d for s, d in zip((near, here), distances, strict=True)]
    assert np.allclose(*widths, rtol=1e-3) and here.covariances.max() < 65504
    assert np.allclose(here.centers[0], 2 * far.means[0].numpy(), atol=1e-5)


def test_points_lie_on_the_surface_and_obey_the_threshold(exhibit):
    xyz, rgb, width = point_cloud(exhibit, "in the photos' colours", 0.0)
    inside = np.abs(xyz[:, 0]) < 1.5
    assert np.abs(xyz[inside, 2] - 4).mean() < 0.05 and rgb.dtype == np.uint8 and width > 0
    fewer, _, _ = point_cloud(exhibit, "coloured by confidence", 0.9)
    assert 0.05 < len(fewer) / len(xyz) < 0.15
