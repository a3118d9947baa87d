"""A Scene to a folder that `open_scene`, nerfstudio and gsplat read: images/*.png, transforms.json, sparse_pc.ply."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from geometry.scene import Scene

OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_scene(scene: Scene, folder: str | Path) -> Path:
    """Write `scene` and return the path of its transforms.json.

    Photos go out as PNG, free of distortion, under their own names; poses as camera-to-world in OpenGL axes. What the
    scene does not have (poses, intrinsics, points) is left out; who saw which point is not stored. Each file is
    replaced whole, and transforms.json comes last, so a broken run leaves no scene that looks complete.
    """
    folder = Path(folder)
    stems = Counter(PurePosixPath(name).with_suffix("") for name in scene.names)
    frames = []
    for i, name in enumerate(scene.names):
        stem = PurePosixPath(name).with_suffix("")
        # a.jpg beside a.png: the whole name keeps them apart.
        file = PurePosixPath("images", f"{stem if stems[stem] == 1 else name}.png")
        buffer = io.BytesIO()
        Image.fromarray(scene.load(i)).save(buffer, format="PNG", compress_level=1)
        _replace(folder / file, buffer.getvalue())
        height, width = scene.sizes[i]
        frame = {"file_path": file.as_posix(), "w": width, "h": height}
        if scene.K is not None:
            K = scene.K[i].tolist()
            frame |= {"fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
        if scene.w2c is not None:
            frame["transform_matrix"] = (np.linalg.inv(scene.w2c[i]) @ OPENCV_TO_OPENGL).tolist()
        frames.append(frame)
    meta = {"camera_model": "PINHOLE", "frames": frames}
    if scene.points is not None:
        _replace(folder / "sparse_pc.ply", _point_cloud(scene.points.xyz))
        meta["ply_file_path"] = "sparse_pc.ply"
    path = folder / "transforms.json"
    _replace(path, json.dumps(meta, indent=1).encode())
    return path


def _point_cloud(xyz: np.ndarray) -> bytes:
    """Binary PLY of points [P, 3], float32."""
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(xyz)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    return header.encode() + xyz.astype("<f4").tobytes()


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
