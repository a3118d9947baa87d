"""The compressed PLY of PlayCanvas (SuperSplat, splat-transform): 16 bytes a Gaussian, in chunks of 256.

Its table `chunk` holds the range of positions, log scales and colours in each chunk; `vertex` holds for each Gaussian
packed_position and packed_scale (11, 10, 11 bits), packed_rotation (2 bits: which of wxyz is largest; the others in
10 bits each) and packed_color (8 bits each: red, green, blue, opacity); `sh`, if there, the further bands in bytes.
"""

from __future__ import annotations

import numpy as np
import torch

from splat.gaussians import Gaussians
from splat.packed_quats import put_back_largest
from splat.ply_tables import Header, read_table
from splat.sh import C0

_CHUNK = 256
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_POSITION, _SCALE, _COLOR = ("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b")
# The bands beyond the first lie in -4..4.
_SH_RANGE = 8


def is_packed(header: Header) -> bool:
    """Whether this is a compressed PLY."""
    vertex = header.table("vertex")
    return vertex is not None and vertex.types is not None and "packed_position" in vertex.types


def unpack(header: Header) -> Gaussians:
    """The Gaussians [N] of a compressed PLY, as they lie in the file. Raises ValueError when a part is missing."""
    vertex, chunk, bands = (header.table(name) for name in ("vertex", "chunk", "sh"))
    if chunk is None or chunk.types is None:
        raise ValueError(f"{header.path}: a compressed PLY without its table 'chunk'")
    # Files of before 2024 have no range of colours: 0..1.
    ranged = (_POSITION, _SCALE, _COLOR) if "min_r" in chunk.types else (_POSITION, _SCALE)
    wanted = [f"{end}_{axis}" for axes in ranged for axis in axes for end in ("min", "max")]
    missing = [name for name in _PACKED if name not in vertex.types]
    missing += [name for name in wanted if name not in chunk.types]
    if missing:
        raise ValueError(f"{header.path}: a compressed PLY that lacks '{missing[0]}'")
    if chunk.count != -(-vertex.count // _CHUNK):
        raise ValueError(f"{header.path}: {chunk.count} chunks of {_CHUNK} do not make {vertex.count} Gaussians")
    rows, ranges = read_table(header, vertex), read_table(header, chunk)
    position, rotation, scale, color = (rows[name].astype(np.uint32) for name in _PACKED)

    def within(unit: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        """From 0..1 to the range of the chunk."""
        low, high = (
            np.stack([ranges[f"{end}_{axis}"] for axis in axes], -1).astype(np.float32).repeat(_CHUNK, 0)[: len(unit)]
            for end in ("min", "max")
        )
        return low * (1 - unit) + high * unit

    colors = _fields(color, 8, 8, 8, 8)
    rgb = within(colors[:, :3], _COLOR) if _COLOR in ranged else colors[:, :3]
    sh = ((rgb - 0.5) / np.float32(C0))[:, None]
    if bands is not None:
        sh = np.concatenate([sh, _bands(header)], 1)
    parts = (
        within(_fields(position, 11, 10, 11), _POSITION),
        np.exp(within(_fields(scale, 11, 10, 11), _SCALE)),
        _quats(rotation),
        colors[:, 3].copy(),
        sh,
    )
    return Gaussians(*(torch.from_numpy(part) for part in parts))


def _fields(packed: np.ndarray, *bits: int) -> np.ndarray:
    """Numbers 0..1, float32 [N, len(bits)], from bit fields of uint32 [N], the highest first."""
    shifts = [sum(bits[i + 1 :]) for i in range(len(bits))]
    parts = [
        (packed >> np.uint32(s) & np.uint32((1 << b) - 1)) / np.float32((1 << b) - 1) for s, b in zip(shifts, bits)
    ]
    return np.stack(parts, -1).astype(np.float32)


def _quats(packed: np.ndarray) -> np.ndarray:
    """Quaternions wxyz [N, 4] of 2 bits for the largest component and 10 for each other."""
    others = (_fields(packed, 10, 10, 10) - np.float32(0.5)) * np.float32(np.sqrt(2))
    return put_back_largest(others, packed >> np.uint32(30))


def _bands(header: Header) -> np.ndarray:
    """The bands [N, K - 1, 3] of the table `sh`, one byte a number, channel-major like f_rest."""
    table, count = header.table("sh"), header.table("vertex").count
    rest = len(table.types or ())
    names = [f"f_rest_{i}" for i in range(rest)]
    if table.count != count or rest not in (9, 24, 45) or set(names) != set(table.types):
        raise ValueError(f"{header.path}: its table 'sh' must have {count} rows of 9, 24 or 45 f_rest properties")
    columns = read_table(header, table)
    levels = np.stack([columns[name] for name in names], -1).astype(np.float32)
    # 0 and 255 are the ends themselves, all between the middle of their step.
    unit = np.where(levels == 0, 0, np.where(levels == 255, 1, (levels + 0.5) / 256)).astype(np.float32)
    return ((unit - np.float32(0.5)) * _SH_RANGE).reshape(count, 3, rest // 3).transpose(0, 2, 1)
