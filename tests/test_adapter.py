"""The Gaussian adapter: the published figures in the "upstream" convention, laws in the "exact" one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras, project, transform, unproject
from geometry.compiled import kernels
from geometry.presets import GaussianHeadConfig
from geometry.rotations import matrices_from_quats
from splat.adapter import MAX_LOG_OFFSET, MAX_OFFSET, adapt, pose_scale, reference_gaussians, sh_rotation
from splat.gaussians import Gaussians
from splat.sh import sh_basis
from tests.tiny_networks import DATA, cameras_of, random_rotations

UPSTREAM = GaussianHeadConfig(features=32, out_channels=(16, 32, 48, 64))
EXACT = dataclasses.replace(UPSTREAM, convention="exact")
SIZE = (6, 8)


@pytest.fixture(scope="module")
def lite():
    return np.load(DATA)


def scene(views: int = 3, seed: int = 0, size: tuple[int, int] = SIZE, channels: int = 37):
    """Raw values, opacities, depth and cameras of one batch of two."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, views, *size, channels, generator=generator)
    depth = torch.rand(2, views, *size, generator=generator) * 3 + 4
    opacity = torch.rand(2, views, *size, generator=generator)
    w2c = torch.eye(4).repeat(2, views, 1, 1)
    w2c[..., :3, :3] = random_rotations(2, views, seed=seed).float()
    w2c[..., :3, 3] = torch.randn(2, views, 3, generator=generator)
    K = torch.tensor([[7.0, 0.3, 3.9], [0, 6.0, 3.2], [0, 0, 1]]).expand(2, views, 3, 3)
    return raw, opacity, depth, Cameras(w2c, K, size)


def covariances(gaussians: Gaussians) -> torch.Tensor:
    axes = matrices_from_quats(gaussians.quats) * gaussians.scales[..., None, :]
    return axes @ axes.transpose(-1, -2)


@pytest.mark.parametrize("case", ["nogt", "gt", "gtsame"])
def test_upstream_figures(case, lite):
    cameras = cameras_of(lite["adapter/in.ext"], lite["adapter/in.ixt"], SIZE)
    given = {
        "nogt": None,
        "gt": cameras_of(lite["adapter/in.gt_ext"], lite["adapter/in.ixt"], SIZE),
        "gtsame": cameras,
    }[case]
    raw, opacity, depth = (torch.from_numpy(lite[f"adapter/{name}"]) for name in ("giant.raw", "in.dens", "in.depth"))
    gaussians = adapt(raw, opacity, depth, cameras, UPSTREAM, given=given)
    got = {
        "means": gaussians.means,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities,
        "harmonics": gaussians.sh.transpose(-1, -2),
    }
    for name, value in got.items():
        if f"adapter/giant.{case}.{name}" in lite.files:
            np.testing.assert_allclose(value, lite[f"adapter/giant.{case}.{name}"], rtol=1e-5, atol=2e-5, err_msg=name)
    if case == "gt":
        assert (gaussians.quats * torch.from_numpy(lite["adapter/giant.gt.rotations"])).sum(-1).abs().min() > 1 - 1e-5


