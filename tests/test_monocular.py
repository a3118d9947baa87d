"""Monocular networks: the official figures, and laws of what is made of the sky."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from geometry import dpt
from geometry.monocular import MonocularGeometry, fill_sky, quantile
from geometry.presets import PRESETS, BackboneConfig, HeadConfig, MonocularConfig
from tests.tiny_networks import KINDS_DATA, golden, images, samples, tiny_config, tiny_model

SIZE = (28, 42)


@pytest.fixture(scope="module")
def model():
    return tiny_model("m")


def outputs(model, case: str, figures) -> dict[str, np.ndarray]:
    views, height, width = figures[f"{case}/size"]
    features = model.encode(images(views, (height, width)))
    geometry = model.decode(features)
    values = {f"mid.feats.{k}.patch": features.patches[k] for k in range(4)}
    values |= {
        "mid.feats.3.cam": features.camera,
        "mid.head.depth": model.head(features.patches, features.size)[0],
        "out.depth": geometry.depth,
        "out.sky": geometry.sky,
    }
    return {name: value.numpy() for name, value in values.items()}


@pytest.mark.parametrize("case", ["net_mono_v1", "net_mono_v2"])
def test_official_figures(model, case):
    few = np.load(KINDS_DATA)
    values = outputs(model, case, few)
    for name in ("mid.feats.0.patch", "mid.feats.3.patch", "mid.feats.3.cam", "mid.head.depth", "out.depth", "out.sky"):
        np.testing.assert_allclose(samples(values[name]), few[f"{case}/{name}"], rtol=1e-5, atol=1e-4, err_msg=name)
    assert (values["out.depth"] != values["mid.head.depth"]).any()  # there is sky
    all_of_them = golden(case)
    for name, value in values.items():
        np.testing.assert_allclose(value, all_of_them[name], rtol=1e-5, atol=1e-4, err_msg=name)


def test_views_do_not_see_each_other(model):
    inputs = images(3, SIZE)
    features = model.encode(inputs)
    for v in range(3):
        alone = model.encode(inputs[:, v : v + 1])
        torch.testing.assert_close(features.patches[3][:, v : v + 1], alone.patches[3], rtol=0, atol=2e-5)


@torch.no_grad()
def test_batches_of_any_size(model, monkeypatch):
    """Nine views of two scenes, in chunks, are what each scene gives alone."""
    inputs = torch.cat([images(18, SIZE)[:, :9], images(18, SIZE)[:, 9:]])
    together = model(inputs)
    assert together.depth.shape == together.sky.shape == (2, 9, *SIZE)
    monkeypatch.setattr(dpt, "VIEWS_AT_ONCE", 100)
    for b in range(2):
        alone = model(inputs[b : b + 1])
        torch.testing.assert_close(together.depth[b : b + 1], alone.depth, rtol=0, atol=2e-5)
        torch.testing.assert_close(together.sky[b : b + 1], alone.sky, rtol=0, atol=2e-5)


def test_exported_layers(model):
    features = model.encode(images(3, SIZE), export_layers=(0, 5))
    assert set(features.layers) == {0, 5} and features.layers[0].shape == (1, 3, 2, 3, 64)
    torch.testing.assert_close(features.layers[5].flatten(2, 3), features.patches[3])
    assert model.encode(images(1, SIZE)).layers == {}


def test_everything_learns():
    model = tiny_model("m").requires_grad_(True)
    geometry = model(images(2, SIZE))
    (geometry.depth.sum() + geometry.sky.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_sky_lies_as_deep_as_the_far_end_of_the_rest():
    depth = torch.linspace(1, 2, 400).view(1, 1, 20, 20)
    sky = torch.zeros(1, 1, 20, 20)
    sky[..., :10, :] = 0.3  # the threshold itself is sky
    filled = fill_sky(depth, sky)
    assert filled[..., 10:, :].equal(depth[..., 10:, :])
    torch.testing.assert_close(filled[..., :10, :], depth[..., 10:, :].quantile(0.99).expand(1, 1, 10, 20))


@pytest.mark.parametrize("above", [0, 10, 390, 400])
def test_too_few_pixels_conclude_nothing(above):
    depth = torch.rand(1, 1, 20, 20)
    sky = (torch.arange(400) < above).float().view(1, 1, 20, 20)
    assert fill_sky(depth, sky).equal(depth)


def test_each_scene_has_its_own_sky():
    depth = torch.rand(2, 3, 14, 14)
    sky = (torch.rand(2, 3, 14, 14) > 0.5).float()
    assert fill_sky(depth, sky).equal(torch.cat([fill_sky(depth[b : b + 1], sky[b : b + 1]) for b in range(2)]))


@pytest.mark.parametrize("q", [0.0, 0.37, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 1001])
def test_quantiles(q, count):
    x = torch.randn(2, count + 5)
    where = torch.cat([torch.ones(2, count), torch.zeros(2, 5)], 1).bool()
    torch.testing.assert_close(quantile(x, where, q), x[:, :count].quantile(q, 1), rtol=1e-6, atol=1e-6)
    assert quantile(x, torch.zeros_like(where), q).isposinf().all()


@pytest.mark.slow
def test_quantiles_beyond_the_16_million_of_torch():
    x = torch.arange(2**24 + 3).float().view(1, -1)
    assert quantile(x, torch.ones_like(x).bool(), 0.99).item() == pytest.approx(0.99 * (2**24 + 2), rel=1e-7)


def test_wrong_values_are_named(model):
    with pytest.raises(ValueError, match="multiples of 14"):
        model(images(1, SIZE)[..., :40])
    with pytest.raises(ValueError, match="B and V > 0"):
        model(images(1, SIZE)[:, :0])
    with pytest.raises(ValueError, match="export_layers must be blocks from 0 to 5"):
        model.encode(images(1, SIZE), export_layers=(6,))
    with pytest.raises(ValueError, match="MonocularGeometry"):
        MonocularGeometry(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 5))
    config = tiny_config("m")
    meeting = BackboneConfig(dim=64, depth=6, heads=4, out_layers=(1, 2, 4, 5), alt_start=2)
    with pytest.raises(ValueError, match="alt_start must be null"):
        dataclasses.replace(config, backbone=meeting)
    with pytest.raises(ValueError, match="ray_levels must be 0"):
        dataclasses.replace(config, head=HeadConfig(features=32, out_channels=(16, 32, 48, 64)))
    with pytest.raises(ValueError, match="views of a scene never meet"):
        dataclasses.replace(tiny_config("a"), backbone=config.backbone)
    assert isinstance(PRESETS["metric"], MonocularConfig) and PRESETS["mono"].canonical_focal is None
