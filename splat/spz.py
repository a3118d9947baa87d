"""Gaussians as a .spz file, Niantic's compressed format (github.com/nianticlabs/spz): a tenth of a .ply or so.

Sections of bytes one after the other, all Gaussians in each: positions (24-bit fixed point), opacities, colours, log
scales, rotations, further SH bands. Axes in the file: x right, y up, z back (RUB). Versions 2 and 3 are one gzip stream
and differ in the rotations; version 4 has a zstd stream for each section and needs the package `zstandard`. Written is
version 3, which most programs read.
"""

from __future__ import annotations

import gzip
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from splat.atomic import whole_file
from splat.finite import rows_as_read, rows_to_write
from splat.gaussians import Gaussians
from splat.packed_quats import leave_out_largest, put_back_largest
from splat.sh import sh_basis

_MAGIC = b"NGSP"
_HEADER = struct.Struct("<4sIIBBBB")
_HAS_EXTENSIONS = 2
# From OpenCV axes to RUB and back: half a turn about x. Each SH band keeps or turns its sign.
_FLIP = np.array([1, -1, -1], np.float32)
_PROBE = torch.tensor([0.7, 0.5, 0.3], dtype=torch.float64)
_SH_SIGNS = (sh_basis(_PROBE, 3) * sh_basis(_PROBE * torch.from_numpy(_FLIP), 3)).sign().float().numpy()
_USUAL_FRACTION_BITS, _MOST_FRACTION_BITS = 12, 22
# byte = value * steps + zero
_COLOR_STEPS, _COLOR_ZERO = 0.15 * 255, 127.5
_SCALE_STEPS, _SCALE_ZERO = 16, 160
_SH_STEPS, _SH_ZERO = 128, 128
# As Niantic's own writer: 32 levels for the bands of degree 1, 16 for the others, which compresses better.
_SH_COARSENESS = np.array([8] * 3 + [16] * 12, np.float32)[:, None]
# Real scenes shrink by 2 to 6. What claims far more is a bomb.
_MOST_SHRINKAGE, _ALWAYS_ALLOWED = 32, 1 << 26


class _Head(NamedTuple):
    """The first 16 bytes of a file, opened or not; the last is the number of streams in version 4."""

    magic: bytes
    version: int
    count: int
    degree: int
    fraction_bits: int
    flags: int
    streams: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Bytes a Gaussian in the sections: positions, opacities, colours, scales, rotations, SH."""
        return 9, 1, 3, 3, 3 if self.version == 2 else 4, 3 * ((self.degree + 1) ** 2 - 1)


def write_spz(path: str | Path, gaussians: Gaussians) -> int:
    """Write one scene of Gaussians [N] and return how many were dropped as not finite.

    The step of positions is 1/4096, or an eighth of a small Gaussian, if the farthest one lets it be so fine. Warns
    where the format is too narrow for the scene: a coarser step, or scales outside e^-10..e^5.9. Raises ValueError for
    a batch of scenes and when nothing is left to write: an empty file is a broken one to other programs.
    """
    gaussians, dropped = rows_to_write(gaussians)
    if not gaussians.count:
        raise ValueError(f"cannot write {path}: there is no finite Gaussian, and a .spz cannot be empty")
    means, scales, quats, opacities, sh = (x.numpy() for x in vars(gaussians).values())
    bits = _fraction_bits(path, means, scales.max(-1))
    sections = (
        _fixed_point(means * _FLIP, bits),
        _bytes(opacities * 255),
        _bytes(sh[:, 0] * _COLOR_STEPS + _COLOR_ZERO),
        _bytes(np.log(scales) * _SCALE_STEPS + _SCALE_ZERO),
        _pack_quats(quats),
        _pack_bands(sh[:, 1:]),
    )
    head = _HEADER.pack(_MAGIC, 3, gaussians.count, gaussians.sh_degree, bits, 0, 0)
    with whole_file(path) as temporary:
        temporary.write_bytes(gzip.compress(b"".join([head, *(part.tobytes() for part in sections)]), 6, mtime=0))
    return dropped


def read_spz(path: str | Path) -> Gaussians:
    """Read Gaussians [N] of a .spz of version 2, 3 or 4; float32 on the CPU, OpenCV axes.

    SH of degree 4 is cut to 3 and extensions of other programs are skipped, both with a warning. Raises ValueError in
    one line for a broken file and for one that claims more than it can hold, OSError when it cannot be read,
    ImportError for version 4 without `zstandard`.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        head, sections = (_read_zstd if start == _MAGIC else _read_gzip)(path, file)
    if head.flags & _HAS_EXTENSIONS:
        warnings.warn(f"{path}: extensions of another program are skipped", stacklevel=2)
    if head.degree == 4:
        warnings.warn(f"{path}: SH of degree 4 is cut to degree 3", stacklevel=2)
    positions, alphas, colors, scales, rotations, bands = (
        np.frombuffer(section, np.uint8).reshape(head.count, width) for section, width in zip(sections, head.widths)
    )
    sh = (colors.astype(np.float32) - _COLOR_ZERO)[:, None] / _COLOR_STEPS
    if head.degree:
        bands = bands.reshape(head.count, -1, 3)[:, :15].astype(np.float32)
        bands = (bands - _SH_ZERO) / _SH_STEPS * _SH_SIGNS[1 : bands.shape[1] + 1, None]
        sh = np.concatenate([sh, bands], 1)
    parts = (
        _from_fixed_point(positions, head.fraction_bits) * _FLIP,
        np.exp((scales.astype(np.float32) - _SCALE_ZERO) / _SCALE_STEPS),
        _unpack_quats(rotations),
        alphas[:, 0].astype(np.float32) / 255,
        sh.astype(np.float32),
    )
    return rows_as_read(Gaussians(*(torch.from_numpy(part) for part in parts)), path)