def test_upstream_scale_is_clamped(lite):
    K = np.broadcast_to(lite["adapter/in.ixt"][0, :1], (1, 8, 3, 3))
    K = torch.from_numpy(K.copy())
    raw = torch.from_numpy(lite["adapter/clamp.in.raw"])
    w2c, target = torch.from_numpy(lite["adapter/clamp.in.ext"]), torch.from_numpy(lite["adapter/clamp.in.gt_ext"])
    cameras, given = Cameras(w2c, K, (2, 2)), Cameras(target, K, (2, 2))
    ratio = pose_scale(cameras.centers, given.centers)
    assert not 1 / 3 <= float(ratio) <= 3
    bounded = float(ratio.clamp(1 / 3, 3))
    flat = torch.zeros(1, 8, 2, 2)
    depth_free = adapt(raw, flat, flat + 1, cameras, UPSTREAM)
    scaled = adapt(raw, flat, flat + 1, cameras, UPSTREAM, given=given)
    torch.testing.assert_close(scaled.scales, depth_free.scales * bounded)
    torch.testing.assert_close(scaled.means, depth_free.means * bounded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("views", [4, 3])
def test_pose_scale_agrees_with_umeyama(views):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, views, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(64, views, 3, generator=generator, dtype=torch.float64)
    a, b = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    U, D, Vh = torch.linalg.svd(b.transpose(1, 2) @ a)
    sign = torch.linalg.det(U) * torch.linalg.det(Vh)
    want = (D[:, 0] + D[:, 1] + sign.sign() * D[:, 2]) / a.square().sum((1, 2))
    torch.testing.assert_close(pose_scale(x, y), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("views", [2, 3, 9])
def test_pose_scale_where_umeyama_is_undetermined(views):
    generator = torch.Generator().manual_seed(2)
    line = torch.randn(5, 1, 3, generator=generator) * torch.arange(views)[None, :, None]
    turned = 2.5 * line @ random_rotations(1, seed=3).float() + 7
    torch.testing.assert_close(pose_scale(line, turned), torch.full((5,), 2.5), rtol=1e-5, atol=0)
    # Rounding noise must not decide, and order neither.
    noisy = turned + 1e-6 * torch.randn(turned.shape, generator=generator)
    torch.testing.assert_close(pose_scale(line, noisy), torch.full((5,), 2.5), rtol=1e-5, atol=0)
    assert pose_scale(line[:, :1], turned[:, :1]).eq(1).all()
    assert pose_scale(line * 0, turned).eq(1).all() and pose_scale(line, turned * 0).eq(1).all()


def test_exact_means_are_unprojected_pixels():
    raw, opacity, depth, cameras = scene()
    raw[..., :2], raw[..., 36] = 0, 0
    gaussians = adapt(raw, opacity, depth, cameras, EXACT)
    torch.testing.assert_close(gaussians.means, unproject(depth, cameras).flatten(1, 3), rtol=1e-5, atol=1e-5)
    assert gaussians.opacities.equal(opacity.flatten(1))
    # An offset of one pixel to the right is the neighbour's place at the own depth; the depth offset is a logarithm.
    raw[..., 0] = MAX_OFFSET * math.atanh(1 / MAX_OFFSET)
    raw[..., 36] = MAX_LOG_OFFSET * math.atanh(0.2 / MAX_LOG_OFFSET)
    moved = adapt(raw, opacity, depth, cameras, EXACT).means.view(2, 3, *SIZE, 3)
    want = unproject((depth * math.exp(0.2)).roll(1, -1), cameras)
    torch.testing.assert_close(moved[..., :-1, :], want[..., 1:, :], rtol=1e-5, atol=1e-5)


def test_exact_offsets_are_bounded():
    raw, opacity, depth, cameras = scene()
    still, wild = raw.clone(), raw.clone()
    still[..., :2], still[..., 36] = 0, 0
    wild[..., :2], wild[..., 36] = 1e4, 1e4
    near, far = (
        project(adapt(r, opacity, depth, cameras, EXACT).means.unflatten(1, (3, -1)), cameras) for r in (still, wild)
    )
    torch.testing.assert_close(far[0] - near[0], torch.full_like(far[0], MAX_OFFSET), atol=2e-3, rtol=0)
    torch.testing.assert_close(far[1] / near[1], torch.full_like(far[1], math.exp(MAX_LOG_OFFSET)))


def test_exact_covariance_is_turned_with_the_camera():
    raw, opacity, depth, cameras = scene()
    gaussians = adapt(raw, opacity, depth, cameras, EXACT)
    x, y, z, w = raw[..., 5:9].flatten(1, 3).unbind(-1)
    R = matrices_from_quats(torch.stack([w, x, y, z], -1))
    local = R @ torch.diag_embed(gaussians.scales.square()) @ R.transpose(-1, -2)
    c2w = cameras.c2w[..., :3, :3].repeat_interleave(SIZE[0] * SIZE[1], 1)
    torch.testing.assert_close(covariances(gaussians), c2w @ local @ c2w.transpose(-1, -2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.linalg.vector_norm(gaussians.quats, dim=-1), torch.ones(2, 144))


def test_exact_commutes_with_turning_the_world():
    raw, opacity, depth, cameras = scene()
    R, t = random_rotations(seed=5).float(), torch.tensor([1.0, -2, 3])
    here = adapt(raw, opacity, depth, cameras, EXACT)
    there = adapt(raw, opacity, depth, transform(cameras, R, t), EXACT)
    torch.testing.assert_close(there.means, here.means @ R.T + t, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.scales, here.scales)
    torch.testing.assert_close(covariances(there), R @ covariances(here) @ R.T, rtol=1e-4, atol=1e-4)
    directions = torch.nn.functional.normalize(torch.randn(20, 1, 1, 3), dim=-1)
    seen_here = (sh_basis(directions, 2)[..., None] * here.sh).sum(-2)
    seen_there = (sh_basis(directions @ R.T, 2)[..., None] * there.sh).sum(-2)
    torch.testing.assert_close(seen_there, seen_here, rtol=1e-4, atol=1e-5)


def test_conventions_meet_in_an_unturned_camera():
    raw, opacity, depth, cameras = scene(views=1)
    cameras = Cameras(torch.eye(4).expand(2, 1, 4, 4), cameras.K, SIZE)
    raw[..., :2], raw[..., 36] = 0, 0  # offsets are read differently
    exact, upstream = adapt(raw, opacity, depth, cameras, EXACT), adapt(raw, opacity, depth, cameras, UPSTREAM)
    torch.testing.assert_close(upstream.quats, exact.quats)
    torch.testing.assert_close(upstream.sh, exact.sh)
    along = torch.nn.functional.normalize(exact.means, dim=-1)
    torch.testing.assert_close(upstream.means, along * depth.flatten(1)[..., None], rtol=1e-4, atol=1e-4)


def test_scales_are_in_pixels_at_their_depth():
    raw, opacity, depth, cameras = scene()
    raw[..., 2:5], raw[..., 36] = 0, 0
    gaussians = adapt(raw, opacity, depth, cameras, EXACT)
    footprint = 0.1 * (1 / 7 + 1 / 6)
    want = (1e-5 + 30.0) / 2 * footprint * depth.flatten(1)
    torch.testing.assert_close(gaussians.scales, want[..., None].expand(-1, -1, 3), rtol=1e-5, atol=0)
    # No depth offset leads behind the camera, where scales would be negative.
    raw[..., 36] = -20
    assert (adapt(raw, opacity, depth, cameras, EXACT).scales > 0).all()


def test_colour_residual():
    raw, opacity, depth, cameras = scene()
    raw[..., 9:36] = 0
    pixels = torch.rand(2, 3, 3, *SIZE)
    config = dataclasses.replace(EXACT, rgb_residual=True)
    gaussians = adapt(raw, opacity, depth, cameras, config, images=pixels)
    colour = 0.5 + gaussians.sh[..., 0, :] * 0.28209479177387814
    torch.testing.assert_close(colour, pixels.permute(0, 1, 3, 4, 2).flatten(1, 3), rtol=0, atol=1e-6)
    assert gaussians.sh[..., 1:, :].eq(0).all()
    with pytest.raises(ValueError, match="images must be given"):
        adapt(raw, opacity, depth, cameras, config)


@pytest.mark.parametrize("degree", [0, 1])
def test_lower_degrees(degree):
    raw, opacity, depth, cameras = scene()
    config = dataclasses.replace(EXACT, sh_degree=degree)
    full = adapt(raw, opacity, depth, cameras, EXACT)
    bases = (degree + 1) ** 2
    sh = raw[..., 9:36].unflatten(-1, (3, 9))[..., :bases].flatten(-2)
    cut = torch.cat([raw[..., :9], sh, raw[..., 36:]], -1)
    torch.testing.assert_close(adapt(cut, opacity, depth, cameras, config).sh, full.sh[..., :bases, :])
    with pytest.raises(ValueError, match=f"raw must have {config.channels} channels"):
        adapt(raw, opacity, depth, cameras, config)


def test_sh_rotation(lite):
    R, sh = torch.from_numpy(lite["pure/sh.R"]), torch.from_numpy(lite["pure/sh2.in"])
    bands = sh.split((1, 3, 5), -1)
    turned = [band @ D.transpose(-1, -2) for band, D in zip(bands, sh_rotation(R, 2))]
    torch.testing.assert_close(torch.cat(turned, -1), torch.from_numpy(lite["pure/sh2.out"]), rtol=0, atol=2e-5)
    R = random_rotations(50, seed=4)
    directions = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    D = [torch.block_diag(*blocks) for blocks in zip(*(d.double() for d in sh_rotation(R.float(), 2)))]
    coefficients = torch.randn(50, 9, dtype=torch.float64)
    there = (sh_basis((R @ directions[..., None])[..., 0], 2) * (torch.stack(D) @ coefficients[..., None])[..., 0]).sum(
        -1
    )
    torch.testing.assert_close(there, (sh_basis(directions, 2) * coefficients).sum(-1), rtol=0, atol=1e-5)


def test_precision_does_not_follow_autocast():
    raw, opacity, depth, cameras = scene()
    want = adapt(raw, opacity, depth, cameras, EXACT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = adapt(raw, opacity, depth, cameras, EXACT)
    assert all(getattr(got, f.name).equal(getattr(want, f.name)) for f in dataclasses.fields(Gaussians))
    assert math.isfinite(float(got.means.sum())) and got.sh.is_contiguous()


def assert_like_plain(inputs, config, images):
    """What is compiled gives, for these inputs of `adapt`, what plain PyTorch gives."""
    plain = reference_gaussians(*inputs, config, images)
    compiled = kernels("adapter", "splat").compiled_gaussians(*inputs, config, images)
    for field in dataclasses.fields(Gaussians):
        got, want = getattr(compiled, field.name), getattr(plain, field.name)
        assert got.is_contiguous()
        torch.testing.assert_close(got, want, rtol=2e-6, atol=4e-6, equal_nan=True, msg=lambda m, f=field: f.name + m)
    # A scale may be far smaller than the tolerance above.
    torch.testing.assert_close(compiled.scales, plain.scales, rtol=2e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("size", [(5, 11), (9, 8), (1, 27)])
def test_compiled_and_plain_agree(size, degree, residual):
    config = dataclasses.replace(EXACT, sh_degree=degree, rgb_residual=residual, scale_min=0.0)
    raw, *rest = scene(size=size, channels=config.channels + 1)
    raw[..., 2:5] *= 20
    images = torch.rand(2, 3, 3, *size)
    assert_like_plain((raw[..., :-1], *rest), config, images)
    channels_first = raw.movedim(-1, 2).contiguous().movedim(2, -1)
    assert_like_plain((channels_first[..., :-1], *rest), config, images)


def test_compiled_and_plain_agree_on_extremes():
    raw, *rest = scene()
    raw[:, 0, :2], raw[:, 0, 2:4], raw[:, 0, 4:] = 1e4, -1e4, 1e-4
    raw[:, 1, :3, :, :9], raw[:, 1, 3:, :, 5:9] = 0, 1e-10  # quaternions of no length, and of too little
    raw[:, 2, 1, 3, 0], raw[:, 2, 2, 4, 2], raw[:, 2, 3, 5, 36] = math.nan, math.nan, math.nan
    assert_like_plain((raw, *rest), dataclasses.replace(EXACT, scale_min=1e-3), None)


def test_gradients_are_there_where_they_are_wanted():
    raw, opacity, depth, cameras = scene()
    depth.requires_grad_()
    assert adapt(raw, opacity, depth, cameras, EXACT).means.requires_grad
    with torch.no_grad():
        assert not adapt(raw, opacity, depth, cameras, EXACT).means.requires_grad


def test_images_narrower_than_eight_pixels():
    raw, opacity, depth, cameras = scene(size=(6, 5))
    gaussians = adapt(raw, opacity, depth, cameras, EXACT)
    assert gaussians.means.equal(reference_gaussians(raw, opacity, depth, cameras, EXACT).means)
