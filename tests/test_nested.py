"""Nested networks: the official figures, and laws of the metric scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras
from geometry.metric import in_metres, metric_depth, metric_scale, scale_note
from geometry.monocular import MonocularGeometry
from geometry.network import Geometry
from geometry.presets import PRESETS, config_from_dict
from tests.test_network import NoReads, some_cameras
from tests.tiny_networks import KINDS_DATA, golden, images, samples, tiny_config, tiny_model

SIZE = (28, 42)


@pytest.fixture(scope="module")
def model():
    return tiny_model("nested")


def test_official_figures(model):
    """Upstream leaves the Gaussians in the unit of the any-view network; ours are metric, so they are divided here."""
    few = np.load(KINDS_DATA)
    views, height, width = few["nested/size"]
    inputs = images(views, (height, width))
    monocular = model.da3_metric(inputs)
    geometry, gaussians = model(inputs)
    values = {
        "mid.metric.depth": monocular.depth,
        "mid.metric.sky": monocular.sky,
        "out.depth": geometry.depth,
        "out.depth_conf": geometry.confidence,
        "out.extrinsics": geometry.cameras.w2c[..., :3, :],
        "out.intrinsics": geometry.cameras.K,
        "out.gaussians.means": gaussians.means / geometry.scale,
        "out.gaussians.scales": gaussians.scales / geometry.scale,
        "out.scale_factor": geometry.scale[0],
    }
    assert (geometry.sky >= 0.3).any() and scale_note(geometry) is None
    for name, value in values.items():
        np.testing.assert_allclose(samples(value), few[f"nested/{name}"], rtol=1e-5, atol=1e-4, err_msg=name)
    figures = golden("nested")
    for name, value in values.items():
        np.testing.assert_allclose(value, figures[name], rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("posed", [False, True])
@torch.no_grad()
def test_two_scenes_at_once_are_each_alone(model, posed):
    inputs = torch.cat([images(18, SIZE)[:, :9], images(18, SIZE)[:, 9:]])
    cameras = some_cameras(9, batch=2) if posed else None
    together, splats = model(inputs, cameras)
    assert together.scale[0] != together.scale[1]
    for b in range(2):
        alone, own = model(inputs[b : b + 1], None if cameras is None else cameras[b : b + 1])
        torch.testing.assert_close(together.scale[b : b + 1], alone.scale, rtol=1e-4, atol=0)
        torch.testing.assert_close(together.depth[b : b + 1], alone.depth, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(splats.means[b : b + 1], own.means, rtol=1e-4, atol=1e-4)


def test_geometry_and_gaussians_share_one_scale(model):
    """Depth, cameras and Gaussians are those of the any-view network, all times the same factor."""
    inputs = images(2, SIZE)
    geometry, gaussians = model(inputs)
    plain, plain_gaussians = model.da3(inputs)
    factor = geometry.scale[0]
    torch.testing.assert_close(gaussians.means, plain_gaussians.means * factor)
    torch.testing.assert_close(gaussians.scales, plain_gaussians.scales * factor)
    assert gaussians.sh.equal(plain_gaussians.sh) and gaussians.quats.equal(plain_gaussians.quats)
    torch.testing.assert_close(geometry.cameras.centers, plain.cameras.centers * factor)
    ground = geometry.sky < 0.3
    torch.testing.assert_close(geometry.depth[ground], plain.depth[ground] * factor)
    assert geometry.confidence[~ground].eq(1).all()


def test_only_what_is_asked_for_runs(model):
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in {"gs": model.da3.gs_head, "metric": model.da3_metric.head, "any": model.da3.head}.items()
    ]
    inputs = images(2, SIZE)
    model.geometry(inputs)
    assert ran == ["any", "metric"]
    ran.clear()
    model.da3.decode(model.da3.encode(inputs))
    assert ran == ["any"]
    for hook in hooks:
        hook.remove()


def test_forward_never_reads_from_the_device(model):
    with NoReads():
        model(images(3, SIZE), rays=True)


def scene(scale: float, seed: int = 0) -> tuple[Geometry, MonocularGeometry]:
    """Geometry in some unit, and the monocular answer that says that unit is `scale` metres; a third is sky."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(1, 2, 30, 20, generator=generator) + 0.5
    w2c = torch.eye(4).repeat(1, 2, 1, 1)
    w2c[0, 1, :3, 3] = torch.tensor([1.0, 2.0, 3.0])
    K = torch.tensor([[300.0, 0, 10], [0, 600.0, 15], [0, 0, 1]]).expand(1, 2, 3, 3)
    rays = torch.rand(1, 2, 16, 8, 6, generator=generator)
    confidence = 1 + torch.rand(1, 2, 30, 20, generator=generator)
    geometry = Geometry(depth, confidence, rays, rays[..., 0], Cameras(w2c, K, (30, 20)))
    sky = torch.zeros_like(depth)
    sky[..., :10, :] = 1
    return geometry, MonocularGeometry(depth * scale / 1.5, sky)  # the mean focal length is 1.5 canonical ones


