"""Scenes with photos and cameras, on disk or in object storage, as a source of training samples.

Scenes are listed at once and opened when they are drawn; of a scene only the views of the sample are read. Bad data is
skipped and counted, never silently: the first fault of each scene is printed, frames that its reader left out among
them, and too many bad draws stop the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from geometry.cameras import Cameras
from geometry.dl3dv import is_benchmark_scene
from geometry.scene import Scene
from geometry.scene_depth import depth_file, parse_depth, sparse_depth
from geometry.scene_pack import PackedPhotos
from geometry.scene_roots import find_scenes, open_any
from train.augment import Augmentation, Drawn, Placement, develop, draw, mirror, place, resample
from train.batch import Batch, Shape
from train.cache import Cache
from train.sampling import Sampling, sample_views

OPEN_SCENES = 64  # kept open: their cameras and points, not their photos
TRIES = 20  # scenes drawn for one place in a batch before the source gives up
ENOUGH = 200  # draws after which the share of bad ones is judged


def refuse_benchmark(names: Iterable[str], root: str | Path) -> None:
    """ValueError naming the first of the scenes `names` (paths below `root`) that is in DL3DV's benchmark."""
    for name in filter(is_benchmark_scene, names):
        raise ValueError(
            f"{root}: {name} is one of the 140 scenes of DL3DV's benchmark; a model trained on it cannot be scored "
            "there. Move it away, or set allow_benchmark"
        )


@dataclass(frozen=True)
class SceneOptions:
    """How samples are drawn from scenes."""

    sampling: Sampling = "window"  # views that are neighbours, or far apart as in the paper's benchmark
    # From the scene's points, or maps beside the photos; these may be in a unit of their own and feed ssi_depth alone.
    depth: Literal["none", "sparse", "stored"] = "none"
    augmentation: Augmentation = field(default_factory=Augmentation)
    image_folder: str | None = None  # among images, images_4, images_8 where a scene has several
    allow_benchmark: bool = False  # take scenes of DL3DV's benchmark too, on which no score is then worth anything
    max_bad: float = 0.05  # share of draws that may meet bad data before the run stops
    cache_mb: int = 1024  # decoded photos kept in memory; helps when all of them fit
    decoders: int = min(8, os.cpu_count() or 1)  # threads that read and decode


DEFAULTS = SceneOptions()


