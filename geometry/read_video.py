"""A video to a Scene of its sharpest, evenly spaced frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geometry.images import resize_array
from geometry.scene import Scene

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
DEFAULT_FRAMES = 32
LONG_SIDE = 1920  # of the frames kept in memory; the network sees less
SHARPNESS_SIDE = 480  # sharpness is compared at this long side, where noise counts less
CANDIDATES = 8  # frames looked at for each frame that is kept


def read_video(path: str | Path, count: int = DEFAULT_FRAMES) -> Scene:
    """`count` frames spread over the video (all, if it has fewer), kept in memory at a long side of at most 1920.

    The video is cut into equal stretches and each gives the sharpest frame of its middle half, so no gap between
    frames is shorter than half a stretch. Rotation stored in the file is applied. Names tell the frame number. Raises
    OSError when the file cannot be decoded, ValueError when `count` < 1.
    """
    path = Path(path)
    if count < 1:
        raise ValueError(f"a video must give at least 1 frame, not {count}")
    sharpness = _sharpness(path, count)
    chosen = choose_frames(sharpness, count)
    wanted = set(chosen)
    kept = [_shrink(frame, LONG_SIDE) for number, frame in _frames(path, wanted.__contains__) if number in wanted]
    if len(kept) < len(chosen):
        raise OSError(f"{path}: only {len(kept)} of {len(chosen)} chosen frames could be decoded; re-encode the video")
    return Scene(
        name=path.stem,
        root=path,
        names=tuple(f"frame_{number:06d}" for number in chosen),
        sizes=tuple(frame.shape[:2] for frame in kept),
        load=lambda i: kept[i],
        notes=(f"{len(kept)} of {len(sharpness)} frames were taken: the sharpest of evenly spaced stretches",),
    )


def choose_frames(sharpness: np.ndarray, count: int) -> list[int]:
    """Frame numbers, ascending: the sharpest of the middle half of each of `count` equal stretches.

    `sharpness` [N]; negative for frames that were not looked at.
    """
    total = len(sharpness)
    if total <= count:
        return list(range(total))
    chosen = []
    for k in range(count):
        start, end = round((k + 0.25) * total / count), round((k + 0.75) * total / count)
        chosen.append(start + int(np.argmax(sharpness[start : max(end, start + 1)])))
    return chosen


def _sharpness(path: Path, count: int) -> np.ndarray:
    """Variance of the Laplacian of every few frames, -1 for the others; its length is the true number of frames."""
    import cv2

    announced = _capture(path).get(cv2.CAP_PROP_FRAME_COUNT)
    step = max(1, int(announced) // (count * CANDIDATES)) if announced > 0 else 1
    values = []
    for _, frame in _frames(path, lambda number: number % step == 0):
        if frame is None:
            values.append(-1.0)
        else:
            grey = cv2.cvtColor(_shrink(frame, SHARPNESS_SIDE), cv2.COLOR_RGB2GRAY)
            values.append(float(cv2.Laplacian(grey, cv2.CV_64F).var()))
    if not values:
        raise OSError(f"{path}: no frame could be decoded; the video is empty or damaged")
    return np.array(values)


def _frames(path: Path, wanted):
    """(number, RGB array or None) of each frame in turn; only those that `wanted(number)` asks for are converted."""
    import cv2

    capture = _capture(path)
    number = 0
    while capture.grab():
        frame = None
        if wanted(number):
            decoded, bgr = capture.retrieve()
            frame = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB) if decoded else None
        yield number, frame
        number += 1
    capture.release()


def _capture(path: Path):
    import cv2

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise OSError(f"{path}: not a video that can be decoded; convert it to H.264 .mp4")
    return capture


def _shrink(frame: np.ndarray, long_side: int) -> np.ndarray:
    scale = long_side / max(frame.shape[:2])
    return resize_array(frame, tuple(max(1, round(side * scale)) for side in frame.shape[:2])) if scale < 1 else frame
