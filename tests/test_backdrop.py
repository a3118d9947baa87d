"""The sphere of splats behind everything else."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from geometry.cameras import Cameras, unproject
from splat.backdrop import backdrop, fibonacci_sphere
from splat.gaussians import Gaussians, join
from splat.model import GaussianModel
from splat.predict import predict
from splat.refine import refine
from splat.render import render
from tests.train_run import TINY, Planes
from train.batch import Shape
from train.config import LossWeights
from train.losses import spread_loss
from train.objective import NEAR, Forward, Objective, draw, into_network

COUNT = 2562


def turned(degrees: float, fov: float = 60.0, size: tuple[int, int] = (40, 56)) -> Cameras:
    """One camera at the origin, turned to the right, with a horizontal field of view."""
    angle, half = torch.deg2rad(torch.tensor([degrees, fov / 2]))
    w2c = torch.eye(4)
    w2c[0, 0], w2c[0, 2], w2c[2, 0], w2c[2, 2] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    f = size[1] / 2 / half.tan()
    K = torch.tensor([[f, 0, size[1] / 2], [0, f, size[0] / 2], [0, 0, 1]])
    return Cameras(w2c[None], K[None], size)


def two_photos(depth: float = 4.0) -> tuple[torch.Tensor, torch.Tensor, Cameras]:
    """A red photo looking 40 degrees to the left, a blue one to the right, [1, 2, ...]."""
    left, right = turned(-40), turned(40)
    cameras = Cameras(torch.cat([left.w2c, right.w2c])[None], torch.cat([left.K, right.K])[None], left.size)
    images = torch.zeros(1, 2, 3, *left.size)
    images[0, 0, 0], images[0, 1, 2] = 0.9, 0.9
    return images, torch.full((1, 2, *left.size), depth), cameras


def first(gaussians: Gaussians) -> Gaussians:
    return Gaussians(*(tensor[0] for tensor in vars(gaussians).values()))


def test_directions_are_unit_vectors_evenly_spread():
    directions = fibonacci_sphere(COUNT, torch.device("cpu"))
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(COUNT, dtype=torch.float64))
    assert directions.mean(0).abs().max() < 1e-3
    nearest = torch.cdist(directions, directions).fill_diagonal_(9).amin(1)
    assert nearest.min() > 0.7 * nearest.max()


@pytest.mark.parametrize("fov", [40.0, 110.0])
@pytest.mark.parametrize("degrees", [0.0, 75.0, 180.0])
def test_nothing_shows_through_in_any_direction(degrees, fov):
    behind = first(backdrop(*two_photos(), COUNT))
    assert render(behind, turned(degrees, fov)).alpha.min() > 0.99


def test_colours_are_those_of_the_photos_in_that_direction():
    behind = first(backdrop(*two_photos(), COUNT))
    left, between, back = (render(behind, turned(d, 30)).color[0].mean((0, 1)) for d in (-40, 0, 180))
    torch.testing.assert_close(left, torch.tensor([0.9, 0, 0]), atol=0.02, rtol=0)
    for color in (between, back):
        torch.testing.assert_close(color, torch.tensor([0.45, 0, 0.45]), atol=0.05, rtol=0)


def test_what_is_far_counts_more_than_what_is_near():
    images, depth, cameras = two_photos()
    depth[:, 0] *= 0.2
    red, _, blue = render(first(backdrop(images, depth, cameras, COUNT)), turned(180)).color[0].mean((0, 1))
    assert blue > 1.5 * red


def test_it_lies_behind_all_that_is_seen_in_any_unit_of_length():
    images, depth, cameras = two_photos()
    depth[0, 0, :20] = 30.0
    behind = backdrop(images, depth, cameras, COUNT)
    seen = unproject(depth, cameras).flatten(1, 3).norm(dim=-1).max()
    assert behind.means.norm(dim=-1).min() > seen
    large = backdrop(images, 50 * depth, cameras, COUNT)
    torch.testing.assert_close(large.means, 50 * behind.means)
    torch.testing.assert_close(large.scales, 50 * behind.scales)
    torch.testing.assert_close(large.sh, behind.sh)


def test_depth_that_is_not_finite_is_not_looked_at():
    images, depth, cameras = two_photos()
    depth[0, 0, :3], depth[0, 1, 5] = torch.inf, torch.nan
    behind = backdrop(images, depth, cameras, COUNT)
    assert all(tensor.isfinite().all() for tensor in vars(behind).values())
    assert behind.means.norm(dim=-1).max() < 10


def test_no_film_lies_before_what_is_near():
    """Splats that a wide camera sees from the side are drawn large; before a wall none may show."""
    n = 60
    y, x = torch.meshgrid(torch.linspace(-4, 4, n), torch.linspace(-4, 4, n), indexing="ij")
    wall = Gaussians(
        means=torch.stack([x, y, torch.full_like(x, 2.0)], -1).reshape(-1, 3),
        scales=torch.full((n * n, 3), 0.12),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(n * n, 4),
        opacities=torch.full((n * n,), 0.99),
        sh=torch.full((n * n, 1, 3), -1.0),
    )
    camera = turned(0, 100)
    both = join(wall, first(backdrop(*two_photos(), COUNT)))
    difference = render(both, camera).color - render(wall, camera).color
    assert difference.abs().max() < 0.01


def with_backdrop(count: int) -> GaussianModel:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, gs=dataclasses.replace(TINY.gs, backdrop=count))
    return GaussianModel(config).eval()


def test_a_network_gives_it_last_and_only_where_wanted():
    model, (_, _, cameras) = with_backdrop(64), two_photos()
    images, cameras = torch.rand(2, 3, 28, 42), Cameras(cameras.w2c[0], cameras.K[0], (28, 42))
    cameras = Cameras(cameras.w2c + F.pad(torch.rand(2, 3, 1), (3, 0, 0, 1)), cameras.K, cameras.size)
    whole = predict(images, cameras, model)
    bare = predict(images, cameras, model, backdrop=False)
    assert (whole.backdrop, bare.backdrop) == (64, 0)
    assert whole.gaussians.count == bare.gaussians.count + 64 == 2 * 28 * 42 + 64
    torch.testing.assert_close(whole.gaussians.select(slice(0, -64)).means, bare.gaussians.means)
    away = (whole.gaussians.means[-64:] - cameras.centers.mean(0)).norm(dim=-1)
    torch.testing.assert_close(away, away[:1].expand(64), rtol=1e-4, atol=0)
    assert predict(images, cameras, with_backdrop(0)).backdrop == 0


def test_refinement_leaves_it_alone():
    images, depth, cameras = two_photos()
    behind = first(backdrop(images, depth, cameras, 64))
    front = behind.select(slice(0, 32))
    photos = render(join(front, behind), cameras[0]).color.movedim(-1, -3) + 0.1
    better = refine(join(front, behind), photos, cameras[0], 2, fixed=64)
    assert better.count == 96 and not better.sh[:32].equal(front.sh)
    for name, tensor in vars(behind).items():
        assert getattr(better, name)[32:].equal(tensor), name


def test_training_draws_before_it_and_spread_counts_without_it():
    model = with_backdrop(COUNT)
    forward, batch = Forward(model, bf16=False), Planes().batch(0, Shape(1, 3, 2, (28, 42)))
    network = model.config
    cameras, depth = into_network(network, batch, True)
    prediction = forward(batch.images[:, :3], cameras[:, :3])
    assert prediction.gaussians.count == 3 * 28 * 42 and prediction.backdrop.count == COUNT
    bare = prediction._replace(backdrop=None)
    pictures, holes = (draw(network, p, cameras[:, :3], cameras[:, 3:]) for p in (prediction, bare))
    alone = render(prediction.backdrop, cameras[:, 3:], near=NEAR)
    behind = 1 - render(prediction.gaussians, cameras[:, 3:], near=NEAR).alpha[:, :, None]
    torch.testing.assert_close(pictures, holes + behind * alone.color.movedim(-1, -3), atol=2e-3, rtol=0)

    only = LossWeights(depth=0, cue=0, gaussian_depth=0, draft=0)
    with_spread, scalars = Objective(network, dataclasses.replace(only, spread=0.5))(forward, batch, True, True)
    without, _ = Objective(network, only)(forward, batch, True, True)
    surface = torch.where(batch.valid[:, 3:], depth[:, 3:], 0.0)
    spread, _ = spread_loss(prediction.gaussians, cameras[:, 3:], surface, NEAR)
    torch.testing.assert_close(with_spread - without, 0.5 * spread)
    torch.testing.assert_close(scalars["spread"], spread.detach())
