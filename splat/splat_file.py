"""Gaussians as a .splat file, the format of antimatter15's web viewer: 32 bytes a Gaussian, no header.

Position and linear scale, three float32 each; red, green, blue, opacity and the quaternion wxyz, a byte each. Only the
colour of the first SH band is kept, and the most visible Gaussians come first, so that a viewer can show them early.
Frame: that of the Gaussians, OpenCV axes, as in a .ply.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from splat.atomic import whole_file
from splat.finite import rows_as_read, rows_to_write
from splat.gaussians import Gaussians
from splat.sh import C0

_ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def write_splat(path: str | Path, gaussians: Gaussians) -> int:
    """Write one scene of Gaussians [N] and return how many were dropped as not finite.

    Colours are cut to 0..1. Raises ValueError for a batch of scenes and when nothing is left to write: viewers take
    an empty file for a broken one.
    """
    gaussians, dropped = rows_to_write(gaussians)
    if not gaussians.count:
        raise ValueError(f"cannot write {path}: there is no finite Gaussian, and a .splat cannot be empty")
    visible = gaussians.scales.double().prod(-1) * gaussians.opacities
    gaussians = gaussians.select(visible.argsort(descending=True, stable=True))
    rows = np.empty(gaussians.count, _ROW)
    rows["mean"], rows["scale"] = gaussians.means, gaussians.scales
    rgba = torch.cat([0.5 + C0 * gaussians.sh[:, 0], gaussians.opacities[:, None]], 1)
    rows["rgba"] = (rgba * 255).round().clamp(0, 255)
    rows["quat"] = (gaussians.quats * 128 + 128).round().clamp(0, 255)
    with whole_file(path) as temporary:
        rows.tofile(temporary)
    return dropped


def read_splat(path: str | Path) -> Gaussians:
    """Read Gaussians [N] of SH degree 0; float32 on the CPU.

    Rows without a finite Gaussian are dropped with a warning. Raises ValueError when the size is no multiple of 32
    bytes, when the file is empty or holds something else, OSError when it cannot be read.
    """
    size = Path(path).stat().st_size
    if not size or size % _ROW.itemsize:
        raise ValueError(f"{path} is not a .splat file: {size} bytes are not rows of {_ROW.itemsize}")
    rows = np.fromfile(path, _ROW)
    rgba = torch.from_numpy(rows["rgba"].astype(np.float32)) / 255
    gaussians = Gaussians(
        means=torch.from_numpy(rows["mean"].astype(np.float32)),
        scales=torch.from_numpy(rows["scale"].astype(np.float32)),
        quats=torch.from_numpy(rows["quat"].astype(np.float32)) / 128 - 1,
        opacities=rgba[:, 3].clone(),
        sh=((rgba[:, :3] - 0.5) / C0)[:, None],
    )
    return rows_as_read(gaussians, path)
