"""The plane sweep on the CPU: python benchmarks/sweep.py

Prints a Markdown table: what the sweep takes in plain PyTorch and compiled, in turn, median of 15, for the sweeps that
`nano` makes of four views of 252x182: every view against its three neighbours.
"""

import datetime
import platform
import statistics
import time

import torch

from geometry.cameras import Cameras
from geometry.compiled import kernels
from geometry.cue import neighbors
from geometry.sweep import homographies, reference_sweep

VIEWS, CHANNELS, GROUPS, ROUNDS = 4, 32, 4, 15
SWEEPS = (("first", (26, 36), 76, 0.084), ("candidates", (52, 72), 7, 0.2), ("second", (52, 72), 16, 0.016))


def milliseconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return 1e3 * (time.perf_counter() - start)


def walk(size: tuple[int, int]) -> Cameras:
    """Cameras [1, V] side by side, a unit of length apart."""
    w2c = torch.eye(4).repeat(1, VIEWS, 1, 1)
    w2c[0, :, 0, 3] = -torch.arange(VIEWS)
    focal, (height, width) = 0.9 * size[1], size
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).expand(1, VIEWS, 3, 3)
    return Cameras(w2c, K, size)


@torch.inference_mode()
def main():
    compiled_sweep = kernels("sweep").compiled_sweep
    print(
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"torch {torch.__version__}\n\n| sweep | planes | cells | PyTorch, ms | compiled, ms | ratio |")
    print("|---|---|---|---|---|---|")
    for name, size, planes, step in SWEEPS:
        torch.manual_seed(0)
        cameras = walk(size)
        source = neighbors(cameras, 3)[0][0]
        A, b = homographies(cameras, source, size)
        log_depth = torch.rand(VIEWS, 1, *size) + 0.3 + step * torch.arange(planes)[:, None, None]
        sweep = (torch.randn(VIEWS, CHANNELS, *size), source, A, b, log_depth, GROUPS)
        torch.testing.assert_close(compiled_sweep(*sweep), reference_sweep(*sweep), atol=1e-3, rtol=1e-3)
        taken = [(milliseconds(reference_sweep, *sweep), milliseconds(compiled_sweep, *sweep)) for _ in range(ROUNDS)]
        plain, compiled = (statistics.median(times) for times in zip(*taken))
        cells = f"{size[1]}x{size[0]}"
        print(f"| {name} | {planes} | {cells} | {plain:.1f} | {compiled:.1f} | {plain / compiled:.1f} |", flush=True)


if __name__ == "__main__":
    main()
