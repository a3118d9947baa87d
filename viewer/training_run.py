"""A training run on disk, read while it goes on: metrics, validation pictures, and the newest network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from geometry.presets import PRESETS, NetworkConfig
from splat.checkpoint import locate, read_config
from splat.model import GaussianModel

METRICS, CONFIG, NETWORK, LATEST = "metrics.jsonl", "config.json", "network.json", "checkpoints/latest"
_MOST_POINTS = 2000


def is_training_run(path: Path) -> bool:
    """Whether a folder holds a run of train/nvs.py."""
    return (path / METRICS).is_file() or (path / LATEST).is_file()


@dataclass
class TrainingRun:
    """The folder of a run; `read` takes in what was written since the last time."""

    path: Path
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _offset: int = 0

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def step(self) -> int:
        """The last step with metrics, 0 before."""
        return int(max((points[-1][0] for points in self.series.values() if points), default=0))

    def read(self) -> bool:
        """Take in new whole lines of metrics.jsonl; False when there were none. A line that is no JSON is skipped."""
        path = self.path / METRICS
        if not path.is_file():
            return False
        size = path.stat().st_size
        if size < self._offset:  # started anew
            self._offset, self.series = 0, {}
        with open(path, "rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new.rfind(b"\n") + 1
        self._offset += whole
        found = False
        for line in new[:whole].splitlines():
            try:
                row = json.loads(line)
                step = float(row.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            for name, value in row.items():
                if isinstance(value, (int, float)) and np.isfinite(value):
                    self.series.setdefault(name, []).append((step, float(value)))
                    found = True
        return found

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [P] and values [P] of one metric, thinned to a few thousand points; empty when it is not known."""
        points = np.array(self.series.get(name, []), dtype=np.float64).reshape(-1, 2)
        points = points[:: max(1, -(-len(points) // _MOST_POINTS))]
        return points[:, 0], points[:, 1]

    def drawings(self) -> list[Path]:
        """The validation pictures of the newest validation that is whole, and before it older ones, newest first."""
        steps = sorted((self.path / "validation").glob("step-*"), reverse=True)
        return [picture for step in steps for picture in sorted(step.glob("*.png"))]

    def checkpoint(self) -> Path | None:
        """The folder of the newest checkpoint, None before the first."""
        try:
            name = (self.path / LATEST).read_text().strip()
        except OSError:
            return None
        folder = self.path / "checkpoints" / name
        return folder if Path(name).name == name and folder.is_dir() else None

    def validation_scene(self) -> Path | None:
        """The first scene that the run validates on, None when it has synthetic ones only."""
        root = self._config().get("val_scenes") or self._config().get("scenes")
        if not root or not Path(root).is_dir():
            return None
        return next((p for p in sorted(Path(root).iterdir()) if p.is_dir()), None)

    def export(self, folder: Path) -> str:
        """Write the newest checkpoint's averaged network to `folder`, as `from_pretrained` reads it; returns its name.

        Raises OSError or ValueError when there is none, when it does not fit the run's configuration, or when the run
        has just replaced it.
        """
        newest = self.checkpoint()
        if newest is None:
            raise OSError(f"{self.path}: no checkpoint yet")
        with torch.device("meta"):
            model = GaussianModel(self._network())
        try:
            # The averages are of the trained parameters; the others are those of the network.
            tensors = load_file(newest / "model.safetensors") | load_file(newest / "ema.safetensors")
            model.load_state_dict(tensors, assign=True)
        except (SafetensorError, FileNotFoundError) as error:
            raise OSError(f"{newest}: cannot be read ({error})") from error
        except RuntimeError as error:
            raise ValueError(f"{newest} does not fit the network of {self._told_by}") from error
        model.save_pretrained(folder)
        return newest.name

    @property
    def _told_by(self) -> str:
        return NETWORK if (self.path / NETWORK).is_file() else CONFIG

    def _network(self) -> NetworkConfig:
        """The network that is trained. Raises OSError or ValueError when neither network.json nor config.json tells."""
        if self._told_by == NETWORK:
            network = read_config(self.path / NETWORK)
            if not isinstance(network, NetworkConfig):
                raise ValueError(f"{self.path / NETWORK} names {network.name}, which is no network that is trained")
            return network
        config = self._config()
        if config.get("init"):
            return locate(config["init"])[1]
        if config.get("preset") not in PRESETS:
            raise ValueError(f"{self.path / CONFIG} names no network that is known, but {config.get('preset')!r}")
        return PRESETS[config["preset"]]

    def _config(self) -> dict:
        path = self.path / CONFIG
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise OSError(f"{path} cannot be read ({error})") from error
        return config if isinstance(config, dict) else {}
