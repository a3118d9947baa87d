"""Pictures of one method on disk, apart from their scores: OUT/<scene>/prediction.json and OUT/<scene>/renders/*.png.

Renders are rounded to 8 bits, lossless. What is stored is what is scored, so anyone can score it again, with other code
too; at 30 dB the rounding costs under 0.01 dB. A scene's folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from eval_nvs.environment import environment
from eval_nvs.protocol import Protocol, Split
from geometry.images import read_image, to_tensor
from splat.atomic import whole_folder
from splat.outputs import file_names

FORMAT = 1
INDEX, RENDERS = "prediction.json", "renders"
# PNG's lightest compression: encoding must keep up with a GPU.
_COMPRESSION = 1


@dataclass(frozen=True)
class Prediction:
    """What prediction.json says. `settings` make the pictures; two predictions of one scene are alike if they agree."""

    settings: dict
    split: Split
    files: dict[str, str]  # target image to PNG, relative to the scene's folder
    seconds: dict[str, float]  # load, reconstruct, render
    device: str
    environment: dict  # versions and git commit, as `environment` gives them


def settings_of(protocol: Protocol, identity: dict) -> dict:
    """All that decides what a method draws, as JSON holds it."""
    return json.loads(json.dumps({"format": FORMAT, "protocol": asdict(protocol), "method": identity}))


def settings_hash(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def scene_folder(out: Path, scene: str) -> Path:
    return out / scene.replace("/", "__")


def write(
    folder: Path, pixels: np.ndarray, settings: dict, split: Split, seconds: dict[str, float], device: str
) -> None:
    """Store uint8 pictures [T, H, W, 3] of the targets of `split`; an older prediction there is replaced."""
    for killed in folder.parent.glob(f".{escape(folder.name)}.*.new"):  # a run that was killed while it wrote
        shutil.rmtree(killed, ignore_errors=True)
    files = {name: f"{RENDERS}/{file}.png" for name, file in zip(split.targets, file_names(split.targets), strict=True)}
    with whole_folder(folder, (INDEX, RENDERS)) as new:
        (new / RENDERS).mkdir()
        for file, picture in zip(files.values(), pixels, strict=True):
            Image.fromarray(picture).save(new / file, compress_level=_COMPRESSION)
        about = {
            "hash": settings_hash(settings),
            "settings": settings,
            "split": asdict(split),
            "files": files,
            "seconds": seconds,
            "device": device,
            "environment": environment(),
        }
        (new / INDEX).write_text(json.dumps(about, indent=1) + "\n")


def read(folder: Path) -> Prediction | None:
    """The prediction in `folder`, or None where there is none. Raises ValueError for one that cannot be read."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text())
        split = about["split"]
        split = Split(split["scene"], tuple(split["inputs"]), tuple(split["targets"]), split["digest"])
        fields = ("settings", "files", "seconds", "device", "environment")
        return Prediction(split=split, **{name: about[name] for name in fields})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a prediction of this program ({error!r}); delete the folder") from error


def check(folder: Path, prediction: Prediction, settings: dict, split: Split | None = None) -> None:
    """Raise ValueError, naming what differs, unless the prediction was made with these settings and this split."""
    difference = _difference(prediction.settings, settings)
    if difference is None and split is not None and split != prediction.split:
        difference = "the choice of views is another"
    if difference is not None:
        raise ValueError(
            f"{folder} holds a prediction made with other settings: {difference}; give another --out, or --overwrite"
        )


def images(folder: Path, prediction: Prediction, names: tuple[str, ...]) -> Tensor:
    """Stored pictures [T, 3, H, W] of the targets `names`. Raises OSError for one that is missing or damaged."""
    with ThreadPoolExecutor(4) as pool:
        return to_tensor(list(pool.map(lambda name: read_image(folder / prediction.files[name]), names)))


def _difference(old: object, new: object, where: str = "") -> str | None:
    """The first value in which two JSON values differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            found = _difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            if found is not None:
                return found
        return None
    return None if old == new else f"{where} was {json.dumps(old)} and is {json.dumps(new)}"
