"""nerfstudio's transforms.json (and DL3DV's, Blender's) to a Scene.

On disk: camera-to-world in OpenGL axes (x right, y up, z back), intrinsics in pixels of the full-size photo, for all
frames or per frame. In the scene: OpenCV `w2c`, `K` of the file that is really there.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from geometry.bad_frames import BAD_SHARE, usable_frames
from geometry.calibrated_photo import calibrated_photo
from geometry.cameras import Cameras, validate
from geometry.images import SUFFIXES, image_size, natural_key, read_image
from geometry.scene import Scene, SparsePoints, scene_name

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")
SMALLER_COPIES = ("images_2", "images_4", "images_8")


def find_transforms(path: Path) -> Path | None:
    """The transforms.json of a folder; DL3DV's benchmark keeps it in `nerfstudio/`."""
    for candidate in (path / "transforms.json", path / "nerfstudio" / "transforms.json"):
        if candidate.is_file():
            return candidate
    return None


def read_nerfstudio(path: str | Path, image_folder: str | None = None, bad_share: float = BAD_SHARE) -> Scene:
    """The scene of a transforms.json, frames in natural order of their names.

    `image_folder` replaces the first folder of each `file_path` (DL3DV: images_4, images_8); without it the photos
    are taken where `file_path` says, else from images_2, images_4 or images_8. Frames without `transform_matrix` are
    left out, unless none has one: then the scene has no poses. Frames whose photo is missing or unreadable or whose
    camera is unusable are left out too; `notes` count both. Raises ValueError or OSError with one line that names the
    file and frame, also for more than `bad_share` of such frames.
    """
    path = Path(path)
    root, meta = path.parent, read_meta(path)
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) and "file_path" in f for f in frames):
        raise ValueError(f"{path}: 'frames' must be a list of frames, each with a 'file_path'")
    notes = []
    posed = [frame for frame in frames if frame.get("transform_matrix") is not None]
    if posed and len(posed) < len(frames):
        notes.append(f"{len(frames) - len(posed)} of {len(frames)} frames have no pose and were left out")
        frames = posed
    files = _photo_files(path, frames, image_folder, bad_share)
    folder = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    order = sorted(range(len(files)), key=lambda i: natural_key(files[i].as_posix()))
    frames, files = [frames[i] for i in order], [files[i] for i in order]
    calibrated = any(_has_focal({**meta, **frame}) for frame in frames)
    if posed and not calibrated:
        raise ValueError(f"{path}: poses without intrinsics; add fl_x, fl_y, cx, cy, w, h or camera_angle_x")

    def open_frame(i: int):
        if not calibrated:
            return image_size(files[i]), None, partial(read_image, files[i]), None
        size, K, load = frame_photo(path, {**meta, **frames[i]}, files[i])
        w2c = frame_w2c(path, frames[i]) if posed else np.eye(4)
        validate(Cameras(torch.tensor(w2c)[None], torch.tensor(K)[None], size), [str(files[i])])
        return size, K, load, w2c

    kept, photos, left_out = usable_frames(path, len(files), open_frame, bad_share)
    files = [files[i] for i in kept]
    notes.extend(left_out)
    if meta.get("applied_transform") is not None:
        notes.append(f"the world is kept as stored, moved by applied_transform {meta['applied_transform']}")
    points, missing_ply = _read_points(root, meta.get("ply_file_path"))
    return Scene(
        name=scene_name(root),
        root=root,
        names=tuple(Path(os.path.relpath(file, folder)).as_posix() for file in files),
        sizes=tuple(photo[0] for photo in photos),
        load=lambda i: photos[i][2](),
        w2c=np.stack([photo[3] for photo in photos]) if posed else None,
        K=np.stack([photo[1] for photo in photos]) if calibrated else None,
        points=points,
        files=tuple(files),
        notes=(*notes, *missing_ply),
    )


def read_meta(path: Path) -> dict:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path}: expected an object with 'frames', got a {type(meta).__name__}")
    return meta


def _photo_files(path: Path, frames: list[dict], image_folder: str | None, bad_share: float) -> list[Path]:
    """The file of each frame, all from the first folder that may have enough of them; some may be missing."""
    stored = [PurePosixPath(str(frame["file_path"]).replace("\\", "/")) for frame in frames]
    folders = (image_folder,) if image_folder else (None, *SMALLER_COPIES)
    enough = int(bad_share * len(stored)) + 1  # where none of so many is there, too many are missing
    for folder in folders:
        if any(existing_file(path.parent / in_folder(name, folder)).is_file() for name in stored[:enough]):
            return [existing_file(path.parent / in_folder(name, folder)) for name in stored]
    first = path.parent / in_folder(stored[0], image_folder)
    raise FileNotFoundError(f"{path}: the photos are missing, for example {first}")


