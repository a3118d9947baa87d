"""What each format of Gaussians costs: size, time, and the picture: python benchmarks/formats.py [SCENE.ply]

Prints a Markdown table: bytes a Gaussian, seconds to write and to read (best of 3), PSNR in dB between the picture of
the scene and that of what was read back, worst and mean over the cameras. Without SCENE the demo scene is made and
reconstructed on the CPU by the shipped network; with it, the cameras.json beside it is looked through.
"""

import argparse
import datetime
import os
import tempfile
import time
from pathlib import Path

SUFFIXES = (".ply", ".spz", ".splat")
REPEATS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    os.environ.update(NUMBA_NUM_THREADS=str(options.threads), OMP_NUM_THREADS=str(options.threads))

    from raster import cpu_name

    from splat.cameras_json import read_cameras
    from splat.files import read_gaussians

    if options.scene:
        gaussians = read_gaussians(options.scene)
        cameras, _ = read_cameras(options.scene.with_name("cameras.json"))
        name = options.scene.name
    else:
        gaussians, cameras = demo()
        name = "the demo scene by the shipped network"
    what = f"{gaussians.count} Gaussians of SH degree {gaussians.sh_degree}, {len(cameras.w2c)} cameras"
    print(f"Formats, {datetime.date.today()}, {cpu_name()}, {options.threads} thread(s)\n\n{name}: {what}\n")
    print("| format | bytes a Gaussian | write s | read s | PSNR dB worst | PSNR dB mean |\n|---|---|---|---|---|---|")
    for suffix in SUFFIXES:
        print(row(suffix, gaussians, cameras), flush=True)


def demo():
    """Gaussians and cameras of the scene of `raysplat demo`, all views given to the network."""
    from geometry.scene import open_scene
    from geometry.synthetic import write_sample
    from splat.pipeline import reconstruct

    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder))
        result = reconstruct(open_scene(folder), device="cpu")
    return result.gaussians, result.cameras


def row(suffix, gaussians, cameras):
    from splat.files import read_gaussians, write_gaussians
    from splat.metrics import psnr
    from splat.outputs import render_views

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scene{suffix}"
        write = best(lambda: write_gaussians(gaussians, path))
        read = best(lambda: read_gaussians(path))
        size, back = path.stat().st_size, read_gaussians(path)
    pictures = zip(render_views(gaussians, cameras)[0], render_views(back, cameras)[0], strict=True)
    scores = [psnr(a, b) for a, b in pictures]
    mean = sum(scores) / len(scores)
    return f"| {suffix} | {size / gaussians.count:.1f} | {write:.2f} | {read:.2f} | {min(scores):.1f} | {mean:.1f} |"


def best(call):
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
