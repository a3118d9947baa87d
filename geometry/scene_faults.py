"""Every fault of a scene's cameras, and the photos that its frames need; readers stop at the first, this goes on.

The checks are the readers' own, one frame at a time. Pixels are not decoded here: see `photo_fault`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from geometry.calibrated_photo import calibrated_photo
from geometry.cameras import Cameras, validate
from geometry.colmap_records import read_records, world_to_camera
from geometry.dl3dv import COPIES
from geometry.images import image_size, read_image
from geometry.read_colmap import CAMERA_MODELS, IMAGE_FOLDERS, intrinsics
from geometry.read_nerfstudio import existing_file, frame_photo, frame_w2c, in_folder, read_meta
from geometry.tanks_and_temples import inverse_rigid, photos_of, read_log

# What readers and Pillow raise for content that is not what it should be; anything else is a fault of this program.
BAD = (OSError, ValueError)
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xaeB`\x82"))  # first and last bytes of JPEG and PNG


@dataclass
class Findings:
    """`photos` are files to decode; `faults` are (path, reason) of all else."""

    photos: list[Path] = field(default_factory=list)
    faults: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, path: Path, error: Exception | str) -> None:
        """One line, without the path that most errors begin with."""
        reason = " ".join(str(error).split())
        self.faults.append((path, reason.removeprefix(f"{path}: ")))

    def photo(self, file: Path) -> bool:
        """Note a photo that a frame needs; False when it is not there."""
        if not file.is_file():
            self.add(file, "the photo is missing")
            return False
        self.photos.append(file)
        return True


def nerfstudio_findings(path: Path) -> Findings:
    """Of a transforms.json: all its frames, in every copy of the photos (images, images_2, ...) that is there."""
    found = Findings()
    try:
        meta = read_meta(path)
    except BAD as error:
        found.add(path, error)
        return found
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        found.add(path, "'frames' is missing or empty")
        return found
    copies = [copy for copy in COPIES if (path.parent / copy).is_dir() and any((path.parent / copy).iterdir())]
    named = []
    for number, frame in enumerate(frames):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            found.add(path, f"frame {number} has no 'file_path'")
            continue
        named.append(PurePosixPath(frame["file_path"].replace("\\", "/")))
        files = [existing_file(path.parent / in_folder(named[-1], copy)) for copy in copies or (None,)]
        present = [file for file in dict.fromkeys(files) if found.photo(file)]
        _check_frame(found, path, {**meta, **frame}, present)
    _listed_twice(found, path, [str(name) for name in named])
    _odd_sizes(found, meta, frames)
    return found


def colmap_findings(model: Path) -> Findings:
    """Of a COLMAP model: cut-off files, every image's pose, camera and photo."""
    found = Findings()
    records = read_records(model)
    cameras, images = records.cameras, records.images
    for path, reason in records.faults:
        found.add(path, reason)
    if not images and not records.faults:
        found.add(model, "the COLMAP model has no registered image")
    for camera in cameras.values():
        if camera.model not in CAMERA_MODELS:
            found.add(model, f"camera {camera.number}: model {camera.model} is not supported; undistort the photos")
    folder = _photo_folder(model, [image.name for image in images])
    for image in images:
        place, camera = existing_file((folder or model) / image.name), cameras.get(image.camera)
        if folder is not None:
            found.photo(place)
        try:
            world_to_camera(image)
        except ValueError as error:
            found.add(place, error)
        if camera is None:
            found.add(place, f"its camera {image.camera} is not in {model}")
        elif camera.model in CAMERA_MODELS:
            K, distortion = intrinsics(camera, f"{model}: {image.name}")
            _check_camera(found, place, None, K, camera.size, distortion)
    if folder is None and images:
        found.add(model, f"no folder with its photos ({images[0].name}) beside the model")
    _listed_twice(found, model, [image.name for image in images])
    return found


