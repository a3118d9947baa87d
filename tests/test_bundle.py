"""Bundle adjustment: the analytic derivatives, and known cameras found again from noisy sightings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry.bundle import Sightings, State, _Problem, adjust, moved
from geometry.cameras import Cameras
from tests.synthetic_photos import arc, pinhole

SIZE = (180, 240)
FOCAL = 230.0


def true_cameras(views: int = 4) -> Cameras:
    K = torch.tensor(np.stack([pinhole(SIZE, FOCAL)] * views))
    return Cameras(torch.tensor(arc(views)), K, SIZE)


def seen(cameras: Cameras, points: int = 60, noise: float = 0.0, wrong: float = 0.0, seed: int = 0) -> Sightings:
    """Every point found in one view, at a rough depth, and seen in all the others."""
    generator = np.random.default_rng(seed)
    world = generator.uniform(-1.5, 1.5, (points, 3))
    local = np.einsum("vij,pj->vpi", cameras.w2c[:, :3, :3].numpy(), world) + cameras.w2c[:, None, :3, 3].numpy()
    pixels = np.einsum("vij,vpj->vpi", cameras.K.numpy(), local / local[..., 2:])[..., :2]
    views = len(cameras.w2c)
    view = np.arange(points) % views
    pairs = [(p, v) for p in range(points) for v in range(views) if v != view[p]]
    at = np.stack([pixels[v, p] for p, v in pairs]) + noise * generator.normal(size=(len(pairs), 2))
    bad = generator.random(len(pairs)) < wrong
    at[bad] = generator.uniform(0, 1, (bad.sum(), 2)) * SIZE[::-1]
    rough = local[view, np.arange(points), 2] * np.exp(0.3 * generator.normal(size=points))
    return Sightings(
        view=torch.tensor(view),
        pixel=torch.tensor(pixels[view, np.arange(points)]),
        depth=torch.tensor(rough),
        keypoint=torch.tensor([p for p, _ in pairs]),
        seen_in=torch.tensor([v for _, v in pairs]),
        seen_at=torch.tensor(at),
    )


def shaken(cameras: Cameras, amount: float, zoom: float = 1.0) -> Cameras:
    """All but the first camera turned and shifted; focal lengths times `zoom`."""
    by_view = amount * torch.randn(len(cameras.w2c), 7, generator=torch.Generator().manual_seed(0)).double()
    by_view[0] = 0
    state = moved(State(cameras.w2c, torch.zeros(len(by_view)).double(), torch.zeros(1)), by_view, torch.zeros(1))
    K = cameras.K.clone()
    K[:, [0, 1], [0, 1]] *= zoom
    return Cameras(state.w2c, K, cameras.size)


def turn_errors(a: Cameras, b: Cameras) -> Tensor:
    """Degrees between orientations [V]."""
    cosine = ((a.w2c[:, :3, :3] * b.w2c[:, :3, :3]).sum((-2, -1)) - 1) / 2
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


@pytest.mark.parametrize("believed", [1.0, None])
def test_derivatives_are_those_of_autograd(believed):
    cameras = shaken(true_cameras(3), 0.05)
    problem = _Problem(cameras, seen(true_cameras(3), points=7), believed)
    state = State(cameras.w2c, torch.tensor([0.1, -0.2, 0.05]).double(), problem.believed_depth)

    def residual(by_view: Tensor, by_depth: Tensor) -> Tensor:
        return problem.residual(moved(state, by_view, by_depth))

    zero = (torch.zeros(3, 7).double(), torch.zeros(7).double())
    by_view, by_depth = torch.autograd.functional.jacobian(residual, zero)
    by_view[:, :, 0, :6] = 0  # the first camera stays
    if believed is None:
        by_view[..., 6] = 0
    found_by, seen_by = torch.zeros_like(by_view), torch.zeros_like(by_view)
    row = torch.arange(len(by_view))
    (in_found, in_seen), depth, off = problem.jacobian(state)
    found_by[row, :, problem.found_in] = in_found
    seen_by[row, :, problem.sightings.seen_in] = in_seen
    torch.testing.assert_close(found_by + seen_by, by_view)
    torch.testing.assert_close(depth, by_depth[row, :, problem.sightings.keypoint])
    torch.testing.assert_close(off, residual(*zero))


def test_cameras_are_found_again():
    true = true_cameras()
    start = shaken(true, 0.05)
    assert turn_errors(start, true).max() > 3
    found = adjust(start, seen(true, points=200, noise=0.3, wrong=0.1))
    assert turn_errors(found.cameras, true).max() < 0.3
    torch.testing.assert_close(found.cameras.w2c[0], true.w2c[0], rtol=0, atol=1e-12)
    assert found.error.median() < 0.6
    # The unit comes from depths that are 30 % off each.
    lengths = torch.linalg.vector_norm(found.cameras.centers - found.cameras.centers[:1], dim=-1)[1:]
    true_lengths = torch.linalg.vector_norm(true.centers - true.centers[:1], dim=-1)[1:]
    ratio = lengths / true_lengths
    assert (ratio / ratio.mean() - 1).abs().max() < 0.02 and 0.7 < ratio.mean() < 1.4


def test_the_focal_length_is_found_or_left_alone():
    true = true_cameras()
    sightings = seen(true, noise=0.2)
    free = adjust(shaken(true, 0.02, zoom=1.2), sightings)
    assert (free.cameras.K[:, 0, 0] / FOCAL - 1).abs().max() < 0.05
    known = shaken(true, 0.02, zoom=1.2)
    fixed = adjust(known, sightings, believed_zoom=None)
    torch.testing.assert_close(fixed.cameras.K, known.K, rtol=0, atol=0)
    assert fixed.cost > 1.5 * free.cost


def test_a_believed_focal_length_tells_where_nothing_else_does():
    """Two views that only shift sideways fit any focal length."""
    w2c = torch.eye(4).double().repeat(2, 1, 1)
    w2c[1, 0, 3] = -0.3
    true = Cameras(w2c, true_cameras(2).K, SIZE)
    away = Cameras(true.w2c.clone(), true.K, SIZE)
    away.w2c[:, 2, 3] += 6
    sightings = seen(away)
    for zoom in (0.8, 1.0, 1.3):
        found = adjust(away, sightings, believed_zoom=zoom).cameras.K[:, 0, 0] / FOCAL
        assert (found / zoom - 1).abs().max() < 0.1, zoom


def test_deviations_are_those_of_repeated_trials():
    """But for a factor of the square root of 2, as here no sighting is told both ways."""
    true, errors = true_cameras(), []
    found = [adjust(true, seen(true, noise=0.5, seed=seed), None) for seed in range(20)]
    for trial in found:
        R, exact = trial.cameras.w2c[:, :3, :3], true.w2c[:, :3, :3]
        turn = (R[None] @ R[:, None].mT) @ (exact[None] @ exact[:, None].mT).mT
        errors.append(torch.stack([turn[..., 2, 1], turn[..., 0, 2], turn[..., 1, 0]], -1))
    errors = torch.rad2deg(torch.stack(errors))
    worst_axis = torch.linalg.eigvalsh((errors[..., None] * errors[..., None, :]).mean(0))[..., -1].clamp_min(0).sqrt()
    said = torch.stack([trial.turn_deviation for trial in found]).mean(0) / 2**0.5
    apart = ~torch.eye(4, dtype=torch.bool)
    assert ((said / worst_axis)[apart].log().abs() < np.log(1.6)).all()
    assert (said.diagonal() < 1e-3 * said.max()).all()


def test_deviations_do_not_hang_on_which_view_comes_first():
    true, order = true_cameras(), [2, 0, 3, 1]
    sightings = seen(true, noise=0.5)
    one = adjust(true, sightings, None).turn_deviation
    place = torch.tensor([order.index(view) for view in range(4)])
    moved_on = replace(sightings, view=place[sightings.view], seen_in=place[sightings.seen_in])
    other = adjust(true[order], moved_on, None).turn_deviation
    torch.testing.assert_close(other, one[order][:, order], rtol=0.05, atol=1e-3)


def test_a_point_behind_a_camera_does_not_break_it():
    true = true_cameras()
    start = shaken(true, 0.02)
    start.w2c[2, 2, 3] -= 6  # past everything
    found = adjust(start, seen(true))
    assert torch.isfinite(found.cameras.w2c).all() and torch.isfinite(found.error).all()
