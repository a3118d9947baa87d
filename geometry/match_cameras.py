"""Cameras of photos from the keypoints that they have in common, where a network's own are too rough to build on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.bundle import Adjusted, Sightings, adjust
from geometry.cameras import Cameras, invert_rigid, resize
from geometry.images import to_uint8
from geometry.matches import MatchedPair, match_photos
from geometry.scene import Scene
from geometry.scene import views as load_views

MOST_SIDE = 1008  # long side of the photos in which keypoints are looked for, px
ALL_PAIRS_UP_TO = 16  # views; of more, only those are matched that lie a power of two apart in the order given
# Focal lengths to start from, over the believed one. The believed one is the geometric mean of the network's and of the
# long side of the photos, as that is how far both are off.
ZOOMS = (0.6, 0.8, 1.0, 1.3, 1.7)
MOST_MATCHES = 300  # of a pair: more take time and tell nothing new
EPIPOLAR_TOLERANCE = 1.5  # px
MIN_IN_FRONT = 10  # matches of a pair that lie in front of both cameras
FAR = 1000.0  # baselines from where on a point says nothing about the side it lies on
NEAR = 2.0  # px from where a keypoint is expected; it is seen there
# Matches that two views must see of each other where they are, for the one to hold the other. Of wrong ones, a
# fundamental matrix makes 7 meet whatever they are, and the best of many some more: of pairs with up to 18 matches many
# are wrong.
SEEN = 20
# Standard deviation in degrees of the turn between views that are called placed: a tenth of the 5 degrees beyond which
# a view is misplaced. Errors are several times as large, mostly up to ten, as it knows of keypoints' noise only.
FIRM = 0.5
# Share of sightings that are seen from where on a solution is not looked for further, and how often it is at most:
# from a chain with a bad link, bundle adjustment ends in a local minimum, where it was mostly 0.5 to 0.92 so far.
EXPLAINED = 0.95
MORE_STARTS = 4

Motion = tuple[int, np.ndarray, tuple[int, int]]  # matches, [4, 4] from the first view of the pair, the pair


@dataclass(frozen=True)
class MatchedCameras:
    """Views that are not placed stand where the few matches they have suggest, or to their neighbour as guessed."""

    cameras: Cameras  # [V] float64 on the CPU, in the world of the guess and about its unit
    placed: tuple[int, ...]  # views whose poses the matches tell for certain; may be none
    error: float  # median px of the images that the sightings of keypoints are off


@dataclass(frozen=True)
class _Start:
    cameras: Cameras  # [V] intrinsics and the pose of the first view
    motions: list[Motion]  # of pairs, with these intrinsics
    zoom: float | None  # what focal lengths are believed to be, over these


@dataclass(frozen=True)
class _Solution:
    start: _Start
    inside: list[int]  # views that took part
    adjusted: Adjusted  # theirs
    held: list[int]  # of them, what matches hold where it is
    placed: list[int]  # of them, what they hold firmly

    @property
    def rank(self) -> tuple[int, float]:
        """The least of several solutions is the best: the most views, then matches that meet best. What is placed
        firmly is judged afterwards, lest a worse solution wins by being sure of itself."""
        return -len(self.inside), self.adjusted.cost


def cameras_from_matches(
    images: Tensor, guess: Cameras, depth: Tensor, focal_known: bool = False
) -> MatchedCameras | None:
    """Cameras of images [V, 3, H, W] in [0, 1] that make SIFT matches between them meet; None when too few do.

    The images may be larger than those that the guess is of, and better are (`photos_to_match`). The `guess` [V] gives
    the unit, by its z-depth maps [V, H, W], and a first focal length, or the intrinsics if `focal_known`; else pixels
    come out square and the principal point stays. Poses start from essential matrices of pairs, chained along the
    best-matched pairs, and are adjusted together (`geometry.bundle`), from several focal lengths where it is unknown,
    and along other pairs where many matches do not meet. Takes about a second for four views. The guess is best from a
    network that saw the photos at its size: its depth tells two-view reconstructions of different length apart.
    """
    views, size, seen = len(images), guess.size, tuple(images.shape[-2:])
    # Keypoints are off by pixels of the images: all else is in these, too.
    guess, long_side = resize(guess.to("cpu", torch.float64), seen), max(seen)
    depth = F.interpolate(depth.double().cpu()[None], seen)[0]
    pairs = match_photos(to_uint8(images), _pairs(views))
    if focal_known:
        starts = [_Start(guess, _motions(pairs, guess, depth), None)]
    else:
        focal = guess.K[:, [0, 1], [0, 1]].log().mean().exp()
        believed, starts = float((focal * long_side).sqrt()), []
        for zoom in ZOOMS:
            cameras = _with_focal(guess, believed * zoom)
            starts.append(_Start(cameras, _motions(pairs, cameras, depth), 1 / zoom))
    pairs = _thinned(pairs)
    solutions = [solution for start in starts if (solution := _solve(start, pairs, depth))]
    if not solutions:
        return None
    best = min(solutions, key=lambda solution: solution.rank)
    for root in _roots(pairs, views):
        if (best.adjusted.error < NEAR).double().mean() > EXPLAINED:
            break
        best = min(best, _solve(best.start, pairs, depth, root), key=lambda solution: solution.rank)
    if len(best.held) < 2:
        return None
    cameras = resize(_completed(guess, best), size)
    return MatchedCameras(cameras, tuple(best.placed), float(best.adjusted.error.median()))


def photos_to_match(scene: Scene, indices: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The views `indices` as their images of `size` (height, width) show them, [V, 3, k H, k W], to be matched.

    k brings the long side to MOST_SIDE, or little beyond what the largest photo has: there is nothing more to see.
    """
    largest = max(max(scene.sizes[i]) for i in indices)
    times = max(1, min(round(MOST_SIDE / max(size)), math.ceil(largest / max(size))))
    return load_views(scene, indices, (size[0] * times, size[1] * times))[0]


