"""An AlexNet of random convolutions, laid out as LPIPS reads its backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def write_alexnet(path: Path) -> Path:
    """Write the convolutions to `path`, a .npz file; returns it."""
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for layer, (out, into, side) in ALEX.items():
        scale = (2 / (into * side * side)) ** 0.5
        arrays[f"features.{layer}.weight"] = (torch.randn(out, into, side, side, generator=generator) * scale).numpy()
        arrays[f"features.{layer}.bias"] = (torch.randn(out, generator=generator) * 0.1).numpy()
    np.savez(path, **arrays)
    return path
