"""Gaussians as a value, moved by similarities, and made straight from depth; their harmonics."""

import math

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras, invert_rigid, project
from geometry.cameras import transform as transform_cameras
from geometry.rotations import matrices_from_quats
from splat.depth_splats import splats_from_depth
from splat.gaussians import Gaussians, transform
from splat.sh import sh_basis, sh_to_color


def random_rotation(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return matrices_from_quats(torch.randn(*shape, 4, generator=generator, dtype=torch.float64))


def made_up(*shape: int, degree: int = 3) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*shape, *size, generator=g, dtype=torch.float64)  # noqa: E731
    quats = torch.nn.functional.normalize(normal(4), dim=-1)
    return Gaussians(normal(3), normal(3).exp(), quats, torch.sigmoid(normal()), normal((degree + 1) ** 2, 3))


def covariance(gaussians: Gaussians) -> torch.Tensor:
    half = matrices_from_quats(gaussians.quats) * gaussians.scales[..., None, :]
    return half @ half.transpose(-1, -2)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_similarity_moves_centres_shapes_and_colours_alike(degree):
    g = torch.Generator().manual_seed(1)
    rotation, translation, scale = random_rotation(g), torch.randn(3, generator=g, dtype=torch.float64), 2.5
    before = made_up(40, degree=degree)
    after = transform(before, rotation, translation, scale)
    torch.testing.assert_close(after.means, scale * before.means @ rotation.T + translation)
    torch.testing.assert_close(covariance(after), scale**2 * rotation @ covariance(before) @ rotation.T)
    torch.testing.assert_close(after.quats.norm(dim=-1), torch.ones(40, dtype=torch.float64))
    assert after.opacities is before.opacities
    # Looked at from the moved side, each Gaussian has the colour that it had.
    directions = torch.randn(40, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(sh_to_color(after.sh, directions @ rotation.T), sh_to_color(before.sh, directions))


def test_transforms_compose_and_undo():
    g = torch.Generator().manual_seed(2)
    first, second = random_rotation(g), random_rotation(g)
    t = torch.randn(3, generator=g, dtype=torch.float64)
    start = made_up(20)
    both = transform(transform(start, first, t, 2.0), second, t, 0.3)
    at_once = transform(start, second @ first, 0.3 * second @ t + t, 0.6)
    back = transform(both, (second @ first).T, -(second @ first).T @ (0.3 * second @ t + t) / 0.6, 1 / 0.6)
    for got, want in ((both, at_once), (back, start)):
        torch.testing.assert_close(got.means, want.means)
        torch.testing.assert_close(covariance(got), covariance(want))
        torch.testing.assert_close(got.sh, want.sh)


def test_batches_move_each_by_its_own():
    g = torch.Generator().manual_seed(3)
    rotation, translation = random_rotation(g, 2), torch.randn(2, 3, generator=g, dtype=torch.float64)
    scale = torch.tensor([0.5, 3.0], dtype=torch.float64)
    scenes = made_up(2, 7, degree=2)
    together = transform(scenes, rotation, translation, scale)
    for i in range(2):
        alone = transform(Gaussians(*(x[i] for x in vars(scenes).values())), rotation[i], translation[i], scale[i])
        for name in vars(alone):
            torch.testing.assert_close(getattr(together, name)[i], getattr(alone, name), msg=name)


def test_cameras_and_gaussians_moved_alike_see_the_same():
    g = torch.Generator().manual_seed(4)
    rotation, translation, scale = random_rotation(g), torch.randn(3, generator=g, dtype=torch.float64), 0.2
    cameras = some_cameras(3)
    means = torch.randn(30, 3, generator=g, dtype=torch.float64) + torch.tensor([0.0, 0, 6], dtype=torch.float64)
    gaussians = Gaussians(means, *(x[:30] for x in list(vars(made_up(30)).values())[1:]))
    pixels, depth = project(gaussians.means, cameras)
    moved = transform(gaussians, rotation, translation, scale)
    moved_pixels, moved_depth = project(moved.means, transform_cameras(cameras, rotation, translation, scale))
    torch.testing.assert_close(moved_pixels, pixels)
    torch.testing.assert_close(moved_depth, scale * depth)


def test_wrong_shapes_are_refused():
    fields = vars(made_up(5))
    with pytest.raises(ValueError, match=r"Gaussians.scales must be \(5, 3\)"):
        Gaussians(**{**fields, "scales": fields["scales"][:4]})
    with pytest.raises(ValueError, match="1|4|9|16"):
        Gaussians(**{**fields, "sh": fields["sh"][:, :5]})


def some_cameras(count: int, size=(20, 30)) -> Cameras:
    g = torch.Generator().manual_seed(5)
    c2w = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    angle = 0.2 * torch.randn(count, 3, generator=g, dtype=torch.float64)
    c2w[:, :3, :3] = matrices_from_quats(torch.cat([torch.ones(count, 1, dtype=torch.float64), angle / 2], -1))
    c2w[:, :3, 3] = 0.3 * torch.randn(count, 3, generator=g, dtype=torch.float64)
    K = torch.tensor([[25.0, 0, 14], [0, 26.0, 11], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    return Cameras(invert_rigid(c2w), K, size)


def test_depth_splats_lie_on_their_pixels_with_their_colour():
    cameras = some_cameras(2)
    g = torch.Generator().manual_seed(6)
    images = torch.rand(2, 3, 20, 30, generator=g, dtype=torch.float64)
    depth = 2 + torch.rand(2, 20, 30, generator=g, dtype=torch.float64)
    depth[0, 3, 4], depth[1, 5, 6] = 0, float("nan")
    confidence = 1 + torch.rand(2, 20, 30, generator=g, dtype=torch.float64)
    splats = splats_from_depth(images, depth, confidence, cameras)
    assert splats.count == 2 * 20 * 30 - 2 and splats.sh_degree == 0
    pixels, z = project(splats.means[: 20 * 30 - 1], cameras[0])
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    keep = depth[0] > 0
    want = torch.stack([columns, rows], -1)[keep].double() + 0.5
    torch.testing.assert_close(pixels, want)
    torch.testing.assert_close(z, depth[0][keep])
    color = sh_to_color(splats.sh[: len(want)], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(color, images[0].movedim(0, -1)[keep])
    # The footprint is that of the pixel: as far as its neighbour lies, within a factor.
    assert ((splats.scales[: len(want), 0] * 25 / z) > 0.3).all() and (
        (splats.scales[: len(want), 0] * 26 / z) < 1
    ).all()
    faint = confidence[0][keep] < confidence[depth > 0].median()
    assert (splats.opacities[: len(want)][faint] < 0.95).all() and splats.opacities.max() == 0.95
    assert (splats_from_depth(images, depth, None, cameras).opacities == 0.95).all()


def test_spherical_harmonics_are_orthonormal():
    z, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(8))
    phi = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    radius = (1 - z * z).sqrt()[:, None]
    directions = torch.stack([radius * phi.cos(), radius * phi.sin(), z[:, None].expand(8, 16)], -1)
    basis = sh_basis(directions, 3)
    gram = torch.einsum("zpi,zpj,z->ij", basis, basis, weights) * (2 * math.pi / 16)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


def test_sh_signs_and_the_clamp_at_black():
    sh = torch.zeros(4, 3)
    sh[1:, 0] = 1.0
    for axis, sign in ((1, -1), (2, 1), (0, -1)):  # bands 1, 2, 3 are -y, z, -x
        direction = 5 * torch.nn.functional.one_hot(torch.tensor(axis), 3).float()
        torch.testing.assert_close(sh_to_color(sh, direction)[0], torch.tensor(max(0.0, 0.5 + sign * 0.48860251)))
    with pytest.raises(ValueError, match="degrees 0 to 3"):
        sh_basis(torch.zeros(3), 4)