def _pairs(views: int) -> Iterable[tuple[int, int]]:
    for i in range(views):
        for j in range(i + 1, views):
            gap = j - i
            if views <= ALL_PAIRS_UP_TO or gap & (gap - 1) == 0:
                yield i, j


def _thinned(pairs: Sequence[MatchedPair]) -> list[MatchedPair]:
    """The pairs with MOST_MATCHES each at most, first those whose keypoints most pairs have: these tie pairs."""
    count = Counter((view, k) for pair in pairs for view, numbers in zip(pair.views, pair.keypoints) for k in numbers)
    kept = []
    for pair in pairs:
        shared = np.array([[count[view, k] for k in numbers] for view, numbers in zip(pair.views, pair.keypoints)])
        first = np.argsort(-shared.sum(0), kind="stable")[:MOST_MATCHES]
        kept.append(MatchedPair(pair.views, pair.keypoints[:, first], pair.pixels[:, first]))
    return kept


def _with_focal(cameras: Cameras, focal: float) -> Cameras:
    K = cameras.K.clone()
    K[:, 0, 0] = K[:, 1, 1] = focal
    return replace(cameras, K=K)


def _motions(pairs: Sequence[MatchedPair], guess: Cameras, depth: Tensor) -> list[Motion]:
    """From two-view geometry, of the pairs that have one, the best-matched first."""
    found = []
    for pair in pairs:
        relative = _two_view(pair, guess.K.numpy(), depth.numpy())
        if relative is not None:
            found.append((*relative, pair.views))
    return sorted(found, key=lambda motion: -motion[0])


def _roots(pairs: Sequence[MatchedPair], views: int) -> list[int]:
    """Views to start from once more, those with most matches first."""
    count = [sum(pair.pixels.shape[1] for pair in pairs if view in pair.views) for view in range(views)]
    return sorted(range(views), key=lambda view: -count[view])[:MORE_STARTS]


def _solve(start: _Start, pairs: Sequence[MatchedPair], depth: Tensor, root: int | None = None) -> _Solution | None:
    """From poses chained along the best-matched pairs, those of view `root` first; None where no pair has a motion."""
    w2c = _chain(start.motions, start.cameras, root)
    if w2c is None:
        return None
    inside = list(w2c)
    chained = replace(start.cameras[inside], w2c=torch.tensor(np.stack(list(w2c.values()))))
    sightings = _sightings(pairs, inside, depth)
    adjusted = adjust(chained, sightings, start.zoom)
    held, placed = ([inside[n] for n in numbers] for numbers in _held_and_placed(adjusted, sightings))
    return _Solution(start, inside, adjusted, held, placed)


def _chain(motions: Sequence[Motion], guess: Cameras, root: int | None) -> dict[int, np.ndarray] | None:
    """w2c [4, 4] of the views that the motions connect, the largest group of them; those of `root` come first."""
    group = list(range(len(guess.w2c)))
    beside: list[list[tuple[int, np.ndarray]]] = [[] for _ in group]
    for _, motion, (i, j) in sorted(motions, key=lambda motion: root not in motion[2]):
        if group[i] != group[j]:  # the spanning tree of the pairs with most matches
            beside[i].append((j, motion))
            beside[j].append((i, np.linalg.inv(motion)))
            group = [group[i] if g == group[j] else g for g in group]
    largest = max(group, key=group.count)
    if group.count(largest) < 2:
        return None
    first = group.index(largest)
    w2c, ahead = {first: guess.w2c[first].numpy()}, [first]
    while ahead:
        here = ahead.pop()
        for view, motion in beside[here]:
            if view not in w2c:
                w2c[view] = motion @ w2c[here]
                ahead.append(view)
    return dict(sorted(w2c.items()))