def in_folder(name: PurePosixPath, folder: str | None) -> PurePosixPath:
    """`name` with its first folder replaced by `folder`."""
    return name if folder is None or len(name.parts) < 2 else PurePosixPath(folder, *name.parts[1:])


def existing_file(file: Path) -> Path:
    """The file; Blender's scenes leave the suffix out, and smaller copies may be stored as another type."""
    if file.is_file():
        return file
    for suffix in SUFFIXES:
        for candidate in (file.with_name(file.name + suffix), file.with_suffix(suffix)):
            if candidate.is_file():
                return candidate
    return file


def _has_focal(frame: dict) -> bool:
    return "fl_x" in frame or "camera_angle_x" in frame


def frame_photo(path: Path, frame: dict, file: Path):
    """`calibrated_photo` of one frame, whose own keys have won over the global ones."""
    model = frame.get("camera_model", "OPENCV")
    distortion = np.array([_number(path, frame, key, 0.0) for key in ("k1", "k2", "p1", "p2", "k3")])
    if model not in PINHOLE_MODELS or frame.get("is_fisheye") or _number(path, frame, "k4", 0.0) != 0:
        raise ValueError(f"{path}: camera model {model} of {file.name} is not supported; undistort the photos first")
    full = (int(_number(path, frame, "h", 0)), int(_number(path, frame, "w", 0)))
    full = full if min(full) > 0 else None
    height, width = full or image_size(file, upright=False)
    if "fl_x" in frame:
        focal_x = _number(path, frame, "fl_x")
    elif "camera_angle_x" in frame:
        focal_x = 0.5 * width / np.tan(0.5 * _number(path, frame, "camera_angle_x"))
    else:
        raise ValueError(f"{path}: {file.name} has no intrinsics; add fl_x, fl_y, cx, cy, w, h or camera_angle_x")
    focal_y = _number(path, frame, "fl_y", focal_x)
    center_x, center_y = _number(path, frame, "cx", width / 2), _number(path, frame, "cy", height / 2)
    K = np.array([[focal_x, 0, center_x], [0, focal_y, center_y], [0, 0, 1]], dtype=np.float64)
    return calibrated_photo(file, K, full, distortion)


def _number(path: Path, frame: dict, key: str, default: float | None = None) -> float:
    value = frame.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{path}: {key} of {frame['file_path']} must be a number, got {value!r}")
    if not abs(value) < 1e300:  # NaN too, and integers that no float holds
        raise ValueError(f"{path}: {key} of {frame['file_path']} is NaN, infinite or absurdly large")
    return value


def frame_w2c(path: Path, frame: dict) -> np.ndarray:
    """OpenCV world-to-camera [4, 4] of one frame."""
    try:
        c2w = np.array(frame["transform_matrix"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: transform_matrix of {frame['file_path']} is not made of numbers") from error
    if c2w.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"{path}: transform_matrix of {frame['file_path']} must be 4x4, got {c2w.shape}")
    c2w = np.vstack([c2w[:3], [0, 0, 0, 1]]) @ OPENGL_TO_OPENCV
    w2c = np.eye(4)
    # The transpose, not a general inverse: a scaled or NaN matrix must reach the validation as it is.
    w2c[:3, :3], w2c[:3, 3] = c2w[:3, :3].T, -c2w[:3, :3].T @ c2w[:3, 3]
    return w2c


def _read_points(root: Path, name: object) -> tuple[SparsePoints | None, tuple[str, ...]]:
    """The points of `ply_file_path`, or a note that the file is gone: photos and cameras are enough to go on."""
    if not name or not isinstance(name, str):
        return None, ()
    file = root / name
    if not file.is_file():
        return None, (f"the sparse points {name} are not there",)
    import plyfile

    try:
        vertex = plyfile.PlyData.read(str(file))["vertex"]
        xyz = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], 1)
    except (plyfile.PlyParseError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a point cloud ({error}); repair or remove it") from error
    return SparsePoints(xyz[np.isfinite(xyz).all(1)]), ()
