"""Pictures or a video of Gaussians in a .ply, .splat or .spz file.

OUT ending in .mp4 becomes a video on a path past the cameras; else a folder with one PNG for each camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

CameraPath = Literal[
    "orbit",
    "original",
    "smooth",
    "interpolate",
    "interpolate_smooth",
    "extend",
    "wander",
    "dolly_zoom",
    "wobble_inter",
]
PUBLISHED_FPS = 24


@dataclass(frozen=True)
class Options:
    scene: Annotated[Positional[Path], arg(metavar="SCENE")]
    """file of Gaussians: .ply, .splat or .spz"""
    out: Annotated[Path, arg(aliases=["-o"])]
    """new folder for pictures, or a name ending in .mp4"""
    cameras: Path | None = None
    """cameras.json to look through; default: the one beside the scene"""
    size: int | None = None
    """long side of the pictures in pixels; default: as the cameras say"""
    path: CameraPath = "orbit"
    """way of a video: orbit is smooth and closed, near the cameras; original, smooth, interpolate, interpolate_smooth,
    extend, wander, dolly_zoom and wobble_inter are the published ones"""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """replace earlier pictures or video"""


def run(options: Options) -> int:
    """Render; prints where the result is."""
    video = options.out.suffix.lower() == ".mp4"
    if video and options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists; choose another name or pass --overwrite")
    if options.size is not None and options.size < 2:
        raise ValueError(f"--size must be 2 pixels or more, got {options.size}")
    from PIL import Image

    from geometry.cameras import resize
    from geometry.images import fit_size, to_uint8
    from splat.atomic import whole_folder
    from splat.cameras_json import read_cameras
    from splat.files import read_gaussians
    from splat.outputs import FPS, file_names, frames, orbit_frames, render_views
    from splat.pipeline import pick_device
    from splat.trajectories import trajectory
    from splat.video import write_mp4

    device = pick_device(options.device)
    gaussians = read_gaussians(options.scene).to(device)
    cameras, names = read_cameras(options.cameras or options.scene.with_name("cameras.json"))
    if options.size is not None:
        cameras = resize(cameras, fit_size([cameras.size], options.size))
    cameras = cameras.to(device)
    if video and options.path != "orbit":
        write_mp4(options.out, frames(gaussians, trajectory(cameras, options.path)), PUBLISHED_FPS)
    elif video:
        _, depth = render_views(gaussians, cameras)
        if not bool((depth > 0).any()):
            raise ValueError(f"the cameras see nothing of {options.scene}; do they belong to it?")
        write_mp4(options.out, orbit_frames(gaussians, cameras, float(depth[depth > 0].median())), FPS)
    else:
        files = [f"{name}.png" for name in file_names(names)]
        with whole_folder(options.out, files if options.overwrite else ()) as folder:
            for i, file in enumerate(files):
                color, _ = render_views(gaussians, cameras[i : i + 1])
                Image.fromarray(to_uint8(color[0])).save(folder / file)
    print(options.out)
    return 0
