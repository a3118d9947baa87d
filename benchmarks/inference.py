"""Time and memory of every published network by number of views: `python benchmarks/inference.py > table.md`.

Weights and images are random, so the figures are of the computation alone: images in, depth, cameras and (giant,
nested) Gaussians out, batch 1. "exact" is float32 without TF32, "bfloat16" the default on CUDA, "stored" the same with
the weights held in bfloat16. Time is the median of --repeats after a warm-up, between waits for the device; memory is
the peak, weights included. A network that does not fit is a row that says so.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from geometry.cameras import Cameras
from geometry.precision import precision, store_bfloat16
from geometry.presets import PRESETS, MonocularConfig
from splat.model import KINDS

MODES = {"exact": "float32", "bfloat16": "bfloat16", "stored": "bfloat16"}


def measure(model, views: int, size: tuple[int, int], mode: str, posed: bool, repeats: int) -> tuple[float, float]:
    """Milliseconds of a forward, and GiB at its peak."""
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    images = torch.rand(1, views, 3, *size, device=device)
    cameras = None
    if posed:
        w2c = torch.eye(4, device=device).repeat(1, views, 1, 1)
        w2c[0, :, 0, 3] = torch.linspace(0, 1, views)
        K = torch.tensor([[400.0, 0, size[1] / 2], [0, 400.0, size[0] / 2], [0, 0, 1]], device=device)
        cameras = Cameras(w2c, K.expand(1, views, 3, 3), size)
    known = {} if isinstance(model.config, MonocularConfig) else {"cameras": cameras, "reference_view": "first"}
    has_gaussians = getattr(getattr(model.config, "anyview", model.config), "gs", None) is not None
    run = model if has_gaussians or isinstance(model.config, MonocularConfig) else model.geometry
    times = []
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + repeats):
        start = time.perf_counter()
        with torch.no_grad(), precision(MODES[mode], device):
            run(images, **known)
        if cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:]), torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--size", nargs=2, type=int, default=(336, 504), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--exact-views", type=int, default=16, help="most views in the exact mode, which is slow")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--posed", action="store_true", help="give cameras, as for nano they should be")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    size = tuple(options.size)
    print(f"{name}, torch {torch.__version__}, {size[0]}x{size[1]}: milliseconds / peak GiB\n")
    print("| network | mode | " + " | ".join(f"{v} view{'s' * (v > 1)}" for v in options.views) + " |")
    print("|---|---|" + "---|" * len(options.views))
    for network in options.networks:
        for mode in options.modes:
            torch.manual_seed(0)
            with torch.device(device):
                model = KINDS[type(PRESETS[network])](PRESETS[network]).eval().requires_grad_(False)
            if mode == "stored":
                store_bfloat16(model)
            cells = []
            for views in options.views:
                if mode == "exact" and views > options.exact_views:
                    cells.append("")
                    continue
                try:
                    ms, peak = measure(model, views, size, mode, options.posed, options.repeats)
                    cells.append(f"{ms:.1f} / {peak:.1f}")
                except torch.OutOfMemoryError:
                    cells.append("out of memory")
            print(f"| {network} | {mode} | " + " | ".join(cells) + " |", flush=True)
            del model


if __name__ == "__main__":
    main()
