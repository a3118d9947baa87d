"""The last sweep: depth that is nearly right gets nearer, and what nothing can be said about stays."""

import pytest
import torch
import torch.nn.functional as F

from geometry import network
from geometry.compiled import kernels
from geometry.cue import neighbors
from geometry.pixel_sweep import LONGEST_STEP, pixel_sweep, reference_offsets
from geometry.sweep import homographies
from splat.model import GaussianModel
from tests.test_cue import cameras_along_x
from tests.train_run import TINY

DEPTH, SHIFT, SIDE = 3.5, 8, 56  # a plane that moves by 8 pixels from view to view


@pytest.fixture(scope="module")
def plane():
    """Three views of a textured plane: images, cameras, neighbours."""
    texture = torch.rand(1, 3, SIDE // 2, SIDE // 2 + SHIFT, generator=torch.Generator().manual_seed(0))
    texture = F.interpolate(texture, scale_factor=2, mode="bilinear")[0]
    images = torch.stack([texture[:, :, SHIFT * i : SHIFT * i + SIDE] for i in range(3)])[None]
    cameras = cameras_along_x(views=3, step=SHIFT * DEPTH / SIDE, size=(SIDE, SIDE), focal=float(SIDE))
    return images, cameras, neighbors(cameras, 2)[0][0]


def test_depth_moves_to_where_the_views_agree(plane):
    images, cameras, source = plane
    off = torch.tensor([0.93, 1.0, 1.07])[:, None, None].expand(3, SIDE, SIDE)[None]
    depth = pixel_sweep(DEPTH * off, images, cameras, source, 5)
    before, after = ((d / DEPTH - 1).abs().median(-1).values.median(-1).values[0] for d in (DEPTH * off, depth))
    # A step is 5 % of the depth here, so a choice between two of them is within 2.5 %.
    assert (after < 0.025).all() and before[0] > 0.06, (before, after)


def test_without_texture_nothing_moves(plane):
    images, cameras, source = plane
    depth = torch.full((1, 3, SIDE, SIDE), 3.0)
    moved = pixel_sweep(depth, torch.full_like(images, 0.4), cameras, source, 5)
    inside = slice(3 * SHIFT, -3 * SHIFT)  # not where one plane leaves a neighbour's image before another
    torch.testing.assert_close(moved[:, :, 4:-4, inside], depth[:, :, 4:-4, inside])
    assert pixel_sweep(depth, images, cameras, source, 1).equal(depth)


def test_what_no_neighbour_sees_stays(plane):
    images, cameras, source = plane
    behind = torch.full((1, 3, SIDE, SIDE), 0.1)  # so near that no neighbour has it in its image
    assert pixel_sweep(behind, images, cameras, source, 5).equal(behind)


def test_compiled_and_plain_agree():
    cameras = cameras_along_x(views=4, step=0.7, size=(28, 42), focal=40.0)
    generator = torch.Generator().manual_seed(3)
    images, depth = torch.rand(4, 3, 28, 42, generator=generator), 1 + 4 * torch.rand(4, 28, 42, generator=generator)
    source = neighbors(cameras, 3)[0][0]
    inputs = depth, images, source, *homographies(cameras, source, (28, 42)), 5
    plain, compiled = reference_offsets(*inputs), kernels("pixel_sweep").compiled_offsets(*inputs)
    assert plain.abs().max() < 2 * LONGEST_STEP + 1e-6 and plain.abs().mean() > 1e-3
    # Rounding decides whether a point at the edge of an image is inside.
    assert ((plain - compiled).abs() > 1e-4).float().mean() < 0.01


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu(plane):
    images, cameras, source = plane
    depth = torch.full((1, 3, SIDE, SIDE), 3.3)
    expected = pixel_sweep(depth, images, cameras, source, 5)
    got = pixel_sweep(depth.cuda(), images.cuda(), cameras.to("cuda"), source.cuda(), 5).cpu()
    assert ((got / expected).log().abs() > 1e-3).float().mean() < 0.01


def test_the_network_ends_with_it_and_gradients_pass(plane, monkeypatch):
    images, cameras, _ = plane
    torch.manual_seed(0)
    model = GaussianModel(TINY)
    kept = {}

    def spy(depth, *rest):
        kept["before"] = depth
        return pixel_sweep(depth, *rest)

    monkeypatch.setattr(network, "pixel_sweep", spy)
    depth = model.geometry(images, cameras).depth
    factor = (depth / kept["before"]).detach()
    assert (factor - 1).abs().max() > 1e-3
    gradient = torch.autograd.grad(depth.sum(), kept["before"])[0]
    torch.testing.assert_close(gradient, factor)
