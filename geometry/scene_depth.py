"""Known depth of a scene's views, whatever its unit: rendered from sparse points, or stored beside the photos.

A stored map is `<scene>/depth/<name of the photo>.npy`: float16, float32 or float64 [h, w] z-depth of the picture that
`Scene.load` gives, at any size of the same aspect; 0, negative or not finite where unknown. A teacher's maps may be in
a unit of their own: a loss that is free of scale and shift does not mind.
"""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

import numpy as np

from geometry.scene import Scene

FOLDER = "depth"


def depth_file(scene: Scene, i: int) -> Path | None:
    """The stored depth map of view `i` of a scene on disk, if there is one."""
    file = scene.root / FOLDER / PurePosixPath(scene.names[i]).with_suffix(".npy")
    return file if file.is_file() else None


def parse_depth(content: bytes, what: str) -> np.ndarray:
    """[h, w] float32 of a .npy file's content, 0 where unknown. ValueError that begins with `what`."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read_header(stream)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{what}: not a .npy file ({error})") from error
    rest = memoryview(content)[stream.tell() :]
    plain = len(shape) == 2 and min(shape) > 0 and dtype.kind == "f" and not by_column
    if not plain or shape[0] * shape[1] * dtype.itemsize != len(rest):
        raise ValueError(f"{what}: must be a whole [h, w] map of floats by rows, got {shape} {dtype}")
    depth = np.frombuffer(rest, dtype).reshape(shape).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def sparse_depth(points: np.ndarray, w2c: np.ndarray, K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] float32 z-depth of world `points` [P, 3] in one camera (`w2c` [4, 4], `K` [3, 3]); 0 = unknown.

    A point fills the pixel that it falls into, the nearest point wins.
    """
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    local = local[local[:, 2] > 0]
    local = local[np.argsort(-local[:, 2], kind="stable")]  # of equal indices numpy keeps the last
    z = local[:, 2]
    # Truncation would draw pixels -0.9 to 0 into the picture.
    pixels = np.floor((local @ K.T)[:, :2] / z[:, None])
    inside = ((pixels >= 0) & (pixels < (size[1], size[0]))).all(1)
    columns, rows = pixels[inside].astype(np.int64).T
    depth = np.zeros(size, np.float32)
    depth[rows, columns] = z[inside]
    return depth
