"""LPIPS, the one place that knows the `lpips` package. Its backbones are never downloaded here.

A backbone is a .npz or .safetensors file with the convolutions under torchvision's names (`features.N.weight`), or the
file that torchvision itself keeps once it has fetched it, known by its hash. Without one there is no LPIPS: another
network in its place would give other numbers under the same name.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Net = Literal["vgg", "alex"]
# Its first convolution tells a backbone; torchvision's file carries the start of its SHA-256 in its name.
_FIRST = {"vgg": (64, 3, 3, 3), "alex": (64, 3, 11, 11)}
_TORCHVISION = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
_KINDS = (".npz", ".safetensors")


class Perceptual(nn.Module):
    """LPIPS v0.1 (Zhang et al., CVPR 2018) between images [N, 3, H, W] in [0, 1]; gives [N] distances, differentiable.

    Raises ImportError without the lpips package, ValueError when the file is not the backbone named.
    """

    def __init__(self, weights: Path, net: Net = "alex"):
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise ImportError("LPIPS needs the lpips package: pip install 'raysplat[eval]'") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision by an old name of an option
            self.lpips = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        self._fill(read_arrays(Path(weights)), Path(weights), net)
        self.eval().requires_grad_(False)

    def _fill(self, arrays: dict[str, np.ndarray], path: Path, net: Net) -> None:
        # lpips cuts the backbone into slices but keeps torchvision's layer numbers as names.
        for name, parameter in self.lpips.net.named_parameters():
            key = "features." + re.sub(r"^slice\d+\.", "", name)
            if key not in arrays or arrays[key].shape != tuple(parameter.shape):
                raise ValueError(f"{path}: not the {net} backbone of LPIPS, {key} {tuple(parameter.shape)} is missing")
            parameter.data.copy_(torch.from_numpy(np.asarray(arrays[key], dtype=np.float32)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.lpips(a, b, normalize=True).flatten()


def find_backbone(net: Net, places: Sequence[Path] = ()) -> Path | None:
    """The file of this backbone among `places` (files, or folders of them), else torchvision's own copy, else None.

    Raises ValueError for a place that does not exist or holds no backbone at all.
    """
    for place in map(Path, places):
        files = sorted(f for f in place.iterdir() if f.suffix in _KINDS) if place.is_dir() else [place]
        firsts = {file: getattr(read_arrays(file).get("features.0.weight"), "shape", None) for file in files}
        if not set(firsts.values()) & set(_FIRST.values()):
            raise ValueError(f"{place}: holds no backbone of LPIPS; give a .npz or .safetensors with features.N.weight")
        for file, first in firsts.items():
            if first == _FIRST[net]:
                return file
    kept = Path(torch.hub.get_dir()) / "checkpoints" / _TORCHVISION[net]
    return kept if kept.is_file() else None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a .npz (pickled objects refused) or .safetensors file, or of one that torchvision fetched."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the LPIPS backbone as .npz or .safetensors")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.name in _TORCHVISION.values():
        # Its hash says that this is the file torchvision published, so it may be opened; and then as tensors alone.
        wanted = path.stem.rsplit("-", 1)[1]
        with path.open("rb") as file:
            if not hashlib.sha256(file.read()).hexdigest().startswith(wanted):
                raise ValueError(
                    f"{path}: damaged, its hash does not start with {wanted}; delete it and fetch it again"
                )
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items() if name.startswith("features.")}
    raise ValueError(f"{path}: LPIPS backbones are read from .npz or .safetensors, never from pickles")
