"""How long the viewer takes to start, and how many frames a second the server renders: `python benchmarks/view.py`.

"start" is from the command to the first page served, "splats" what a browser then waits for until the Gaussians it
draws (500,000 at most) are ready to be sent. Frames are those of a tab whose camera moves: the scene is rendered, coded
as JPEG, and nothing is sent. `benchmarks/view.md` is its output.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import torch

from geometry.cameras import resize
from geometry.images import fit_size
from machine import cpu_name
from splat.camera_path import orbit
from splat.gaussians import Gaussians
from splat.ply import write_ply
from viewer.app import render_device
from viewer.exhibit import Exhibit
from viewer.look import Look, browser_splats, picture, shown, thin
from viewer.opening import open_thing

SIDES = (320, 640, 1280)  # long sides of the frames


def made_up(count: int) -> Gaussians:
    """Splats of a room's walls, about as many to a pixel as a reconstruction has."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(count, generator=generator) * 2 - 1
    height = torch.rand(count, generator=generator) * 3 - 1.5
    means = torch.stack([3 * torch.sin(angle), height, 3 * torch.cos(angle)], -1)
    scales = (0.5 + torch.rand(count, 3, generator=generator)) * 4 / count**0.5
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    sh = 0.5 * torch.randn(count, 4, 3, generator=generator)
    return Gaussians(means, scales, quats, 0.1 + 0.8 * torch.rand(count, generator=generator), sh)


def start_seconds(path: Path) -> float:
    """From the command to the first page served."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "viewer", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        line = server.stderr.readline()
        url = next((word for word in line.split() if word.startswith("http")), None)
        if url is None:
            raise SystemExit(f"the server did not start: {line}{server.stderr.read()}")
        urllib.request.urlopen(url).read()
        took = time.perf_counter() - began
        server.terminate()
    return took


def frames_a_second(exhibit: Exhibit, long_side: int, frames: int = 12) -> float:
    camera = resize(exhibit.cameras[:1], fit_size([exhibit.cameras.size], long_side))
    path, gaussians = orbit(camera, exhibit.distance, frames), shown(exhibit, Look())
    picture(exhibit, gaussians, camera, Look())  # compiles
    began = time.perf_counter()
    for i in range(frames):
        frame = picture(exhibit, gaussians, path[i : i + 1], Look())
        cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 75])
    return frames / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "things", nargs="*", type=Path, help="files or reconstructions; default: 200,000 made-up splats"
    )
    parser.add_argument("--device", default="auto", help="where the server renders: auto, cpu, cuda, ...")
    options = parser.parse_args()
    device = render_device(options.device)
    where = torch.cuda.get_device_name() if device != "cpu" else f"{cpu_name()}, {os.cpu_count()} CPU cores"
    print(f"The viewer, {datetime.date.today()}, {where}; seconds, and frames a second\n")
    print("| Gaussians | start | splats | " + " | ".join(f"{s} px" for s in SIDES) + " |")
    print("|" + "---|" * (3 + len(SIDES)))
    with TemporaryDirectory() as folder:
        things = options.things or [Path(folder) / "made_up.ply"]
        if not options.things:
            write_ply(things[0], made_up(200_000))
        for path in things:
            exhibit = open_thing(path).to(device)
            start = start_seconds(path)
            began = time.perf_counter()
            browser_splats(thin(exhibit.gaussians, 500_000), exhibit.cameras.centers[0], exhibit.browser_scale)
            splats = time.perf_counter() - began
            rates = " | ".join(f"{frames_a_second(exhibit, side):.1f}" for side in SIDES)
            print(f"| {exhibit.gaussians.count:,} | {start:.2f} | {splats:.2f} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