def _read_gzip(path: Path, file: BinaryIO) -> tuple[_Head, list[bytes]]:
    """The header and the sections of a version 2 or 3."""
    inflate = zlib.decompressobj(wbits=31)

    def take(count: int) -> bytes:
        """The next `count` bytes; memory grows with what is there."""
        taken = bytearray()
        while len(taken) < count:
            data = inflate.unconsumed_tail or file.read(1 << 20)
            if not data or inflate.eof:
                raise ValueError(f"{path}: the .spz ends early; is it cut off?")
            taken += inflate.decompress(data, count - len(taken))
        return bytes(taken)

    try:
        head = _check_head(path, _Head._make(_HEADER.unpack(take(_HEADER.size))), (2, 3))
        return head, [take(head.count * width) for width in head.widths]
    except zlib.error as error:
        raise ValueError(f"{path} is not a .spz file, or damaged: {error}") from error


def _read_zstd(path: Path, file: BinaryIO) -> tuple[_Head, list[bytes]]:
    """The header and the sections of a version 4: 32 bytes, extensions, a table of sizes, a stream for each section."""
    data = file.read()
    if len(data) < 32:
        raise ValueError(f"{path}: the .spz ends early; is it cut off?")
    head = _check_head(path, _Head._make(_HEADER.unpack_from(data)), (4,))
    (table,) = struct.unpack_from("<I", data, _HEADER.size)
    sizes = [head.count * width for width in head.widths if width]
    at = table + 16 * head.streams
    if head.streams != len(sizes) or table < 32 or at > len(data):
        raise ValueError(f"{path}: the table of streams of the .spz is damaged")
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(f"{path} is a .spz of version 4: pip install zstandard") from error
    sections = []
    for i, size in enumerate(sizes):
        packed, unpacked = struct.unpack_from("<QQ", data, table + 16 * i)
        if unpacked != size or at + packed > len(data):
            raise ValueError(f"{path}: stream {i + 1} of the .spz has another size than its header says")
        try:
            # Read as a stream: the one-shot call would allocate what the stream itself claims.
            with zstandard.ZstdDecompressor().stream_reader(data[at : at + packed]) as reader:
                section = reader.read(size)
        except zstandard.ZstdError as error:
            raise ValueError(f"{path}: stream {i + 1} of the .spz is damaged: {error}") from error
        if len(section) != size:
            raise ValueError(f"{path}: stream {i + 1} of the .spz ends early")
        sections.append(section)
        at += packed
    return head, sections if head.degree else [*sections, b""]


def _check_head(path: Path, head: _Head, versions: tuple[int, ...]) -> _Head:
    """The header itself. Raises ValueError when it makes no sense or promises what cannot be in the file."""
    if head.magic != _MAGIC:
        raise ValueError(f"{path} is not a .spz file (it does not begin with {_MAGIC.decode()})")
    if head.version not in versions:
        raise ValueError(f"{path}: version {head.version} of .spz in this container is not read, only {versions}")
    if head.degree > 4 or head.fraction_bits > 24:
        raise ValueError(f"{path}: SH degree {head.degree} or {head.fraction_bits} fraction bits make no sense")
    size, need = path.stat().st_size, head.count * sum(head.widths)
    if need > max(_ALWAYS_ALLOWED, _MOST_SHRINKAGE * size):
        raise ValueError(f"{path}: {size} bytes claim to hold {head.count} Gaussians ({need} bytes); refused as a bomb")
    return head


