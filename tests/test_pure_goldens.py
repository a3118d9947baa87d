"""Small functions against the official figures where no other test has them yet, and all of the adapter's figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geometry.alignment import nearest_rotation
from geometry.backbone import CameraRope, VisionTransformer, rotate
from geometry.camera_heads import normalize_cameras
from geometry.cameras import Cameras, pixel_rays
from geometry.dpt import resample
from geometry.metric import metric_depth, metric_scale
from geometry.monocular import MonocularGeometry
from geometry.network import Geometry
from geometry.presets import BackboneConfig, GaussianHeadConfig
from geometry.reference_view import front_orders, reorder
from geometry.tables import rope_of_patches, uv_encoding
from splat.adapter import adapt, sh_rotation
from splat.gaussians import Gaussians, transform
from tests.tiny_networks import DATA, cameras_of, golden, recipe

PARTS = Path(__file__).parent / "data" / "da3_parts.npz"
UPSTREAM = GaussianHeadConfig(features=32, out_channels=(16, 32, 48, 64))
IDENTITY = torch.eye(4)[None, None], torch.eye(3)[None, None]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts():
    return {name.removeprefix("pure/"): torch.from_numpy(v) for name, v in np.load(PARTS).items() if "pure/" in name}


@pytest.fixture(scope="module")
def lite():
    return {name: torch.from_numpy(v) for name, v in np.load(DATA).items() if name.startswith(("pure/", "adapter/"))}


def sample(values: torch.Tensor, count: int) -> torch.Tensor:
    flat = values.flatten()
    return flat[(torch.arange(count) * len(flat)) // count]


@pytest.mark.parametrize("size", [(28, 42), (56, 84), (84, 42), (336, 504), (504, 504), (518, 518), (700, 392)])
def test_position_embedding(size, parts):
    config = BackboneConfig(dim=8, depth=4, heads=1, out_layers=(0, 1, 2, 3), alt_start=1)
    backbone = VisionTransformer(config).requires_grad_(False)
    backbone.pos_embed.copy_(torch.from_numpy(recipe("pure.pos_embed", (1, 1370, 8))))
    got = backbone.position_embedding((size[0] // 14, size[1] // 14))
    assert got.shape == (1 + size[0] * size[1] // 196, 8)
    want = parts[f"posembed.{size[0]}x{size[1]}"]
    torch.testing.assert_close(sample(got, len(want)), want, rtol=0, atol=2e-6)


def test_rope_of_patches(lite):
    x, positions = lite["pure/rope.in"], lite["pure/rope.pos"]
    rows, columns = positions[0].amax(0).tolist()
    got = rotate(x, rope_of_patches(rows, columns, x.shape[-1], CPU))
    torch.testing.assert_close(got, lite["pure/rope.out"], rtol=0, atol=2e-6)


def test_rope_across_views(lite):
    """Only products of queries and keys count, and there turning the camera tokens back is the same."""
    x, want = lite["pure/rope.in"], lite["pure/rope.out_global"]
    got = CameraRope(x.shape[2], x.shape[3], CPU).turn(x)
    torch.testing.assert_close(got @ got.mT, want @ want.mT, rtol=0, atol=1e-5)
    assert (x @ x.mT - want @ want.mT).abs().max() > 0.1


def test_position_of_pixels(parts):
    columns, rows = uv_encoding(32, 48, 16, (32, 48), CPU)
    got = torch.cat([columns.expand(8, 32, 48), rows.expand(8, 32, 48)]).permute(1, 2, 0)
    torch.testing.assert_close(sample(got, 256), 0.1 * parts["uvpe.48x32"], rtol=0, atol=1e-6)
    columns, rows = uv_encoding(1, 1, 16, (1, 1), CPU)
    torch.testing.assert_close(torch.cat([columns, rows]).flatten(), 0.1 * parts["uvpe.1x1"].flatten())


def test_resampling_of_maps(parts):
    for size, name in (((6, 10), "x2"), ((7, 11), "size")):
        torch.testing.assert_close(resample(parts["interp.in"], size), parts[f"interp.{name}"], rtol=0, atol=1e-6)


def test_rays_of_pixels(parts):
    """The figures' rays are unit vectors through a grid of 4 x 6 pixels of the second view."""
    c2w = torch.from_numpy(np.load(PARTS)["trajectory/in.c2w"])[1]
    K = parts["fov.in"][1] * torch.tensor([6.0, 4, 1])[:, None]
    cameras = Cameras(torch.linalg.inv(c2w.double()).float(), K, (4, 6))
    torch.testing.assert_close(F.normalize(pixel_rays(cameras), dim=-1), parts["rays.dir"], rtol=0, atol=1e-6)
    torch.testing.assert_close(cameras.centers.expand(4, 6, 3), parts["rays.origin"], rtol=0, atol=1e-6)


def test_pose_normalisation(lite):
    cameras = cameras_of(lite["pure/pose.ext"], lite["pure/pose.ixt"], (70, 98))
    got, _ = normalize_cameras(cameras)
    torch.testing.assert_close(got.w2c, lite["pure/pose.prenorm"], rtol=0, atol=2e-6)


