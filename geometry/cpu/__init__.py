"""Loops that numba compiles for networks on the CPU; each is the twin of one in plain PyTorch, which CUDA runs.

`geometry.compiled.kernels` imports these modules when they are first needed: importing one compiles its kernels, or
loads them from numba's cache. They hold no lock and start none of numba's own threads, so they may run beside anything
else; `in_threads` gives each view to one of a few threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
FAST = {"contract", "nsz", "arcp", "reassoc"}  # what LLVM may do to sums: everything but forget NaN and infinity
HELPER = {"error_model": "numpy", "fastmath": FAST}  # options of a function that a kernel calls
KERNEL = {"nogil": True, "cache": True, **HELPER}


def in_threads(task: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Do `task`, which holds no lock, with each of `items`, in as many threads as PyTorch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(task, items))
