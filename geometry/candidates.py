"""Which of a few depths is right: what the first sweep says of a cell and of those around it, looked at once more.

The first sweep has one winner for each cell of seven pixels. At an edge that is the front or the back, and where its
scores have two peaks the wrong one may win; but the right depth is mostly there, as the second peak or in a cell nearby
(docs/nano.md). So at every place of the finer grid a small network compares these depths: by how well the finer
features match at each, by the first sweep's score, and by whether the neighbours see a surface there. Hypotheses that
spread and geometric consistency are those of PatchMatch stereo (Xu and Tao, ACMM, 2019); their weights are learnt.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geometry.pointwise import Pointwise
from geometry.sweep import in_neighbor, peak

KNOWN = 8  # channels of `what_is_known`


class CandidateChoice(nn.Module):
    """Scores [R, K, h, w] of candidates; untrained, all are equal.

    `evidence` [R, K, E, h, w] is of each candidate, `context` [R, C, h, w] of the place.
    """

    def __init__(self, evidence: int, context: int, hidden: int = 24):
        super().__init__()
        self.evidence = Pointwise(evidence, hidden)
        self.context = Pointwise(context, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.score = Pointwise(hidden, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, evidence: Tensor, context: Tensor) -> Tensor:
        each = self.evidence(evidence.flatten(0, 1)).unflatten(0, evidence.shape[:2])
        x = F.relu(each + self.context(context)[:, None])
        x = F.relu(self.mix(x.flatten(0, 1)))
        return self.score(x)[:, 0].unflatten(0, evidence.shape[:2]).float()


def candidates(mixture: Tensor, logits: Tensor, start: Tensor, step: float) -> Tensor:
    """Log depths [R, 7, h, w] worth a look: a mixture of cells, its own cell's two best, the best of the cells around.

    `mixture` [R, h, w] is itself a log depth; plane k of `logits` [R, D, h2, w2] lies at log depth `start` [R] + k
    `step`. No gradient.
    """
    logits = logits.detach()
    best, _ = peak(logits)
    planes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    near_best = (planes - best[:, None].round()).abs() <= 3
    second, _ = peak(logits.masked_fill(near_best, -1e4))
    around = F.pad(best[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    up, down, left, right = around[:, :-2, 1:-1], around[:, 2:, 1:-1], around[:, 1:-1, :-2], around[:, 1:-1, 2:]
    cells = start[:, None, None, None] + step * torch.stack([best, second, up, down, left, right], 1)
    cells = F.interpolate(cells, mixture.shape[-2:], mode="nearest-exact")
    return torch.cat([mixture.detach()[:, None], cells], 1)


def what_is_known(
    candidates: Tensor, logits: Tensor, start: Tensor, step: float, source: Tensor, warp: tuple[Tensor, Tensor]
) -> Tensor:
    """Of each candidate [R, K, h, w], apart from how its features match: [R, K, 8, h, w], no gradient.

    The channels: the first sweep's log probability (over 4) and probability of that depth; how far it is from the first
    candidate; and `surfaces_there`. `logits`, `start` and `step` as in `candidates`, `source` and `warp` as in `sweep`.
    """
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        last = logits.shape[1] - 1
        # NaN, of an image or of weights, must come out as NaN: no index may be made of it.
        position = ((candidates - start[:, None, None, None]) / step).nan_to_num(0.0)
        scores = logits.float().log_softmax(1).clamp_min(-12.0)
        scores = F.interpolate(scores, candidates.shape[-2:], mode="bilinear")
        lower = position.floor().clamp(0, last - 1)
        part = (position - lower).clamp(0, 1)
        score = torch.lerp(scores.gather(1, lower.long()), scores.gather(1, lower.long() + 1), part)
        apart = (4 * (candidates - candidates[:, :1])).tanh()
        there = surfaces_there(candidates, candidates[:, 0], source, warp)
        return torch.cat([torch.stack([score / 4, score.exp(), apart], 2), there], 2)


def surfaces_there(candidates: Tensor, log_depth: Tensor, source: Tensor, warp: tuple[Tensor, Tensor]) -> Tensor:
    """Whether the neighbours see a surface at each candidate [R, K, h, w]: [R, K, 5, h, w].

    `log_depth` [R, h, w] is what each view believes; `source` [R, S] and `warp` as in `sweep`. The channels, means over
    the neighbours: their image holds the point; they see a surface there, to about 5 %; the point would hide what they
    see; what they see hides the point. The last is the second's best.
    """
    A, b = warp
    seen = []
    for s in range(source.shape[1]):
        grid, ratio = in_neighbor(candidates, A[:, s], b[:, s])
        theirs = log_depth[source[:, s]][:, None]
        found = F.grid_sample(theirs, grid.flatten(2, 3), padding_mode="border", align_corners=False)
        behind = candidates + ratio.log() - found[:, 0].view_as(candidates)
        inside = (grid.abs() <= 1).all(-1).float()
        same = torch.exp(-(behind / 0.05).square())
        hides, hidden = (-4 * behind).tanh().relu(), (4 * behind).tanh().relu()
        seen.append(inside[:, :, None] * torch.stack([torch.ones_like(same), same, hides, hidden], 2))
    seen = torch.stack(seen)
    return torch.cat([seen.mean(0), seen[:, :, :, 1:2].amax(0)], 2)
