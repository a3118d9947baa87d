"""Tanks and Temples: the form with a COLMAP model (3DGS and others), and the official one with its trajectory .log.

    <root>/<scene>/{images, sparse/0}                                   undistorted photos, PINHOLE
    <root>/<Scene>/*.jpg or images/*.jpg, <Scene>_COLMAP_SfM.log        in the scene's folder or beside it

The .log gives per image a line `i i 0`, where i counts the photos in the order of their names from 0, and the four rows
of a camera-to-world matrix in OpenCV axes. The release tells no intrinsics; the focal length is the one that makes
photos and poses agree (`geometry.focal_from_poses`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from geometry.calibrated_photo import calibrated_photo
from geometry.dataset_folders import folders_below
from geometry.focal_from_poses import focal_over_width
from geometry.images import image_size, is_image_name
from geometry.read_colmap import find_model, read_colmap
from geometry.scene import Scene

# Focal length over image width that the benchmark's tools assume; here only where the photos do not tell.
FOCAL = 0.7
LOG = "_COLMAP_SfM.log"


def find_tanks(root: Path) -> dict[str, Path]:
    """Folder name to folder of all scenes below `root` with a COLMAP model or a trajectory, sorted by name."""
    found: dict[str, Path] = {}
    for folder in folders_below(root, lambda path: find_model(path) is not None or bool(find_log(path)), deepest=2):
        found.setdefault(folder.name, folder)
    return dict(sorted(found.items()))


def find_log(folder: Path) -> Path | None:
    """The trajectory of the scene in `folder`: named after it, in it or beside it, or the only one among its photos."""
    for candidate in (folder / f"{folder.name}{LOG}", folder.parent / f"{folder.name}{LOG}"):
        if candidate.is_file():
            return candidate
    logs = list(folder.glob("*.log"))
    return logs[0] if len(logs) == 1 and photos_of(folder) else None


def open_tanks(folder: Path) -> Scene:
    """The scene in `folder`: its COLMAP model if there is one, else photos with the official trajectory.

    Raises OSError or ValueError with one line that names the file and what is wrong with it.
    """
    model, log = find_model(folder), find_log(folder)
    if model is not None:
        return replace(read_colmap(folder, model), name=folder.name)
    if log is None:
        raise FileNotFoundError(f"{folder}: neither sparse/0 nor {folder.name}{LOG} in this scene")
    return read_official(folder, log)


def read_official(folder: Path, log: Path) -> Scene:
    """Photos of `folder` (or its images/) in the order of their names, with the poses of `log`.

    K is that of one camera with a centred principal point; `notes` tell its focal length and whether it was found or
    assumed, and count the photos that the trajectory leaves out. Raises ValueError when it speaks of photos that are
    not there.
    """
    photos, c2w = photos_of(folder), read_log(log)
    beyond = [i for i in c2w if i >= len(photos)]
    if beyond:
        raise ValueError(
            f"{log}: a pose for photo {beyond[0]}, but {folder} holds {len(photos)} photos (0 is the first)"
        )
    files = [photos[i] for i in sorted(c2w)]
    w2c = np.stack([inverse_rigid(c2w[i]) for i in sorted(c2w)])
    found = _found_focal(tuple(files), w2c.tobytes())
    K = [centered_K(image_size(file, upright=False), found or FOCAL) for file in files]
    calibrated = [calibrated_photo(file, k, None, np.zeros(5)) for file, k in zip(files, K)]
    told = f"{found:.4f} x width was found from photos and poses" if found else f"{FOCAL} x width is assumed"
    notes = [f"the trajectory tells no focal length: {told}"]
    if len(files) < len(photos):
        notes.append(f"{len(photos) - len(files)} of {len(photos)} photos have no pose in {log.name} and were left out")
    return Scene(
        name=folder.name,
        root=folder,
        names=tuple(file.name for file in files),
        sizes=tuple(photo[0] for photo in calibrated),
        load=lambda i: calibrated[i][2](),
        w2c=w2c,
        K=np.stack([photo[1] for photo in calibrated]),
        files=tuple(files),
        notes=tuple(notes),
    )


def photos_of(folder: Path) -> list[Path]:
    """The photos of an official scene, sorted by name."""
    inner = folder / "images" if (folder / "images").is_dir() else folder
    return sorted(p for p in inner.iterdir() if is_image_name(p) and not p.name.startswith("."))


def centered_K(size: tuple[int, int], focal: float) -> np.ndarray:
    """K [3, 3] of a photo of `size` (H, W) with square pixels; `focal` in units of the width."""
    height, width = size
    return np.array([[focal * width, 0, width / 2], [0, focal * width, height / 2], [0, 0, 1]], dtype=np.float64)


@lru_cache(maxsize=64)
def _found_focal(files: tuple[Path, ...], w2c: bytes) -> float | None:
    """Matching takes seconds, and a benchmark opens its scenes more than once."""
    return focal_over_width(files, np.frombuffer(w2c).reshape(-1, 4, 4))


def read_log(path: Path) -> dict[int, np.ndarray]:
    """Number of the photo to camera-to-world [4, 4] float64 (OpenCV axes), as stored.

    Raises ValueError naming the line that is not what it should be, OSError as reading does.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file with poses ({error})") from error
    if not lines or len(lines) % 5:
        raise ValueError(f"{path}: {len(lines)} lines; a trajectory has 5 per photo, so it is empty or cut off")
    poses: dict[int, np.ndarray] = {}
    for start in range(0, len(lines), 5):
        head, rows = lines[start], lines[start + 1 : start + 5]
        try:
            number, matrix = int(head[0]), np.array([[float(x) for x in row] for row in rows])
        except ValueError as error:
            raise ValueError(f"{path}: entry {start // 5} is not a number and a 4x4 matrix ({error})") from error
        if matrix.shape != (4, 4) or number < 0:
            raise ValueError(f"{path}: entry {start // 5} is not a number and a 4x4 matrix")
        if number in poses:
            raise ValueError(f"{path}: photo {number} has two poses")
        poses[number] = matrix
    return poses


def inverse_rigid(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a rigid [4, 4]; by the transpose, so that a matrix that is not rigid stays so and is reported."""
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse
