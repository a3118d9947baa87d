"""What a run tells of itself: metrics.jsonl, TensorBoard and, if wished, Weights & Biases."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from splat.atomic import whole_file
from train.processes import gather


class Meter:
    """Scalars between two reports. They stay on the device, so that no step waits for them."""

    def __init__(self, device: torch.device, peak: float | None):
        self.device, self.peak = device, peak
        self.reset()

    def reset(self) -> None:
        self.began = time.perf_counter()
        self.scalars: dict[str, list[Tensor]] = defaultdict(list)
        self.weights: dict[str, list[float]] = defaultdict(list)
        self.images, self.flops, self.waited = 0, 0.0, 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent within is the loop's wait for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def add(self, scalars: dict[str, Tensor], weight: float) -> None:
        """Scalars of one batch, which count by its weight."""
        for name, value in scalars.items():
            self.scalars[name].append(value)
            self.weights[name].append(weight)

    def report(self) -> dict[str, float]:
        """Means over all batches of all processes since the last report, and the speed. Every process must ask.

        Sums and weights are put together, not means of means. What is not finite is left out.
        """
        means = {}
        for name, values in self.scalars.items():
            value = torch.stack([v.float() for v in values]).double().cpu()
            weight = torch.tensor(self.weights[name], dtype=torch.float64) * value.isfinite()
            means[name] = (float((value.nan_to_num(0, 0, 0) * weight).sum()), float(weight.sum()))
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        seconds = time.perf_counter() - self.began
        rows = gather((means, self.images, self.flops, self.waited / seconds, memory))
        everyone, images, flops, waits, memories = zip(*rows)
        values = {}
        for name in dict.fromkeys(name for means in everyone for name in means):
            sums = [means[name] for means in everyone if name in means]
            weight = sum(w for _, w in sums)
            if weight > 0:
                values[name] = sum(v for v, _ in sums) / weight
        rate = sum(flops) / seconds / len(rows) / 1e12
        values |= {"images_per_s": sum(images) / seconds, "data_wait": sum(waits) / len(rows), "tflops": rate}
        if self.peak is not None:
            values["mfu"] = rate / self.peak
        if self.device.type == "cuda":
            values["memory_gib"] = max(memories)
        self.reset()
        return values


def write(accelerator: Accelerator, out: Path, step: int, values: dict[str, float]) -> None:
    """One row of metrics.jsonl, and the same to the trackers; on process 0."""
    accelerator.log(values, step=step)
    if accelerator.is_main_process:
        with open(out / "metrics.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step} | values) + "\n")


def cut(path: Path, step: int) -> None:
    """Drop the rows of a .jsonl that come after `step` or are half written: the resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    with whole_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
