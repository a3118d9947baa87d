"""Cameras of this project and of the page: the page has a fov, a principal point in the middle and its own unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from geometry.cameras import Cameras, invert_rigid
from geometry.rotations import matrices_from_quats, quats_from_matrices
from splat.camera_path import slerp
from splat.cameras_json import read_cameras, write_cameras


@dataclass(frozen=True)
class Pose:
    """A camera of the page: `wxyz` (camera to world, OpenCV axes), `position`, and vertical `fov` in radians."""

    wxyz: tuple[float, ...]
    position: tuple[float, ...]
    fov: float


def to_cameras(pose: Pose, size: tuple[int, int], scale: float) -> Cameras:
    """The page's camera as Cameras [1] in the world, for a picture of `size` (H, W); `scale` is page over world."""
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3, :3] = matrices_from_quats(torch.tensor(pose.wxyz, dtype=torch.float64))
    c2w[:3, 3] = torch.tensor(pose.position, dtype=torch.float64) / scale
    height, width = size
    focal = height / 2 / math.tan(min(max(pose.fov, 0.01), 3.1) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(invert_rigid(c2w)[None].float(), K[None].float(), size)


def to_pose(camera: Cameras, canvas: tuple[int, int], scale: float) -> Pose:
    """The page's camera that shows all of what camera [1] sees on a canvas (H, W)."""
    c2w = invert_rigid(camera.w2c[0].double())
    height, width = camera.size
    # The zoom at which the picture just fits; what is beside it shows as well.
    zoom = min(canvas[0] / height, canvas[1] / width)
    focal = float(camera.K[0, 1, 1]) * zoom
    wxyz = quats_from_matrices(c2w[:3, :3]).tolist()
    return Pose(tuple(wxyz), tuple((scale * c2w[:3, 3]).tolist()), 2 * math.atan(canvas[0] / 2 / focal))


def between(a: Pose, b: Pose, t: float) -> Pose:
    """The pose on the way from `a` (t = 0) to `b` (t = 1)."""
    wxyz = slerp(torch.tensor(a.wxyz), torch.tensor(b.wxyz), torch.tensor(t))
    position = ((1 - t) * p + t * q for p, q in zip(a.position, b.position, strict=True))
    return Pose(tuple(wxyz.tolist()), tuple(position), (1 - t) * a.fov + t * b.fov)


def on_canvas(camera: Cameras, canvas: tuple[int, int]) -> tuple[Cameras, tuple[int, int, int, int]]:
    """Camera [1] widened to a canvas (H, W) that its picture fits into, and where that lies: top, left, height, width.

    The picture keeps its exact intrinsics, principal point included, up to the zoom.
    """
    zoom = min(canvas[0] / camera.size[0], canvas[1] / camera.size[1])
    height, width = (max(1, round(zoom * side)) for side in camera.size)
    top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    K = camera.K.clone()
    K[:, 0] *= width / camera.size[1]
    K[:, 1] *= height / camera.size[0]
    K[:, 0, 2] += left
    K[:, 1, 2] += top
    return Cameras(camera.w2c, K, canvas), (top, left, height, width)


def nearest_view(pose: Pose, cameras: Cameras, scale: float, distance: float) -> int | None:
    """The index of the camera [V] in which the page's camera stands and looks, None when it is in none of them.

    Allowed are 0.5 % of the typical `distance` and half a degree.
    """
    c2w = to_cameras(pose, (2, 2), scale).c2w[0]
    apart = torch.linalg.vector_norm(cameras.centers - c2w[:3, 3], dim=-1)
    cosine = ((cameras.c2w[:, :3, :3] * c2w[:3, :3]).sum((-1, -2)) - 1) / 2
    index = int(apart.argmin())
    near = float(apart[index]) < 5e-3 * distance and float(cosine[index]) > math.cos(math.radians(0.5))
    return index if near else None


def cameras_text(cameras: Cameras, names: list[str]) -> str:
    """Cameras [V] as the text of a cameras.json, which `raysplat render --cameras` takes too."""
    with TemporaryDirectory() as folder:
        write_cameras(Path(folder) / "cameras.json", cameras, names)
        return (Path(folder) / "cameras.json").read_text()


def cameras_from_text(text: str) -> Cameras:
    """Cameras [V] of such a text; a single camera need not stand in a list. ValueError in one line if it is none."""
    text = text.strip()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cameras.json"
        path.write_text(f"[{text}]" if text.startswith("{") else text)
        try:
            return read_cameras(path)[0]
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the cameras' JSON")) from error
