"""COLMAP models (binary or text) to a Scene."""

from __future__ import annotations

from itertools import compress
from pathlib import Path

import numpy as np
import torch

from geometry.bad_frames import BAD_SHARE, usable_frames
from geometry.calibrated_photo import calibrated_photo
from geometry.cameras import Cameras, validate
from geometry.colmap_records import CameraRecord, ImageRecord, Records, read_records, world_to_camera
from geometry.images import SUFFIXES, is_image_name, natural_key
from geometry.scene import Scene, SparsePoints, scene_name

MODEL_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "sparse-txt", "sparse/manhattan/0")
IMAGE_FOLDERS = ("images", "images_2", "images_4", "images_8", "imgs", "input", "")
# Places of fx, fy, cx, cy in COLMAP's parameters, and of OpenCV's k1, k2, p1, p2.
CAMERA_MODELS = {
    "SIMPLE_PINHOLE": ((0, 0, 1, 2), ()),
    "PINHOLE": ((0, 1, 2, 3), ()),
    "SIMPLE_RADIAL": ((0, 0, 1, 2), (3,)),
    "RADIAL": ((0, 0, 1, 2), (3, 4)),
    "OPENCV": ((0, 1, 2, 3), (4, 5, 6, 7)),
}


def find_model(path: Path) -> Path | None:
    """The folder with cameras.bin or cameras.txt that belongs to `path`."""
    for folder in MODEL_FOLDERS:
        if any((path / folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            return path / folder
    return None


def read_colmap(root: Path, model: Path, image_folder: str | None = None, bad_share: float = BAD_SHARE) -> Scene:
    """The registered images of the COLMAP `model`, in natural order of their names, with points and who saw them.

    Photos are looked for beside the model, in `image_folder` or else images, images_2, ... Smaller copies scale K,
    distorted lenses are undone. Images whose photo is missing or unreadable or whose camera is unusable are left out
    and counted in `notes`. Raises ValueError or OSError with one line that names the file and what is wrong, also for
    more than `bad_share` of such images.
    """
    records = read_records(model)
    if records.faults:
        path, reason = records.faults[0]
        raise ValueError(f"{path}: {reason}")
    registered = sorted(records.images, key=lambda image: natural_key(image.name))
    if not registered:
        raise ValueError(f"{model}: the COLMAP model has no registered image")
    enough = int(bad_share * len(registered)) + 1  # where none of so many is there, too many are missing
    folder = _photo_folder(model, [image.name for image in registered[:enough]], image_folder)
    files = [_photo_file(folder, image.name) for image in registered]

    def open_image(i: int):
        image = registered[i]
        if image.camera not in records.cameras:
            raise ValueError(f"{files[i]}: its camera {image.camera} is not in {model}")
        camera = records.cameras[image.camera]
        K, distortion = intrinsics(camera, f"{model}: {image.name}")
        size, K, load = calibrated_photo(files[i], K, camera.size, distortion)
        try:
            w2c = world_to_camera(image)
        except ValueError as error:
            raise ValueError(f"{files[i]}: {error}") from error
        validate(Cameras(torch.tensor(w2c)[None], torch.tensor(K)[None], size), [str(files[i])])
        return size, K, load, w2c

    kept, photos, bad = usable_frames(model, len(files), open_image, bad_share)
    present = {file.name for file in folder.iterdir() if is_image_name(file)}
    unposed = len(present - {file.name for file in files if file.parent == folder})
    left_out = f"{unposed} photo(s) in {folder.name} have no pose in the model and were left out"
    registered, files = [registered[i] for i in kept], [files[i] for i in kept]
    return Scene(
        name=scene_name(root),
        root=root,
        names=tuple(image.name for image in registered),
        sizes=tuple(photo[0] for photo in photos),
        load=lambda i: photos[i][2](),
        w2c=np.stack([photo[3] for photo in photos]),
        K=np.stack([photo[1] for photo in photos]),
        points=sparse_points(records, registered),
        files=tuple(files),
        notes=(*bad, *([left_out] if unposed else [])),
    )


def intrinsics(camera: CameraRecord, name: str) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] and OpenCV's k1 k2 p1 p2 k3 of a camera; ValueError for a model that is not supported."""
    if camera.model not in CAMERA_MODELS:
        raise ValueError(
            f"{name}: camera model {camera.model} is not supported ({', '.join(CAMERA_MODELS)} are); "
            "run `colmap image_undistorter` first"
        )
    pinhole, lens = CAMERA_MODELS[camera.model]
    fx, fy, cx, cy = (camera.params[i] for i in pinhole)
    distortion = np.zeros(5)
    distortion[: len(lens)] = [camera.params[i] for i in lens]
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64), distortion


def sparse_points(records: Records, registered: list[ImageRecord]) -> SparsePoints:
    """All finite points, and for each of the `registered` images the indices of those that it saw."""
    xyz = np.array(list(records.points.values()), dtype=np.float64).reshape(-1, 3)
    finite = np.isfinite(xyz).all(1)
    index = {number: i for i, number in enumerate(compress(records.points, finite))}
    seen = [{index[number] for number in image.seen.tolist() if number in index} for image in registered]
    return SparsePoints(xyz[finite], tuple(np.array(sorted(indices), dtype=np.int64) for indices in seen))


def _photo_folder(model: Path, names: list[str], image_folder: str | None) -> Path:
    """The folder beside the model, or up to three above, that holds one of the images `names`."""
    folders = (image_folder,) if image_folder else IMAGE_FOLDERS
    for parent in (model, *model.resolve().parents[:3]):
        for folder in (parent / folder for folder in folders):
            if folder.is_dir() and any(_photo_file(folder, name).is_file() for name in names):
                return folder
    raise FileNotFoundError(
        f"{model}: no folder with its photos ({names[0]}) beside it; looked for {', '.join(filter(None, folders))}"
    )


def _photo_file(folder: Path, name: str) -> Path:
    """The file of an image; smaller copies may be stored as another type."""
    file = folder / name
    if file.is_file():
        return file
    return next((f for f in (file.with_suffix(suffix) for suffix in SUFFIXES) if f.is_file()), file)
