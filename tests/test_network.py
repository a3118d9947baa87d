"""Laws of the network: names of its parameters, what may and may not change its output, its hooks, its errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geometry import dpt
from geometry.camera_heads import normalize_cameras
from geometry.cameras import Cameras
from geometry.cue import CueConfig
from geometry.network import Features, Geometry
from geometry.presets import PRESETS, HeadConfig, config_from_dict
from splat.model import GaussianModel
from tests.tiny_networks import images, random_rotations, tiny_config, tiny_model

SIZE = (28, 42)


@pytest.fixture(scope="module")
def model():
    return tiny_model("a")


def some_cameras(views: int, batch: int = 1, size: tuple[int, int] = SIZE) -> Cameras:
    generator = torch.Generator().manual_seed(views)
    w2c = torch.eye(4).repeat(batch, views, 1, 1)
    w2c[..., :3, :3] = random_rotations(batch, views, seed=views).float()
    w2c[..., :3, 3] = torch.randn(batch, views, 3, generator=generator)
    K = torch.tensor([[40.0, 0, size[1] / 2], [0, 42.0, size[0] / 2], [0, 0, 1]]).expand(batch, views, 3, 3)
    return normalize_cameras(Cameras(w2c, K, size))[0]


@torch.no_grad()  # with gradients there are no chunks
def test_heads_do_not_depend_on_chunks(model, monkeypatch):
    features = model.encode(images(3, SIZE))
    whole = model.decode(features, rays=True), model.gaussians(features, model.decode(features))
    monkeypatch.setattr(dpt, "VIEWS_AT_ONCE", 2)
    parts = model.decode(features, rays=True), model.gaussians(features, model.decode(features))
    for name in ("depth", "confidence", "rays", "ray_confidence"):
        torch.testing.assert_close(getattr(parts[0], name), getattr(whole[0], name), rtol=0, atol=2e-5)
    torch.testing.assert_close(parts[1].means, whole[1].means, rtol=0, atol=2e-5)


@pytest.mark.parametrize("views", [1, 3, 9])
@pytest.mark.parametrize("posed", [False, True])
@torch.no_grad()  # nine views of two scenes go through the heads in chunks
def test_two_scenes_at_once_are_each_alone(model, posed, views):
    one = images(2 * views + 1, SIZE)
    batch = torch.cat([one[:, :views], one[:, views + 1 :]])
    cameras = some_cameras(views, batch=2) if posed else None
    together, splats = model(batch, cameras, rays=True)
    for b in range(2):
        alone, own = model(batch[b : b + 1], None if cameras is None else cameras[b : b + 1], rays=True)
        for name in ("depth", "confidence", "rays", "ray_confidence"):
            torch.testing.assert_close(getattr(together, name)[b : b + 1], getattr(alone, name), rtol=0, atol=2e-5)
        torch.testing.assert_close(together.cameras.w2c[b : b + 1], alone.cameras.w2c, rtol=0, atol=2e-5)
        for name in ("means", "scales", "opacities", "sh"):
            torch.testing.assert_close(getattr(splats, name)[b : b + 1], getattr(own, name), rtol=0, atol=1e-4)


def test_exported_layers_keep_the_order_of_the_views(model):
    """Also behind the block where the reference view is moved to the front, another one in each scene of a batch."""
    one = images(9, SIZE)
    batch = torch.cat([one[:, :4], one[:, [8, 5, 7, 6]]])
    layers = model.encode(batch, export_layers=(2, 3, 6)).layers
    assert list(layers) == [2, 3, 6]
    for b, order in enumerate(([3, 1, 0, 2], [1, 0, 3, 2])):
        moved = model.encode(batch[b : b + 1, order], export_layers=(2, 3, 6)).layers
        for i, tokens in layers.items():
            assert tokens.shape == (2, 4, 2, 3, 64)
            torch.testing.assert_close(moved[i], tokens[b : b + 1, order], rtol=0, atol=2e-5)


def test_exported_layers_only_when_asked(model):
    ran = []
    handle = model.backbone.pretrained.norm.register_forward_hook(lambda *_: ran.append(1))
    features = model.encode(images(1, SIZE))
    assert features.layers == {} and len(ran) == 4
    model.encode(images(1, SIZE), export_layers=(0, 7))
    handle.remove()
    assert len(ran) == 4 + 6
    with pytest.raises(ValueError, match=r"export_layers must be blocks from 0 to 7, got \(8,\)"):
        model.encode(images(1, SIZE), export_layers=(8,))


def test_order_of_views_other_than_the_first_does_not_matter(model):
    inputs, order = images(4, SIZE), [0, 3, 1, 2]
    straight = model.geometry(inputs, reference_view="first")
    permuted = model.geometry(inputs[:, order], reference_view="first")
    torch.testing.assert_close(permuted.depth, straight.depth[:, order], rtol=0, atol=2e-5)
    torch.testing.assert_close(permuted.cameras.w2c, straight.cameras.w2c[:, order], rtol=0, atol=2e-5)


def test_the_chosen_reference_view_does_not_depend_on_order(model):
    inputs, order = images(4, SIZE), [2, 0, 3, 1]
    straight, permuted = model.geometry(inputs), model.geometry(inputs[:, order])
    torch.testing.assert_close(permuted.depth, straight.depth[:, order], rtol=0, atol=2e-5)


def test_views_see_each_other_and_cameras_count(model):
    inputs = images(2, SIZE)
    depth = model.geometry(inputs).depth[:, 0]
    assert (model.geometry(inputs[:, :1]).depth[:, 0] - depth).abs().max() > 1e-2
    assert (model.geometry(inputs, some_cameras(2)).depth[:, 0] - depth).abs().max() > 1e-2


def test_rays_only_when_asked(model):
    features = model.encode(images(1, SIZE))
    ran = []
    handle = model.head.scratch.refinenet1_aux.register_forward_hook(lambda *_: ran.append(1))
    plain, full = model.decode(features), model.decode(features, rays=True)
    handle.remove()
    assert len(ran) == 1
    assert plain.rays is None and plain.ray_confidence is None
    assert full.rays.shape == (1, 1, 16, 24, 6) and full.ray_confidence.shape == (1, 1, 16, 24)
    assert full.depth.equal(plain.depth)


@pytest.mark.parametrize("kind", ["a", "m"])
def test_no_pixel_is_infinitely_far(kind):
    """One that is would make the loss of its whole batch infinite, and the step would be lost."""
    model = tiny_model(kind).requires_grad_(True)
    with torch.no_grad():
        model.head.scratch.output_conv2[-1].bias += 100
    result = model(images(2, SIZE), rays=True)[0] if kind == "a" else model(images(2, SIZE))
    assert result.depth.square().isfinite().all()
    result.depth.log().mean().backward()
    gradients = [p.grad for p in model.head.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


class NoReads(TorchDispatchMode):
    """Fails on what would make a GPU's host wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("convention", ["upstream", "exact"])
