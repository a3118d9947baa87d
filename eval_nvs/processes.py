"""The processes that `accelerate launch` started, or the only one. Scenes are dealt out in turn; one writes results."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch

Item = TypeVar("Item")
# One process may finish long before the others; they meet at the end.
_PATIENCE = timedelta(days=7)


class Processes:
    """Rank 0 is the first. `device` is what "auto" means for this process."""

    def __init__(self, device: str):
        self.rank, self.count, self.state = 0, int(os.environ.get("WORLD_SIZE", 1)), None
        if self.count > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise ImportError("several processes need accelerate: pip install 'raysplat[eval]'") from error
            self.state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_PATIENCE)
            self.rank = self.state.process_index

    def device(self, wanted: str) -> str:
        """`wanted`, or this process's own GPU where it says auto; ValueError for a device that cannot be used."""
        from splat.pipeline import pick_device

        if self.state is not None and wanted in ("auto", "cuda"):
            return str(self.state.device)
        return pick_device(wanted)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        return list(items[self.rank :: self.count])

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes together, on each; the processes wait for each other."""
        if self.state is None:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def end(self) -> None:
        if self.state is not None:
            self.state.destroy_process_group()


def fail(message: str, code: int = 1) -> NoReturn:
    """Say `message` on stderr and end this process; the others of the run, left without it, end as well."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    who = f"process {os.environ['RANK']} of {count}: " if count > 1 else ""
    print(f"eval_nvs/run.py: {who}{message}", file=sys.stderr, flush=True)
    if count > 1:
        # An orderly exit would first wait for the others, which wait for this one.
        os._exit(code)
    raise SystemExit(code)
