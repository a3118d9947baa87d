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
from splat.outputs import file_names
from viewer.evaluation import RESULTS, Evaluation, read_evaluation
from viewer.exhibit import Exhibit, make_exhibit
from viewer.training_run import TrainingRun, is_training_run

# Rows of contact.png: inputs, renderings, depth.
_SHEET_ROWS = 3


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
    """The Gaussians of a file, with the cameras.json, depth/ and contact.png that lie beside it, if they fit."""
    gaussians = read_gaussians(path)
    folder = path.parent
    if not (folder / "cameras.json").is_file():
        return make_exhibit(name, gaussians, None, notes=("no cameras.json beside it: the first view is a guess",))
    cameras, names = read_cameras(folder / "cameras.json")
    notes, parts = [], {}
    for key, read in (("depth", _read_depths), ("images", _read_photos)):
        try:
            parts[key] = read(folder, cameras, names)
        except (OSError, ValueError) as error:
            notes.append(f"no {key}: {error}")
    return make_exhibit(name, gaussians, cameras, names, notes=tuple(notes), **parts)


def _read_depths(folder: Path, cameras: Cameras, names: list[str]) -> Tensor:
    """Depth [V, H, W] of the 16-bit PNGs in depth/."""
    about = folder / "depth" / "depth.json"
    try:
        scale = float(json.loads(about.read_text())["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{about} does not tell the scale") from error
    levels = [_read_picture(folder / "depth" / f"{name}.png") for name in file_names(names)]
    if any(level.shape != cameras.size for level in levels):
        raise ValueError("the files in depth/ have another size than cameras.json says")
    return torch.from_numpy(np.stack(levels).astype(np.float32) * scale)


def _read_photos(folder: Path, cameras: Cameras, names: list[str]) -> Tensor:
    """The photos [V, 3, H, W] as the network saw them, cut out of the first row of contact.png.

    The widths of its margins follow from its size.
    """
    path, (h, w), views = folder / "contact.png", cameras.size, len(names)
    sheet = _read_picture(path)
    margin, left = divmod(sheet.shape[1] - views * w, views + 1)
    label, over = divmod(sheet.shape[0] - _SHEET_ROWS * h, _SHEET_ROWS + 1)
    if left or over or min(margin, label) < 0 or sheet.ndim != 3:
        raise ValueError(f"{path.name} has another layout than cameras.json says")
    starts = [margin + i * (w + margin) for i in range(views)]
    return to_tensor([sheet[label : label + h, x : x + w, :3] for x in starts])


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(image)
    except FileNotFoundError as error:
        raise OSError(f"{path.name} is missing") from error
    except DECODE_ERRORS as error:
        raise OSError(f"{path.name} cannot be decoded ({error})") from error