def _fraction_bits(path: str | Path, means: np.ndarray, sizes: np.ndarray) -> int:
    """How many of the 24 bits of a coordinate come behind the point; warns where the format does not suffice."""
    small = max(float(np.quantile(sizes, 0.05)), 1e-12)
    farthest = max(float(np.abs(means).max()), 1e-12)
    wanted = min(max(math.ceil(math.log2(8 / small)), _USUAL_FRACTION_BITS), _MOST_FRACTION_BITS)
    bits = max(min(wanted, math.floor(math.log2((2**23 - 1) / farthest))), 1)
    if 2.0**-bits > small:
        step = f"{2.0**-bits:.3g} is coarse for Gaussians of {small:.3g}; crop or scale the scene"
        warnings.warn(f"{path}: the farthest at {farthest:.3g}, the step of positions {step}", stacklevel=3)
    log = np.log(sizes)
    outside = int(((log < -10.03) | (log > 5.97)).sum())
    if outside > len(sizes) // 100:
        text = f"{outside} of {len(sizes)} Gaussians are smaller or larger than a .spz can say (4.5e-5 to 380)"
        warnings.warn(f"{path}: {text}; scale the scene", stacklevel=3)
    return bits


def _fixed_point(values: np.ndarray, bits: int) -> np.ndarray:
    """Three bytes each, little-endian, of numbers [N, 3]."""
    fixed = np.clip(np.round(values.astype(np.float64) * 2**bits), 1 - 2**23, 2**23 - 1).astype("<i4")
    return fixed.view(np.uint8).reshape(len(values), 3, 4)[:, :, :3]


def _from_fixed_point(packed: np.ndarray, bits: int) -> np.ndarray:
    """Numbers [N, 3] of bytes [N, 9]."""
    wide = np.zeros((len(packed), 3, 4), np.uint8)
    wide[:, :, 1:] = packed.reshape(-1, 3, 3)
    # Shifted down from the top byte, the sign comes along.
    return (wide.view("<i4")[:, :, 0] >> 8).astype(np.float32) / np.float32(2**bits)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _pack_bands(bands: np.ndarray) -> np.ndarray:
    """Bytes [N, K - 1, 3] of the SH bands beyond the first; what lies outside -1..1 is cut."""
    count = bands.shape[1]
    levels = np.round(bands * _SH_SIGNS[1 : count + 1, None] * _SH_STEPS) + _SH_ZERO
    coarseness = _SH_COARSENESS[:count]
    return _bytes(np.floor(levels / coarseness + 0.5) * coarseness)


def _pack_quats(quats: np.ndarray) -> np.ndarray:
    """uint32 [N] of quaternions wxyz: which of xyzw is largest (2 bits), then sign and 9 bits of each other."""
    others, largest = leave_out_largest(quats[:, [1, 2, 3, 0]] * np.append(_FLIP, np.float32(1)))
    packed = largest.astype("<u4")
    for value in others.T:
        level = np.minimum(np.floor(511 * math.sqrt(2) * np.abs(value) + 0.5), 511).astype("<u4")
        packed = packed << np.uint32(10) | (value < 0).astype("<u4") << np.uint32(9) | level
    return packed.astype("<u4")


def _unpack_quats(packed: np.ndarray) -> np.ndarray:
    """Quaternions wxyz [N, 4] of bytes [N, 4] (versions 3 and 4), or of x, y, z as bytes [N, 3] (version 2)."""
    if packed.shape[1] == 3:
        xyz = packed.astype(np.float32) / 127.5 - 1
        w = np.sqrt(np.maximum(0, 1 - np.square(xyz).sum(-1, keepdims=True)))
        return np.concatenate([w, xyz * _FLIP], 1).astype(np.float32)
    words = np.ascontiguousarray(packed).view("<u4")[:, 0]
    fields = np.stack([words >> np.uint32(shift) & np.uint32(0x3FF) for shift in (20, 10, 0)], -1)
    others = (fields & 0x1FF).astype(np.float32) / (511 * math.sqrt(2)) * np.where(fields & 0x200, -1, 1)
    quats = put_back_largest(others, words >> np.uint32(30))
    return quats[:, [3, 0, 1, 2]] * np.append(np.float32(1), _FLIP)
