"""A camera path of key frames: smooth in between, and as JSON, which is a cameras.json with a time for each row."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geometry.cameras import Cameras, invert_rigid, resize
from geometry.rotations import matrices_from_quats, quats_from_matrices
from viewer.browser_camera import cameras_from_text, cameras_text

MOST_KEYS = 200
MOST_FRAMES = 6000
# Cameras go to the page at this rate at most.
_PLAYED_FPS = 30


@dataclass(frozen=True)
class CameraPath:
    """Key cameras [K], K >= 0, each `seconds` after the one before; a `loop` returns from the last to the first."""

    keys: Cameras | None = None
    seconds: float = 2.0
    fps: int = 30
    loop: bool = False

    @property
    def count(self) -> int:
        return 0 if self.keys is None else len(self.keys.w2c)

    @property
    def frames(self) -> int:
        """Frames of the whole video; 0 while there are fewer than two keys."""
        steps = self.count if self.loop else self.count - 1
        return 0 if self.count < 2 else max(2, round(steps * self.seconds * self.fps))


def add_key(path: CameraPath, camera: Cameras) -> CameraPath:
    """With camera [1] behind the other keys, at their picture size. ValueError when there are too many."""
    if path.count >= MOST_KEYS:
        raise ValueError(f"a path has at most {MOST_KEYS} key frames")
    if path.keys is None:
        return replace(path, keys=camera)
    # One size for the whole video: a key from another window keeps its vertical field of view.
    zoom = path.keys.size[0] / camera.size[0]
    camera = resize(camera, (path.keys.size[0], round(camera.size[1] * zoom)))
    shift = (path.keys.size[1] - camera.size[1]) / 2
    K = camera.K.clone()
    K[:, 0, 2] += shift
    keys = Cameras(torch.cat([path.keys.w2c, camera.w2c]), torch.cat([path.keys.K, K]), path.keys.size)
    return replace(path, keys=keys)


def drop_last_key(path: CameraPath) -> CameraPath:
    return replace(path, keys=path.keys[:-1] if path.count > 1 else None)


def frames(path: CameraPath) -> Cameras:
    """Cameras [frames] along the path: cubic through the keys, and through their rotations' quaternions.

    Raises ValueError when there are fewer than two keys, or more frames than a video should have.
    """
    if path.count < 2:
        raise ValueError("a path needs two key frames or more: move the camera and add another")
    if path.frames > MOST_FRAMES:
        raise ValueError(f"{path.frames} frames are too many, at most {MOST_FRAMES}; lower the seconds or the rate")
    c2w = invert_rigid(path.keys.w2c.double())
    quats = _aligned(quats_from_matrices(c2w[:, :3, :3]), path.loop)
    steps = path.count if path.loop else path.count - 1
    # A loop's last frame is the one before its first.
    at = torch.arange(path.frames, dtype=torch.float64) * steps / (path.frames if path.loop else path.frames - 1)
    turned = matrices_from_quats(_spline(quats, at, path.loop, flips=True))
    moved = torch.eye(4, dtype=torch.float64).repeat(path.frames, 1, 1)
    moved[:, :3, :3], moved[:, :3, 3] = turned, _spline(c2w[:, :3, 3], at, path.loop)
    K = path.keys.K.double().clone()
    # Zooms look even when the focal length changes by a factor a second.
    K[:, [0, 1], [0, 1]] = K[:, [0, 1], [0, 1]].log()
    K = _spline(K.flatten(1), at, path.loop).reshape(-1, 3, 3)
    K[:, [0, 1], [0, 1]] = K[:, [0, 1], [0, 1]].exp()
    return Cameras(invert_rigid(moved).float(), K.float(), path.keys.size)


def in_time(
    count: int, fps: int, now: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> Iterator[int]:
    """The frames 0 .. count - 1 to show as time passes; who shows them slowly skips some, never the first or last."""
    began, i = now(), 0
    yield i
    while i < count - 1:
        sleep(1 / _PLAYED_FPS)
        i = min(int((now() - began) * fps), count - 1)
        yield i


def path_text(path: CameraPath) -> str:
    """The path as JSON. Raises ValueError when it is empty."""
    if path.keys is None:
        raise ValueError("the path has no key frames yet")
    rows = json.loads(cameras_text(path.keys, [f"key {i + 1}" for i in range(path.count)]))
    for i, row in enumerate(rows):
        row |= {"time": i * path.seconds, "fps": path.fps, "loop": path.loop}
    return json.dumps(rows, indent=1) + "\n"


def path_from_text(text: str) -> CameraPath:
    """Read such JSON; a plain cameras.json gives its cameras as keys. Raises ValueError in one line."""
    keys = cameras_from_text(text)
    if len(keys.w2c) > MOST_KEYS:
        raise ValueError(f"{len(keys.w2c)} key frames; a path has at most {MOST_KEYS}")
    rows = json.loads(text)
    first, second = (rows[0], rows[min(1, len(rows) - 1)]) if isinstance(rows, list) else (rows, rows)
    try:
        seconds = float(second.get("time", 0)) - float(first.get("time", 0))
        fps, loop = int(first.get("fps", 30)), bool(first.get("loop", False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the path's JSON holds a time or fps that is no number ({error})") from error
    if not math.isfinite(seconds) or not 1 <= fps <= 120:
        raise ValueError(f"the path's JSON has {seconds:g} s a key at {fps} frames a second; neither will do")
    return CameraPath(keys, min(max(seconds, 0.1), 60.0) if seconds > 0 else 2.0, fps, loop)


def _aligned(quats: Tensor, loop: bool) -> Tensor:
    """Quaternions [K, 4] with signs that make each step the short way round; in a loop, one more that closes it."""
    quats = [*quats, quats[0]] if loop else [*quats]
    for i in range(1, len(quats)):
        if float(quats[i] @ quats[i - 1]) < 0:
            quats[i] = -quats[i]
    return torch.stack(quats)


def _spline(values: Tensor, at: Tensor, loop: bool, flips: bool = False) -> Tensor:
    """Catmull-Rom values [F, D] through `values` [K, D] at times `at` [F] in steps from key to key.

    `flips` says that a loop's values come with a last one that equals the first up to sign.
    """
    if loop and not flips:
        values = torch.cat([values, values[:1]])
    before, after = values[:1] * 2 - values[1:2], values[-1:] * 2 - values[-2:-1]
    if loop:
        sign = 1.0 if not flips or float(values[0] @ values[-1]) > 0 else -1.0
        before, after = sign * values[-2:-1], sign * values[1:2]
    padded = torch.cat([before, values, after])
    i = at.floor().long().clamp(0, len(values) - 2)
    t = (at - i)[:, None]
    a, b, c, d = (padded[i + k] for k in range(4))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
