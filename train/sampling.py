"""Which views of a scene become inputs and which targets; the two never overlap."""

from __future__ import annotations

from typing import Literal

import numpy as np

from geometry.view_selection import farthest_points, pose_distance

Sampling = Literal["window", "farthest"]
MOST_VIEWS = 400  # of a scene that take part in a draw; the paper's scenes have 300 to 400 (section 6.1)


def sample_views(
    w2c: np.ndarray, context: int, targets: int, sampling: Sampling, rng: np.random.Generator
) -> list[int]:
    """Indices of `context` inputs, then `targets` targets, out of the cameras `w2c` [V, 4, 4].

    Raises ValueError when the scene has fewer views than asked for.
    """
    count, need = len(w2c), context + targets
    if count < need:
        raise ValueError(f"a scene with {count} views cannot give {context} inputs and {targets} targets")
    pool = np.arange(count)
    if count > MOST_VIEWS:
        pool = np.sort(rng.choice(count, max(MOST_VIEWS, need), replace=False))
    distance = pose_distance(w2c[pool])
    choose = {"window": window, "farthest": farthest}[sampling]
    return [int(pool[i]) for i in choose(distance, context, targets, rng)]


def farthest(distance: np.ndarray, context: int, targets: int, rng: np.random.Generator) -> list[int]:
    """As in the paper's benchmark (section 6.1): targets apart, inputs among the rest by farthest points.

    There every 8th view is a target and the first input is fixed; here both are drawn.
    """
    order = rng.permutation(len(distance))
    apart, rest = order[:targets], np.sort(order[targets:])
    inputs = farthest_points(distance[np.ix_(rest, rest)], context, int(rng.integers(len(rest))))
    return [*rest[inputs].tolist(), *apart.tolist()]


def window(distance: np.ndarray, context: int, targets: int, rng: np.random.Generator) -> list[int]:
    """Views of one random neighbourhood; targets are those that lie most between the others.

    Narrow neighbourhoods are more frequent than wide ones: from wide ones alone a network learns to blur.
    """
    need, count = context + targets, len(distance)
    widest = min(count, 2 * need + 2)
    spread = need + int(rng.random() ** 2 * (widest - need + 1))
    nearest = np.argsort(distance[int(rng.integers(count))], kind="stable")[:spread]
    chosen = rng.choice(nearest, need, replace=False)
    inner = distance[np.ix_(chosen, chosen)].sum(1)
    order = np.argsort(-inner, kind="stable")
    inputs, between = chosen[order[:context]], chosen[order[context:]]
    return [*rng.permutation(inputs).tolist(), *rng.permutation(between).tolist()]
