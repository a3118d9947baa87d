"""The network against the official figures (shared/golden/README.md): samples everywhere, all values where at hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from geometry.camera_heads import decode_cameras, encode_cameras, normalize_cameras
from geometry.reference_view import choose_reference, front_orders, reorder
from geometry.rotations import matrices_from_quats, quats_from_matrices
from geometry.tables import uv_encoding
from tests.tiny_networks import DATA, KINDS_DATA, cameras_of, golden, images, make_norms_visible, samples, tiny_model

CASES = (
    "net_a_v1 net_a_v2 net_a_v4 net_a_v4_middle net_a_v1_posed net_a_v2_posed net_a_v4_posed net_b_v1 net_b_v4 "
    "net_eps_v2_posed"
).split()


@pytest.fixture(scope="module")
def lite():
    return np.load(DATA)


@functools.cache
def model_of(case: str):
    model = tiny_model("b" if "_b_" in case else "a")
    if "_eps_" in case:
        make_norms_visible(model)
    return model


def outputs(case: str, lite) -> dict[str, np.ndarray]:
    """What our network makes of a case's input, under the figures' names."""
    views, height, width = lite[f"{case}/size"]
    cameras = None
    if "posed" in case:
        cameras = cameras_of(lite[f"{case}/in.extrinsics"], lite[f"{case}/in.intrinsics"], (height, width))
    model = model_of(case)
    reference_view = "middle" if "middle" in case else "saddle_balanced"
    features = model.encode(images(views, (height, width)), cameras, reference_view=reference_view)
    geometry = model.decode(features, rays=True)
    gaussians = model.gaussians(features, geometry)
    values = {
        "mid.feats.0.patch": features.patches[0],
        "mid.feats.3.patch": features.patches[3],
        "mid.feats.3.cam": features.camera,
        "mid.head.ray": geometry.rays,
        "mid.head.ray_conf": geometry.ray_confidence,
        "out.depth": geometry.depth,
        "out.depth_conf": geometry.confidence,
        "out.extrinsics": geometry.cameras.w2c[..., :3, :],
        "out.intrinsics": geometry.cameras.K,
        "out.gaussians.means": gaussians.means,
        "out.gaussians.scales": gaussians.scales,
        "out.gaussians.rotations": gaussians.quats,
        "out.gaussians.harmonics": gaussians.sh.transpose(-1, -2),
        "out.gaussians.opacities": gaussians.opacities,
    }
    return {name: value.numpy() for name, value in values.items()}


@pytest.mark.parametrize("case", CASES)
def test_samples_of_the_official_network(case, lite):
    for name, value in outputs(case, lite).items():
        key = f"{case}/{name}"
        if key not in lite.files:
            continue
        got, want = samples(value), lite[key]
        if name.endswith("rotations"):  # q and -q are one rotation
            got, want = np.abs(got), np.abs(want)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("case", CASES)
def test_all_values_of_the_official_network(case, lite):
    figures = golden(case)
    for name, value in outputs(case, lite).items():
        if name not in figures.files:
            continue
        if name.endswith("rotations"):
            assert np.abs((value * figures[name]).sum(-1)).min() > 1 - 1e-5
        else:
            np.testing.assert_allclose(value, figures[name], rtol=1e-5, atol=1e-4, err_msg=name)


def test_exported_layers():
    """Upstream leaves those behind the choice of a reference view in its order; ours are in the caller's."""
    few, model = np.load(KINDS_DATA), model_of("net_a_v4")
    views, height, width = few["net_a_v4/size"]
    inputs = images(views, (height, width))
    layers = model.encode(inputs, export_layers=(2, 6)).layers
    # The choice is made at block 3, on what block 2 gave.
    blocks = model.backbone.pretrained.blocks
    tokens = []
    handle = blocks[2].register_forward_hook(lambda module, inputs, out: tokens.append(out[None, :, 0]))
    model.encode(inputs)
    handle.remove()
    order, _ = front_orders(choose_reference(tokens[0], "saddle_balanced"), views)
    assert order.tolist() != [[0, 1, 2, 3]]
    values = {"feat_layer_2": layers[2], "feat_layer_6": reorder(layers[6], order)}
    for name, value in values.items():
        np.testing.assert_allclose(samples(value), few[f"net_a_v4/out.aux.{name}"], rtol=1e-5, atol=1e-4)
    figures = golden("net_a_v4")
    for name, value in values.items():
        np.testing.assert_allclose(value, figures[f"out.aux.{name}"], rtol=1e-5, atol=1e-4)