def log_findings(folder: Path, log: Path) -> Findings:
    """Of an official Tanks and Temples scene: its trajectory and photos."""
    found = Findings()
    photos = photos_of(folder)
    for photo in photos:
        found.photo(photo)
    if not photos:
        found.add(folder, "no photos in this scene")
    try:
        poses = read_log(log)
    except BAD as error:
        found.add(log, error)
        return found
    unposed = [photo for number, photo in enumerate(photos) if number not in poses]
    if unposed:
        found.add(log, f"{len(unposed)} of {len(photos)} photos have no pose, for example {unposed[0].name}")
    for number, c2w in poses.items():
        if number >= len(photos):
            found.add(log, f"a pose for photo {number} (0 is the first), but {folder} holds {len(photos)} photos")
        else:
            _check_camera(found, photos[number], inverse_rigid(c2w), np.eye(3), None, np.zeros(5))
    return found


def photo_fault(file: Path) -> tuple[str, str | None]:
    """(digest of the bytes, what is wrong with them or None): the photo is decoded whole."""
    try:
        content = file.read_bytes()
        read_image(file, upright=False)
    except (OSError, ValueError, ImportError) as error:
        return "", " ".join(str(error).split()).removeprefix(f"{file}: ")
    # Decoders forgive a lost end; who copies data wants to know.
    for begin, end in ENDS:
        if content.startswith(begin) and end not in content[len(content) // 2 :]:
            return "", "the image is truncated: its end marker is missing"
    return hashlib.sha256(content).hexdigest(), None


def _check_frame(found: Findings, path: Path, frame: dict, files: list[Path]) -> None:
    """Pose, intrinsics and size of one frame of a transforms.json, in each of its `files`."""
    w2c, place = None, files[0] if files else path / frame["file_path"]
    if frame.get("transform_matrix") is None:
        found.add(place, "the frame has no transform_matrix")
    else:
        try:
            w2c = frame_w2c(path, frame)
            _validate(place, w2c, np.eye(3))
        except BAD as error:
            found.add(place, error)
    for file in files:
        try:
            _validate(file, np.eye(4), frame_photo(path, frame, file)[1])
        except BAD as error:
            found.add(file, error)


def _check_camera(found: Findings, file: Path, w2c, K: np.ndarray, size, distortion: np.ndarray) -> None:
    """Pose and intrinsics of one photo, and whether its size is that of the camera."""
    try:
        _validate(file, np.eye(4) if w2c is None else w2c, K)
        if file.is_file():
            calibrated_photo(file, K, size, distortion)
    except BAD as error:
        found.add(file, error)


def _validate(place: Path, w2c: np.ndarray, K: np.ndarray) -> None:
    validate(Cameras(torch.tensor(w2c)[None], torch.tensor(K)[None], (1, 1)), [str(place)])


def _listed_twice(found: Findings, path: Path, names: list[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            found.add(path, f"{name} is listed {times} times")


def _odd_sizes(found: Findings, meta: dict, frames: list) -> None:
    """Photos of another size than most in their folder, where all frames share one camera."""
    if any(isinstance(frame, dict) and ("w" in frame or "fl_x" in frame) for frame in frames) or "w" not in meta:
        return
    sizes: dict[Path, tuple[int, int]] = {}
    for file in found.photos:
        try:
            sizes[file] = image_size(file, upright=False)
        except BAD:
            continue  # decoding reports it
    for folder in {file.parent for file in sizes}:
        inside = {file: size for file, size in sizes.items() if file.parent == folder}
        usual = Counter(inside.values()).most_common(1)[0][0]
        shrunk = folder.name.removeprefix("images_")
        for file, size in inside.items():
            if size != usual:
                found.add(file, f"is {size[1]}x{size[0]}, but most in {folder.name} are {usual[1]}x{usual[0]}")
        if shrunk.isdigit() and isinstance(meta["w"], int) and abs(usual[1] * int(shrunk) / meta["w"] - 1) > 0.02:
            want = meta["w"] // int(shrunk)
            found.add(folder, f"its photos are {usual[1]} px wide; 1/{shrunk} of the camera's {meta['w']} px is {want}")


def _photo_folder(model: Path, names: list[str]) -> Path | None:
    """The folder beside the model, or up to three above, that holds the most of the first hundred `names`."""
    folders = [parent / folder for parent in (model, *model.resolve().parents[:3]) for folder in IMAGE_FOLDERS]
    folders = [folder for folder in folders if folder.is_dir()]
    held = [sum(existing_file(folder / name).is_file() for name in names[:100]) for folder in folders]
    return folders[int(np.argmax(held))] if any(held) else None
