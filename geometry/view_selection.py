"""Which views to look at: a distance between cameras, farthest points, and groups for evaluation. All deterministic."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pose_distance(w2c: Tensor | np.ndarray) -> np.ndarray:
    """[V, V] distance between cameras `w2c` [V, 4, 4], symmetric, free of the scene's scale.

    Distance of the centres over the largest such distance, plus the angle between the orientations over pi. The paper
    asks for "both camera translation and rotation distances" (section 6.1) and leaves the weights open; both count
    alike here.
    """
    w2c = torch.as_tensor(w2c).detach().double().cpu()
    rotation = w2c[:, :3, :3]
    centers = -(rotation.mT @ w2c[:, :3, 3:])[..., 0]
    differences = {"compute_mode": "donot_use_mm_for_euclid_dist"}  # the other way rounds small distances away
    apart = torch.cdist(centers, centers, **differences).numpy()
    # Chord of the rotation, not its trace: arccos near 1 turns rounding into a tenth of a millirad.
    chord = torch.cdist(rotation.flatten(1), rotation.flatten(1), **differences).numpy() / np.sqrt(8)
    angle = 2 * np.arcsin(np.clip(chord, 0, 1))
    return apart / max(apart.max(), np.finfo(np.float64).tiny) + angle / np.pi


def farthest_points(distance: np.ndarray, count: int, first: int = 0) -> list[int]:
    """`count` indices, each the farthest from those before it; `distance` [V, V], ties go to the lower index.

    Raises ValueError when there are fewer than `count` views.
    """
    total = len(distance)
    if not 1 <= count <= total or not 0 <= first < total:
        raise ValueError(f"cannot choose {count} views starting with view {first} out of {total}")
    chosen = [first]
    nearest = distance[first].astype(np.float64).copy()
    while len(chosen) < count:
        nearest[chosen] = -1  # a view that coincides with a chosen one may still be taken, a chosen one never
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return chosen


def windows(
    w2c: Tensor | np.ndarray, context: int = 4, targets: int = 2, groups: int = 2
) -> list[tuple[list[int], list[int]]]:
    """`groups` pairs (context indices, target indices) of neighbouring views, each ascending; `w2c` [V, 4, 4].

    Anchors are spread by farthest points from view 0; a group is an anchor and its nearest views. Targets are the
    views of the group that lie most in between (smallest mean distance to the others), so they ask for interpolation.
    Groups may share views. Raises ValueError when one group needs more views than
    there are.
    """
    distance = pose_distance(w2c)
    size = context + targets
    if context < 1 or targets < 1 or size > len(distance):
        raise ValueError(
            f"{context} context and {targets} target views are asked for, but there are {len(distance)} views"
        )
    result = []
    for anchor in farthest_points(distance, min(groups, len(distance))):
        near = distance[anchor].copy()
        near[anchor] = -1
        group = np.sort(np.argsort(near, kind="stable")[:size])
        centrality = distance[np.ix_(group, group)].sum(1)
        middle = set(group[np.argsort(centrality, kind="stable")[:targets]].tolist())
        result.append(([int(i) for i in group if i not in middle], sorted(middle)))
    return result
