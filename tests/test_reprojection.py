import torch

from geometry.cameras import Cameras, transform
from geometry.compiled import kernels
from geometry.reprojection import CHANNELS, reference_lookup, reproject
from geometry.sweep import homographies
from splat.gs_head import ViewAgreement
from tests.test_cue import cameras_along_x

SIZE, DEPTH = (28, 42), 4.0


def wall(depth: float = DEPTH):
    """Three views along x of a textured wall at z = 4, their depths, and both others as neighbours of each."""
    cameras = cameras_along_x(views=3, step=0.5, size=SIZE, focal=40.0)
    shift = int(0.5 * 40 / DEPTH)
    texture = torch.rand(1, 3, SIZE[0], SIZE[1] + 2 * shift, generator=torch.Generator().manual_seed(0))[0]
    images = torch.stack([texture[..., shift * i : shift * i + SIZE[1]] for i in range(3)])[None]
    index = torch.tensor([[[1, 2], [0, 2], [1, 0]]])
    return images, torch.full((1, 3, *SIZE), depth), cameras, index


def test_views_of_a_wall_agree():
    images, depth, cameras, index = wall()
    seen, coarse, fine, *color = reproject(images, depth, cameras, index).unbind(3)
    assert seen.shape == (1, 3, 2, *SIZE)
    shift = 5
    assert seen[0, 0, 0, :, shift:].all() and not seen[0, 0, 0, :, :shift].any()
    assert max(float(x.abs().max()) for x in (coarse, fine, *color)) < 1e-4


def test_a_point_in_front_and_one_behind_are_told_apart():
    images, depth, cameras, index = wall()
    depth = depth.clone()
    depth[:, 0, :, :20], depth[:, 0, :, 20:] = 3.0, 5.0
    seen, coarse, fine, *_ = reproject(images, depth, cameras, index)[:, 0, 0].unbind(1)
    inside = seen[..., 15:20] > 0
    assert inside.any() and bool((coarse[..., 15:20][inside] < -0.5).all())
    inside = seen[..., 20:] > 0
    assert inside.any() and bool((coarse[..., 20:][inside] > 0.5).all() and (fine[..., 20:][inside] > 0.99).all())


def test_what_no_neighbour_sees_is_nothing():
    images, depth, cameras, index = wall()
    turned = cameras.w2c.clone()
    turned[:, 1, [0, 2]] *= -1  # looks the other way
    out = reproject(images, depth, Cameras(turned, cameras.K, SIZE), index)
    assert out.shape == (1, 3, 2, CHANNELS, *SIZE) and bool((out[:, 0, 0] == 0).all())


def test_the_unit_of_length_drops_out():
    images, depth, cameras, index = wall(3.5)
    bigger = transform(cameras, torch.eye(3), torch.zeros(3), 7.0)
    ours, theirs = reproject(images, depth, cameras, index), reproject(images, 7 * depth, bigger, index)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_neighbours_are_heard_in_any_order_and_at_first_not_at_all():
    agreement = ViewAgreement(8)
    said = torch.randn(2, 3, CHANNELS, 6, 7)
    assert bool((agreement(said) == 0).all())
    torch.nn.init.normal_(agreement.all[-1].weight)
    torch.testing.assert_close(agreement(said), agreement(said[:, [2, 0, 1]]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(agreement(said), agreement(torch.cat([said, said], 1)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(agreement(said), agreement(0 * said))


def test_compiled_and_plain_agree():
    _, depth, cameras, index = wall()
    generator = torch.Generator().manual_seed(3)
    smooth = torch.nn.functional.interpolate(torch.randn(3, 4, 5, 6, generator=generator), SIZE, mode="bilinear")
    images, depth = smooth[:, :3].sigmoid(), depth[0] * torch.exp(0.2 * smooth[:, 3])
    turned = cameras.w2c.clone()
    turned[0, 0, :3, :3] = torch.linalg.matrix_exp(0.1 * torch.tensor([[0.0, 1, 2], [-1, 0, 1], [-2, -1, 0]]))
    turned[0, 2, [0, 2]] *= -1  # looks the other way
    inputs = images, depth, index[0], *homographies(Cameras(turned, cameras.K, SIZE), index[0], SIZE)
    plain, compiled = reference_lookup(*inputs), kernels("reprojection").compiled_lookup(*inputs)
    assert plain.shape == compiled.shape == (3, 2, CHANNELS, *SIZE)
    assert 0.1 < plain[:, :, 0].mean() < 0.8 and plain[:, :, 1].abs().mean() > 0.05
    assert not plain[0, 1].any() and not plain[2].any()
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=2e-5)


def test_compiled_is_finite_where_depths_are_worlds_apart():
    images, _, cameras, index = wall()
    depth = torch.tensor([1e-7, 1.0, 1e7])[:, None, None].expand(3, *SIZE)
    cameras = Cameras(torch.eye(4).expand(1, 3, 4, 4), cameras.K, SIZE)
    inputs = images[0], depth, index[0], *homographies(cameras, index[0], SIZE)
    plain, compiled = reference_lookup(*inputs), kernels("reprojection").compiled_lookup(*inputs)
    assert plain[:, :, 0].all() and bool((plain[:, :, 1].abs() == 1).all())
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=2e-5)
