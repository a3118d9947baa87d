"""Cameras of photos from the keypoints that they have in common, where a network's own are too rough to build on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from geometry.bundle import Adjusted, Sightings, adjust
from geometry.cameras import Cameras, invert_rigid
from geometry.images import to_uint8
from geometry.matches import MatchedPair, match_photos

ALL_PAIRS_UP_TO = 16  # views; of more, only those are matched that lie a power of two apart in the order given
# Focal lengths to start from, over the believed one. The believed one is the geometric mean of the network's and of the
# long side of the photos, as that is how far both are off.
ZOOMS = (0.6, 0.8, 1.0, 1.3, 1.7)
EPIPOLAR_TOLERANCE = 1.5  # px
MIN_IN_FRONT = 10  # matches of a pair that lie in front of both cameras
FAR = 1000.0  # baselines from where on a point says nothing about the side it lies on
PLACED = (10, 2.0)  # a view is, when another one and it see so many keypoints of each other within so many px


@dataclass(frozen=True)
class MatchedCameras:
    cameras: Cameras  # [V] float64 on the CPU, in the world of the guess and about its unit
    placed: tuple[int, ...]  # views whose poses the matches tell; the others stand to their neighbour as guessed
    error: float  # median px that the sightings of keypoints are off


def cameras_from_matches(
    images: Tensor, guess: Cameras, depth: Tensor, focal_known: bool = False
) -> MatchedCameras | None:
    """Cameras of images [V, 3, H, W] in [0, 1] that make SIFT matches between them meet; None when too few do.

    The `guess` [V] gives the unit, by its z-depth maps [V, H, W], and a first focal length, or the intrinsics if
    `focal_known`; else pixels come out square and the principal point stays. Poses start from essential matrices of
    pairs, chained along the best-matched pairs, and are adjusted together (`geometry.bundle`), from several focal
    lengths where it is unknown. Takes about a second for four views of 252 px. The guess is best from a network that
    saw the photos at this size: its depth tells two-view reconstructions of different length apart.
    """
    views, long_side = len(images), max(guess.size)
    guess, depth = guess.to("cpu", torch.float64), depth.double().cpu()
    pairs = match_photos(to_uint8(images), _pairs(views))
    starts, believed = [guess], None
    if not focal_known:
        focal = guess.K[:, [0, 1], [0, 1]].log().mean().exp()
        believed = float((focal * long_side).sqrt())
        starts = [_with_focal(guess, believed * zoom) for zoom in ZOOMS]
    best = None
    for start in starts:
        chained = _chain(pairs, start, depth)
        if chained is None:
            continue
        zoom = None if focal_known else believed / float(start.K[0, 0, 0])
        sightings = _sightings(pairs, chained, depth)
        adjusted = adjust(_of(start, chained), sightings, zoom)
        placed = _placed(adjusted, sightings, list(chained))
        if len(placed) > 1 and (best is None or (-len(placed), adjusted.cost) < best[:2]):
            best = (-len(placed), adjusted.cost, adjusted, list(chained), placed)
    if best is None:
        return None
    _, _, adjusted, inside, placed = best
    return MatchedCameras(_completed(guess, adjusted, inside, placed), tuple(placed), float(adjusted.error.median()))


def _pairs(views: int) -> Iterable[tuple[int, int]]:
    for i in range(views):
        for j in range(i + 1, views):
            gap = j - i
            if views <= ALL_PAIRS_UP_TO or gap & (gap - 1) == 0:
                yield i, j


def _with_focal(cameras: Cameras, focal: float) -> Cameras:
    K = cameras.K.clone()
    K[:, 0, 0] = K[:, 1, 1] = focal
    return replace(cameras, K=K)


def _chain(pairs: Sequence[MatchedPair], guess: Cameras, depth: Tensor) -> dict[int, np.ndarray] | None:
    """w2c [4, 4] of the views that the pairs connect, the largest group of them, from two-view geometry."""
    edges = []
    for pair in pairs:
        relative = _two_view(pair, guess.K.numpy(), depth.numpy())
        if relative is not None:
            edges.append((*relative, pair.views))
    edges.sort(key=lambda edge: -edge[0])
    group = list(range(len(depth)))
    beside: list[list[tuple[int, np.ndarray]]] = [[] for _ in group]
    for _, motion, (i, j) in edges:  # the spanning tree of the pairs with most matches
        if group[i] != group[j]:
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


def _of(cameras: Cameras, w2c: dict[int, np.ndarray]) -> Cameras:
    return Cameras(torch.tensor(np.stack(list(w2c.values()))), cameras.K[list(w2c)], cameras.size)


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


def _placed(adjusted: Adjusted, sightings: Sightings, views: Sequence[int]) -> list[int]:
    """Those of the views that see enough of each other where it is, the largest group of them."""
    least, near = PLACED
    count = torch.zeros(len(views), len(views), dtype=torch.int64)
    hit = adjusted.error < near
    at = (sightings.view[sightings.keypoint][hit], sightings.seen_in[hit])
    count.index_put_(at, torch.ones_like(at[0]), accumulate=True)
    reached = (count + count.T >= 2 * least).long() + torch.eye(len(views), dtype=torch.int64)
    for _ in views:
        reached = (reached @ reached).clamp(max=1)
    group = reached[reached.sum(1).argmax()] > 0
    return [view for view, inside in zip(views, group.tolist()) if inside]


def _completed(guess: Cameras, adjusted: Adjusted, inside: Sequence[int], placed: Sequence[int]) -> Cameras:
    """All V cameras: views that are not placed keep the guessed motion from the nearest one in order that is."""
    number = {view: inside.index(view) for view in placed}
    w2c, K = guess.w2c.clone(), guess.K.clone()
    for view in range(len(w2c)):
        anchor = min(placed, key=lambda other: abs(other - view))
        known = adjusted.cameras.w2c[number[anchor]]
        w2c[view] = known if view == anchor else guess.w2c[view] @ invert_rigid(guess.w2c[anchor]) @ known
        K[view] = adjusted.cameras.K[number[anchor]]
    return Cameras(w2c, K, guess.size)
