"""What happens to one process of a run happens to all, at the same step: a skipped step, and the end."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from splat.tensor_file import save_tensors
from train.batch import Batch
from train.config import TrainConfig
from train.processes import gather


class Sample(NamedTuple):
    """One batch of a step, for the report should the step go bad."""

    index: int  # its place in the step
    names: tuple[str, ...]
    finite: Tensor  # bool on the device: its loss is


class Guard:
    """Skips steps with a loss or gradient that is not finite, and ends the run when it is asked to or goes astray.

    Flags travel between the devices and are read one step later, so that no step waits for the one before. The time
    limit counts from `began` (`time.monotonic()`), when the program was started: a batch system's does too.
    """

    def __init__(self, config: TrainConfig, redraw: Callable[[int, int], Batch], skipped: int, began: float):
        self.out, self.limit, self.redraw = config.out, config.max_skips, redraw
        self.skipped, self.in_a_row = skipped, 0
        self.stopped_by: str | None = None
        self._asked: str | None = None  # why this process wants to stop
        minutes = config.stop_after_minutes
        self._deadline = None if minutes is None else began + 60 * minutes
        self._open: deque[tuple[int, Tensor, list[Sample]]] = deque()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _) -> None:
        self._asked = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends the run at once

    def reach(self, step: int, norm: Tensor, samples: list[Sample]) -> Tensor:
        """Whether `step` is to be skipped, 0.0 or 1.0 on the device: some process's loss or gradient is not finite.

        `norm` of the gradient, already the same everywhere. Every process must call this once a step.
        """
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._asked = self._asked or "the time limit"
        good = norm.isfinite() & torch.stack([s.finite for s in samples]).all()
        flags = torch.stack([~good, torch.full_like(good, self._asked is not None)]).float()
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        self._open.append((step, flags, samples))
        return flags[0]

    def settle(self, behind: int) -> bool:
        """Read the flags of all steps but the `behind` latest; whether the run is to stop.

        Steps that were skipped are named in skipped.jsonl. Raises FloatingPointError, after a dump of the batches, when
        there were too many in a row.
        """
        while len(self._open) > behind:
            step, flags, samples = self._open.popleft()
            bad, stop = (bool(flag) for flag in flags.tolist())
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                self.skipped += 1
                self._name(step, samples)
            if self.in_a_row >= self.limit:
                self._dump(step, samples)
                raise FloatingPointError(
                    f"no finite gradient in {self.limit} steps; see {self.out}/skipped.jsonl, and {self.out}/dump for "
                    "the last batches"
                )
            if stop:
                self.stopped_by = self._asked or "another process"
        return self.stopped_by is not None

    def _name(self, step: int, samples: list[Sample]) -> None:
        mine = [(s.index, s.names, bool(s.finite)) for s in samples]
        everyone = sorted({sample for rows in gather(mine) for sample in rows})
        blamed = [names for _, names, finite in everyone if not finite]
        if dist.is_initialized() and dist.get_rank() > 0:
            return
        row = {"step": step + 1, "loss_not_finite": blamed, "samples": [names for _, names, _ in everyone]}
        with open(self.out / "skipped.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        what = f"loss of {', '.join(sum(blamed, ()))}" if blamed else "gradient"
        tqdm.write(f"step {step + 1} skipped: the {what} is not finite", file=sys.stderr)

    def _dump(self, step: int, samples: list[Sample]) -> None:
        for sample in samples:
            batch = self.redraw(step, sample.index)
            tensors = {"images": batch.images, "w2c": batch.cameras.w2c, "K": batch.cameras.K, "depth": batch.depth}
            save_dump(self.out / "dump" / f"step-{step + 1:07d}-{sample.index}.safetensors", tensors, batch.names)


def save_dump(path: Path, tensors: dict[str, Tensor | None], names: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items() if t is not None}
    save_tensors(kept, path, {"names": json.dumps(names)})
