"""Gaussians as a .ply file in the layout of the original 3D Gaussian splatting, which viewers and editors read.

Binary little endian, one `vertex` element of float32: x y z, nx ny nz (zero), f_dc_0..2, f_rest_0.. (channel-major: all
red, all green, all blue), opacity (logit), scale_0..2 (natural log), rot_0..3 (wxyz). Frame: that of the Gaussians,
OpenCV axes (y down), unrotated; SuperSplat and most viewers expect just that.

Files of other programs are read too: any order, type and byte order of the properties, ASCII, further properties and
elements, and the compressed PLY of SuperSplat.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from splat import ply_packed
from splat.atomic import whole_file
from splat.finite import rows_as_read, rows_to_write
from splat.gaussians import Gaussians
from splat.ply_tables import Header, read_header, read_table

# The logit of an opacity stays within about 15: 0 and 1 themselves have none.
_OPACITY_MARGIN = 3e-7
_ROWS_AT_ONCE = 1 << 18


def write_ply(path: str | Path, gaussians: Gaussians, comments: Sequence[str] = ()) -> int:
    """Write one scene of Gaussians [N] and return how many rows were dropped because they hold no finite Gaussian.

    Dropped are rows with NaN or infinity, a scale <= 0 or a zero quaternion. `comments` become header lines.
    All SH bands are kept. Raises ValueError for a batch of scenes and for a comment of more than one ASCII line.
    """
    for comment in comments:
        if not comment.isascii() or not comment.isprintable():
            raise ValueError(f"a PLY comment must be one line of ASCII, got {comment!r}")
    gaussians, dropped = rows_to_write(gaussians)
    means, scales, quats, opacities, sh = (x.numpy() for x in vars(gaussians).values())
    rest = 3 * (sh.shape[1] - 1)
    names = _names(rest)
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in comments)]
    header += [f"element vertex {len(means)}", *(f"property float {name}" for name in names), "end_header"]
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        for start in range(0, len(means), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            opacity = np.clip(opacities[part], _OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
            table = np.zeros((len(opacity), len(names)), "<f4")
            table[:, 0:3] = means[part]
            table[:, 6:9] = sh[part, 0]
            table[:, 9 : 9 + rest] = sh[part, 1:].transpose(0, 2, 1).reshape(len(opacity), rest)
            table[:, 9 + rest] = np.log(opacity) - np.log1p(-opacity)
            table[:, 10 + rest : 13 + rest] = np.log(scales[part])
            table[:, 13 + rest :] = quats[part]
            file.write(table.data)
    return dropped


def read_ply(path: str | Path) -> Gaussians:
    """Read Gaussians [N] of SH degree 0 to 3, whatever the order of the properties; float32 on the CPU.

    Rows without a finite Gaussian are dropped with a warning. Raises ValueError in one line when the file is no
    Gaussian PLY or is shorter than its header says, OSError when it cannot be read.
    """
    header = read_header(path)
    gaussians = ply_packed.unpack(header) if ply_packed.is_packed(header) else _unpacked(header)
    return rows_as_read(gaussians, path)


def _unpacked(header: Header) -> Gaussians:
    """The Gaussians [N] of the original layout, as they lie in the file."""
    vertex = header.table("vertex")
    if vertex is None or vertex.types is None:
        raise ValueError(f"{header.path}: no Gaussians, it has no element 'vertex' of plain numbers")
    rest = sum(name.startswith("f_rest_") for name in vertex.types)
    missing = [name for name in _names(rest) if name not in vertex.types and name not in ("nx", "ny", "nz")]
    if missing:
        what = "a mesh" if header.table("face") else "a point cloud" if len(missing) > 7 else "another kind of splats"
        raise ValueError(f"{header.path}: no 3D Gaussians but {what}: its vertices lack '{missing[0]}'")
    if rest not in (0, 9, 24, 45):
        raise ValueError(f"{header.path}: {rest} f_rest properties; SH degree 0 to 3 has 0, 9, 24 or 45")
    rows = read_table(header, vertex)

    def columns(*names: str) -> np.ndarray:
        return np.stack([rows[name].astype(np.float32) for name in names], -1)

    sh = columns(*(f"f_dc_{i}" for i in range(3)))[:, None]
    if rest:
        bands = columns(*(f"f_rest_{i}" for i in range(rest))).reshape(vertex.count, 3, rest // 3)
        sh = np.concatenate([sh, bands.transpose(0, 2, 1)], 1)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = np.exp(columns("scale_0", "scale_1", "scale_2"))
        opacities = 1 / (1 + np.exp(-columns("opacity")[:, 0]))
        means, quats = columns("x", "y", "z"), columns(*(f"rot_{i}" for i in range(4)))
    return Gaussians(*(torch.from_numpy(x) for x in (means, scales, quats, opacities, sh)))


def _names(rest: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(rest))]
    return [*names, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
