"""The video path as laws: rigid, closed, near the inputs, without jumps."""

import math

import pytest
import torch

from geometry.cameras import Cameras, invert_rigid, project, validate
from splat.camera_path import orbit, slerp


def look_at(centers: torch.Tensor, target: torch.Tensor) -> Cameras:
    z = torch.nn.functional.normalize(target - centers, dim=-1)
    x = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([[0.0, 1.0, 0.0]]).expand_as(z), z), dim=-1)
    c2w = torch.eye(4).repeat(len(centers), 1, 1)
    c2w[:, :3, :3] = torch.stack([x, torch.linalg.cross(z, x), z], -1)
    c2w[:, :3, 3] = centers
    K = torch.tensor([[200.0, 0, 100], [0, 210.0, 70], [0, 0, 1]]).repeat(len(centers), 1, 1)
    return Cameras(invert_rigid(c2w), K, (140, 200))


def on_a_circle(degrees: list[float], radius: float = 4.0) -> Cameras:
    angle = torch.tensor(degrees).deg2rad()
    centers = torch.stack([radius * angle.sin(), torch.full_like(angle, -1.0), -radius * angle.cos()], -1)
    return look_at(centers, torch.zeros(3))


def angles(cameras: Cameras) -> torch.Tensor:
    """Turn in degrees from each camera to the next, round the closed path."""
    R = cameras.w2c[:, :3, :3].double()
    cosine = ((R @ R.roll(-1, 0).transpose(-1, -2)).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.acos(cosine.clamp(-1, 1)).rad2deg()


SCENES = {
    "one view": on_a_circle([0]),
    "two views": on_a_circle([0, 25]),
    "an arc": on_a_circle([-40, -20, 0, 15, 45]),
    "an arc in no order": on_a_circle([15, -40, 45, 0, -20]),
    "all round": on_a_circle([i * 45 for i in (0, 3, 6, 1, 4, 7, 2, 5)]),
    "half round": on_a_circle([0, 45, 90, 135, 180]),
    "the same view twice": on_a_circle([10, 10]),
    "turning in place": Cameras(
        look_at(torch.zeros(3, 3), torch.eye(3) + 2 * torch.ones(3)).w2c, torch.eye(3).repeat(3, 1, 1), (9, 9)
    ),
}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("frames", [2, 60, 121])
def test_path_is_rigid_closed_and_smooth(name, frames):
    cameras = SCENES[name]
    path = orbit(cameras, focus=4.0, frames=frames)
    assert tuple(path.shape) == (frames,) and path.size == cameras.size and path.w2c.dtype == torch.float32
    validate(path, tolerance=1e-5)
    if frames >= 60:
        steps = (path.centers - path.centers.roll(-1, 0)).norm(dim=-1)
        # Closed: the step from the last frame to the first is one like the others.
        assert steps.max() < 3.5 * steps.mean() + 1e-6
        assert angles(path).max() < 3.5 * angles(path).mean() + 0.01
        assert steps.max() < 0.25 * 4.0 and angles(path).max() < 20
        # No kinks either: speed changes little from frame to frame.
        velocity = path.centers.roll(-1, 0) - path.centers
        assert (velocity - velocity.roll(-1, 0)).norm(dim=-1).max() < 0.6 * steps.max()


@pytest.mark.parametrize("name", SCENES)
def test_path_passes_near_every_input(name):
    cameras = SCENES[name]
    path = orbit(cameras, focus=4.0, frames=200)
    gap = torch.cdist(cameras.centers, path.centers).min(1).values
    if len(cameras.w2c) == 1:
        assert gap.max() <= 0.1 * 4.0 + 1e-4
    else:
        nearest = (torch.cdist(cameras.centers, cameras.centers) + 1e9 * torch.eye(len(gap))).min(1).values
        assert (gap < 0.06 * 4.0 + 0.4 * nearest).all()


def test_views_all_round_give_one_loop_and_an_arc_does_not_cut_through_the_scene():
    loop = orbit(SCENES["all round"], focus=4.0, frames=180)
    heading = torch.atan2(loop.centers[:, 0], -loop.centers[:, 2])
    turned = (heading.roll(-1) - heading + math.pi) % (2 * math.pi) - math.pi
    assert turned.sum().abs().item() == pytest.approx(2 * math.pi, abs=1e-3)
    assert (turned > -0.02).all() or (turned < 0.02).all()
    half = orbit(SCENES["half round"], focus=4.0, frames=180)
    assert half.centers[:, [0, 2]].norm(dim=-1).min() > 3.0


def test_focus_stays_in_the_middle_for_one_view():
    cameras = SCENES["one view"]
    focus = float(cameras.centers.norm())
    path = orbit(cameras, focus, frames=40)
    pixels, depth = project(torch.zeros(1, 3), path)
    principal = path.K[:, :2, 2]
    torch.testing.assert_close(pixels[:, 0], principal, rtol=0, atol=1e-2)
    assert (path.centers - cameras.centers).norm(dim=-1).max() > 0.05 * focus and (depth > 0).all()


def test_path_moves_with_the_world():
    """The same cameras in another unit of length give the same path in that unit."""
    cameras = SCENES["an arc"]
    bigger = Cameras(cameras.w2c.clone(), cameras.K, cameras.size)
    bigger.w2c[:, :3, 3] *= 10
    a, b = orbit(cameras, 4.0, 50), orbit(bigger, 40.0, 50)
    torch.testing.assert_close(a.centers * 10, b.centers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.w2c[:, :3, :3], b.w2c[:, :3, :3], rtol=0, atol=1e-5)


def test_wrong_input_is_refused():
    cameras = SCENES["two views"]
    for bad in ({"focus": 0.0}, {"focus": float("nan")}, {"focus": 1.0, "frames": 0}):
        with pytest.raises(ValueError, match="focus distance > 0 and a frame or more"):
            orbit(cameras, **bad)
    with pytest.raises(ValueError, match=r"cameras \[V\], at least one"):
        orbit(Cameras(cameras.w2c[:0], cameras.K[:0], cameras.size), 1.0)


def test_slerp_goes_the_short_way_at_an_even_pace():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 500, 4, generator=generator, dtype=torch.float64), dim=-1)
    t = torch.rand(500, generator=generator, dtype=torch.float64)

    def angle(p, q):
        return 2 * torch.acos((p * q).sum(-1).abs().clamp(max=1))

    middle = slerp(a, b, t)
    torch.testing.assert_close(angle(a, middle), t * angle(a, b), rtol=0, atol=1e-6)
    torch.testing.assert_close(angle(middle, b), (1 - t) * angle(a, b), rtol=0, atol=1e-6)
    torch.testing.assert_close(slerp(a, -a, t).abs(), a.abs(), rtol=0, atol=1e-12)