@pytest.mark.parametrize("posed", [False, True])
def test_forward_never_reads_from_the_device(convention, posed):
    config = tiny_config("a")
    model = tiny_model("a", gs=dataclasses.replace(config.gs, convention=convention, rgb_residual=True))
    with NoReads():
        model(images(3, SIZE), some_cameras(3) if posed else None, rays=True)


def test_everything_learns():
    model = tiny_model("a").requires_grad_(True)
    posed = model(images(3, SIZE), some_cameras(3), rays=True)
    free = model(images(3, SIZE))
    values = [posed[0].depth, posed[0].confidence, posed[0].rays, posed[0].ray_confidence, free[0].cameras.w2c]
    values += [getattr(free[1], name) for name in ("means", "scales", "quats", "opacities", "sh")]
    sum((v * torch.linspace(0.5, 1.5, v.numel()).view_as(v)).sum() for v in values).backward()
    for name, parameter in model.named_parameters():
        if any(f"_aux.{level}." in name for level in (0, 1, 2)) and "conv2_aux.0.2." not in name:
            assert parameter.grad is None, name  # published, but of no use
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_tables_of_inference_serve_training(model):
    size = (14, 70)  # one that no other test asks for
    with torch.inference_mode():
        model.geometry(images(2, size))
    trained = tiny_model("a").requires_grad_(True)
    trained.geometry(images(2, size)).depth.sum().backward()


