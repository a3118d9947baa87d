"""What a training step costs: `python benchmarks/train_step.py`, one GPU, random weights and images.

A row is one network trained one way: milliseconds a step (forward, rendering, backward, clipping, AdamW, EMA; no data,
no LPIPS, no teacher), peak memory, and model FLOPs utilisation against the data sheet's dense bfloat16 peak and against
what a matrix product of 8192 reaches on this device. Rows with torch.compile give their time in parts of the same
without it. What does not fit or fails is a row that says so. `--networks nano --views 2 --targets 1 --size 56 56
--steps 1` tries it out on a CPU, with `--variants bf16 "bf16, compile"` in two minutes.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from dataclasses import dataclass, replace

import torch
import tyro

from geometry.cameras import Cameras
from train.batch import Batch
from train.config import LossWeights, TrainConfig
from train.flops import FlopCount, peak_tflops
from train.objective import Forward, Objective
from train.optimizer import Ema, make_optimizer
from train.start import make_model, prepare_blocks

COMPILED = ", compile"  # ends the name of a variant, before which stands its eager twin
VARIANTS: dict[str, dict] = {
    "plain (float32)": {"bf16": False},
    "bf16": {},
    "bf16, heads too": {"heads": True},
    "bf16, checkpointing": {"checkpointing": True},
    "bf16, compile": {"compile": True},
    "bf16, heads too, compile": {"compile": True, "heads": True},
    "bf16, checkpointing, compile": {"checkpointing": True, "compile": True},
    "bf16, Gaussian head only": {"trained": "gaussians"},
    "bf16, Gaussian head only, compile": {"compile": True, "trained": "gaussians"},
}


@dataclass(frozen=True)
class Args:
    networks: tuple[str, ...] = ("base", "large", "giant")  # names in geometry/presets.py
    variants: tuple[str, ...] = tuple(VARIANTS)  # ways to train, see VARIANTS
    views: int = 12  # input views
    targets: int = 4  # target views
    size: tuple[int, int] = (266, 476)  # height and width, multiples of 14
    scenes: int = 1  # in a batch
    steps: int = 5  # timed, after 2 that are not
    peak: float | None = None  # TFLOP/s that MFU refers to; none = the data sheet's, where it is known


def main(args: Args) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    peak, measured = args.peak or peak_tflops(device), matmul_tflops(device)
    stated = f"{peak:.0f}" if peak else "not known"
    print(f"{name}, torch {torch.__version__}; peak {stated} TFLOP/s stated, {measured:.1f} measured (bf16 matmul)")
    print(f"{args.scenes} x {args.views} input and {args.targets} target views of {args.size[0]}x{args.size[1]}\n")
    print(
        "| network | trained | ms a step | of eager | first step, s | memory, GiB | TFLOP a step | MFU | of measured |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for network in args.networks:
        eager: dict[str, float] = {}  # ms a step by variant
        for variant in args.variants:
            # Each failure is a row: out of memory above all, but compilers and kernels fail in ways of their own.
            try:
                result = measure(args, device, network, VARIANTS[variant])
                before = eager.get(variant.removesuffix(COMPILED)) if variant.endswith(COMPILED) else None
                if before is None:
                    eager[variant] = result.ms
                cells = [
                    f"{result.ms:.0f}",
                    share(result.ms, before),
                    f"{result.first:.1f}",
                    "" if result.memory is None else f"{result.memory:.1f}",
                    f"{result.tflop:.2f}",
                    *(share(result.tflops, tflops) for tflops in (peak, measured)),
                ]
            except torch.OutOfMemoryError:
                cells = ["out of memory"] + [""] * 6
            except (RuntimeError, ValueError, ImportError) as error:
                what = str(error).strip() or type(error).__name__
                cells = [f"failed: {what.splitlines()[0][:100]}"] + [""] * 6
            print(f"| {network} | {variant} | " + " | ".join(cells) + " |", flush=True)
            torch._dynamo.reset()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def share(value: float, whole: float | None) -> str:
    return f"{100 * value / whole:.1f} %" if whole else ""


@dataclass(frozen=True)
class Result:
    ms: float  # a step, median
    first: float  # seconds of the first step, compilation included
    memory: float | None  # peak of a GPU, GiB
    tflop: float  # of a step

    @property
    def tflops(self) -> float:
        return self.tflop / (self.ms / 1e3)


def measure(args: Args, device: torch.device, preset: str, variant: dict) -> Result:
    """Train `preset` in the way of `variant` for a few steps."""
    options = dict(variant)
    heads = options.pop("heads", False)
    config = TrainConfig(preset=preset, loss=LossWeights(cue=0, mse=1, ssim=0), geometry_steps=0, **options)
    torch.manual_seed(0)
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with device:
        model = make_model(config)
    model.to(memory_format=torch.channels_last)
    network = replace(model.config, precision="autocast") if heads else model.config
    model.config = network
    prepare_blocks(model, checkpointing=config.checkpointing, compiled=config.compile)
    flops, forward = FlopCount(model), Forward(model, config.bf16)
    optimizer, ema = make_optimizer(config, model), Ema(model, config.ema)
    objective, batch = Objective(network, config.loss), make_batch(args, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for step in range(2 + args.steps):
        sync()
        began = time.perf_counter()
        loss, _ = objective(forward, batch, True, True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(step)
        sync()
        times.append(time.perf_counter() - began)
        tflop = flops.take() / 1e12
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return Result(1e3 * statistics.median(times[2:]), times[0], memory, tflop)


def make_batch(args: Args, device: torch.device) -> Batch:
    """Noise, seen from cameras that walk along x."""
    views, (height, width) = args.views + args.targets, args.size
    w2c = torch.eye(4, device=device).repeat(args.scenes, views, 1, 1)
    w2c[..., 0, 3] = -0.1 * torch.arange(views, device=device)
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]], device=device)
    cameras = Cameras(w2c, K.expand(args.scenes, views, 3, 3), args.size)
    images = torch.rand(args.scenes, views, 3, height, width, device=device)
    return Batch(images, cameras, None, None, args.views, ("noise",) * args.scenes)


def matmul_tflops(device: torch.device) -> float:
    """What a large bfloat16 matrix product reaches, the best of ten."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = float("inf")
    for _ in range(10):
        sync()
        began = time.perf_counter()
        a @ b
        sync()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best / 1e12


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