class SceneSource:
    """Samples of the posed scenes below `root` (see `find_scenes`), each a pure function of its seed and the data.

    ValueError when there is no scene, or one of DL3DV's benchmark.
    """

    def __init__(self, root: str | Path, device: torch.device, options: SceneOptions = DEFAULTS):
        self.root, self.device, self.options = root, device, options
        self.scenes = find_scenes(root)
        self.names = list(self.scenes)
        if not options.allow_benchmark:
            refuse_benchmark(self.names, root)
        self.draws = self.bad_draws = 0
        self.faults: dict[str, str] = {}  # scene: what was first wrong with it
        self._lock = Lock()
        self._opened = Cache(OPEN_SCENES)
        self._photos = Cache(options.cache_mb << 20)
        self._pool = ThreadPoolExecutor(options.decoders, thread_name_prefix="decode")

    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        """A batch of `shape`. Raises ValueError when too many draws meet bad data, or none a scene that is fit."""
        count = shape.context + shape.targets
        pictures = np.empty((shape.scenes, count, *shape.size, 3), np.uint8)
        samples = [self._sample((seed, turn, i), shape, pictures[i]) for i in range(shape.scenes)]
        w2c, K, depth, drawn, names = zip(*samples)
        images = develop(torch.from_numpy(pictures).to(self.device), drawn)
        cameras = Cameras(torch.stack(w2c), torch.stack(K), shape.size).to(self.device)
        depth = None if self.options.depth == "none" else torch.from_numpy(np.stack(depth)).to(self.device)
        valid, metric = None if depth is None else depth > 0, self.options.depth != "stored"
        return Batch(images, cameras, depth, valid, shape.context, names, metric)

    def _sample(
        self, seed: tuple[int, ...], shape: Shape, pictures: np.ndarray
    ) -> tuple[Tensor, Tensor, np.ndarray | None, Drawn, str]:
        """Fill `pictures`; w2c, K, depth, changes and name of a scene, the first drawn that is fit."""
        reason = ""
        for attempt in range(TRIES):
            rng = np.random.default_rng([*seed, attempt])
            name = self.names[int(rng.integers(len(self.names)))]
            try:
                scene = self._open(name)
                if len(scene) < shape.context + shape.targets:
                    reason = f"{name} has {len(scene)} views, {shape.context} + {shape.targets} are needed"
                    continue
                views = sample_views(scene.w2c, shape.context, shape.targets, self.options.sampling, rng)
                drawn = draw(self.options.augmentation, rng)
                sample = self._load(scene, views, shape.size, drawn, pictures)
            except (ValueError, OSError) as error:
                reason = " ".join(str(error).split())
                self._count(name, reason)
                continue
            self._count(name)
            if not self.options.allow_benchmark:
                refuse_benchmark([scene.name], self.scenes[name])  # it may lie under another name
            return *sample, drawn, f"{name}/{','.join(map(str, views))}"
        raise ValueError(f"{self.root}: {TRIES} scenes in a row could not be used, the last because: {reason}")

    def _open(self, name: str) -> Scene:
        path = self.scenes[name]
        points = self.options.depth == "sparse"
        scene: Scene = self._opened.get(name, lambda: open_any(path, self.options.image_folder, points))
        if scene.w2c is None:
            raise ValueError(f"{path}: the scene has no poses")
        for note in scene.notes:
            if "left out" in note:
                self._tell(name, f"{path}: {note}")
        return scene

    def _load(
        self, scene: Scene, views: list[int], size: tuple[int, int], drawn: Drawn, pictures: np.ndarray
    ) -> tuple[Tensor, Tensor, np.ndarray | None]:
        """Fill `pictures` [V, H, W, 3] with the `views`, not yet developed; their w2c, K and known depth [V, H, W]."""
        placed = {old: place(old, size, drawn) for old in {scene.sizes[i] for i in views}}
        placements = [placed[scene.sizes[i]] for i in views]

        def fill(some: range) -> None:
            for v in some:
                np.copyto(pictures[v], placements[v].photo(self._photo(scene, views[v], placements[v])))

        threads = self.options.decoders
        jobs = [self._pool.submit(fill, range(first, len(views), threads)) for first in range(threads)]
        wait(jobs)  # none may still write when another scene is tried in place of a bad one
        for job in jobs:
            job.result()
        w2c = scene.w2c[views]
        # The frame is free, and map coordinates would not survive float32: the first camera becomes the origin.
        origin = -w2c[0, :3, :3].T @ w2c[0, :3, 3]
        w2c = np.concatenate([w2c[..., :3], w2c @ np.append(origin, 1)[:, None]], -1)
        K = np.stack([placement.K(scene.K[i]) for i, placement in zip(views, placements)])
        depth = None
        if self.options.depth != "none":
            depth = np.stack([self._depth(scene, *each) for each in zip(views, placements, K)])
        cameras = Cameras(torch.from_numpy(w2c).float(), torch.from_numpy(K).float(), size)
        if drawn.mirrored:
            cameras, depth = mirror(cameras), None if depth is None else depth[..., ::-1]
        return cameras.w2c, cameras.K, depth

    def _photo(self, scene: Scene, i: int, placed: Placement) -> np.ndarray:
        """A photo at the size that `placed` cuts its window from."""

        def read() -> np.ndarray:
            packed = isinstance(scene.load, PackedPhotos)
            photo = scene.load(i, placed.new) if packed else scene.load(i)
            return resample(photo, placed)

        return self._photos.get((scene.root, i, placed.new), read, lambda photo: photo.nbytes)

    def _depth(self, scene: Scene, i: int, placed: Placement, K: np.ndarray) -> np.ndarray:
        """[H, W] float32 known depth of a view's window, 0 where unknown; in the unit of the poses if "sparse"."""
        if self.options.depth == "sparse":
            if scene.points is None or scene.points.visible is None:
                return np.zeros(placed.size, np.float32)
            return sparse_depth(scene.points.xyz[scene.points.visible[i]], scene.w2c[i], K, placed.size)
        if isinstance(scene.load, PackedPhotos):
            stored = scene.load.depth(i)
        else:
            file = depth_file(scene, i)
            stored = None if file is None else parse_depth(file.read_bytes(), str(file))
        return np.zeros(placed.size, np.float32) if stored is None else placed.depth(stored)

    def _count(self, name: str, fault: str | None = None) -> None:
        """Count a draw. The counts say when to stop; they never steer what is drawn."""
        with self._lock:
            self.draws += 1
            self.bad_draws += fault is not None
            draws, bad = self.draws, self.bad_draws
        if fault is not None:
            self._tell(name, f"skipped: {fault}")
        if draws >= ENOUGH and bad > self.options.max_bad * draws:
            raise ValueError(f"{self.root}: {bad} of {draws} draws met bad data, the last: {fault}")

    def _tell(self, name: str, fault: str) -> None:
        """Print what is wrong with a scene, once for each."""
        with self._lock:
            if name in self.faults:
                return
            self.faults[name] = fault
            count = len(self.faults)
        tqdm.write(f"{fault} ({count} scenes with faults so far)", file=sys.stderr)
