"""The rivals behind one small interface: same images, same targets, same metrics for all. A new one is a module here.

A module has `load(options, protocol, device) -> Method`; the table below names it. Images are [V, 3, H, W] in [0, 1] on
that device.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from torch import Tensor

from eval_nvs.protocol import Protocol
from geometry.cameras import Cameras
from splat.asked import CamerasFrom

MODULES = {"ours": "ours", "nearest": "nearest", "gsplat": "per_scene", "ffgs": "feed_forward"}


@dataclass(frozen=True)
class Options:
    method: Literal["ours", "nearest", "gsplat", "ffgs"] = "ours"
    """ours; the nearest input copied; Gaussians fitted to each scene; a model of the ffgs package"""
    weights: str = "nano"
    """of ours: preset, folder, file or hub id; of ffgs: folder or hub id"""
    refine: int = 0
    """steps of splat.refine on the inputs that follow our network"""
    cameras_from: CamerasFrom = "decoder"
    """where our network's cameras come from under protocols that give no poses; nano's are good by matches alone"""
    seconds: float = 60.0
    """time that gsplat has for a scene"""


class Reconstruction(typing.Protocol):
    cameras: Cameras  # where the inputs are in its world: those given, else those it found

    def render(self, cameras: Cameras) -> Tensor: ...  # [T, 3, H, W] at the size of `cameras` [T], in its world


class Method(typing.Protocol):
    identity: dict  # what makes its pictures, for the results: name, digests, options
    own_size: bool  # takes its inputs at the protocol's network size, not at that of the targets
    needs_poses: bool

    def reconstruct(self, images: Tensor, cameras: Cameras | None, points: Tensor | None) -> Reconstruction:
        """`cameras` [V] are None where the protocol gives no poses; `points` [P, 3] are what SfM saw in the inputs."""
        ...


def load(options: Options, protocol: Protocol, device: str) -> Method:
    """The method that `options` name. Raises what it raises: ImportError for a package that is missing, or OSError."""
    return import_module(f"eval_nvs.methods.{MODULES[options.method]}").load(options, protocol, device)
