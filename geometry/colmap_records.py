"""Cameras and images of a COLMAP model, read leniently: what is wrong is listed and the rest is kept.

`geometry.read_colmap` reads models for use, with pycolmap; this module is for `check-data`, which must go on after a
fault and tell where a file was cut off. Formats: colmap.github.io/format.html.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
}
PARAMETERS = dict(MODELS.values())


@dataclass(frozen=True)
class CameraRecord:
    """`size` is (height, width); `params` [P] are COLMAP's."""

    number: int
    model: str
    size: tuple[int, int]
    params: np.ndarray


@dataclass(frozen=True)
class ImageRecord:
    """World to camera: `quaternion` [4] wxyz as stored, `translation` [3]."""

    name: str
    camera: int
    quaternion: np.ndarray
    translation: np.ndarray


def read_records(model: Path) -> tuple[dict[int, CameraRecord], list[ImageRecord], list[tuple[Path, str]]]:
    """(cameras by number, images, faults as (file, reason)) of the model in a folder, binary if it has that."""
    cameras: dict[int, CameraRecord] = {}
    images: list[ImageRecord] = []
    faults: list[tuple[Path, str]] = []
    suffix = "bin" if (model / "cameras.bin").is_file() else "txt"
    readers = (_cameras_bin, _images_bin, _points_bin) if suffix == "bin" else (_cameras_txt, _images_txt, _points_txt)
    for stem, reader, into in zip(("cameras", "images", "points3D"), readers, (cameras, images, None)):
        path = model / f"{stem}.{suffix}"
        try:
            if suffix == "bin":
                _whole(path, reader, into)
            else:
                faults += [(path, reason) for reason in reader(path.read_text(encoding="utf-8").splitlines(), into)]
        except FileNotFoundError:
            faults.append((path, "the file is missing"))
        except (OSError, ValueError) as error:
            faults.append((path, " ".join(str(error).split())))
    return cameras, images, faults


def check_model(model: Path) -> None:
    """Raise ValueError with the first fault of the files of a model, before pycolmap sees them.

    On some damaged models pycolmap never returns.
    """
    cameras, images, faults = read_records(model)
    faults += [
        (model, f"camera {image.camera} of {image.name} is missing") for image in images if image.camera not in cameras
    ]
    for image in images:
        pose = np.concatenate([image.quaternion, image.translation])
        if not np.isfinite(pose).all() or abs(np.linalg.norm(image.quaternion) - 1) > 1e-3:
            faults.append((model, f"the pose of {image.name} is no rotation and translation"))
    if faults:
        raise ValueError(f"{faults[0][0]}: {faults[0][1]}; replace the file")


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
    (points,) = data.read("Q")
    data.skip(24 * points)
    images.append(ImageRecord(name, camera, np.array(pose[:4]), np.array(pose[4:])))


def _points_bin(data: _Bytes, _) -> None:
    *_, track = data.read("Q3d3BdQ")
    data.skip(8 * track)


def _cameras_txt(lines: list[str], cameras: dict[int, CameraRecord]) -> list[str]:
    faults = []
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
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
        fields = line.split(maxsplit=9)
        points = next(rows, None)
        try:
            pose, camera, name = [float(x) for x in fields[1:8]], int(fields[8]), fields[9].strip()
        except (ValueError, IndexError):
            faults.append(f"line {number} is no image: {line[:60]}")
            continue
        images.append(ImageRecord(name, camera, np.array(pose[:4]), np.array(pose[4:])))
        if points is None or len(points[1].split()) % 3:
            faults.append(f"line {number + 1}: the points of {name} are cut off")
    return faults


def _points_txt(lines: list[str], _) -> list[str]:
    rows = [(n, line.split()) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    return [f"line {n}: the point is cut off" for n, row in rows if len(row) < 8 or len(row) % 2]
