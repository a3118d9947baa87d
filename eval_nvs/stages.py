"""The two stages of an evaluation: pictures of the targets, stored; then their scores, from what is stored."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval_nvs import predictions
from eval_nvs.environment import device_name
from eval_nvs.methods import Method
from eval_nvs.predictions import scene_folder
from eval_nvs.prefetch import ahead
from eval_nvs.protocol import Protocol, Split, load
from eval_nvs.results import SceneScores
from eval_nvs.scores import Metrics
from eval_nvs.target_cameras import target_cameras
from geometry.cameras import Cameras
from geometry.images import to_uint8
from geometry.scene import Scene

# What may go wrong with one scene: broken files, cameras that do not fit, too little memory, a library's own refusal.
FAILURES = (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError, LookupError)
OpenScene = Callable[[str], tuple[Scene, Split]]


@dataclass(frozen=True)
class Views:
    """One scene in memory: inputs [V] at the method's size, targets [T] at the protocol's."""

    split: Split
    inputs: tuple[Tensor, Cameras]
    targets: tuple[Tensor | None, Cameras]  # photos only where target cameras are fitted to them
    points: Tensor | None
    seconds: float


def predict(
    method: Method,
    protocol: Protocol,
    open_scene: OpenScene,
    scenes: Sequence[str],
    out: Path,
    device: str,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[dict[str, str], dict[str, float]]:
    """Store the pictures of `method` for each scene that has none yet. Gives failures by scene, and seconds by kind.

    The seconds: `reconstruct` and `render`, in which the device works; `load` of all threads together; `wall`.
    Raises ValueError where an older prediction was made with other settings, unless `overwrite`.
    """
    settings = predictions.settings_of(protocol, method.identity)
    for scene in scenes:
        old = predictions.read(scene_folder(out, scene))
        if old is not None and not overwrite:
            predictions.check(scene_folder(out, scene), old, settings)

    def read(scene: str) -> Views | None:
        start = time.perf_counter()
        opened, split = open_scene(scene)
        folder = scene_folder(out, scene)
        old = predictions.read(folder)
        if old is not None and not overwrite:
            predictions.check(folder, old, settings, split)
            return None
        size = protocol.network_size if method.own_size else protocol.size
        inputs, wanted = load(opened, split.inputs, size), (None, cameras_of(opened, split.targets, protocol.size))
        if protocol.cameras == "optimized":
            wanted = load(opened, split.targets, protocol.size)
        return Views(split, inputs, wanted, seen_points(opened, split.inputs), time.perf_counter() - start)

    failed, spent, start = {}, dict.fromkeys(("load", "reconstruct", "render"), 0.0), time.perf_counter()
    with Writer() as writer:
        for scene, views in _shown(ahead(read, scenes), len(scenes), "predict", progress):
            try:
                views = views()
                if views is None:
                    continue
                pixels, seconds = draw(method, protocol, views, device)
            except FAILURES as error:
                failed[scene] = one_line(error)
                continue
            for name in spent:
                spent[name] += seconds[name]
            about = (settings, views.split, seconds, device_name(device))
            writer.submit(scene, predictions.write, scene_folder(out, scene), pixels, *about)
    failed |= writer.failed
    return failed, spent | {"wall": time.perf_counter() - start}


def draw(method: Method, protocol: Protocol, views: Views, device: str) -> tuple[np.ndarray, dict[str, float]]:
    """uint8 pictures [T, H, W, 3] of the targets, and the seconds that each step took, the device's work included."""
    images, cameras = (x.to(device) for x in views.inputs)
    photos, wanted = views.targets
    given = protocol.cameras == "given"
    start = _now(device)
    scene = method.reconstruct(images, cameras if given else None, views.points if given else None)
    middle = _now(device)
    where = target_cameras(scene, cameras, wanted.to(device), photos, protocol)
    with torch.no_grad():
        pixels = to_uint8(scene.render(where))
    return pixels, {"load": views.seconds, "reconstruct": middle - start, "render": _now(device) - middle}


def score(
    metrics: Metrics, protocol: Protocol, open_scene: OpenScene, scenes: Sequence[str], out: Path, progress: bool = True
) -> tuple[list[SceneScores], dict[str, str]]:
    """Scores of the stored pictures of each scene, and failures by scene."""

    def read(scene: str) -> tuple[predictions.Prediction, tuple[str, ...], Tensor, Tensor]:
        folder = scene_folder(out, scene)
        stored = predictions.read(folder)
        if stored is None:
            raise FileNotFoundError(f"{folder}: no prediction here; run without --score-only first")
        opened, split = open_scene(scene)
        predictions.check(folder, stored, predictions.settings_of(protocol, stored.settings["method"]), split)
        photos = load(opened, split.targets, protocol.size)[0]
        return stored, opened.notes, predictions.images(folder, stored, split.targets), photos

    scored, failed = [], {}
    for scene, result in _shown(ahead(read, scenes), len(scenes), "score", progress):
        try:
            stored, notes, renders, photos = result()
            rows = tuple(metrics(renders, photos))
        except FAILURES as error:
            failed[scene] = one_line(error)
            continue
        made = (stored.seconds, stored.device, stored.environment, stored.settings["method"])
        scored.append(SceneScores(stored.split, notes, rows, *made))
    return scored, failed


def cameras_of(scene: Scene, names: Sequence[str], size: tuple[int, int]) -> Cameras:
    """The cameras that `load` gives, which the sizes of the photos decide: none is decoded."""
    blank = replace(scene, load=lambda i: np.zeros((*scene.sizes[i], 3), np.uint8))
    return load(blank, names, size)[1]


def seen_points(scene: Scene, names: Sequence[str]) -> Tensor | None:
    """Points [P, 3] of structure from motion that the views `names` see; all of them where it is not known which."""
    if scene.points is None:
        return None
    xyz = scene.points.xyz
    if scene.points.visible is not None:
        chosen = [scene.points.visible[scene.names.index(name)] for name in names]
        xyz = xyz[np.unique(np.concatenate(chosen)).astype(int)]
    return torch.from_numpy(np.ascontiguousarray(xyz)).float()


class Writer:
    """Stores finished scenes in two threads while the next is worked on; the block ends when all are stored."""

    def __init__(self):
        self.pool, self.queue, self.failed = ThreadPoolExecutor(2), deque[tuple[str, Future]](), {}

    def submit(self, scene: str, function: Callable, *arguments) -> None:
        self.queue.append((scene, self.pool.submit(function, *arguments)))
        while len(self.queue) > 4:
            self._settle()

    def _settle(self) -> None:
        scene, future = self.queue.popleft()
        try:
            future.result()
        except FAILURES as error:
            self.failed[scene] = one_line(error)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error) -> None:
        while self.queue:
            self._settle()
        self.pool.shutdown()


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, (ValueError, OSError, MemoryError)) else f"{type(error).__name__}: {text}"


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _shown(items: Iterable, total: int, what: str, progress: bool) -> Iterable:
    return tqdm(items, what, total, unit="scene", disable=not progress)
