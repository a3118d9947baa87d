"""How much arithmetic a step is, and how much the machine could do."""

from __future__ import annotations

import math

import torch
from torch import nn

from geometry.backbone import Block

# Dense bfloat16 peaks of the data sheets, in TFLOP/s, by a part of the device's name; the first that fits counts.
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362}


def peak_tflops(device: torch.device) -> float | None:
    """The data sheet's dense bfloat16 peak of a CUDA device, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(peak) for part, peak in PEAKS.items() if part in name), None)


class FlopCount:
    """Floating point operations of training a network, counted by its layers as they run.

    A layer costs its forward, and twice that again in the backward if it is trained. Counted are matrix products,
    convolutions and attention. What activation checkpointing computes a second time is left out, so that the
    utilisation is the model's (MFU). So are losses, rendering and forwards without gradients.
    """

    def __init__(self, model: nn.Module):
        self.total = 0.0
        self._watch(model)

    def take(self) -> float:
        """Operations since the last call."""
        total, self.total = self.total, 0.0
        return total

    def _watch(self, module: nn.Module) -> None:
        """Blocks as a whole: what is inside may be compiled, and hooks there would be too."""
        if isinstance(module, Block | nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(self._count)
            return
        for child in module.children():
            self._watch(child)

    def _count(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            trained = any(p.requires_grad for p in module.parameters(recurse=isinstance(module, Block)))
            self.total += (3 if trained else 1) * layer_flops(module, inputs[0].shape, output.shape)


def layer_flops(module: nn.Module, given: torch.Size, made: torch.Size) -> float:
    """Operations of one forward, from the shapes of input and output; a multiplication and an addition are 2."""
    if isinstance(module, Block):
        rows, tokens, width = given
        matrices = sum(p.numel() for p in module.parameters() if p.ndim == 2)
        return 2.0 * rows * tokens * matrices + 4.0 * rows * tokens**2 * width
    if isinstance(module, nn.Linear):
        return 2.0 * math.prod(made) * module.in_features
    kernel = math.prod(module.kernel_size) / module.groups
    if isinstance(module, nn.ConvTranspose2d):
        return 2.0 * math.prod(given) * module.out_channels * kernel
    return 2.0 * math.prod(made) * module.in_channels * kernel
