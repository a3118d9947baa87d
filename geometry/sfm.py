"""Camera poses of plain photos by structure from motion: pycolmap on the CPU, SIFT, incremental mapping.

This is the one module that knows pycolmap; see `import_pycolmap`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from geometry.calibrated_photo import pinhole_of, undistort
from geometry.colmap_records import Records, read_records, world_to_camera
from geometry.images import exif_focal, resize_array
from geometry.read_colmap import intrinsics, sparse_points
from geometry.scene import Scene

EXHAUSTIVE_BELOW = 40  # photos; more are taken for a walk or a video and matched in sequence
LONG_SIDE = 1600  # of the copies that features are found in
# Angle in degrees and number of matches that the first pair must have. COLMAP's own bounds come first, as they give the
# most reliable start; small paths and few photos need the lower ones.
FIRST_PAIRS = ((16.0, 100), (4.0, 50))
FOCAL_RANGE, MAX_RADIAL = (0.2, 10.0), 1.0  # of the long side; of the radial term
DEFAULT_FOCAL = 1.2  # times the long side, when neither the scene nor EXIF tells; COLMAP's own guess


class PosesNotFound(RuntimeError):
    """Structure from motion could not place at least two of the photos."""


def import_pycolmap() -> ModuleType:
    """pycolmap (3.13 or newer), or an ImportError that says how to get it.

    A program that imports pycolmap itself must import Pillow (or this package) first: pycolmap 4.2 exports its own
    zlib, and a Pillow loaded after it hangs or corrupts memory when it writes a PNG.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ImportError("poses from photos need pycolmap: pip install raysplat[colmap]") from error
    return pycolmap


def reconstruct_poses(scene: Scene, progress: bool = True) -> Scene:
    """The scene with `w2c`, `K` and sparse points found from its photos alone; poses that it has are not looked at.

    Photos of one size and EXIF focal length share a camera (focal length and one radial term are refined), and come
    back free of that distortion. Photos that were not registered are left out with a note. The frame and scale are
    COLMAP's. With `progress` a bar goes to stderr. Raises PosesNotFound with one line, ImportError when pycolmap is
    not installed.
    """
    pycolmap = import_pycolmap()
    if len(scene) < 2:
        raise PosesNotFound(f"{scene.root}: poses need at least 2 photos, there is {len(scene)}")
    total = 3 * len(scene)
    bar = tqdm(total=total, disable=not progress, bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}")
    with bar, tempfile.TemporaryDirectory(prefix="raysplat-sfm-") as folder, _quiet(pycolmap):
        model, files = _run_colmap(pycolmap, scene, Path(folder), bar)
        bar.update(total - bar.n)
    if model is None:
        raise PosesNotFound(
            f"{scene.root}: no camera poses found for {len(scene)} photos: too few of them match; "
            "take sharper photos with more overlap, or bring poses (COLMAP or transforms.json)"
        )
    try:
        return _with_cameras(scene, model, files)
    except ValueError as error:
        raise PosesNotFound(f"{scene.root}: the cameras that were found are not usable: {error}") from error


def _run_colmap(pycolmap, scene: Scene, folder: Path, bar: tqdm) -> tuple[Records | None, list[str]]:
    """(largest reconstruction of 2 or more photos or None, name in it of each photo)."""
    database, photos = folder / "database.db", folder / "photos"
    bar.set_description("features")
    files, focals = _write_copies(scene, photos)
    pycolmap.set_random_seed(0)
    pycolmap.extract_features(
        str(database), str(photos), camera_mode=pycolmap.CameraMode.PER_FOLDER, device=pycolmap.Device.cpu
    )
    _set_focals(pycolmap, database, focals)
    bar.update(len(scene))
    bar.set_description("matches")
    if len(scene) < EXHAUSTIVE_BELOW:
        pycolmap.match_exhaustive(str(database), device=pycolmap.Device.cpu)
    else:
        pycolmap.match_sequential(str(database), device=pycolmap.Device.cpu)
    bar.update(len(scene))
    bar.set_description("cameras")
    found = []
    for angle, inliers in FIRST_PAIRS:
        options = pycolmap.IncrementalPipelineOptions(min_model_size=2, extract_colors=False)
        options.mapper.init_min_tri_angle, options.mapper.init_min_num_inliers = angle, inliers
        options.triangulation.ignore_two_view_tracks = len(scene) > 2
        models = pycolmap.incremental_mapping(
            str(database),
            str(photos),
            str(folder),
            options=options,
            next_image_callback=lambda: bar.update(bar.n < bar.total),  # a second round must not run past the end
        )
        found += [model for model in models.values() if model.num_reg_images() >= 2 and _plausible(model)]
        if any(model.num_reg_images() == len(scene) for model in found):
            break
    if not found:
        return None, files
    largest = folder / "largest"
    largest.mkdir()
    max(found, key=lambda model: model.num_reg_images()).write_binary(str(largest))
    return read_records(largest), files


