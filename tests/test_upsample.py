import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry.upsample import GuidedUpsampling, log_spline


@pytest.mark.parametrize(("coarse", "fine"), [((8, 12), (28, 42)), ((6, 6), (12, 12)), ((5, 7), (5, 7))])
def test_untrained_it_keeps_slopes(coarse, fine):
    """The quadratic B-spline reproduces what is linear, whatever the ratio of sizes."""
    up = GuidedUpsampling(2, sharpness=1.0)
    y, x = (torch.arange(s) + 0.5 for s in coarse)
    ramp = (2 * y[:, None] / coarse[0] - x / coarse[1])[None, None]
    y, x = (torch.arange(s) + 0.5 for s in fine)
    expected = (2 * y[:, None] / fine[0] - x / fine[1])[None, None]
    inner = (..., slice(fine[0] // coarse[0] + 1, -(fine[0] // coarse[0]) - 1), slice(8, -8) if fine[1] > 20 else 3)
    torch.testing.assert_close(up(ramp, torch.rand(1, 2, *fine))[inner], expected[inner], atol=3e-3, rtol=0)


def test_sharp_it_is_nearly_the_nearest_cell():
    cells = torch.rand(2, 2, 4, 5)
    nearest = F.interpolate(cells, (8, 10), mode="nearest-exact")
    sharp = GuidedUpsampling(1, sharpness=30.0)(cells, torch.rand(2, 1, 8, 10))
    torch.testing.assert_close(sharp, nearest, atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 14), st.integers(0, 14), st.integers(0, 1000))
def test_every_value_lies_between_those_around_it(h, w, more_h, more_w, seed):
    generator = torch.Generator().manual_seed(seed)
    size = (h + more_h, w + more_w)
    up = GuidedUpsampling(3, sharpness=1.0)
    torch.nn.init.normal_(up.weigh.weight, generator=generator)
    cells = torch.rand(1, 1, h, w, generator=generator)
    fine = up(cells, torch.randn(1, 3, *size, generator=generator))
    most = F.interpolate(F.max_pool2d(cells, 3, 1, 1), size, mode="nearest-exact")
    least = F.interpolate(-F.max_pool2d(-cells, 3, 1, 1), size, mode="nearest-exact")
    assert fine.shape[-2:] == size
    assert bool(((fine <= most + 1e-6) & (fine >= least - 1e-6)).all())


def test_weights_of_the_spline_add_up_to_one():
    total = log_spline((4, 8), (14, 28), torch.device("cpu")).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(14, 28), atol=5e-3, rtol=0)


def test_it_learns_to_follow_an_edge_in_the_guide():
    """A front and a back surface whose border crosses the cells: the guide shows it, interpolation blurs it."""
    torch.manual_seed(0)
    mask = (torch.arange(28)[:, None] + 0.5 * torch.arange(28) > 20).float()[None, None]
    cells = (F.interpolate(mask, (8, 8), mode="area") > 0.5).float()
    away = (torch.arange(28) + 0.5) * (8 / 28) % 1 - 0.5
    places = torch.stack([away[:, None].expand(28, 28), away.expand(28, 28)])[None]
    # Which side a pixel is on, and which sides its nine cells are on.
    sides = F.interpolate(F.unfold(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3).view(1, 9, 8, 8), (28, 28))
    guide = torch.cat([mask, places, sides, mask * sides], 1)
    up = GuidedUpsampling(guide.shape[1], sharpness=1.0)
    before = (up(cells, guide) - mask).abs().mean()
    optimizer = torch.optim.Adam(up.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (up(cells, guide) - mask).abs().mean().backward()
        optimizer.step()
    assert (up(cells, guide) - mask).abs().mean() < 0.2 * before
