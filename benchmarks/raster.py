"""Time the renderer on pixel-aligned Gaussians: python benchmarks/raster.py [--device cuda] [--threads 1]

Prints a Markdown table of milliseconds, best and median. Scene: views on an arc see a wavy wall at depth 2 to 6; each
pixel becomes one Gaussian with a median standard deviation of 0.93 px on the screen (blur included), SH degree 2,
opacity uniform in 0.05..1; a new view on the same arc renders them.
"""

import argparse
import datetime
import os
import statistics
import time

from geometry.compiled import let_threads_sleep
from machine import cpu_name

CASES = {  # name: (source views, source size, picture size)
    "65k @ 256x256": (1, (256, 256), (256, 256)),
    "508k @ 504x336": (3, (336, 504), (336, 504)),
    "508k @ 252x168": (3, (336, 504), (168, 252)),
    "2.07M @ 960x540": (4, (540, 960), (540, 960)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    if options.threads:  # read by numba and OpenMP when they start
        os.environ.update(NUMBA_NUM_THREADS=str(options.threads), OMP_NUM_THREADS=str(options.threads))
    let_threads_sleep()

    threads = options.threads or os.cpu_count()
    where = f"{cpu_name()}, {threads} thread(s)" if options.device == "cpu" else gpu_name()
    print(f"Rendering, {datetime.date.today()}, {where}; milliseconds, best / median of {options.repeats}\n")
    print("| Gaussians @ picture | forward | forward + backward |\n|---|---|---|")
    for name in options.cases:
        gaussians, camera = scene(*CASES[name], options.device)
        print(f"| {name} | {forward(gaussians, camera, options)} | {both(gaussians, camera, options)} |", flush=True)


def scene(views, source_size, size, device):
    """Gaussians [N] and one camera [1] beside the `views` that made them."""
    import torch

    from geometry.cameras import Cameras, resize, unproject
    from splat.gaussians import Gaussians

    torch.manual_seed(0)
    height, width = source_size
    K = torch.tensor([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    angles = torch.linspace(-0.2, 0.2, views + 2)[1:]  # the last one is the new view
    w2c = torch.eye(4).repeat(len(angles), 1, 1)
    w2c[:, 0, 0] = w2c[:, 2, 2] = angles.cos()
    w2c[:, 0, 2], w2c[:, 2, 0] = -angles.sin(), angles.sin()
    w2c[:, 0, 3] = 4 * angles.sin()
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 9, width), indexing="ij")
    depth = 4 + 1.2 * x.sin() * y.cos() + 0.7 * (2.3 * x + y).cos()
    means = unproject(depth.expand(views, -1, -1), Cameras(w2c[:-1], K.expand(views, 3, 3), source_size)).reshape(-1, 3)
    n = len(means)
    pixel = (depth / K[0, 0]).repeat(views, 1, 1).reshape(-1, 1)
    gaussians = Gaussians(
        means,
        pixel * torch.exp(0.3 * torch.randn(n, 3)) * 0.7,
        torch.nn.functional.normalize(torch.randn(n, 4), dim=-1),
        torch.rand(n) * 0.95 + 0.05,
        torch.randn(n, 9, 3) * torch.tensor([0.8] + [0.1] * 8)[:, None],
    )
    return gaussians.to(device), resize(Cameras(w2c[-1:], K[None], source_size), size).to(device)


def forward(gaussians, camera, options):
    import torch

    from splat.render import render

    with torch.no_grad():
        return timed(lambda: render(gaussians, camera), options)


def both(gaussians, camera, options):
    import torch

    from splat.gaussians import Gaussians
    from splat.render import render

    leaves = [getattr(gaussians, name).requires_grad_() for name in ("means", "scales", "quats", "opacities", "sh")]
    weight = torch.randn(1, *camera.size, 3, device=options.device)

    def step():
        picture = render(Gaussians(*leaves), camera)
        torch.autograd.grad((picture.color * weight).sum() + picture.depth.mean() + picture.alpha.mean(), leaves)

    return timed(step, options)


def timed(call, options):
    import torch

    def once():
        start = time.perf_counter()
        call()
        if options.device != "cpu":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    for _ in range(2):
        once()
    times = [once() for _ in range(options.repeats)]
    return f"{min(times):.1f} / {statistics.median(times):.1f}"


def gpu_name():
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    main()
