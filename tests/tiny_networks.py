"""Tiny networks with formula-made weights and images, whose official outputs are known (shared/golden/README.md)."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from geometry.cameras import Cameras
from geometry.presets import (
    BackboneConfig,
    GaussianHeadConfig,
    HeadConfig,
    ModelConfig,
    MonocularConfig,
    NestedConfig,
    NetworkConfig,
)
from splat.checkpoint import shared_names
from splat.model import KINDS, GaussianModel, MonocularModel, NestedModel

DATA = Path(__file__).parent / "data" / "da3_lite.npz"
KINDS_DATA = Path(__file__).parent / "data" / "da3_kinds_lite.npz"  # the same of monocular and nested networks
SHARED = Path(os.environ.get("RAYSPLAT_SHARED", Path(__file__).parents[1] / ".." / "shared"))
WIDTHS = {"features": 32, "out_channels": (16, 32, 48, 64)}


def tiny_config(kind: str, **changes) -> ModelConfig:
    """`a`: like small, with a Gaussian head; `b`: like giant, the attention across views starting at an odd block.

    `m`: monocular; `nested`: `a` with `m` beside it.
    """
    parts = {"name": "tiny", "licence": "none"}
    if kind == "m":
        backbone = BackboneConfig(dim=64, depth=6, heads=4, out_layers=(1, 2, 4, 5), alt_start=None)
        parts |= {"backbone": backbone, "head": HeadConfig(**WIDTHS, ray_levels=0), "canonical_focal": 300.0}
        return MonocularConfig(**(parts | changes))
    if kind == "nested":
        return NestedConfig(**(parts | {"anyview": tiny_config("a"), "metric": tiny_config("m")} | changes))
    if kind == "a":
        backbone = BackboneConfig(dim=64, depth=8, heads=4, out_layers=(3, 5, 6, 7), alt_start=4)
    else:
        backbone = BackboneConfig(dim=96, depth=8, heads=4, out_layers=(3, 4, 5, 7), alt_start=3, ffn="swiglu")
    parts |= {"backbone": backbone, "head": HeadConfig(**WIDTHS), "gs": GaussianHeadConfig(**WIDTHS)}
    return NetworkConfig(**(parts | changes))


def tiny_model(kind: str, **changes) -> GaussianModel | MonocularModel | NestedModel:
    config = tiny_config(kind, **changes)
    model = KINDS[type(config)](config).eval().requires_grad_(False)
    shared = shared_names(model)
    for name, parameter in model.named_parameters():
        assert name not in shared
        key = name.removeprefix("da3.").removeprefix("da3_metric.")
        parameter.copy_(torch.from_numpy(recipe(key, tuple(parameter.shape))))
    return model


def recipe(key: str, shape: tuple[int, ...]) -> np.ndarray:
    z = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    if key.endswith(".gamma"):
        z = 0.5 + 0.1 * z
    elif key.endswith((".cls_token", ".camera_token")):
        z = 0.5 * z
    elif key.endswith(".pos_embed"):
        z = 0.2 * z
    elif key.endswith(".bias"):
        z = (key == "cam_dec.fc_fov.0.bias") + 0.05 * z
    elif len(shape) == 1:
        z = 1 + 0.1 * z
    else:
        z = z / math.sqrt(math.prod(shape[1:])) * (0.1 if key == "cam_dec.fc_fov.0.weight" else 1)
    return z.astype(np.float32)


def make_norms_visible(model: GaussianModel) -> None:
    """Shrink what feeds the norms until their eps shows (the `net_eps` figures)."""
    backbone = ("patch_embed.proj.", ".cls_token", ".camera_token", ".pos_embed", ".gamma", ".attn.qkv.")
    others = ("cam_enc.pose_branch.fc2.", "head.scratch.output_conv2_aux.3.0.")
    for name, parameter in model.named_parameters():
        if (name.startswith("backbone.") and any(part in name for part in backbone)) or name.startswith(others):
            parameter.mul_(0.003)


def image(view: int, height: int, width: int) -> np.ndarray:
    """A view's image [3, height, width] in [0, 1]."""
    c, y, x = np.mgrid[:3, :height, :width].astype(float)
    waves = np.sin(0.11 * (c + 1) * x + 0.7 * view) * np.cos(0.07 * (c + 2) * y - 0.3 * view)
    return 0.5 + 0.30 * waves + 0.15 * np.sin(0.9 * x + 1.3 * y + c + 0.5 * view)


def images(views: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([image(v, *size) for v in range(views)])[None]).float()


def cameras_of(w2c: np.ndarray, K: np.ndarray, size: tuple[int, int]) -> Cameras:
    w2c, K = torch.from_numpy(np.asarray(w2c)).float(), torch.from_numpy(np.asarray(K)).float()
    return Cameras(w2c, K, size)


def random_rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return q * torch.linalg.det(q)[..., None, None]


def samples(values: np.ndarray) -> np.ndarray:
    """The up to 256 values that the small figures keep of an array."""
    flat = np.asarray(values).reshape(-1)
    count = min(256, flat.size)
    return flat[(np.arange(count) * flat.size) // count]


def golden(name: str):
    path = SHARED / "golden" / "da3" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the repository (RAYSPLAT_SHARED)")
    return np.load(path)
