"""Tiny scenes in the layouts of the public data sets, written by the tests that need them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tests.synthetic_photos import arc

SIZE = (96, 128)  # of the camera, H x W
HASH = "ab" * 32
GL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_photos(folder: Path, count: int, size=SIZE, pattern="frame_{:05d}.png", start=1) -> list[Path]:
    """Photos that all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        files.append(folder / pattern.format(i + start))
        Image.fromarray(noise).save(files[-1])
    return files


def frames(names, w2c) -> list[dict]:
    return [
        {"file_path": name, "transform_matrix": (np.linalg.inv(matrix) @ GL).tolist()}
        for name, matrix in zip(names, w2c, strict=True)
    ]


def write_nerfstudio(folder: Path, count=4, size=SIZE) -> Path:
    files = write_photos(folder / "images", count, size, "f{}.png", 0)
    meta = {"w": size[1], "h": size[0], "fl_x": 100.0, "fl_y": 100.0, "cx": size[1] / 2, "cy": size[0] / 2}
    meta["frames"] = frames([f"images/{file.name}" for file in files], arc(count))
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def write_dl3dv(folder: Path, count=4, copies=("images_8",), benchmark=True, shrink=None, lens=0.0) -> Path:
    """The native form of one hash: cameras of SIZE, photos 1/2, 1/4, 1/8 of it (or 1/`shrink`); gaps in the numbers."""
    inner = folder / "nerfstudio" if benchmark else folder
    for copy in copies:
        by = shrink or int(copy.removeprefix("images_"))
        write_photos(inner / copy, count, (SIZE[0] // by, SIZE[1] // by))
    meta = {"w": SIZE[1], "h": SIZE[0], "fl_x": 100.0, "fl_y": 100.0, "cx": SIZE[1] / 2, "cy": SIZE[0] / 2}
    meta |= {"k1": lens, "k2": 0.0, "p1": 0.0, "p2": 0.0, "camera_model": "OPENCV"}
    meta["applied_transform"] = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    meta["frames"] = frames([f"images/frame_{i + 1:05d}.png" for i in range(count)], arc(count))
    (inner / "transforms.json").write_text(json.dumps(meta))
    return folder


def write_colmap(
    folder: Path, count=4, model="sparse/0", binary=False, sizes=(SIZE,), params=None, model_name="SIMPLE_PINHOLE",
    images="images", copy=1, names="{}.png",
) -> Path:  # fmt: skip
    """A model with one camera per image, of `sizes` in turn; photos 1/`copy` of that."""
    (folder / model).mkdir(parents=True)
    sizes = [sizes[i % len(sizes)] for i in range(count)]
    (folder / images).mkdir(parents=True)
    for i, size in enumerate(sizes):
        noise = np.random.default_rng(i).integers(0, 255, (size[0] // copy, size[1] // copy, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / images / names.format(i))
    told = [params or f"100 {size[1] / 2} {size[0] / 2}" for size in sizes]
    poses = [[*wxyz(matrix[:3, :3]), *matrix[:3, 3]] for matrix in arc(count)]
    out = folder / model
    if binary:
        cameras = [
            struct.pack("<IiQQ3d", i + 1, 0, size[1], size[0], *map(float, told[i].split()))
            for i, size in enumerate(sizes)
        ]
        pictures = [
            struct.pack("<I7dI", i + 1, *pose, i + 1)
            + names.format(i).encode()
            + b"\0"
            + struct.pack("<Q2dq", 1, 1, 2, 1)
            for i, pose in enumerate(poses)
        ]
        point = struct.pack("<Q3d3BdQ", 1, 0, 0, 0, 9, 9, 9, 0.5, count)
        point += b"".join(struct.pack("<II", i + 1, 0) for i in range(count))
        for name, records in (("cameras", cameras), ("images", pictures), ("points3D", [point])):
            (out / f"{name}.bin").write_bytes(struct.pack("<Q", len(records)) + b"".join(records))
        return folder
    (out / "cameras.txt").write_text(
        "".join(f"{i + 1} {model_name} {size[1]} {size[0]} {told[i]}\n" for i, size in enumerate(sizes))
    )
    rows = (
        f"{i + 1} {' '.join(map(repr, map(float, pose)))} {i + 1} {names.format(i)}" for i, pose in enumerate(poses)
    )
    (out / "images.txt").write_text("".join(f"{row}\n1.0 2.0 1\n" for row in rows))
    track = " ".join(f"{i + 1} 0" for i in range(count))
    (out / "points3D.txt").write_text(f"1 0 0 0 9 9 9 0.5 {track}\n")
    return folder


def write_log(folder: Path, count=4, beside=False, w2c=None) -> Path:
    """An official Tanks and Temples scene; the path of its trajectory."""
    write_photos(folder, count, pattern="{:06d}.png")
    lines = []
    for i, matrix in enumerate(arc(count) if w2c is None else w2c):
        lines += [f"{i} {i} 0", *(" ".join(f"{x:.12f}" for x in row) for row in np.linalg.inv(matrix))]
    path = (folder.parent if beside else folder) / f"{folder.name}_COLMAP_SfM.log"
    path.write_text("\n".join(lines) + "\n")
    return path


def wxyz(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion of a rotation whose angle is below 180 degrees."""
    w = np.sqrt(max(0.0, 1 + np.trace(rotation))) / 2
    skew = rotation - rotation.T
    return np.array([w, *np.array([skew[2, 1], skew[0, 2], skew[1, 0]]) / (4 * w)])
