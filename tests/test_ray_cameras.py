"""Cameras from rays: the published figures with "ql", laws and hard rays with "qr"."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geometry.cameras import Cameras, pixel_rays, transform
from geometry.ray_cameras import cameras_from_rays, factor_ql, factor_qr
from tests.tiny_networks import golden, random_rotations

PARTS = Path(__file__).parent / "data" / "da3_parts.npz"
SIZE, GRID = (56, 84), (32, 48)


@pytest.fixture(scope="module")
def parts():
    return np.load(PARTS)


def some_cameras(views: int, principal: float = 0.1, seed: int = 0) -> Cameras:
    """Cameras [1, V] that look anywhere, their principal points off by up to `principal` of half the size."""
    generator = torch.Generator().manual_seed(seed)
    w2c = torch.eye(4).repeat(1, views, 1, 1)
    w2c[0, :, :3, :3] = random_rotations(views, seed=seed).float()
    w2c[0, :, :3, 3] = torch.randn(views, 3, generator=generator)
    K = torch.tensor([[60.0, 0, 42], [0, 50.0, 28], [0, 0, 1]]).repeat(1, views, 1, 1)
    K[0, :, :2, 2] *= 1 + principal * (2 * torch.rand(views, 2, generator=generator) - 1)
    K[0, :, [0, 1], [0, 1]] *= torch.rand(views, 1, generator=generator) + 0.7
    return Cameras(w2c, K, SIZE)


def rays_of(cameras: Cameras, noise: float = 0.0, outliers: float = 0.0, seed: int = 0) -> tuple:
    """Rays [1, V, h, w, 6] with confidence; `noise` in radians, `outliers` a share of rays that point anywhere."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(pixel_rays(cameras, GRID), dim=-1)
    centers = cameras.centers[:, :, None, None].expand_as(directions)
    wrong = torch.rand(directions.shape[:-1], generator=generator)[..., None] < outliers
    directions = directions + noise * torch.randn(directions.shape, generator=generator)
    directions = torch.where(wrong, torch.randn(directions.shape, generator=generator), directions)
    centers = centers + torch.where(wrong, 1.0, noise) * torch.randn(centers.shape, generator=generator)
    length = torch.rand(directions.shape[:-1], generator=generator)[..., None] + 0.5
    confidence = 1 + torch.rand(directions.shape[:-1], generator=generator)
    return torch.cat([directions * length, centers], -1), confidence


def errors(got: Cameras, want: Cameras) -> tuple[float, float, float]:
    """The largest turn in degrees, distance of centres, and difference of intrinsics in pixels."""
    # Of the difference, for the cosine of a small angle tells nothing in float32.
    apart = torch.linalg.matrix_norm(got.w2c[..., :3, :3] - want.w2c[..., :3, :3])
    turn = 2 * torch.asin((apart / 8**0.5).clamp(max=1)).rad2deg()
    centers = torch.linalg.vector_norm(got.centers - want.centers, dim=-1)
    return float(turn.max()), float(centers.max()), float((got.K - want.K).abs().max())