def test_pose_encoding(lite):
    size = (42, 56)
    cameras = cameras_of(lite["pure/pose.ext"], lite["pure/pose.ixt"], size)
    encoding = torch.from_numpy(lite["pure/pose.enc"])
    # The figures' intrinsics stand for some size: recover it from the principal point of the decoded ones.
    width, height = (2 * lite["pure/pose.dec_ixt"][0, 0, :2, 2]).astype(int)
    cameras = type(cameras)(cameras.w2c, cameras.K, (int(height), int(width)))
    torch.testing.assert_close(encode_cameras(cameras), encoding, rtol=0, atol=2e-6)
    decoded = decode_cameras(encoding, cameras.size)
    np.testing.assert_allclose(decoded.c2w[..., :3, :], lite["pure/pose.dec_c2w"], atol=2e-6)
    np.testing.assert_allclose(decoded.K, lite["pure/pose.dec_ixt"], rtol=1e-5)
    # A field of view of 0 or beyond a half turn, and a quaternion that is not unit.
    degenerate = decode_cameras(torch.from_numpy(lite["pure/pose.degenerate_enc"]), cameras.size)
    np.testing.assert_allclose(degenerate.c2w[..., :3, :], lite["pure/pose.degenerate_c2w"], atol=2e-6)
    np.testing.assert_allclose(degenerate.K, lite["pure/pose.degenerate_ixt"], rtol=1e-5)


@pytest.mark.parametrize("case", ["net_a_v1_posed", "net_a_v2_posed", "net_a_v4_posed"])
def test_normalised_cameras(case, lite):
    raw = cameras_of(
        lite[f"{case}/in.extrinsics_raw"], np.zeros((*lite[f"{case}/in.extrinsics"].shape[1:2], 3, 3)), (14, 14)
    )
    cameras, unit = normalize_cameras(raw, least=0.1)
    np.testing.assert_allclose(cameras.w2c, lite[f"{case}/in.extrinsics"][0], atol=1e-5)
    torch.testing.assert_close(cameras.centers * unit, (raw.w2c[0] @ raw.c2w)[..., :3, 3], rtol=1e-4, atol=1e-5)


def test_quaternions(lite):
    xyzw, matrices = torch.from_numpy(lite["pure/quat.in_xyzw"]), torch.from_numpy(lite["pure/quat.mat"])
    torch.testing.assert_close(matrices_from_quats(xyzw.roll(1, -1)), matrices, rtol=0, atol=1e-6)
    back = torch.from_numpy(lite["pure/quat.back_xyzw"]).roll(1, -1)
    assert ((quats_from_matrices(matrices) * back).sum(-1).abs() > 1 - 1e-6).all()


def test_uv_encoding(lite):
    for name, (width, height) in {"6x4": (6, 4), "3x6": (3, 6)}.items():
        want = torch.from_numpy(lite[f"pure/uvpe.{name}"]).permute(2, 0, 1)
        columns, rows = uv_encoding(height, width, len(want), (height, width), torch.device("cpu"))
        half = len(want) // 2
        got = torch.cat([columns.expand(half, height, width), rows.expand(half, height, width)])
        torch.testing.assert_close(got, 0.1 * want, rtol=0, atol=1e-6)


def test_reference_view(lite):
    tokens = torch.from_numpy(lite["pure/ref.in"])[:, :, 0]
    for strategy in ("first", "middle", "saddle_balanced", "saddle_sim_range"):
        assert choose_reference(tokens, strategy).tolist() == lite[f"pure/ref.{strategy}"].tolist()
    with pytest.raises(ValueError, match="reference_view must be one of"):
        choose_reference(tokens, "last")


def test_orders_are_inverse():
    reference = torch.tensor([0, 3, 4])
    x = torch.arange(15).view(3, 5)
    to_front, undo = front_orders(reference, 5)
    assert reorder(x, to_front).tolist() == [[0, 1, 2, 3, 4], [8, 5, 6, 7, 9], [14, 10, 11, 12, 13]]
    assert reorder(reorder(x, to_front), undo).equal(x)
