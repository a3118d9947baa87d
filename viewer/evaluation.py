"""The folder of an evaluation: scores of every picture, the worst first, and the pictures themselves.

Layout (eval_nvs/run.py): results.json with a row for each image, and <scene>/prediction.json, which names its PNGs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

RESULTS, PREDICTION = "results.json", "prediction.json"


@dataclass(frozen=True)
class Scored:
    """One picture: `path` of its PNG and its scores by name."""

    scene: str
    target: str
    path: Path
    scores: dict[str, float]

    @property
    def label(self) -> str:
        return f"{self.scores.get('psnr', math.nan):.2f} dB  {self.scene}  {self.target}"


@dataclass(frozen=True)
class Evaluation:
    """A result: its `title`, and its pictures by rising PSNR."""

    title: str
    pictures: tuple[Scored, ...]


def read_evaluation(folder: Path) -> Evaluation:
    """Read a result. Raises OSError or ValueError in one line when its files are missing or of another kind."""
    result = _json(folder / RESULTS)
    found, files = [], {}
    try:
        title = f"{result['bench']['name']}, protocol {result['protocol']['name']}"
        for row in result["images"]:
            scene, target = str(row["scene"]), str(row["target"])
            home = folder / scene.replace("/", "__")
            if scene not in files:
                files[scene] = _json(home / PREDICTION)["files"]
            path = home / files[scene][target]
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{home / PREDICTION}: {files[scene][target]} lies outside of {folder}")
            scores = {name: float(x) for name, x in row.items() if isinstance(x, (int, float))}
            found.append(Scored(scene, target, path, scores))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / RESULTS} is not a result of eval_nvs/run.py ({error!r})") from error
    if not found:
        raise ValueError(f"{folder / RESULTS} scores no pictures")
    return Evaluation(title, tuple(sorted(found, key=lambda s: s.scores.get("psnr", math.inf))))


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
