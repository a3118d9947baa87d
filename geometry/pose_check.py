"""Do the poses fit the photos? Finds the usual mistakes, c2w given as w2c and OpenGL axes, before they cost a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from geometry.cameras import Cameras
from geometry.images import to_uint8
from geometry.matches import MatchedPair, match_photos
from geometry.scene import SparsePoints

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # between OpenCV and OpenGL camera axes
MAX_PAIRS = 20
GAPS = (1, 2, 4)  # between the views of a pair, in the order given: near ones match, wide ones discriminate
MIN_EVIDENCE = 60  # matches or observations in all
FITS = 0.5  # share of the evidence that a right hypothesis explains; noise alone explains a few percent
BETTER = 0.2  # by how much another hypothesis must beat the poses as given
# Epipolar distances over the long side at which matches are counted; the score is the mean of the shares. The wide one
# lets the inexact poses of networks pass, the narrow one tells apart hypotheses that differ little, as on short paths.
TOLERANCES = (0.0025, 0.005, 0.01)

MESSAGES = {
    "as given": "the poses fit the photos",
    "inverted": "the poses look inverted: they fit the photos as camera-to-world; pass their inverse as w2c",
    "opengl": "the poses look like OpenGL w2c (y up, z back); multiply them from the left by diag(1, -1, -1, 1)",
    "inverted opengl": "the poses look like OpenGL camera-to-world, as in transforms.json; "
    "w2c is inv(pose @ diag(1, -1, -1, 1))",
    "none": "the poses do not fit the photos, nor do they inverted or in OpenGL axes; check their order and intrinsics",
    "unknown": "too few matches between the photos to tell whether the poses fit",
}


@dataclass(frozen=True)
class PoseReport:
    """`verdict` is a key of MESSAGES, `scores` the share of the evidence that each hypothesis explains, in 0..1."""

    verdict: str
    message: str
    scores: dict[str, float]
    evidence: int

    @property
    def suspicious(self) -> bool:
        return self.verdict not in ("as given", "unknown")


def check_poses(images: Tensor, cameras: Cameras, points: SparsePoints | None = None) -> PoseReport:
    """Compare the poses as given, inverted, and in OpenGL axes, on images [V, 3, H, W] and cameras [V].

    With tracks in `points` (one entry per view): the share of observations that lie in front of their camera and
    inside its image. Else SIFT matches between pairs of views: the share near their epipolar line and in front of
    both cameras. Where hypotheses explain the same (sideways motion has no up) the poses pass as given.
    """
    w2c, K = cameras.w2c.detach().double().cpu().numpy(), cameras.K.detach().double().cpu().numpy()
    if points is not None and points.visible is not None:
        scores = {name: _seen(points, w, K, cameras.size) for name, w in _hypotheses(w2c).items()}
        evidence = sum(len(seen) for seen in points.visible)
    else:
        pairs = match_photos(to_uint8(images), _pairs(len(images)))
        scores = {name: _consistent(pairs, w, K, max(cameras.size)) for name, w in _hypotheses(w2c).items()}
        evidence = sum(pair.pixels.shape[1] for pair in pairs)
    verdict = _decide(scores, evidence)
    best = f" ({scores[verdict]:.0%} of {evidence} observations agree)" if verdict in scores else ""
    return PoseReport(verdict, MESSAGES[verdict] + best, scores, evidence)


def _decide(scores: dict[str, float], evidence: int) -> str:
    if evidence < MIN_EVIDENCE:
        return "unknown"
    best = max(scores, key=scores.get)
    if scores[best] < scores["as given"] + BETTER:
        best = "as given"
    return best if scores[best] >= FITS else "none"


def _hypotheses(w2c: np.ndarray) -> dict[str, np.ndarray]:
    """What w2c [V, 4, 4] would be if the matrices given were something else."""
    inverse = np.linalg.inv(w2c)
    return {"as given": w2c, "inverted": inverse, "opengl": FLIP @ w2c, "inverted opengl": FLIP @ inverse}


def _seen(points: SparsePoints, w2c: np.ndarray, K: np.ndarray, size: tuple[int, int]) -> float:
    """Share of the tracks' observations in front of the camera and inside its image, over all views."""
    hits = total = 0
    for view, seen in enumerate(points.visible):
        local = points.xyz[seen] @ w2c[view, :3, :3].T + w2c[view, :3, 3]
        front = local[:, 2] > 0
        pixel = (local[front] / local[front, 2:]) @ K[view, :2].T
        # A margin, because a crop of the photo may have cut the outermost observations away.
        margin = 0.25 * np.array(size[::-1])
        hits += int(((pixel > -margin) & (pixel < np.array(size[::-1]) + margin)).all(1).sum())
        total += len(seen)
    return hits / max(total, 1)


