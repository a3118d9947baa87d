"""Predictions: as much as is asked for and no more, and every way of knowing or not knowing cameras."""

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras, project, resize
from geometry.preprocess import preprocess
from geometry.ray_cameras import cameras_from_rays
from splat.model import GaussianModel
from splat.predict import Prediction, predict
from tests.test_reconstruct import SIZE, views
from tests.tiny_networks import golden, tiny_config, tiny_model
from tests.train_run import TINY

PARTS = ("head", "gs_head", "cam_dec", "cam_enc", "da3_metric")


@pytest.fixture
def ran(monkeypatch):
    """Watch a model: the names of its parts that ran, the ray branch among them."""

    def watch(model) -> set[str]:
        names: set[str] = set()
        for path, module in model.named_modules():
            name = path.split(".")[-1]
            if name in PARTS:
                module.register_forward_hook(lambda *_, name=name: names.add(name))
            if name == "output_conv1_aux":
                module[-1].register_forward_hook(lambda *_: names.add("rays"))
        return names

    return watch


@pytest.mark.parametrize(
    ("outputs", "options", "want"),
    [
        ((), {"export_layers": (2,)}, set()),
        (("cameras",), {}, {"cam_dec"}),
        (("depth",), {}, {"head", "cam_dec"}),
        (("depth", "cameras"), {"cameras_from": "rays"}, {"head", "cam_dec", "rays"}),
        (("gaussians",), {}, {"head", "cam_dec", "gs_head"}),
    ],
)
def test_nothing_runs_that_was_not_asked_for(ran, outputs, options, want):
    network = tiny_model("a")
    names = ran(network)
    got = predict(views(3)[0], None, network, outputs, **options)
    assert names == want
    for name in ("depth", "cameras", "gaussians"):
        assert (getattr(got, name) is not None) == (name in outputs), name
    assert (got.confidence is not None) == ("depth" in outputs) and got.sky is None and got.metres is None
    assert {i: tuple(x.shape) for i, x in got.features.items()} == ({2: (3, 3, 4, 64)} if not outputs else {})


def test_given_cameras_come_back_as_they_were():
    images, cameras = views(3)
    got = predict(images, cameras, tiny_model("a"), ["cameras"])
    torch.testing.assert_close(got.cameras.w2c, cameras.w2c, rtol=0, atol=0)
    assert got.depth is None