def check_published(figures, prefix: str = "") -> None:
    rays, confidence = (torch.from_numpy(figures[f"{prefix}in.{name}"]) for name in ("camray", "conf"))
    samples = torch.from_numpy(figures[f"{prefix}in.idx"].astype(np.int64))
    # In an image of two by two pixels the half size is 1.
    cameras = cameras_from_rays(rays, confidence, (2, 2), "ql", samples)
    np.testing.assert_allclose(cameras.c2w, figures[f"{prefix}out.c2w"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cameras.K[..., [0, 1], [0, 1]], figures[f"{prefix}out.focal"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cameras.K[..., :2, 2], figures[f"{prefix}out.pp"], rtol=0, atol=1e-5)
    # They are wrong, for the principal points are not centred; "qr" is right up to the noise of these rays.
    right = cameras_from_rays(rays, confidence, (2, 2))
    for got, name in ((right.c2w, "c2w"), (right.K[..., [0, 1], [0, 1]], "focal"), (right.K[..., :2, 2], "pp")):
        np.testing.assert_allclose(got[0], figures[f"{prefix}true.{name}"], rtol=0, atol=2e-3)


def test_published_cameras(parts):
    check_published(parts, "raypose/")


def test_published_cameras_of_all_views():
    check_published(golden("raypose"))


def test_published_factors(parts):
    A, Q, L = (torch.from_numpy(parts[f"raypose/ql.{name}"]) for name in ("in", "Q", "L"))
    rotation, focal, principal = factor_ql(A)
    torch.testing.assert_close(rotation, Q, rtol=0, atol=2e-6)
    L = L / L[:, 2:, 2:]
    torch.testing.assert_close(1 / focal, L[:, [0, 1], [0, 1]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(principal, L[:, 2, :2], rtol=1e-4, atol=1e-5)


def test_qr_undoes_the_product():
    cameras = some_cameras(50, principal=0.5)
    R, K = random_rotations(50, seed=2), cameras.K[0].double()
    rotation, focal, principal = factor_qr(0.3 * R @ torch.linalg.inv(K))
    torch.testing.assert_close(rotation, R)
    torch.testing.assert_close(focal, K[:, [0, 1], [0, 1]])
    torch.testing.assert_close(principal, K[:, :2, 2])


def test_cameras_come_back_from_their_rays():
    cameras = some_cameras(20, principal=0.5)
    turn, distance, pixels = errors(cameras_from_rays(*rays_of(cameras), SIZE), cameras)
    assert turn < 1e-2 and distance < 1e-5 and pixels < 1e-3


def test_rays_across_the_axis_of_the_world():
    """Views turned by 90 and 180 degrees from the first, in which z of the world's rays is 0 or below."""
    cameras = some_cameras(4, principal=0.2)
    angle = torch.tensor([0, 90, 180, 270.0]).deg2rad()
    cameras.w2c[0, :, :3, :3] = 0
    cameras.w2c[0, :, 0, 0] = cameras.w2c[0, :, 2, 2] = angle.cos()
    cameras.w2c[0, :, 0, 2], cameras.w2c[0, :, 2, 0] = angle.sin(), -angle.sin()
    cameras.w2c[0, :, 1, 1] = 1
    turn, distance, pixels = errors(cameras_from_rays(*rays_of(cameras, noise=1e-3), SIZE), cameras)
    assert turn < 0.1 and distance < 1e-3 and pixels < 0.1


def test_solvers_meet_where_the_principal_point_is_centred():
    cameras = some_cameras(3, principal=0)
    cameras.w2c[0, :, :3, :3] = random_rotations(1, seed=1).float()
    toward_z = transform(cameras, cameras.w2c[0, 0, :3, :3], torch.zeros(3))
    rays = rays_of(toward_z)
    qr, ql = (cameras_from_rays(*rays, SIZE, solver) for solver in ("qr", "ql"))
    assert errors(qr, ql)[0] < 1e-2 and errors(qr, ql)[2] < 1e-2
    off = some_cameras(3, principal=0.2)
    off = Cameras(toward_z.w2c, off.K, SIZE)
    rays = rays_of(off)
    assert errors(cameras_from_rays(*rays, SIZE), off)[0] < 1e-3
    assert errors(cameras_from_rays(*rays, SIZE, "ql"), off)[0] > 1


@pytest.mark.parametrize("outliers", [0.0, 0.3, 0.5])
def test_outliers_cost_no_more_than_the_rays_they_take(outliers):
    cameras = some_cameras(6, principal=0.2)
    rays, confidence = rays_of(cameras, noise=0.01, outliers=outliers)
    clean, _ = rays_of(cameras, noise=0.01)
    told = torch.where((rays == clean).all(-1), confidence, 0)  # what one would do who knew the outliers
    got, best = (errors(cameras_from_rays(rays, c, SIZE), cameras) for c in (confidence, told))
    assert all(g < 1.1 * b + 1e-3 for g, b in zip(got, best))
    assert got[0] < 0.8 and got[1] < 0.002 and got[2] < 1


def test_a_moved_world_moves_the_cameras():
    cameras = some_cameras(4, principal=0.2)
    rays, confidence = rays_of(cameras, noise=0.005, outliers=0.2)
    R, t = random_rotations(seed=5).float(), torch.tensor([3.0, -1, 2])
    moved = torch.cat([rays[..., :3] @ R.T, 2 * rays[..., 3:] @ R.T + t], -1)
    here, there = (cameras_from_rays(r, confidence, SIZE) for r in (rays, moved))
    turn, distance, pixels = errors(there, transform(here, R, t, 2.0))
    assert turn < 0.02 and distance < 1e-4 and pixels < 1e-2


def test_size_scales_intrinsics():
    rays = rays_of(some_cameras(2))
    small, big = cameras_from_rays(*rays, SIZE), cameras_from_rays(*rays, (112, 168))
    torch.testing.assert_close(big.K[..., :2, :], 2 * small.K[..., :2, :])
    assert big.w2c.equal(small.w2c) and big.size == (112, 168)


def test_views_do_not_see_each_other_and_draws_are_alike():
    rays, confidence = rays_of(some_cameras(10), noise=0.01, outliers=0.2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    together = cameras_from_rays(rays, confidence, SIZE)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(1)
    for solver in ("qr", "ql"):
        together = cameras_from_rays(rays, confidence, SIZE, solver)
        as_batch = cameras_from_rays(rays.view(5, 2, *rays.shape[2:]), confidence.view(5, 2, *GRID), SIZE, solver)
        torch.testing.assert_close(as_batch.w2c.flatten(0, 1), together.w2c[0], rtol=0, atol=1e-5)
        alone = cameras_from_rays(rays[:, 7:8], confidence[:, 7:8], SIZE, solver)
        torch.testing.assert_close(alone.w2c[:, 0], together.w2c[:, 7], rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["qr", "ql"])
def test_unusable_rays_do_not_count(solver):
    rays, confidence = rays_of(some_cameras(1, principal=0))
    confidence[..., :16, :] = 0
    want = cameras_from_rays(rays, confidence, SIZE, solver)
    rays[0, 0, :4], rays[0, 0, 4:8, :, 4] = torch.nan, torch.inf
    rays[0, 0, 20, :, :3] = 0
    confidence[0, 0, 8:12], confidence[0, 0, 21] = -1, torch.nan
    got = cameras_from_rays(rays, confidence, SIZE, solver)
    assert bool(got.w2c.isfinite().all()) and errors(got, want)[0] < 0.01


def test_hopeless_rays_are_named():
    rays, confidence = rays_of(some_cameras(3))
    for spoil in (torch.nan, 0.0):
        bad = confidence.clone()
        bad[0, 1] = spoil
        bad[0, 1, 0, :7] = 1
        with pytest.raises(ValueError, match="view 1: no camera can be had from its rays: fewer than 8 of its rays"):
            cameras_from_rays(rays, bad, SIZE)
    parallel = rays.clone()
    parallel[0, 2, ..., :3] = torch.tensor([0.3, 0.2, 1.0])
    for solver in ("qr", "ql"):
        with pytest.raises(ValueError, match="view 2: .* no pinhole camera"):
            cameras_from_rays(parallel, confidence, SIZE, solver)
    with pytest.raises(ValueError, match="view 0 of scene 1: "):
        cameras_from_rays(torch.cat([rays, parallel.flip(1)]), confidence.repeat(2, 1, 1, 1), SIZE)
    with pytest.raises(ValueError, match=r"rays must be \[B, V, h, w, 6\]"):
        cameras_from_rays(rays[0], confidence[0], SIZE)
    with pytest.raises(ValueError, match="solver must be one of qr, ql"):
        cameras_from_rays(rays, confidence, SIZE, "svd")
