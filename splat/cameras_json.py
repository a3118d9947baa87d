"""cameras.json: cameras beside a .ply, with the keys of the original 3D Gaussian splatting and its SIBR viewer.

Per camera: id, img_name, width, height, position (centre), rotation (camera-to-world 3x3, OpenCV axes), fx, fy; and,
since those cannot hold the principal point, also w2c (4x4) and K (3x3, pixels).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from geometry.cameras import Cameras, invert_rigid, validate
from splat.atomic import whole_file


def write_cameras(path: str | Path, cameras: Cameras, names: list[str]) -> None:
    """Write Cameras [V] with the names of their images. Raises ValueError when the counts differ."""
    if tuple(cameras.shape) != (len(names),):
        raise ValueError(f"write_cameras takes cameras [V] and V names, got {tuple(cameras.shape)} and {len(names)}")
    cameras = cameras.to("cpu", torch.float64)
    rows = [
        {
            "id": i,
            "img_name": name,
            "width": cameras.size[1],
            "height": cameras.size[0],
            "position": c2w[:3, 3].tolist(),
            "rotation": c2w[:3, :3].tolist(),
            "fx": float(K[0, 0]),
            "fy": float(K[1, 1]),
            "w2c": w2c.tolist(),
            "K": K.tolist(),
        }
        for i, (name, w2c, c2w, K) in enumerate(zip(names, cameras.w2c, cameras.c2w, cameras.K, strict=True))
    ]
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")


def read_cameras(path: str | Path) -> tuple[Cameras, list[str]]:
    """Cameras [V] float32 and the names of their images; files of other programs, without w2c and K, are read too.

    Raises ValueError naming the file and the camera when a key is missing or wrong, or when image sizes differ.
    """
    try:
        rows = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of cameras as in cameras.json of 3D Gaussian splatting")
    w2c, K, names, sizes = [], [], [], []
    for i, row in enumerate(rows):
        try:
            width, height, name = int(row["width"]), int(row["height"]), str(row.get("img_name", i))
            if "w2c" in row and "K" in row:
                w2c.append(torch.tensor(row["w2c"], dtype=torch.float64).reshape(4, 4))
                K.append(torch.tensor(row["K"], dtype=torch.float64).reshape(3, 3))
            else:
                c2w = torch.eye(4, dtype=torch.float64)
                c2w[:3, :3] = torch.tensor(row["rotation"], dtype=torch.float64).reshape(3, 3)
                c2w[:3, 3] = torch.tensor(row["position"], dtype=torch.float64)
                w2c.append(invert_rigid(c2w))
                intrinsics = [[row["fx"], 0, width / 2], [0, row["fy"], height / 2], [0, 0, 1]]
                K.append(torch.tensor(intrinsics, dtype=torch.float64))
        except KeyError as error:
            raise ValueError(f"{path}: camera {i} lacks {error}") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: camera {i} holds a value of the wrong kind ({error})") from error
        names.append(name)
        sizes.append((height, width))
    if len(set(sizes)) > 1:
        raise ValueError(f"{path}: images of different sizes, {sorted(set(sizes))[:3]} (height, width); one is needed")
    cameras = Cameras(torch.stack(w2c), torch.stack(K), sizes[0])
    validate(cameras, names)
    return cameras.to(torch.float32), names
