"""LPIPS, the one place that knows the `lpips` package. Its backbones are never downloaded here and never unpickled.

A user names a .npz or .safetensors file with the backbone's convolutions under torchvision's names
(`features.N.weight`). Without one there is no LPIPS: another network in its place would give other numbers under the
same name.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Perceptual(nn.Module):
    """LPIPS v0.1 (Zhang et al., CVPR 2018) between images [N, 3, H, W] in [0, 1]; gives [N] distances, differentiable.

    Raises ImportError without the lpips package, ValueError when the file is not the backbone named.
    """

    def __init__(self, weights: Path, net: str = "alex"):
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise ImportError("LPIPS needs the lpips package: pip install 'raysplat[eval]'") from error
        self.lpips = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self._fill(read_arrays(Path(weights)), Path(weights), net)
        self.eval().requires_grad_(False)

    def _fill(self, arrays: dict[str, np.ndarray], path: Path, net: str) -> None:
        # lpips cuts the backbone into slices but keeps torchvision's layer numbers as names.
        for name, parameter in self.lpips.net.named_parameters():
            key = "features." + re.sub(r"^slice\d+\.", "", name)
            if key not in arrays or arrays[key].shape != tuple(parameter.shape):
                raise ValueError(f"{path}: not the {net} backbone of LPIPS, {key} {tuple(parameter.shape)} is missing")
            parameter.data.copy_(torch.from_numpy(np.asarray(arrays[key], dtype=np.float32)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.lpips(a, b, normalize=True).flatten()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a .npz (pickled objects refused) or .safetensors file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the LPIPS backbone as .npz or .safetensors")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    raise ValueError(f"{path}: LPIPS backbones are read from .npz or .safetensors, never from pickles")
