"""Where a training step's time goes: `python benchmarks/train_step.py nano`, with any field of train/config.py.

Prints, for geometry steps and for joint ones, milliseconds of data, forward with losses, backward and optimiser, scenes
per second and peak memory. The times are means between synchronisations, since data come in draws of several steps.
With --trace also the kernels that take longest.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
import tyro
from accelerate import Accelerator

from geometry.presets import PRESETS
from splat.model import GaussianModel
from train.config import RECIPES, TrainConfig
from train.nvs import Forward, make_optimizer, step_losses
from train.sources import Shape, SyntheticSource, sample_seed


def measure(config: TrainConfig, joint: bool, posed: bool, steps: int, trace: bool) -> float:
    """Print the times of one kind of step; returns milliseconds a step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    model = GaussianModel(PRESETS[config.preset]).to(device, memory_format=torch.channels_last)
    accelerator = Accelerator(mixed_precision="bf16" if config.bf16 and device.type == "cuda" else "no")
    forward, optimizer = accelerator.prepare(Forward(model)), make_optimizer(config, model)
    source = SyntheticSource(device, textures=config.textures, photos=config.photos)
    size, context = (config.sizes if joint else config.geometry_sizes)[0], 4
    views = (config.joint_views if joint else config.views) * 252 * 252 / (size[0] * size[1])
    shape = Shape(max(1, int(views / context)), context, config.targets * joint, size)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: dict[str, list[float]] = {"data": [], "forward": [], "backward": [], "optimiser": []}

    def step(i: int) -> None:
        marks = [time.perf_counter()]

        def mark() -> None:
            sync()
            marks.append(time.perf_counter())

        batch = source.batch(sample_seed("benchmark", i // config.draw), shape, i % config.draw)
        mark()
        loss, _ = step_losses(config, forward, batch, posed, joint, None)
        mark()
        loss.backward()
        mark()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mark()
        for name, start, end in zip(times, marks, marks[1:], strict=False):
            times[name].append(1e3 * (end - start))

    began = time.perf_counter()
    for i in range(config.draw):
        step(i)
    print(f"\n{'joint' if joint else 'geometry'} steps, poses {'given' if posed else 'dropped'}: {shape}")
    print(f"first {config.draw} steps: {time.perf_counter() - began:.1f} s")
    for values in times.values():
        values.clear()
    for i in range(steps):
        step(config.draw + i)
    medians = {name: statistics.mean(values) for name, values in times.items()}
    total = sum(medians.values())
    print(" | ".join(f"{name} {value:.1f} ms" for name, value in medians.items()))
    print(f"{total:.1f} ms a step, {1e3 * shape.scenes / total:.0f} scenes/s")
    if device.type == "cuda":
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    if trace:
        with torch.profiler.profile() as profile:
            step(config.draw + steps)
        key = "cuda_time_total" if device.type == "cuda" else "cpu_time_total"
        print(profile.key_averages().table(sort_by=f"self_{key}", row_limit=25, max_name_column_width=60))
    return total


if __name__ == "__main__":
    trace = "--trace" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--trace"]
    recipes = {name: (f"the {name} recipe", recipe) for name, recipe in RECIPES.items()}
    chosen = tyro.extras.overridable_config_cli(recipes, args=arguments)
    torch.manual_seed(0)
    for joint, posed in ((False, True), (False, False), (True, True)):
        measure(chosen, joint, posed, 2 * chosen.draw, trace and posed)