def test_intrinsics_alone():
    """One view: a known camera. More: they take the place of the predicted ones, and points follow them."""
    images, cameras = views(3)
    network = tiny_model("a")
    one = predict(images[:1], None, network, K=cameras.K[:1])
    posed = predict(images[:1], Cameras(torch.eye(4)[None], cameras.K[:1], SIZE), network)
    torch.testing.assert_close(one.depth, posed.depth, rtol=0, atol=0)
    got, free = (predict(images, None, tiny_model("a", gs=None), K=K) for K in (cameras.K, None))
    torch.testing.assert_close(got.cameras.K, cameras.K)
    torch.testing.assert_close(got.cameras.w2c, free.cameras.w2c)
    pixels, _ = project(got.gaussians.means.reshape(3, -1, 3), got.cameras)
    torch.testing.assert_close(pixels[:, 0], torch.full((3, 2), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(predict(images, None, network, ["cameras"], K=cameras.K).cameras.K, cameras.K)


def test_cameras_from_rays_are_those_of_the_rays():
    images, _ = views(2)
    network = tiny_model("a")
    with torch.no_grad():
        geometry = network.geometry(images[None], rays=True)
    want = cameras_from_rays(geometry.rays, geometry.ray_confidence, SIZE)[0]
    got = predict(images, None, network, cameras_from="rays", frame="network")
    torch.testing.assert_close(got.cameras.w2c, want.w2c)
    torch.testing.assert_close(got.cameras.K, want.K)


def test_the_networks_own_frame():
    images, cameras = views(4)
    network = tiny_model("a")
    with torch.no_grad():
        geometry, gaussians = network(images[None])
    got = predict(images, None, network, frame="network")
    torch.testing.assert_close(got.depth, geometry.depth[0])
    torch.testing.assert_close(got.cameras.w2c, geometry.cameras.w2c[0])
    torch.testing.assert_close(got.gaussians.means, gaussians.means[0])
    given = predict(images, cameras, network, frame="network")
    assert not torch.allclose(given.cameras.w2c, cameras.w2c, atol=1e-2)


def test_metres(ran):
    """Alone a nested network answers in metres, Gaussians too; with given cameras in their unit, which it measures."""
    images, cameras = views(3)
    network = tiny_model("nested")
    alone = predict(images, None, network)
    with torch.no_grad():
        geometry, gaussians = network(images[None])
    assert alone.metres == 1 and alone.sky.shape == alone.depth.shape
    torch.testing.assert_close(alone.depth, geometry.depth[0])
    torch.testing.assert_close(alone.gaussians.scales, gaussians.scales[0])
    given = predict(images, cameras, network)
    bigger = Cameras(cameras.w2c.clone(), cameras.K, SIZE)
    bigger.w2c[:, :3, 3] *= 10
    tenfold = predict(images, bigger, network)
    torch.testing.assert_close(tenfold.depth, 10 * given.depth, rtol=1e-3, atol=0)
    assert tenfold.metres == pytest.approx(given.metres / 10, rel=1e-3)
    names = ran(network)
    predict(images, None, network, (), export_layers=(2,))
    assert names == set()


def test_monocular_networks():
    images, cameras = views(2)
    metric, mono = tiny_model("m"), tiny_model("m", canonical_focal=None)
    relative = predict(images, None, mono, ["depth"])
    assert relative.metres is None and relative.confidence is None and relative.sky is not None
    measured = predict(images, None, metric, ["depth"], K=cameras.K)
    assert measured.metres == 1
    focal = (cameras.K[:, 0, 0] + cameras.K[:, 1, 1]) / 2
    torch.testing.assert_close(measured.depth, relative.depth * (focal / 300)[:, None, None])
    one = predict(images[:1], None, metric, K=cameras.K[:1])
    assert one.gaussians.count == SIZE[0] * SIZE[1] and "no Gaussian head" in one.notes[0]
    for network, outputs, known, message in (
        (mono, ["cameras"], None, "predicts no cameras"),
        (mono, ["gaussians"], cameras, "only one image"),
        (metric, ["depth"], None, "measures depth by the focal length"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(images, known, network, outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": ["pictures"]}, "not 'pictures'"),
        ({"frame": "world"}, "frame can be given, network, not 'world'"),
        ({"cameras_from": "ray"}, "cameras_from can be decoder, rays, matches, not 'ray'"),
        ({"K": torch.eye(3).expand(2, 3, 3)}, r"K must be \(3, 3, 3\)"),
        ({"reference_view": "best"}, "reference_view"),
        ({"mode": "float16"}, "precision must be"),
        ({"export_layers": (99,)}, "export_layers"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        predict(views(3)[0], None, tiny_model("a"), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x * 255).to(torch.uint8), "floating point in 0..1, got torch.uint8"),
        (lambda x: x * 255, "from .* to 2"),
        (lambda x: x.where(x < 0.5, torch.nan), "finite, got values from nan"),
        (lambda x: x[:0], r"one view or more, got \(0, 3"),
        (lambda x: x[:, :1], r"must be \[V, 3, H, W\]"),
        (lambda x: x[None], r"must be \[V, 3, H, W\]"),
        (lambda x: x[..., :-1], "multiples of 14"),
    ],
)
def test_what_are_no_images_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        predict(change(views(3)[0]), None, tiny_model("a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:2], r"cameras must be \[3\] .* got \[2\]"),
        (lambda c: c[None], r"cameras must be \[3\] .* got \[1, 3\]"),
        (lambda c: resize(c, (84, 112)), "got .* of 84x112"),
        (lambda c: Cameras(c.w2c * torch.nan, c.K, SIZE), "camera 0: its pose holds NaN"),
        (lambda c: Cameras(c.w2c * torch.tensor([-1.0, 1, 1, 1])[:, None], c.K, SIZE), "not a rotation"),
        (lambda c: Cameras(c.w2c, -c.K, SIZE), "focal length .* must be above 0"),
    ],
)
def test_what_are_no_cameras_is_said(change, message):
    """As known cameras, and where only intrinsics are at fault as `K` too."""
    images, cameras = views(3)
    wrong, network = change(cameras), tiny_model("a")
    with pytest.raises(ValueError, match=message):
        predict(images, wrong, network)
    if wrong.w2c is cameras.w2c and wrong.size == SIZE:
        with pytest.raises(ValueError, match=message):
            predict(images, None, network, K=wrong.K)


def test_cameras_and_intrinsics_are_one_too_many():
    images, cameras = views(3)
    with pytest.raises(ValueError, match="not both"):
        predict(images, cameras, tiny_model("a"), K=cameras.K)


def test_no_rays_without_a_ray_branch():
    head = tiny_config("a").head
    network = tiny_model("a", head=type(head)(**{**vars(head), "ray_levels": 0}))
    with pytest.raises(ValueError, match="no ray branch"):
        predict(views(2)[0], None, network, cameras_from="rays")


def test_moving_a_prediction_keeps_what_is_missing():
    moved = Prediction(depth=torch.ones(1, 2, 2)).to(torch.float64)
    assert moved.depth.dtype == torch.float64 and moved.cameras is None


def api(case: str, posed: bool) -> tuple[dict, Prediction]:
    figures = golden("api")
    K = figures["in.intrinsics"] if posed else None
    images, K = preprocess(list(figures["in.images_u8"]), K, 56)
    cameras = Cameras(torch.from_numpy(figures["in.extrinsics"]), K, tuple(images.shape[-2:])) if posed else None
    return figures, predict(images, cameras, tiny_model("a"), frame="given" if posed else "network")


def test_published_inference_without_cameras():
    figures, got = api("unposed", posed=False)
    np.testing.assert_allclose(got.depth, figures["unposed.depth"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.cameras.w2c[:, :3], figures["unposed.extrinsics"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.gaussians.means, figures["unposed.gaussians.means"][0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.gaussians.scales, figures["unposed.gaussians.scales"][0], rtol=0, atol=1e-4)


def test_published_inference_with_cameras():
    figures, got = api("posed_align1", posed=True)
    np.testing.assert_allclose(got.depth, figures["posed_align1.depth"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.confidence, figures["posed_align1.conf"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.cameras.K, figures["posed_align1.intrinsics"], rtol=1e-5)


def test_bfloat16_rounds_the_network_not_the_world():
    """Gaussians in the caller's world and in the network's agree up to a similarity, to the digits of float32."""
    images, cameras = views(3)
    torch.manual_seed(0)
    network = GaussianModel(TINY).eval()
    distances = []
    for frame in ("given", "network"):
        got = predict(images, cameras, network, ["gaussians", "cameras"], frame=frame, mode="bfloat16")
        local = got.gaussians.means @ got.cameras.w2c[1, :3, :3].T + got.cameras.w2c[1, :3, 3]
        distances.append(torch.linalg.vector_norm(local, dim=-1))
    ratio = distances[0] / distances[1]
    assert (ratio / ratio.median() - 1).abs().max() < 1e-4
