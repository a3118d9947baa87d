"""The files of a COLMAP model, text or binary: every field checked, what is wrong listed, the rest kept.

COLMAP's own parser is not used: it hangs on files that were cut off, takes missing numbers for zero, and ends the
names in text models at their first space. Formats: colmap.github.io/format.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from geometry.rotations import matrices_from_quats

# By COLMAP's model id: name and number of parameters.
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
PARAMETERS = dict(MODELS.values())
OBSERVATION = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])  # of an image, in binary files


@dataclass(frozen=True)
class CameraRecord:
    """`size` is (height, width); `params` [P] are COLMAP's."""

    number: int
    model: str
    size: tuple[int, int]
    params: np.ndarray


@dataclass(frozen=True)
class ImageRecord:
    """World to camera: `quaternion` [4] wxyz as stored, `translation` [3]; `seen` [O] int64, the point's number of
    each observation, -1 for none."""

    name: str
    camera: int
    quaternion: np.ndarray
    translation: np.ndarray
    seen: np.ndarray


@dataclass
class Records:
    """`cameras` and `points` (world [3]) by their number; `faults` are (file, reason)."""

    cameras: dict[int, CameraRecord] = field(default_factory=dict)
    images: list[ImageRecord] = field(default_factory=list)
    points: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    faults: list[tuple[Path, str]] = field(default_factory=list)


def read_records(model: Path) -> Records:
    """All that can be read of the model in a folder, its binary files if it has those."""
    found = Records()
    suffix = "bin" if (model / "cameras.bin").is_file() else "txt"
    readers = (_cameras_bin, _images_bin, _points_bin) if suffix == "bin" else (_cameras_txt, _images_txt, _points_txt)
    into = {"cameras": found.cameras, "images": found.images, "points3D": found.points}
    for (stem, records), reader in zip(into.items(), readers):
        path = model / f"{stem}.{suffix}"
        try:
            if suffix == "bin":
                _whole(path, reader, records)
            else:
                lines = path.read_text(encoding="utf-8").splitlines()
                found.faults += [(path, reason) for reason in reader(lines, records)]
        except FileNotFoundError:
            found.faults.append((path, "the file is missing"))
        except (OSError, ValueError) as error:
            found.faults.append((path, " ".join(str(error).split())))
    return found


def world_to_camera(image: ImageRecord) -> np.ndarray:
    """`w2c` [4, 4] float64. Raises ValueError when the pose is no rotation and translation."""
    norm = float(np.linalg.norm(image.quaternion))
    if not np.isfinite(norm) or not np.isfinite(image.translation).all():
        raise ValueError("its pose holds NaN or infinity")
    if abs(norm - 1) > 1e-3:
        raise ValueError(f"its pose is no rotation: the quaternion has length {norm:.4g}, not 1")
    w2c = np.eye(4)
    w2c[:3, :3] = matrices_from_quats(torch.from_numpy(image.quaternion / norm)).numpy()
    w2c[:3, 3] = image.translation
    return w2c


class _Bytes:
    """A binary file read field by field; ValueError tells where it ends too soon."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def read(self, form: str) -> tuple:
        size = struct.calcsize(f"<{form}")
        self.skip(size)
        return struct.unpack_from(f"<{form}", self.content, self.at - size)

    def skip(self, size: int) -> None:
        if self.at + size > len(self.content):
            raise ValueError(f"cut off: {len(self.content)} bytes, at least {self.at + size} are needed")
        self.at += size

    def name(self) -> str:
        end = self.content.find(b"\0", self.at)
        if end < 0:
            raise ValueError(f"cut off: {len(self.content)} bytes, the name that begins at {self.at} has no end")
        start, self.at = self.at, end + 1
        return self.content[start:end].decode("utf-8")


def _whole(path: Path, reader, into) -> None:
    """Run a binary reader over a file; ValueError when the file ends early or goes on after its last record."""
    data = _Bytes(path.read_bytes())
    (count,) = data.read("Q")
    for record in range(count):
        try:
            reader(data, into)
        except ValueError as error:
            raise ValueError(f"{error}; {record} of {count} records are whole") from error
    if data.at < len(data.content):
        raise ValueError(f"{len(data.content) - data.at} bytes too many after the last of {count} records")


def _cameras_bin(data: _Bytes, cameras: dict[int, CameraRecord]) -> None:
    number, model, width, height = data.read("IiQQ")
    if model not in MODELS:
        raise ValueError(f"camera {number} has the unknown model {model}")
    name, count = MODELS[model]
    cameras[number] = CameraRecord(number, name, (height, width), np.array(data.read(f"{count}d")))


def _images_bin(data: _Bytes, images: list[ImageRecord]) -> None:
    _, *pose, camera = data.read("I7dI")
    name = data.name()
    (count,) = data.read("Q")
    start = data.at
    data.skip(OBSERVATION.itemsize * count)
    seen = np.frombuffer(data.content, OBSERVATION, count, start)["point"]
    images.append(ImageRecord(name, camera, np.array(pose[:4]), np.array(pose[4:]), seen))


def _points_bin(data: _Bytes, points: dict[int, tuple[float, float, float]]) -> None:
    number, x, y, z, *_, track = data.read("Q3d3BdQ")
    data.skip(8 * track)
    points[number] = (x, y, z)


def _rows(lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    """(number, line, fields) of the lines that hold something and are no comment."""
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            yield number, line, line.split()


def _cameras_txt(lines: list[str], cameras: dict[int, CameraRecord]) -> list[str]:
    faults = []
    for number, line, fields in _rows(lines):
        try:
            key, model, width, height = int(fields[0]), fields[1], int(fields[2]), int(fields[3])
            params = np.array([float(x) for x in fields[4:]])
        except (ValueError, IndexError):
            faults.append(f"line {number} is no camera: {line[:60]}")
            continue
        if len(params) != PARAMETERS.get(model, len(params)):
            faults.append(f"line {number}: {model} has {PARAMETERS[model]} parameters, not {len(params)}")
            continue
        cameras[key] = CameraRecord(key, model, (height, width), params)
    return faults


def _images_txt(lines: list[str], images: list[ImageRecord]) -> list[str]:
    """Two lines an image; the second, its points, may be empty."""
    faults, rows = [], enumerate(lines, 1)
    for number, line in rows:
        if not line.strip() or line.startswith("#"):
            continue
        fields, following = line.split(maxsplit=9), next(rows, None)
        try:
            pose, camera, name = [float(x) for x in fields[1:8]], int(fields[8]), fields[9].strip()
        except (ValueError, IndexError):
            faults.append(f"line {number} is no image: {line[:60]}")
            continue
        try:
            x, y, seen = (following[1].split()[i::3] for i in range(3))
            seen = np.array([int(point) for point in seen], dtype=np.int64)
            if not len(x) == len(y) == len(seen):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            faults.append(f"line {number + 1}: the points of {name} are cut off")
            seen = np.empty(0, dtype=np.int64)
        images.append(ImageRecord(name, camera, np.array(pose[:4]), np.array(pose[4:]), seen))
    return faults


def _points_txt(lines: list[str], points: dict[int, tuple[float, float, float]]) -> list[str]:
    faults = []
    for number, _, fields in _rows(lines):
        try:
            if len(fields) < 8 or len(fields) % 2:
                raise ValueError
            points[int(fields[0])] = (float(fields[1]), float(fields[2]), float(fields[3]))
        except ValueError:
            faults.append(f"line {number}: the point is cut off")
    return faults
