"""Scores of stored pictures against photos: PSNR, SSIM and, where their backbones are at hand, LPIPS."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from eval_nvs.methods.ours import file_digest
from geometry.scene import DECODERS
from splat.metrics import psnr, ssim
from splat.perceptual import Net, Perceptual, find_backbone

DEFINITIONS = {
    "psnr": "dB, of the 8-bit render, over all pixels and channels; equal images give 100",
    "ssim": "scikit-image, 11 px Gaussian window, sigma 1.5, data range 1, sample covariance, mean over channels",
    "lpips_vgg": "lpips 0.1, VGG16, images scaled to [-1, 1]",
    "lpips_alex": "lpips 0.1, AlexNet, images scaled to [-1, 1]",
}
_AT_ONCE = 4  # images through the network of LPIPS


class Metrics:
    """What is measured. `about` tells each measure, `left_out` those that cannot be had and why."""

    def __init__(self, nets: Sequence[Net], weights: Sequence[Path], device: str):
        """Raises ValueError for `weights` that are no backbones; a net without any is left out."""
        self.device, self.nets, self.left_out = device, {}, {}
        self.about = {name: {"is": DEFINITIONS[name]} for name in ("psnr", "ssim")}
        for net in get_args(Net):
            if net not in nets:
                self.left_out[f"lpips_{net}"] = "not asked for"
                continue
            name, path = f"lpips_{net}", find_backbone(net, weights)
            if path is None:
                self.left_out[name] = f"no {net} backbone: give --lpips-weights, or let torchvision fetch its own once"
                continue
            try:
                self.nets[name] = Perceptual(path, net).to(device)
            except ImportError as error:
                self.left_out[name] = str(error)
                continue
            self.about[name] = {"is": DEFINITIONS[name], "backbone": path.name, "sha256": file_digest(path)}

    @torch.inference_mode()
    def __call__(self, renders: Tensor, photos: Tensor) -> list[dict[str, float]]:
        """One row of scores for each of the images [T, 3, H, W]. Raises ValueError when the sizes disagree."""
        if renders.shape != photos.shape:
            raise ValueError(f"renders are {tuple(renders.shape)}, their photos {tuple(photos.shape)}")
        with ThreadPoolExecutor(DECODERS) as pool:
            rows = list(pool.map(lambda a, b: {"psnr": psnr(a, b), "ssim": ssim(a, b)}, renders, photos))
        for name, net in self.nets.items():
            values = []
            for i in range(0, len(photos), _AT_ONCE):
                pair = (x[i : i + _AT_ONCE].to(self.device) for x in (renders, photos))
                values += net(*pair).tolist()
            for row, value in zip(rows, values, strict=True):
                row[name] = value
        return rows
