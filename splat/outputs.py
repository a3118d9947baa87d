"""A reconstruction as files in one folder, which appears whole or not at all."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from geometry.cameras import Cameras
from geometry.images import to_uint8
from splat.atomic import whole_folder
from splat.camera_path import orbit
from splat.cameras_json import write_cameras
from splat.gaussians import Gaussians
from splat.metrics import psnr as psnr
from splat.ply import write_ply
from splat.ply_tables import read_header
from splat.reconstruct import Reconstruction
from splat.render import render
from splat.video import color_depth, contact_sheet, depth_range, write_depths, write_mp4

FPS = 30
FILES = ("scene.ply", "cameras.json", "images", "depth", "confidence", "contact.png", "orbit.mp4")
# A video of one turn: long enough to look, short enough to wait for.
_FRAMES_PER_VIEW, _LEAST_FRAMES, _MOST_FRAMES = 24, 90, 240
_BACKDROP = "last Gaussians, of a sphere behind the scene: "  # a comment of scene.ply; how many follows
# Below this opacity a pixel of a rendering shows background rather than scene.
_SEEN = 0.5


def save(reconstruction: Reconstruction, folder: str | Path, overwrite: bool = False) -> int:
    """Write the results to `folder` and return how many Gaussians were left out of the .ply as not finite.

    scene.ply; cameras.json; images/<view>.png, what the network saw; depth/<view>.png, 16 bit, with the scale in
    depth/depth.json; confidence/ likewise, where there is one; contact.png, each view beside what the Gaussians show
    from it; orbit.mp4, a path past all views. `overwrite` replaces earlier results. Raises FileExistsError when the
    folder holds anything else, OSError, ImportError as the writers do; nothing is left then.
    """
    r = reconstruction
    names = file_names(r.names)
    with whole_folder(folder, FILES if overwrite else ()) as new:
        comments = [f"raysplat, weights {r.weights}", "frame OpenCV (x right, y down, z forward) of cameras.json"]
        comments += [f"{_BACKDROP}{r.backdrop}"] if r.backdrop else []
        dropped = write_ply(new / "scene.ply", r.gaussians, comments)
        write_cameras(new / "cameras.json", r.cameras, list(r.names))
        images = list(to_uint8(r.images))
        (new / "images").mkdir()
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image).save(new / "images" / f"{name}.png")
        (new / "depth").mkdir()
        write_depths(new / "depth", r.depth, names)
        if r.confidence is not None:
            (new / "confidence").mkdir()
            write_confidence(new / "confidence", r.confidence, names)
        near, far = depth_range(r.depth)
        seen = [_picture(r.gaussians, r.cameras[i : i + 1]) for i in range(len(names))]
        rows = {
            "input": images,
            "Gaussians": [color for color, _ in seen],
            "depth": [color_depth(depth, near, far) for depth in r.depth],
        }
        contact_sheet(rows, names).save(new / "contact.png")
        write_mp4(new / "orbit.mp4", orbit_frames(r.gaussians, r.cameras, float(r.depth[r.depth > 0].median())), FPS)
    return dropped


def read_backdrop(path: Path) -> int:
    """How many Gaussians of a file, the last ones, are a backdrop, as `save` wrote it; 0 where it does not say."""
    if path.suffix.lower() != ".ply":
        return 0
    counts = [c.removeprefix(_BACKDROP) for c in read_header(path).comments if c.startswith(_BACKDROP)]
    return int(counts[0]) if counts and counts[0].isdecimal() else 0


def write_confidence(folder: Path, confidence: Tensor, names: list[str]) -> None:
    """Confidence [V, H, W] as 16-bit PNGs `<name>.png` and a confidence.json: confidence = value * scale.

    One scale serves all views. Values are cut at 60 times the median: a few very sure pixels would coarsen the others.
    """
    confidence = confidence.detach().float().cpu().nan_to_num(0, 0, 0).clamp_min(0)
    scale = max(min(float(confidence.max()), 60 * float(confidence.median())), 1e-12) / 65535
    levels = (confidence / scale).round().clamp(max=65535).numpy().astype(np.uint16)
    for name, image in zip(names, levels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    about = {"scale": scale, "confidence": "value * scale, larger is surer; the networks leave its unit open"}
    (folder / "confidence.json").write_text(json.dumps(about, indent=1) + "\n")


def orbit_frames(gaussians: Gaussians, cameras: Cameras, focus: float) -> Iterator[np.ndarray]:
    """uint8 frames [H, W, 3] of a smooth closed path past `cameras` [V]; `focus` as in `camera_path.orbit`."""
    count = min(max(_FRAMES_PER_VIEW * len(cameras.w2c), _LEAST_FRAMES), _MOST_FRAMES)
    return frames(gaussians, orbit(cameras, focus, count))


def frames(gaussians: Gaussians, path: Cameras) -> Iterator[np.ndarray]:
    """uint8 frames [H, W, 3] through the cameras [F] of a path."""
    for i in tqdm(range(len(path.w2c)), "video", unit="frame", disable=not sys.stderr.isatty(), leave=False):
        yield _picture(gaussians, path[i : i + 1])[0]


def render_views(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Colour [V, 3, H, W] in [0, 1] and depth [V, H, W], 0 where nothing is seen, view by view to spare memory.

    Only what is nearer than a thousandth of the typical distance is cut away, so that any unit of length will do.
    """
    color, depth = [], []
    sample = gaussians.means[:: max(1, gaussians.count // 10_000)]
    distance = torch.linalg.vector_norm(sample - cameras.centers[:1], dim=-1)
    near = max(1e-3 * float(distance.nanmedian()), 1e-8) if gaussians.count else 0.01
    with torch.no_grad():
        for i in range(len(cameras.w2c)):
            picture = render(gaussians, cameras[i : i + 1], near=near)
            color.append(picture.color.clamp(0, 1).movedim(-1, -3))
            depth.append(torch.where(picture.alpha > _SEEN, picture.depth, 0))
    return torch.cat(color), torch.cat(depth)


def _picture(gaussians: Gaussians, camera: Cameras) -> tuple[np.ndarray, Tensor]:
    color, depth = render_views(gaussians, camera)
    return to_uint8(color[0]), depth[0]


def file_names(names: Sequence[str]) -> list[str]:
    """Names for files: without folder and suffix, with their number in front where that makes two alike."""
    stems = [Path(name).stem for name in names]
    alike = max(Counter(stems).values()) > 1
    return [f"{i:04d}_{stem}" if alike else stem for i, stem in enumerate(stems)]
