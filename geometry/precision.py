"""Which number format each part of a network runs in: the only place that decides it.

| part                       | "float32" | "bfloat16" | an autocast of the caller's own, as in training |
|----------------------------|-----------|------------|-------------------------------------------------|
| transformer                | float32   | bfloat16   | as the caller has it                            |
| dense heads                | float32   | bfloat16   | by `NetworkConfig.precision`                    |
| cameras, Gaussian adapter  | float32   | float32    | float32                                         |
| residual stream, LayerNorm | float32   | float32    | float32                                         |

TF32, which rounds the factors of float32 products to 10 bits, is off in both modes, for matrices and in cuDNN; outside
of them it is as the process has set it (PyTorch: off for matrices, on in cuDNN).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_mode: ContextVar[Precision | None] = ContextVar("precision", default=None)


def default_precision(device: torch.device | str) -> Precision:
    """bfloat16 where it is fast, on CUDA and on CPUs that have instructions for it; float32 elsewhere."""
    kind = torch.device(device).type
    return "bfloat16" if kind == "cuda" or (kind == "cpu" and cpu_has_bfloat16()) else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether products of bfloat16 are an instruction: on others, PyTorch's are slower than those of float32."""
    # Older versions of PyTorch do not tell.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def precision(mode: Precision, device: torch.device | str) -> Iterator[None]:
    """Run networks on `device` in `mode`, and put everything back after. ValueError for an unknown mode.

    "float32" is exact: the published figures to rounding. The flags for TF32 belong to the process, so two threads must
    not use this at the same time.
    """
    if mode not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {mode!r}")
    token = _mode.set(mode)
    try:
        with _no_tf32(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=mode == "bfloat16"):
            yield
    finally:
        _mode.reset(token)


@contextmanager
def _no_tf32() -> Iterator[None]:
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matrices.fp32_precision, convolutions.fp32_precision
    # PyTorch has an older and a newer setting for matrices, and raises when the older is read after the newer was set.
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "highest"
    torch.set_float32_matmul_precision("highest")
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        matrices.fp32_precision, convolutions.fp32_precision = before


def in_float32(like: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of `like`: for cameras and world coordinates."""
    return torch.autocast(like.device.type, enabled=False)


def of_heads(like: Tensor, trained: Literal["float32", "autocast"]) -> AbstractContextManager:
    """The context in which dense heads run that were `trained` so, on the device of `like`."""
    follow = _mode.get() is not None or trained == "autocast"
    return nullcontext() if follow else in_float32(like)


def store_bfloat16(model: nn.Module) -> None:
    """Keep in bfloat16, in place, the weights that "bfloat16" rounds anyway: half the memory, the same results.

    For inference in that mode only; float32 is gone for good.
    """
    from geometry.backbone import VisionTransformer
    from geometry.dpt import Pyramid

    for part in model.modules():
        if isinstance(part, (VisionTransformer, Pyramid)):
            for layer in part.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    layer.to(torch.bfloat16)