@pytest.mark.parametrize("scale", [0.01, 1.0, 70.0])
def test_the_scale_is_found(scale):
    geometry, monocular = scene(scale)
    torch.testing.assert_close(metric_depth(monocular, geometry.cameras, 300.0), geometry.depth * scale)
    metric = in_metres(geometry, monocular, 300.0)
    torch.testing.assert_close(metric.scale, torch.tensor([scale]))
    torch.testing.assert_close(metric.cameras.w2c[0, 1, :3, 3], scale * torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(metric.rays[..., 3:], scale * geometry.rays[..., 3:])
    assert metric.rays[..., :3].equal(geometry.rays[..., :3]) and metric.cameras.K.equal(geometry.cameras.K)
    ground = metric.depth[..., 10:, :]
    torch.testing.assert_close(ground, geometry.depth[..., 10:, :] * scale)
    torch.testing.assert_close(metric.depth[..., :10, :].max(), ground.quantile(0.99).clamp_max(200))


def test_unsure_near_and_sky_pixels_do_not_count():
    geometry, monocular = scene(2.0)
    least = geometry.confidence[..., 10:, :].quantile(0.5)
    wrong = (geometry.confidence < least) | (monocular.sky > 0)
    metres = torch.where(wrong, 1e6, geometry.depth * 2)
    torch.testing.assert_close(metric_scale(geometry, metres, monocular.sky), torch.tensor([2.0]))
    near = torch.zeros_like(wrong)
    near[..., 15, :] = True
    geometry = dataclasses.replace(geometry, depth=torch.where(near, 1e-4, geometry.depth))
    metres = torch.where(near, 1e6, metres)
    torch.testing.assert_close(metric_scale(geometry, metres, monocular.sky), torch.tensor([2.0]))
    metres = torch.where(near, 1e-3, metres)
    torch.testing.assert_close(metric_scale(geometry, metres, monocular.sky), torch.tensor([2.0]))


@pytest.mark.parametrize("ground", [0, 10])
def test_nothing_but_sky(ground):
    geometry, monocular = scene(5.0)
    sky = torch.ones_like(geometry.depth)
    sky.view(-1)[:ground] = 0
    metric = in_metres(geometry, MonocularGeometry(monocular.depth, sky), 300.0)
    assert metric.scale.tolist() == [1.0]
    assert metric.depth.equal(geometry.depth) and metric.confidence.equal(geometry.confidence)
    assert metric.cameras.w2c.equal(geometry.cameras.w2c)
    assert "nothing but sky" in scale_note(metric) and scale_note(geometry) is None


def test_one_scene_of_sky_beside_another():
    (geometry, monocular), nothing = scene(5.0), torch.ones(1, 2, 30, 20)
    cameras = Cameras(geometry.cameras.w2c.repeat(2, 1, 1, 1), geometry.cameras.K.repeat(2, 1, 1, 1), (30, 20))
    both = Geometry(geometry.depth.repeat(2, 1, 1, 1), geometry.confidence.repeat(2, 1, 1, 1), None, None, cameras)
    seen = MonocularGeometry(monocular.depth.repeat(2, 1, 1, 1), torch.cat([nothing, monocular.sky]))
    torch.testing.assert_close(in_metres(both, seen, 300.0).scale, torch.tensor([1.0, 5.0]))


def test_nothing_sure_enough():
    geometry, monocular = scene(5.0)
    metres = torch.zeros_like(geometry.depth)
    assert metric_scale(geometry, metres, monocular.sky).tolist() == [1.0]


def test_sky_is_no_farther_than_200_metres():
    geometry, monocular = scene(1000.0)
    assert in_metres(geometry, monocular, 300.0).depth[..., :10, :].eq(200).all()


def test_configurations():
    nested = PRESETS["nested"]
    assert nested.anyview == PRESETS["giant"] and nested.metric == PRESETS["metric"]
    assert config_from_dict(dataclasses.asdict(nested)) == nested
    with pytest.raises(ValueError, match="canonical_focal must be given"):
        tiny_config("nested", metric=tiny_config("m", canonical_focal=None))
    with pytest.raises(ValueError, match="config.kind must be one of any-view, monocular, nested"):
        config_from_dict({"kind": ["nested"]})
    geometry, _ = scene(1.0)
    with pytest.raises(ValueError, match="both be given or both be None"):
        dataclasses.replace(geometry, sky=geometry.depth)
    with pytest.raises(ValueError, match=r"\.scale \(1,\)"):
        dataclasses.replace(geometry, sky=geometry.depth, scale=torch.ones(2))
    assert in_metres(*scene(1.0), 300.0).to(torch.float64).sky.dtype == torch.float64
