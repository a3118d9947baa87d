"""From the user's frame and unit of length to the network's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from geometry.cameras import Cameras, relative_to_first, unproject
from geometry.cue import baseline_unit

Unit = Literal["baseline", "points"]


def normalize(
    cameras: Cameras, context: int, unit: Unit, depth: Tensor | None = None, valid: Tensor | None = None
) -> tuple[Cameras, Tensor | None]:
    """Cameras [B, V] and depth [B, V, H, W] with the first view as the world and one length as 1.

    The length is the mean baseline of neighbouring inputs ("baseline", for given poses: it can be had without depth),
    or the mean distance of all input points from the origin ("points", the paper's choice, section 3.3, where no poses
    are given).
    """
    cameras = relative_to_first(cameras)
    # One view has no baseline; where its depth is unknown as well, its unit stays what it was.
    if depth is None or (unit == "baseline" and context > 1):
        length = baseline_unit(cameras[:, :context])
    else:
        points = unproject(depth[:, :context], cameras[:, :context])
        known = valid[:, :context].to(depth.dtype)
        distance = torch.linalg.vector_norm(points, dim=-1)
        length = (distance * known).sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp_min(1)
    length = length.clamp_min(1e-6)
    return rescale(cameras, 1 / length), None if depth is None else depth / length[:, None, None, None]


def rescale(cameras: Cameras, factor: Tensor) -> Cameras:
    """Cameras [B, V] in a world that is `factor` [B] times as large."""
    w2c = cameras.w2c.clone()
    w2c[..., :3, 3] = w2c[..., :3, 3] * factor[:, None, None]
    return Cameras(w2c, cameras.K, cameras.size)
