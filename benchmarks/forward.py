"""Seconds from posed photos to Gaussians: `python benchmarks/forward.py --root SCENES >> forward.md`.

Prints a Markdown row for each size: of the first window of every scene, the same windows as `eval_nvs/windows.py`
scores, the middle and the ends of what a forward takes. A window's figure is the median of --repeats after a warm-up;
others who share the machine are not taken out, so run it at several hours.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from geometry.precision import default_precision
from geometry.scene import Scene, open_scene, views
from geometry.view_selection import windows
from machine import cpu_name
from splat.model import GaussianModel
from splat.predict import predict


def measure(scene: Scene, model: GaussianModel, count: int, size: int | tuple[int, int], repeats: int) -> float:
    """Median seconds of a forward of the first window of `count` inputs, without reading the photos."""
    ((inputs, _),) = windows(scene.w2c, count, 2, 1)
    images, cameras = views(scene, inputs, size, multiple=14)
    device = next(model.parameters()).device
    images, cameras = images.to(device), cameras.to(device)
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        predict(images, cameras, model, ("gaussians",))
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of scenes with poses")
    parser.add_argument("--weights", default="nano", help="name, folder or file, as for raysplat reconstruct")
    parser.add_argument("--context", type=int, default=4, help="inputs of a window")
    parser.add_argument("--sizes", nargs="+", default=["252", "252x252"], help="long side, or HEIGHTxWIDTH, cut out")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GaussianModel.from_pretrained(options.weights).to(device)
    scenes = [open_scene(folder) for folder in sorted(options.root.iterdir()) if folder.is_dir()]
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    print("| when | on | what | windows | median, s | fastest | slowest | above 1 s |\n" + "|---" * 8 + "|")
    for text in options.sizes:
        sides = [int(side) for side in text.split("x")]
        size = sides[0] if len(sides) == 1 else tuple(sides)
        bar = tqdm(scenes, desc=text, unit="scene")
        seconds = [measure(scene, model, options.context, size, options.repeats) for scene in bar]
        what = f"{options.weights}, {options.context} inputs, {text} px, {default_precision(device)}"
        ends = f"{min(seconds):.2f} | {max(seconds):.2f} | {sum(s > 1 for s in seconds)}"
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
        print(f"| {now} | {on} | {what} | {len(seconds)} | {statistics.median(seconds):.2f} | {ends} |", flush=True)


if __name__ == "__main__":
    main()