def _two_view(pair: MatchedPair, K: np.ndarray, depth: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Number of matches in front of both cameras and the motion [4, 4] from the one to the other, in depth's unit."""
    import cv2

    (i, j), (a, b) = pair.views, pair.pixels
    rays = [cv2.undistortPoints(pixels[:, None], K[view], None)[:, 0] for view, pixels in zip(pair.views, pair.pixels)]
    tolerance = EPIPOLAR_TOLERANCE / K[i, 0, 0]
    essential, inliers = cv2.findEssentialMat(*rays, np.eye(3), cv2.USAC_MAGSAC, 0.999, tolerance)
    if essential is None or essential.shape != (3, 3):
        return None
    _, turn, shift, inliers, points = cv2.recoverPose(
        essential, *rays, np.eye(3), distanceThresh=FAR, mask=inliers.copy()
    )
    front = inliers[:, 0] > 0
    if front.sum() < MIN_IN_FRONT:
        return None
    points = (points[:3] / points[3:]).T[front]
    z = np.concatenate([points[:, 2], (points @ turn.T + shift[:, 0])[:, 2]])
    seen = np.concatenate([_at(depth[i], a[front]), _at(depth[j], b[front])])
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = turn, shift[:, 0] * np.exp(np.median(np.log(seen / z)))
    return int(front.sum()), motion


def _at(depth, pixels: np.ndarray):
    """Depth [N] at pixels [N, 2] of one view's map [H, W]."""
    column, row = (np.clip(pixels[:, k].astype(int), 0, depth.shape[1 - k] - 1) for k in range(2))
    return depth[row, column]


def _sightings(pairs: Sequence[MatchedPair], views: Iterable[int], depth: Tensor) -> Sightings:
    """Every match among these views, seen both ways; views are numbered as they come."""
    number = {view: n for n, view in enumerate(views)}
    keypoints: dict[tuple[int, int], int] = {}
    found, seen = [], []
    for pair in pairs:
        if not set(pair.views) <= number.keys():
            continue
        for here, there in ((0, 1), (1, 0)):
            view, other = pair.views[here], pair.views[there]
            for k, pixel, at in zip(pair.keypoints[here], pair.pixels[here], pair.pixels[there]):
                if (view, k) not in keypoints:
                    keypoints[view, k] = len(found)
                    found.append((view, *pixel))
                seen.append((keypoints[view, k], number[other], *at))
    found, seen = np.array(found), torch.tensor(np.array(seen))
    rough = np.empty(len(found))
    for view in number:
        here = found[:, 0] == view
        rough[here] = _at(depth[view].numpy(), found[here, 1:])
    return Sightings(
        view=torch.tensor([number[view] for view in found[:, 0].astype(int)]),
        pixel=torch.tensor(found[:, 1:]),
        depth=torch.tensor(rough),
        keypoint=seen[:, 0].long(),
        seen_in=seen[:, 1].long(),
        seen_at=seen[:, 2:],
    )


def _held_and_placed(adjusted: Adjusted, sightings: Sightings) -> tuple[list[int], list[int]]:
    """Numbers of the views that see enough of each other where it is, the largest group of them, and of those among
    them whose orientations are certain. A view that is certain stands firm against another one that is, not alone."""
    views = len(adjusted.cameras.w2c)
    hit = adjusted.error < NEAR
    at = sightings.view[sightings.keypoint][hit] * views + sightings.seen_in[hit]
    count = torch.bincount(at, minlength=views**2).view(views, views)
    held = _largest_group(count + count.T >= 2 * SEEN)
    firm = adjusted.turn_deviation < FIRM
    firm = firm & held & held[:, None]
    placed = firm[firm.sum(1).argmax()]
    return [view.nonzero()[:, 0].tolist() if view.sum() > 1 else [] for view in (held, placed)]


def _largest_group(linked: Tensor) -> Tensor:
    """[V] bool, the largest connected part of [V, V] bool."""
    reached = linked.long() + torch.eye(len(linked), dtype=torch.int64)
    for _ in linked:
        reached = (reached @ reached).clamp(max=1)
    return reached[reached.sum(1).argmax()] > 0


def _completed(guess: Cameras, best: _Solution) -> Cameras:
    """All V cameras: views that nothing holds keep the guessed motion from the nearest one in order that is held."""
    number = {view: best.inside.index(view) for view in best.held}
    w2c, K = guess.w2c.clone(), guess.K.clone()
    for view in range(len(w2c)):
        anchor = min(best.held, key=lambda other: abs(other - view))
        known = best.adjusted.cameras.w2c[number[anchor]]
        w2c[view] = known if view == anchor else guess.w2c[view] @ invert_rigid(guess.w2c[anchor]) @ known
        K[view] = best.adjusted.cameras.K[number[anchor]]
    return Cameras(w2c, K, guess.size)