def test_reordering(lite):
    tokens = lite["pure/ref.in"]
    order, undo = front_orders(torch.tensor([3, 1]), tokens.shape[1])
    front = reorder(tokens, order)
    torch.testing.assert_close(front[:, :, 0, 0], lite["pure/ref.reordered"])
    torch.testing.assert_close(reorder(front, undo)[:, :, 0, 0], lite["pure/ref.restored"])


def test_metres(parts, lite):
    depth = parts["metric.depth"]
    cameras = cameras_of(lite["pure/pose.ext"][:, :2], lite["pure/pose.ixt"][:, :2], tuple(depth.shape[-2:]))
    monocular = MonocularGeometry(depth, torch.zeros_like(depth))
    torch.testing.assert_close(metric_depth(monocular, cameras, 300.0), parts["metric.scaled"])
    metres, depth = (parts[f"metric.{name}"].view(1, 1, 5, 8) for name in ("a", "b"))
    geometry = Geometry(depth, torch.full_like(depth, 2), None, None, Cameras(*IDENTITY, (5, 8)))
    torch.testing.assert_close(metric_scale(geometry, metres, torch.zeros_like(depth))[0], parts["metric.scale"])


def test_nearest_rotations(parts):
    torch.testing.assert_close(nearest_rotation(parts["so3.in"]), parts["so3.out"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("degree", [1, 3])
def test_harmonics_turn(degree, parts, lite):
    R, given, want = lite["pure/sh.R"], parts[f"sh{degree}.in"], parts[f"sh{degree}.out"]
    for rotation, sh, turned in zip(R, given, want):
        unit = torch.tensor([[1.0, 0, 0, 0]])
        one = Gaussians(torch.zeros(1, 3), torch.ones(1, 3), unit, torch.ones(1), sh.mT[None])
        got = transform(one, rotation, torch.zeros(3)).sh[0].mT
        torch.testing.assert_close(got, turned, rtol=0, atol=3e-5)
    if degree == 1:
        torch.testing.assert_close(given[..., 1:] @ sh_rotation(R, 1)[1].mT, want[..., 1:], rtol=0, atol=2e-5)


def test_quaternions_of_the_adapter(parts):
    """Each of 64 quaternions, x, y, z, w in its camera, in a world, in the published and peculiar way."""
    quats, c2w = parts["camq.in"][0], parts["camq.c2w"]
    raw = torch.zeros(1, 64, 1, 1, 37)
    raw[0, :, 0, 0, 5:9] = quats
    cameras = Cameras(torch.linalg.inv(c2w.double()).float(), torch.eye(3).expand(1, 64, 3, 3), (1, 1))
    flat = torch.ones(1, 64, 1, 1)
    got = adapt(raw, flat, flat, cameras, UPSTREAM).quats[0]
    assert (got * parts["camq.out"][0]).sum(-1).abs().min() > 1 - 1e-5


@pytest.mark.parametrize("case", ["nogt", "gt", "gtsame"])
def test_every_value_of_the_adapter(case):
    figures = {name: torch.from_numpy(value) for name, value in golden("adapter").items()}
    cameras = cameras_of(figures["in.ext"], figures["in.ixt"], (6, 8))
    given = {"nogt": None, "gt": cameras_of(figures["in.gt_ext"], figures["in.ixt"], (6, 8)), "gtsame": cameras}[case]
    got = adapt(figures["giant.raw"], figures["in.dens"], figures["in.depth"], cameras, UPSTREAM, given=given)
    check_gaussians(got, figures, f"giant.{case}.")


def test_adapter_without_view_dependence():
    figures = {name: torch.from_numpy(value) for name, value in golden("adapter").items()}
    cameras = cameras_of(figures["in.ext"], figures["in.ixt"], (6, 8))
    config = dataclasses.replace(UPSTREAM, sh_degree=0)
    got = adapt(figures["sh0.raw"], figures["in.dens"], figures["in.depth"], cameras, config)
    check_gaussians(got, figures, "sh0.nogt.")


def check_gaussians(got: Gaussians, figures: dict[str, torch.Tensor], prefix: str) -> None:
    values = {"means": got.means, "scales": got.scales, "opacities": got.opacities, "harmonics": got.sh.mT}
    for name, value in values.items():
        torch.testing.assert_close(value, figures[prefix + name], rtol=1e-5, atol=2e-5)
    assert (got.quats * figures[f"{prefix}rotations"]).sum(-1).abs().min() > 1 - 1e-5


def test_clamped_scale_of_the_adapter(lite):
    K = lite["adapter/in.ixt"][0, 0].expand(1, 8, 3, 3)
    cameras, given = (Cameras(lite[f"adapter/clamp.in.{name}"], K, (2, 2)) for name in ("ext", "gt_ext"))
    flat = torch.ones(1, 8, 2, 2)
    got = adapt(lite["adapter/clamp.in.raw"], flat, flat, cameras, UPSTREAM, given=given)
    torch.testing.assert_close(got.means, lite["adapter/clamp.means"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.scales, lite["adapter/clamp.scales"], rtol=1e-5, atol=1e-5)