def _plausible(model) -> bool:
    """Whether every camera of a reconstruction is one that a photographer could own; few photos can bend it beyond."""
    return not any(camera.has_bogus_params(*FOCAL_RANGE, MAX_RADIAL) for camera in model.cameras.values())


def _write_copies(scene: Scene, folder: Path) -> tuple[list[str], dict[str, float | None]]:
    """Copies of at most LONG_SIDE, a folder for each camera; their names, and by folder the known focal length."""
    files, focals = [], {}
    for i, (height, width) in enumerate(scene.sizes):
        scale = min(1.0, LONG_SIDE / max(height, width))
        focal = scene.K[i, 0, 0] if scene.K is not None else exif_focal(scene.files[i]) if scene.files else None
        camera = f"{width}x{height}_{focal or 0:.0f}"
        focals[camera] = None if focal is None else focal * scale
        files.append(f"{camera}/{i:06d}.png")
        copy = resize_array(scene.load(i), (round(height * scale), round(width * scale)))
        (folder / camera).mkdir(parents=True, exist_ok=True)
        Image.fromarray(copy).save(folder / files[-1], compress_level=1)
    return files, focals


def _set_focals(pycolmap, database: Path, focals: dict[str, float | None]) -> None:
    """Give each camera of the database the focal length that is known, before matches are verified with it."""
    with pycolmap.Database.open(str(database)) as opened:
        cameras = {camera.camera_id: camera for camera in opened.read_all_cameras()}
        folder_of = {image.camera_id: Path(image.name).parent.name for image in opened.read_all_images()}
        for camera_id, camera in cameras.items():
            focal = focals[folder_of[camera_id]]
            # Several unknown cameras: each has too few photos to find its focal length by matches, so the guess counts.
            camera.has_prior_focal_length = focal is not None or len(focals) > 1
            camera.focal_length = focal or DEFAULT_FOCAL * max(camera.width, camera.height)
            opened.update_camera(camera)


def _with_cameras(scene: Scene, model: Records, files: list[str]) -> Scene:
    """The registered views of `scene` with the cameras of the reconstruction at the photos' own size."""
    view_of = {name: i for i, name in enumerate(files)}
    by_view = {view_of[image.name]: image for image in model.images}
    indices = sorted(by_view)
    registered = [by_view[i] for i in indices]
    kept = scene.select(indices)
    K, distortion, pinhole = [], [], []
    for view, image in enumerate(registered):
        camera = model.cameras[image.camera]
        copy_K, lens = intrinsics(camera, kept.names[view])
        height, width = kept.sizes[view]
        K.append(np.diag([width / camera.size[1], height / camera.size[0], 1.0]) @ copy_K)
        distortion.append(lens)
        pinhole.append(pinhole_of(K[-1], lens, (height, width), kept.names[view]))
    left_out = len(scene) - len(kept)
    note = f"camera poses found by COLMAP for {len(kept)} of {len(scene)} photos" + (
        f"; {left_out} could not be placed and were left out" if left_out else ""
    )
    return replace(
        kept,
        load=lambda i: undistort(kept.load(i), K[i], distortion[i], pinhole[i]),
        w2c=np.stack([world_to_camera(image) for image in registered]),
        K=np.stack(pinhole),
        points=sparse_points(model, registered),
        notes=(*scene.notes, note),
    )


@contextmanager
def _quiet(pycolmap) -> Iterator[None]:
    """COLMAP reports every step to stderr; what went wrong is told by PosesNotFound."""
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level
