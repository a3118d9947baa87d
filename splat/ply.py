"""Gaussians as a .ply file in the layout of the original 3D Gaussian splatting, which viewers and editors read.

Binary little endian, one `vertex` element of float32: x y z, nx ny nz (zero), f_dc_0..2, f_rest_0.. (channel-major: all
red, all green, all blue), opacity (logit), scale_0..2 (natural log), rot_0..3 (wxyz). Frame: that of the Gaussians,
OpenCV axes (y down), unrotated; SuperSplat and most viewers expect just that.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from splat.atomic import whole_file
from splat.gaussians import Gaussians

# The logit of an opacity stays within about 15: 0 and 1 themselves have none.
_OPACITY_MARGIN = 3e-7
_ROWS_AT_ONCE = 1 << 18
_HEADER_LIMIT = 1 << 16
_TYPES = {
    **dict.fromkeys(("char", "int8"), "<i1"),
    **dict.fromkeys(("uchar", "uint8"), "<u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}


def write_ply(path: str | Path, gaussians: Gaussians, comments: Sequence[str] = ()) -> int:
    """Write one scene of Gaussians [N] and return how many rows were dropped because they hold no finite Gaussian.

    Dropped are rows with NaN or infinity, a scale <= 0 or a zero quaternion. `comments` become header lines.
    All SH bands are kept. Raises ValueError for a batch of scenes and for a comment of more than one ASCII line.
    """
    if gaussians.means.ndim != 2:
        raise ValueError(f"write_ply takes one scene, means [N, 3], got {tuple(gaussians.means.shape)}")
    for comment in comments:
        if not comment.isascii() or not comment.isprintable():
            raise ValueError(f"a PLY comment must be one line of ASCII, got {comment!r}")
    means, scales, quats, opacities, sh = (
        x.detach().to("cpu", torch.float32).numpy()
        for x in (gaussians.means, gaussians.scales, gaussians.quats, gaussians.opacities, gaussians.sh)
    )
    norms = np.linalg.norm(quats, axis=-1)
    keep = (
        np.isfinite(means).all(-1)
        & (np.isfinite(scales) & (scales > 0)).all(-1)
        & (np.isfinite(norms) & (norms > 0))
        & np.isfinite(opacities)
        & np.isfinite(sh).all((-1, -2))
    )
    rows = np.flatnonzero(keep)
    rest = 3 * (sh.shape[1] - 1)
    names = _names(rest)
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in comments)]
    header += [f"element vertex {len(rows)}", *(f"property float {name}" for name in names), "end_header"]
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            # A slice costs no copy where nothing was dropped.
            part = rows[start : start + _ROWS_AT_ONCE] if len(rows) < len(keep) else slice(start, start + _ROWS_AT_ONCE)
            opacity = np.clip(opacities[part], _OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
            table = np.zeros((len(opacity), len(names)), "<f4")
            table[:, 0:3] = means[part]
            table[:, 6:9] = sh[part, 0]
            table[:, 9 : 9 + rest] = sh[part, 1:].transpose(0, 2, 1).reshape(len(opacity), rest)
            table[:, 9 + rest] = np.log(opacity) - np.log1p(-opacity)
            table[:, 10 + rest : 13 + rest] = np.log(scales[part])
            table[:, 13 + rest :] = quats[part] / norms[part, None]
            file.write(table.data)
    return len(keep) - len(rows)


def read_ply(path: str | Path) -> Gaussians:
    """Read Gaussians [N] of SH degree 0 to 3, whatever the order of the properties; float32 on the CPU.

    Rows without a finite Gaussian are dropped with a warning. Raises ValueError in one line when the file is no binary
    Gaussian PLY or is shorter than its header says, OSError when it cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        dtype, count, offset = _read_header(path, file.read(_HEADER_LIMIT))
        have = path.stat().st_size - offset
        if have < count * dtype.itemsize:
            raise ValueError(
                f"{path}: the header promises {count} Gaussians ({count * dtype.itemsize} bytes), the file holds {have}"
            )
        file.seek(offset)
        rows = np.fromfile(file, dtype, count)

    def columns(*names: str) -> np.ndarray:
        return np.stack([rows[name].astype(np.float32) for name in names], -1)

    rest = sum(name.startswith("f_rest_") for name in dtype.names)
    sh = columns(*(f"f_dc_{i}" for i in range(3)))[:, None]
    if rest:
        bands = columns(*(f"f_rest_{i}" for i in range(rest))).reshape(count, 3, rest // 3).transpose(0, 2, 1)
        sh = np.concatenate([sh, bands], 1)
    means, quats, logit = columns("x", "y", "z"), columns(*(f"rot_{i}" for i in range(4))), columns("opacity")[:, 0]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scales = np.exp(columns("scale_0", "scale_1", "scale_2"))
        quats = quats / np.linalg.norm(quats, axis=-1, keepdims=True)
        opacities = 1 / (1 + np.exp(-logit))
    fine = np.isfinite(means).all(-1) & np.isfinite(quats).all(-1) & np.isfinite(opacities)
    fine &= (np.isfinite(scales) & (scales > 0)).all(-1) & np.isfinite(sh).all((-1, -2))
    gaussians = Gaussians(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (means, scales, quats, opacities, sh)))
    if fine.all():
        return gaussians
    warnings.warn(f"{path}: dropped {int((~fine).sum())} of {count} rows that hold no finite Gaussian", stacklevel=2)
    return gaussians.select(torch.from_numpy(fine))


