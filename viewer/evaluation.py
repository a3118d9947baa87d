"""The folder of an evaluation: scores of every picture, the worst first, and the pictures themselves.

Layout (eval_nvs/run.py): results.json with a row for each image; <scene>/prediction.json, which names the PNGs; and
report-files/<scene>/, where the report puts photos and error maps of some targets.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

RESULTS, PREDICTION, REPORT_FILES = "results.json", "prediction.json", "report-files"
TITLES = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips_vgg": "LPIPS (VGG)", "lpips_alex": "LPIPS (Alex)"}


@dataclass(frozen=True)
class Scored:
    """One picture: the PNG that was rendered and its scores by name; photo and error map where the report has them."""

    scene: str
    target: str
    render: Path
    scores: dict[str, float]
    photo: Path | None = None
    error: Path | None = None

    @property
    def label(self) -> str:
        return f"{self.scores.get('psnr', math.nan):.2f} dB  {self.scene}  {self.target}"


@dataclass(frozen=True)
class Evaluation:
    """A result: its `title`, its pictures by rising PSNR, and the means of the scores, none where they are refused."""

    title: str
    pictures: tuple[Scored, ...]
    mean: dict[str, float] = field(default_factory=dict)


def read_evaluation(folder: Path) -> Evaluation:
    """Read a result. Raises OSError or ValueError in one line when its files are missing or of another kind."""
    result = _json(folder / RESULTS)
    found, files = [], {}
    try:
        method = (result.get("method") or {}).get("method", "")
        title = ", ".join(filter(None, (result["bench"]["name"], f"protocol {result['protocol']['name']}", method)))
        for row in result["images"]:
            scene, target = str(row["scene"]), str(row["target"])
            if scene not in files:
                files[scene] = _json(_home(folder, scene) / PREDICTION)["files"]
            found.append(_scored(folder, scene, target, files[scene], _numbers(row)))
        mean = _numbers(result.get("mean") or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RESULTS} is not a result of eval_nvs/run.py ({error!r})") from error
    if not found:
        raise ValueError(f"{folder / RESULTS} scores no pictures")
    return Evaluation(title, tuple(sorted(found, key=lambda s: s.scores.get("psnr", math.inf))), mean)


def scores_table(evaluation: Evaluation, picture: Scored) -> str:
    """A Markdown table of one picture's scores beside the run's means."""
    lines = ["| | this picture | mean |", "|---|---|---|"]
    for name in (name for name in TITLES if name in picture.scores):
        digits = 2 if name == "psnr" else 3
        mean = f"{evaluation.mean[name]:.{digits}f} " if name in evaluation.mean else ""
        lines.append(f"| {TITLES[name]} | {picture.scores[name]:.{digits}f} | {mean}|")
    return "\n".join(lines)


def _scored(folder: Path, scene: str, target: str, files: dict[str, str], scores: dict[str, float]) -> Scored:
    home = _home(folder, scene)
    render = home / files[target]
    if not render.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{home / PREDICTION}: {files[target]} lies outside of {folder}")
    # The report numbers targets of one name by their order in it: which is which cannot be told from here.
    stem = Path(target).stem
    alone = sum(Path(other).stem == stem for other in files) == 1
    beside = [folder / REPORT_FILES / home.name / f"{stem}-{kind}" for kind in ("photo.jpg", "error.png")]
    photo, error = (path if alone and path.is_file() else None for path in beside)
    return Scored(scene, target, render, scores, photo, error)


def _home(folder: Path, scene: str) -> Path:
    """The folder of a scene's prediction."""
    return folder / scene.replace("/", "__")


def _numbers(row: dict) -> dict[str, float]:
    return {name: float(x) for name, x in row.items() if isinstance(x, (int, float))}


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
