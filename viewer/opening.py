"""From what the user names on the command line to something to show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geometry.cameras import Cameras
from geometry.images import DECODE_ERRORS, to_tensor
from geometry.scene import open_scene, scene_name
from splat.cameras_json import read_cameras
from splat.files import SUFFIXES, read_gaussians
from splat.outputs import file_names, read_backdrop
from viewer.evaluation import RESULTS, Evaluation, read_evaluation
from viewer.exhibit import Exhibit, make_exhibit
from viewer.training_run import TrainingRun, is_training_run


@dataclass(frozen=True)
class Photos:
    """Photos that must be reconstructed before there is something to show."""

    path: Path
    name: str
    count: int


def open_thing(path: str | Path) -> Exhibit | Photos | TrainingRun | Evaluation:
    """Recognise a Gaussian file, the folder of a reconstruction, a training run or an evaluation, or photos.

    Files of Gaussians are read, photos are only listed. Raises OSError or ValueError in one line that names the path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return _open_gaussians(path, path.stem)
    if path.is_dir() and (path / "scene.ply").is_file():
        return _open_gaussians(path / "scene.ply", path.resolve().name)
    if path.is_dir() and (path / RESULTS).is_file():
        return read_evaluation(path)
    if path.is_dir() and is_training_run(path):
        return TrainingRun(path)
    scene = open_scene(path)
    return Photos(path, scene_name(path), len(scene))


def _open_gaussians(path: Path, name: str) -> Exhibit:
    """The Gaussians of a file, with cameras.json, images/, depth/ and confidence/ where they lie beside it and fit."""
    gaussians, folder = read_gaussians(path), path.parent
    backdrop = min(read_backdrop(path), gaussians.count)
    if not (folder / "cameras.json").is_file():
        notes = ("no cameras.json beside it: the first view is a guess",)
        return make_exhibit(name, gaussians, None, notes=notes, backdrop=backdrop)
    cameras, names = read_cameras(folder / "cameras.json")
    notes, parts = [], {}
    for part, read in (("images", _read_photos), ("depth", _read_levels), ("confidence", _read_levels)):
        if not (folder / part).is_dir():
            continue
        try:
            parts[part] = read(folder / part, cameras, names)
        except (OSError, ValueError) as error:
            notes.append(f"no {part}: {error}")
    return make_exhibit(name, gaussians, cameras, names, notes=tuple(notes), backdrop=backdrop, **parts)


def _read_photos(folder: Path, cameras: Cameras, names: list[str]) -> Tensor:
    """The photos [V, 3, H, W] as the network saw them."""
    return to_tensor([picture[..., :3] for picture in _read_pictures(folder, cameras, names, 3)])


def _read_levels(folder: Path, cameras: Cameras, names: list[str]) -> Tensor:
    """Depth or confidence [V, H, W] of 16-bit PNGs, whose scale stands in the JSON of the folder's name."""
    about = folder / f"{folder.name}.json"
    try:
        scale = float(json.loads(about.read_text())["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{about} does not tell the scale") from error
    levels = _read_pictures(folder, cameras, names, 2)
    return torch.from_numpy(np.stack(levels).astype(np.float32) * scale)


def _read_pictures(folder: Path, cameras: Cameras, names: list[str], axes: int) -> list[np.ndarray]:
    """The PNGs of all views, at the cameras' size and with so many axes, or ValueError."""
    pictures = [_read_picture(folder / f"{name}.png") for name in file_names(names)]
    if any(picture.shape[:2] != cameras.size or picture.ndim != axes for picture in pictures):
        raise ValueError(f"the files in {folder.name}/ have another size or kind than cameras.json says")
    return pictures


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(image)
    except FileNotFoundError as error:
        raise OSError(f"{path.parent.name}/{path.name} is missing") from error
    except DECODE_ERRORS as error:
        raise OSError(f"{path.parent.name}/{path.name} cannot be decoded ({error})") from error