def test_hooks_of_the_backbone():
    model = tiny_model("a")
    inputs, cameras = images(3, SIZE), some_cameras(3)
    calls = []

    class Relative:
        def before(self, q, k, v):
            calls.append(q.shape)
            return q, k, v + 1

        def after(self, out):
            return out - 1

    tokens = model.cam_enc(cameras)
    plain = model.backbone(inputs, tokens).patches
    moved = model.backbone(inputs, tokens, relative=Relative()).patches
    assert calls == [(1, 4, 3 * 7, 16)] * 2  # blocks 5 and 7
    torch.testing.assert_close(moved[0], plain[0])  # before the first of them
    assert (moved[3] - plain[3]).abs().max() < 0.3 < plain[3].abs().max()  # but for the RoPE of camera tokens alike
    biased = model.backbone(inputs, tokens, patch_bias=torch.full((1, 3, 6, 64), 0.5)).patches
    assert (biased[0] - plain[0]).abs().max() > 1e-2


def test_hooks_of_the_heads():
    model = tiny_model("a")
    features = model.encode(images(2, SIZE))
    depth = model.decode(features).depth
    prior = torch.linspace(-1, 1, depth.numel()).view_as(depth)
    patches = features.patches
    shifted = model.head(patches, SIZE, log_depth=prior)[0]
    # What is added to a prior is bounded, a factor of 4.8 at most, and what the borders say is not heard.
    added, want = shifted.log() - prior, depth.log().atan()
    border = min(SIZE) // 4
    rows, columns = (torch.arange(side).clamp(border, side - 1 - border) for side in SIZE)
    torch.testing.assert_close(added, want[..., rows[:, None], columns], rtol=1e-4, atol=1e-5)
    lateral = torch.ones(2, 32, 8, 12)
    assert (model.head(patches, SIZE, lateral=lateral)[0] - depth).abs().max() > 1e-2
    raw = model.gs_head(patches, images(2, SIZE))
    assert (model.gs_head(patches, images(2, SIZE), lateral=lateral) - raw).abs().max() > 1e-2


def test_network_with_a_cue():
    config = tiny_config("a", cue=CueConfig(planes=8, fine_planes=4, channels=(16, 16)), cameras_given="given")
    torch.manual_seed(0)
    model = GaussianModel(config).eval().requires_grad_(False)
    cameras = some_cameras(3)
    features = model.encode(images(3, SIZE), cameras)
    assert features.cue is not None and features.log_depth.shape == (1, 3, *SIZE)
    geometry = model.decode(features)
    assert geometry.cameras is cameras
    assert model.gaussians(features, geometry).count == 3 * SIZE[0] * SIZE[1]
    assert features.compared is not None
    for alone in (model.encode(images(3, SIZE)), model.encode(images(1, SIZE), some_cameras(1))):
        assert alone.cue is not None and alone.compared is None
        # From 0.05 to 27 mean distances, and a factor of 4.8 more from the depth head.
        depth = model.decode(alone).depth
        assert depth.isfinite().all() and depth.min() > 0.01 and depth.max() < 132


def test_the_gaussian_head_hears_the_neighbours():
    """What other views say of a pixel reaches its Gaussian; one view alone has nobody to ask."""
    config = tiny_config("a", cameras_given="given")
    config = dataclasses.replace(config, gs=dataclasses.replace(config.gs, reprojection=2))
    torch.manual_seed(0)
    model = GaussianModel(config).eval().requires_grad_(False)
    geometry, before = model(images(3, SIZE), some_cameras(3))
    torch.nn.init.normal_(model.gs_head.agreement.all[-1].weight)
    _, after = model(images(3, SIZE), some_cameras(3))
    assert (after.opacities - before.opacities).abs().max() > 1e-3
    assert model(images(1, SIZE), some_cameras(1))[1].count == SIZE[0] * SIZE[1]


@pytest.mark.parametrize("levels", [0, 1])
def test_leaner_ray_branches(levels):
    model = tiny_model("a", head=HeadConfig(features=32, out_channels=(16, 32, 48, 64), ray_levels=levels))
    features = model.encode(images(1, SIZE))
    if levels:
        assert model.decode(features, rays=True).rays.shape == (1, 1, 16, 24, 6)
        return
    assert model.decode(features).rays is None
    with pytest.raises(ValueError, match="no ray branch"):
        model.decode(features, rays=True)