def _names(rest: int) -> list[str]:
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(rest))]
    return [*names, "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def _read_header(path: Path, head: bytes) -> tuple[np.dtype, int, int]:
    """The row type, the number of rows and the byte at which they start; ValueError when this is no Gaussian PLY."""
    end = re.search(rb"^end_header\r?\n", head, re.MULTILINE)
    if not head.startswith((b"ply\n", b"ply\r\n")) or not end:
        raise ValueError(f"{path} is not a PLY file (no 'ply' ... 'end_header' in its first {_HEADER_LIMIT} bytes)")
    lines = [line.split() for line in head[: end.start()].decode("ascii", "replace").splitlines()]
    lines = [line for line in lines if line and line[0] not in ("ply", "comment", "obj_info")]
    if not lines or lines[0][:2] != ["format", "binary_little_endian"]:
        found = " ".join(lines[0][:2]) if lines else "nothing"
        raise ValueError(f"{path}: only 'format binary_little_endian' is read, not '{found[:40]}'; save it as binary")
    count = lines[1][2] if len(lines) > 1 and len(lines[1]) == 3 and lines[1][:2] == ["element", "vertex"] else ""
    if not count.isdecimal() or len(count) > 15:
        raise ValueError(f"{path}: the first element must be 'element vertex <count>'")
    fields: list[tuple[str, str]] = []
    for line in lines[2:]:
        if line[0] == "element":
            break
        if len(line) != 3 or line[0] != "property" or line[1] not in _TYPES:
            raise ValueError(f"{path}: cannot read the header line '{' '.join(line)[:60]}'")
        fields.append((line[2], _TYPES[line[1]]))
    names = [name for name, _ in fields]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: a property appears twice in its header")
    rest = sum(name.startswith("f_rest_") for name in names)
    missing = [name for name in _names(rest) if name not in names and name not in ("nx", "ny", "nz")]
    if missing:
        raise ValueError(f"{path}: no Gaussians, its vertices lack '{missing[0]}' (a point cloud or a mesh?)")
    if rest not in (0, 9, 24, 45):
        raise ValueError(f"{path}: {rest} f_rest properties; SH degree 0 to 3 has 0, 9, 24 or 45")
    return np.dtype(fields), int(count), end.end()