def _consistent(pairs: list[MatchedPair], w2c: np.ndarray, K: np.ndarray, long_side: int) -> float:
    """Share of the matches that keep the epipolar line and lie in front of both cameras, mean over TOLERANCES."""
    hits, total = 0.0, 0
    motions = [w2c[pair.views[1]] @ np.linalg.inv(w2c[pair.views[0]]) for pair in pairs]
    baselines = [np.linalg.norm(motion[:3, 3]) for motion in motions]
    for pair, relative, baseline in zip(pairs, motions, baselines):
        (i, j), (pixels_i, pixels_j) = pair.views, pair.pixels
        total += len(pixels_i)
        if baseline <= 1e-6 * max(baselines):
            continue  # a pure rotation has no epipolar lines
        rays_i, rays_j = rays_of(pixels_i, K[i]), rays_of(pixels_j, K[j])
        distance = epipolar_distance(rays_i, rays_j, relative, K[i], K[j]) / long_side
        near = np.mean([distance < tolerance for tolerance in TOLERANCES], axis=0)
        hits += float((near * _in_front(rays_i, rays_j, relative)).sum())
    return hits / max(total, 1)


def epipolar_distance(rays_i, rays_j, relative: np.ndarray, K_i: np.ndarray, K_j: np.ndarray) -> np.ndarray:
    """The larger of the distances, in pixels, of each match [N] to its epipolar lines in the two images."""
    x, y, z = relative[:3, 3] / np.linalg.norm(relative[:3, 3])
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative[:3, :3]
    lines_j = rays_i @ essential.T @ np.linalg.inv(K_j)
    lines_i = rays_j @ essential @ np.linalg.inv(K_i)
    residual = np.abs(np.einsum("nk,nk->n", rays_j @ essential, rays_i))
    shortest = np.minimum(np.linalg.norm(lines_i[:, :2], axis=1), np.linalg.norm(lines_j[:, :2], axis=1))
    return residual / np.maximum(shortest, 1e-12)


def _in_front(rays_i: np.ndarray, rays_j: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """Whether the two rays of each match [N] come nearest to each other at positive depth on both."""
    a, b = rays_i @ relative[:3, :3].T, rays_j  # depth_i * a + translation = depth_j * b
    translation = relative[:3, 3]
    aa, bb, ab = (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)
    at, bt = a @ translation, b @ translation
    determinant = aa * bb - ab**2
    depth_i, depth_j = (ab * bt - bb * at), (aa * bt - ab * at)
    return (determinant > 0) & (depth_i > 0) & (depth_j > 0)


def rays_of(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """[N, 3] with z = 1 from pixels [N, 2]."""
    return np.concatenate([pixels, np.ones((len(pixels), 1))], 1) @ np.linalg.inv(K).T


def _pairs(count: int) -> list[tuple[int, int]]:
    """All pairs of a few views, else evenly spread ones that are near in the order given."""
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    if len(pairs) > MAX_PAIRS:
        near = [(i, j) for i, j in pairs if j - i in GAPS]
        pairs = [near[round(k)] for k in np.linspace(0, len(near) - 1, MAX_PAIRS)]
    return pairs
