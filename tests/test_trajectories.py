"""Camera paths: the published figures, and laws that they broke."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from geometry.alignment import nearest_rotation
from geometry.cameras import Cameras, invert_rigid, project, transform, validate
from splat.trajectories import (
    TRAJECTORIES,
    dolly_zoom,
    interpolate,
    pivot,
    smooth,
    smoothed_matrices,
    trajectory,
    wander,
    wobble_inter,
)
from tests.tiny_networks import golden, random_rotations

PARTS = Path(__file__).parent / "data" / "da3_parts.npz"
SIZE = (70, 98)  # of the figures' pictures; their intrinsics are in units of it
SMOOTHED = ("smooth", "interpolate_smooth", "extend")


@pytest.fixture(scope="module")
def parts():
    return np.load(PARTS)


def inputs(figures, prefix: str = "", size: tuple[int, int] = SIZE) -> Cameras:
    c2w, K = (torch.from_numpy(figures[f"{prefix}in.{name}"]) for name in ("c2w", "k_norm"))
    return Cameras(invert_rigid(c2w.double()).float(), to_pixels(K, size), size)


def to_pixels(K: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return K * torch.tensor([size[1], size[0], 1.0])[:, None]


def some_views(count: int) -> Cameras:
    angle = torch.linspace(-0.5, 0.5, count).double() if count > 1 else torch.zeros(1).double()
    c2w = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    c2w[:, 0, 0] = c2w[:, 2, 2] = angle.cos()
    c2w[:, 0, 2], c2w[:, 2, 0] = -angle.sin(), angle.sin()
    c2w[:, :3, 3] = torch.stack([4 * angle.sin(), 0.1 * torch.arange(count), -4 * angle.cos()], -1)
    K = torch.tensor([[80.0, 0, 50], [0, 82, 34], [0, 0, 1]]).repeat(count, 1, 1)
    K[:, 0, 0] += torch.arange(count)
    return Cameras(invert_rigid(c2w).float(), K, SIZE)


@pytest.mark.parametrize("mode", TRAJECTORIES)
def test_every_pose_of_the_published_modes(mode):
    figures = golden("trajectory")
    path = trajectory(inputs(figures), mode)
    assert_published(path, figures[f"mode.{mode}.w2c"], mode)
    np.testing.assert_allclose(path.K, to_pixels(torch.from_numpy(figures[f"mode.{mode}.k"]), SIZE), rtol=0, atol=1e-4)


def assert_published(path: Cameras, w2c: np.ndarray, mode: str) -> None:
    if mode not in SMOOTHED:
        np.testing.assert_allclose(path.w2c, w2c, rtol=0, atol=1e-5)
        return
    # Theirs are no rotations after smoothing, ours the nearest ones.
    c2w = torch.linalg.inv(torch.from_numpy(w2c).double())
    np.testing.assert_allclose(path.c2w[:, :3, :3], nearest_rotation(c2w[:, :3, :3]), rtol=0, atol=1e-5)
    # A wander in a frame that is skewed is skewed too, by 1 % of its radius of 0.27.
    wandering = slice(21, 59) if mode == "extend" else slice(0, 0)
    error = (path.centers - c2w[:, :3, 3]).abs()
    assert error[wandering].numel() == 0 or error[wandering].max() < 2e-3
    error[wandering] = 0
    assert error.max() < 2e-5


@pytest.mark.parametrize("mode", TRAJECTORIES)
def test_samples_of_the_published_modes(mode, parts):
    path = trajectory(inputs(parts, "trajectory/"), mode)
    assert len(path.w2c) == parts[f"trajectory/mode.{mode}.frames"]
    figures = {"k": path.K / torch.tensor([SIZE[1], SIZE[0], 1.0])[:, None]}
    if mode not in SMOOTHED:
        figures["w2c"] = path.w2c
    for name, values in figures.items():
        want = parts[f"trajectory/mode.{mode}.{name}"]
        flat = values.flatten()
        np.testing.assert_allclose(flat[(np.arange(len(want)) * len(flat)) // len(want)], want, rtol=0, atol=1e-5)


def test_published_smoothing(parts):
    cameras = inputs(parts, "trajectory/")
    for window in (50, 5, 1):
        want = parts[f"trajectory/stabilise.{window}"]
        got = smoothed_matrices(cameras.c2w.double(), window)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
        repaired = smooth(cameras, window).c2w
        np.testing.assert_allclose(repaired[:, :3, 3], want[:, :3, 3], rtol=0, atol=1e-6)
        np.testing.assert_allclose(repaired, want, rtol=0, atol=0.02)
        assert np.abs(want[:, :3, 0] * want[:, :3, 1]).sum(-1).max() > 1e-3  # the fault that is repaired


def test_published_interpolation(parts):
    c2w = torch.from_numpy(parts["trajectory/in.c2w"]).double()
    t = torch.linspace(0, 1, 9).double()
    np.testing.assert_allclose(pivot(c2w[1:2], c2w[2:3], t)[0], parts["trajectory/interp.ext"], rtol=0, atol=1e-6)
    start, end = torch.eye(4).double()[None], torch.eye(4).double()[None]
    end[0, :3, 3] = torch.tensor([1.0, 2, 3])
    np.testing.assert_allclose(pivot(start, end, t)[0], parts["trajectory/interp.parallel"], rtol=0, atol=1e-6)


def test_published_moves():
    figures = golden("trajectory")
    cameras = inputs(figures, size=(140, 196))
    moves = {
        "wander": wander(cameras, 12),
        "dolly": dolly_zoom(cameras, 12, 2.0, 30.0),
        "wobble": wobble_inter(cameras),
    }
    for name, path in moves.items():
        c2w, K = figures[f"{name}.c2w"].reshape(-1, 4, 4), figures[f"{name}.k"].reshape(-1, 3, 3)
        np.testing.assert_allclose(path.c2w, c2w, rtol=0, atol=1e-5)
        np.testing.assert_allclose(path.K, to_pixels(torch.from_numpy(K), cameras.size), rtol=0, atol=1e-4)


@pytest.mark.parametrize("views", [1, 2, 3, 4, 5, 8, 130])
@pytest.mark.parametrize("mode", TRAJECTORIES)
def test_paths_are_cameras(mode, views):
    cameras = some_views(views)
    path = trajectory(cameras, mode)
    assert path.size == cameras.size and path.w2c.dtype == path.K.dtype == torch.float32
    validate(path, tolerance=2e-6)
    assert len(path.w2c) >= views or mode in ("wander", "dolly_zoom", "wobble_inter")
    if mode not in ("original", "smooth", "wobble_inter") and views > 1:
        steps = torch.linalg.vector_norm(path.centers.diff(dim=0), dim=-1)
        assert 40 <= len(path.w2c) <= 700 and steps.max() < 1.5


@pytest.mark.parametrize("mode", TRAJECTORIES)
def test_a_moved_world_moves_the_path(mode):
    cameras = some_views(7)
    R, t = random_rotations(seed=1).float(), torch.tensor([1.0, -2, 3])
    here, there = trajectory(cameras, mode), trajectory(transform(cameras, R, t), mode)
    torch.testing.assert_close(there.w2c, transform(here, R, t).w2c, rtol=0, atol=2e-5)
    assert there.K.equal(here.K)


@pytest.mark.parametrize("views", [2, 3, 7, 30, 130])  # of 130, axes are parallel but for 0.4 degrees
def test_interpolation_passes_through_every_view(views):
    cameras = some_views(views)
    path = interpolate(cameras)
    at = torch.linspace(0, len(path.w2c) - 1, views).round().long()
    torch.testing.assert_close(path.w2c[at], cameras.w2c, rtol=0, atol=1e-4)
    torch.testing.assert_close(path.K[at], cameras.K)


def test_interpolation_turns_about_the_focus():
    cameras = some_views(2)
    c2w = cameras.c2w.double()
    c2w[:, 1, 3] = 0  # both look at the origin, from the same distance
    path = pivot(c2w[:1], c2w[1:], torch.linspace(0, 1, 20).double())[0]
    distance = torch.linalg.vector_norm(path[:, :3, 3], dim=-1)
    torch.testing.assert_close(distance, torch.full_like(distance, 4.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(path[:, :3, 2], -path[:, :3, 3] / 4, rtol=0, atol=1e-5)


def test_angles_go_the_shorter_way_round():
    c2w = torch.eye(4).double().repeat(2, 1, 1)
    for i, roll in enumerate((170.0, -170.0)):
        a = torch.tensor(roll).deg2rad().double()
        c2w[i, :2, :2] = torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]])
    path = pivot(c2w[:1], c2w[1:], torch.tensor([0.5]).double())[0, 0]
    torch.testing.assert_close(path[:2, :2], -torch.eye(2).double(), rtol=0, atol=1e-6)


def test_wander_shifts_by_pixels():
    cameras = some_views(1)
    near = cameras.centers + cameras.c2w[:, :3, 2]
    path = wander(cameras, 60, shift=5.0)
    assert path.w2c[0].equal(path.w2c[-1]) and len(path.w2c) == 62
    across = (path.centers - path.centers[0]) @ cameras.c2w[0, :3, 0] * cameras.K[0, 0, 0]
    assert abs(float(across.abs().max()) - 5) < 0.02
    assert project(near[None].expand(62, 1, 3), path)[1].min() > 0


def test_wrong_paths_are_named():
    with pytest.raises(
        ValueError, match="the path must be one of original, smooth, interpolate, .*, wobble_inter, got"
    ):
        trajectory(some_views(2), "spiral")
    with pytest.raises(ValueError, match="at least one"):
        trajectory(some_views(2)[:0], "smooth")
