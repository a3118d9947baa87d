"""1x1 convolutions of full-size maps on the CPU: python benchmarks/pointwise.py

Prints a Markdown table: what `nn.Conv2d` takes and what `geometry.pointwise.Pointwise` takes, in turn, median of 15,
for four views of 252x182 and the channels that `nano` has there.
"""

import datetime
import platform
import statistics
import time

import torch
from torch import nn

from geometry.pointwise import Pointwise

VIEWS, SIZE, ROUNDS = 4, (182, 252), 15
CHANNELS = ((6, 16), (16, 16), (24, 9), (24, 24), (32, 2), (32, 23))


def milliseconds(layer, x):
    start = time.perf_counter()
    layer(x)
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode()
def main():
    print(
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"torch {torch.__version__}, {VIEWS} maps of {SIZE[1]}x{SIZE[0]}\n")
    print("| channels | nn.Conv2d, ms | Pointwise, ms | ratio |\n|---|---|---|---|")
    for channels_in, channels_out in CHANNELS:
        x = torch.randn(VIEWS, channels_in, *SIZE)
        product = Pointwise(channels_in, channels_out)
        plain = nn.Conv2d(channels_in, channels_out, 1)
        plain.load_state_dict(product.state_dict())
        torch.testing.assert_close(plain(x), product(x), atol=1e-4, rtol=1e-4)
        taken = [(milliseconds(plain, x), milliseconds(product, x)) for _ in range(ROUNDS)]
        a, b = (statistics.median(times) for times in zip(*taken))
        print(f"| {channels_in} to {channels_out} | {a:.1f} | {b:.1f} | {a / b:.1f} |", flush=True)


if __name__ == "__main__":
    main()
