"""The choice among depths: which are looked at, and what speaks for each."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from geometry.candidates import KNOWN, CandidateChoice, candidates, surfaces_there, what_is_known
from geometry.cue import neighbors
from geometry.sweep import homographies
from tests.test_cue import cameras_along_x

SIZE, DEPTH = (12, 20), 4.0


def sweep_of(*peaks: tuple[int, float], planes: int = 20, size: tuple[int, int] = (3, 4)) -> torch.Tensor:
    logits = torch.zeros(1, planes, *size)
    for plane, height in peaks:
        logits[:, plane] = height
    return logits


def warp(views: int = 3):
    cameras = cameras_along_x(views=views, step=0.5, size=SIZE, focal=16.0)
    source = neighbors(cameras, views - 1)[0][0]
    return source, homographies(cameras, source, SIZE)


def test_both_peaks_of_a_cell_and_those_around_it_are_candidates():
    logits = sweep_of((4, 9.0), (15, 8.0))
    logits[0, 4, 1, 2], logits[0, 9, 1, 2] = 0.0, 9.5  # one cell differs
    mixture = torch.full((1, 6, 8), 0.7)
    found = candidates(mixture, logits, torch.tensor([1.0]), 0.1)
    assert found.shape == (1, 7, 6, 8)
    planes = (found[0, 1:] - 1) / 0.1
    assert torch.equal(found[0, 0], mixture[0])
    # Fine places (2..3, 4..5) lie in that cell; (2..3, 2..3) in the one to its left; (0..1, 4..5) above it.
    for (y, x), expected in {
        (2, 4): (9, 15, 4, 4, 4, 4),
        (3, 3): (4, 15, 4, 4, 4, 9),
        (0, 5): (4, 15, 4, 9, 4, 4),
        (5, 0): (4, 15, 4, 4, 4, 4),
    }.items():
        assert planes[:, y, x].round().int().tolist() == list(expected)


def test_neighbours_see_a_surface_where_it_is():
    """Three views along x of a wall at 4: candidates on it, in front of it and behind it."""
    source, at = warp()
    looked_at = torch.tensor([DEPTH, 2.0, 8.0]).log().view(1, 3, 1, 1).expand(3, 3, *SIZE)
    inside, same, hides, hidden, best = surfaces_there(looked_at, looked_at[:, 0], source, at).unbind(2)
    # The wall moves by two pixels a view: the middle one's neighbours both hold all but two columns each.
    assert inside[1, 0, :, 2:-2].eq(1).all() and inside[1, 0, :, 0].eq(0.5).all()
    middle = (..., slice(4, -4))
    assert same[1, 0][middle] == pytest.approx(1, abs=1e-4) and best[1, 0][middle] == pytest.approx(1, abs=1e-4)
    assert same[1, 1:][middle].max() < 1e-6
    assert hides[1, 1][middle].min() > 0.9 and hides[1, 2][middle].max() == 0
    assert hidden[1, 2][middle].min() > 0.9 and hidden[1, 1][middle].max() == 0


def test_what_lies_behind_a_neighbour_is_not_seen():
    source, (A, b) = warp(2)
    A, b = A.clone(), b.clone()
    A[:, :, 2] *= -1  # both look the other way
    looked_at = torch.full((2, 2, *SIZE), math.log(DEPTH))
    assert surfaces_there(looked_at, looked_at[:, 0], source, (A, b)).eq(0).all()


def test_what_is_known_holds_the_score_of_the_sweep():
    source, at = warp()
    logits = sweep_of((10, 3.0), size=(6, 10)).expand(3, -1, -1, -1)
    looked_at = (1 + 0.1 * torch.tensor([10.0, 10.5, -3.0])).view(1, 3, 1, 1).expand(3, 3, *SIZE)
    known = what_is_known(looked_at, logits, torch.ones(3), 0.1, source, at)
    assert known.shape == (3, 3, KNOWN, *SIZE)
    log_p = logits.log_softmax(1)[0, :, 0, 0]
    for candidate, expected in enumerate((log_p[10], (log_p[10] + log_p[11]) / 2, log_p[0])):
        assert known[:, candidate, 0] == pytest.approx(float(expected) / 4, abs=1e-4)
        assert known[:, candidate, 1] == pytest.approx(float(expected.exp()), abs=1e-4)
    assert known[:, 0, 2].eq(0).all() and known[:, 2, 2].max() < -0.9


def test_choice_learns_which_channel_tells():
    torch.manual_seed(0)
    choice = CandidateChoice(5, 4)
    evidence, context = torch.rand(2, 7, 5, 6, 8), torch.rand(2, 4, 6, 8)
    assert choice(evidence, context).eq(0).all()
    right = evidence[:, :, 3].argmax(1)
    optimizer = torch.optim.Adam(choice.parameters(), 2e-2)
    for _ in range(60):
        loss = cross_entropy(choice(evidence, context), right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (choice(evidence, context).argmax(1) == right).float().mean() > 0.7


def test_a_poisoned_view_is_known_by_its_nan():
    source, warps = warp()
    logits = sweep_of((4, 9.0)).expand(3, -1, -1, -1).clone()
    logits[1] = torch.nan
    looked_at = candidates(torch.full((3, *SIZE), math.log(DEPTH)), logits, torch.zeros(3), 0.1)
    known = what_is_known(looked_at, logits, torch.zeros(3), 0.1, source, warps)
    assert known[1, :, :2].isnan().all() and known[[0, 2], :, :3].isfinite().all()
