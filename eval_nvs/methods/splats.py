"""A scene as Gaussians, rendered by the protocol's rules; what several methods give."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from eval_nvs.protocol import Protocol
from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from splat.render import render


@dataclass(frozen=True)
class Splats:
    gaussians: Gaussians
    cameras: Cameras
    protocol: Protocol

    def render(self, cameras: Cameras) -> Tensor:
        """View by view: a scene of a million Gaussians and forty targets would not fit at once."""
        cameras = cameras.to(self.gaussians.means.device)
        background = self.gaussians.means.new_tensor(self.protocol.background)
        pictures = [
            render(self.gaussians, cameras[i : i + 1], background, near=self.protocol.near).color
            for i in range(len(cameras.w2c))
        ]
        return torch.cat(pictures).clamp(0, 1).movedim(-1, -3)


def check_renderer(device: str) -> None:
    """ImportError where nothing could render."""
    if device.startswith("cuda") and find_spec("gsplat") is None:
        raise ImportError("rendering on CUDA needs gsplat: pip install 'raysplat[gs]', or take --device cpu")