def test_wrong_inputs_are_named(model):
    with pytest.raises(ValueError, match=r"\[B, V, 3, H, W\]"):
        model(images(1, SIZE)[0])
    with pytest.raises(ValueError, match=r"multiples of 14, got 28 x 40"):
        model(images(1, SIZE)[..., :40])
    with pytest.raises(ValueError, match=r"cameras must be \(1, 2\) at \(28, 42\) like the images"):
        model(images(2, SIZE), some_cameras(3))
    with pytest.raises(ValueError, match="reference_view must be one of saddle_balanced"):
        model(images(1, SIZE), reference_view="best")
    headless = tiny_model("a", gs=None)
    assert isinstance(headless.geometry(images(1, SIZE)), Geometry)
    assert isinstance(headless.encode(images(1, SIZE)), Features)
    with pytest.raises(ValueError, match="no Gaussian head"):
        headless(images(1, SIZE))


def test_geometry_checks_its_shapes():
    depth, cameras = torch.ones(1, 2, *SIZE), some_cameras(2)
    Geometry(depth, depth, None, None, cameras).to(torch.float64)
    with pytest.raises(ValueError, match="confidence"):
        Geometry(depth, depth[:, :1], None, None, cameras)
    with pytest.raises(ValueError, match="cameras"):
        Geometry(depth, depth, None, None, cameras[:, :1])
    with pytest.raises(ValueError, match="both"):
        Geometry(depth, depth, torch.ones(1, 2, 8, 8, 6), None, cameras)
    with pytest.raises(ValueError, match="rays must be"):
        Geometry(depth, depth, torch.ones(1, 2, 8, 8, 5), torch.ones(1, 2, 8, 8), cameras)


def test_configurations_survive_json():
    for config in (*PRESETS.values(), tiny_config("b", cue=CueConfig())):
        assert config_from_dict(dataclasses.asdict(config)) == config
    small = dataclasses.asdict(PRESETS["small"])
    for part, change, message in (
        ("head", {"out_channels": [1, 2, 3]}, "head.out_channels must be 4 widths"),
        ("head", {"features": 10**12}, "head.features must be 8 to 4096"),
        ("head", {"features": 36}, "head.features must be a multiple of 8"),
        ("head", {"ray_levels": -1}, "head.ray_levels must be 0 to 4"),
        ("camera", {"heads": 0}, "camera.heads must be 1 to 256"),
        ("camera", {"heads": 7}, "camera.heads must divide backbone.dim 384"),
        ("backbone", {"heads": 0}, "backbone.heads must be 1 to 256"),
        ("backbone", {"depth": 10**9}, "backbone.depth must be 4 to 256"),
        ("backbone", {"mlp_ratio": float("nan")}, "config.backbone.mlp_ratio must be finite"),
        ("backbone", {"mlp_ratio": 1e9}, "backbone.mlp_ratio must be 0.125 to 32"),
        ("backbone", {"alt_start": 12}, "backbone.alt_start must be 1 to 11"),
        ("backbone", {"alt_start": True}, "backbone.alt_start must be of type int, got True"),
    ):
        with pytest.raises(ValueError) as error:
            config_from_dict(small | {part: small[part] | change})
        assert message in str(error.value), message
    values = dataclasses.asdict(PRESETS["giant"])
    for change, message in {
        ("dept", 12): "config.backbone has the unknown key 'dept'",
        ("depth", "12"): "config.backbone.depth must be of type int, got '12'",
        ("ffn", "glu"): "config.backbone.ffn must be one of mlp, swiglu, got 'glu'",
        ("out_layers", 3): "config.backbone.out_layers must be a list",
        ("out_layers", (1, 2, 3, 99)): "4 rising blocks below depth 40",
    }.items():
        with pytest.raises(ValueError) as error:
            config_from_dict(values | {"backbone": values["backbone"] | dict([change])})
        assert message in str(error.value), message
    with pytest.raises(ValueError, match="config lacks the key 'head'"):
        config_from_dict({key: value for key, value in values.items() if key != "head"})
