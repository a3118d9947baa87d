"""The network that a run begins with, and what is done to it for training."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from geometry.backbone import Block
from geometry.presets import PRESETS, GaussianHeadConfig, NetworkConfig
from splat.model import GaussianModel
from train.config import TrainConfig


def make_model(config: TrainConfig) -> GaussianModel:
    """The network in float32 on the CPU: `init` with a new Gaussian head where it needs one, or random weights.

    Loading is strict: of `init` everything must be there but the head. ValueError names what is not, or a preset that
    does not exist.
    """
    if config.init is None:
        if config.preset not in PRESETS:
            raise ValueError(f"--preset {config.preset} is not among {', '.join(PRESETS)}")
        network = PRESETS[config.preset]
        model = GaussianModel(network if network.gs else with_gaussian_head(network, config.cameras_given))
    else:
        model = GaussianModel.from_pretrained(config.init)
        if config.new_head or model.gs_head is None:
            print(f"{config.init}: gets a new Gaussian head", file=sys.stderr)
            model = add_head(model, config.cameras_given)
    model.train()
    if config.trained == "gaussians":
        model.requires_grad_(False).gs_head.requires_grad_(True)
    elif config.trained == "cameras":
        if model.config.camera.correlation is None:
            raise ValueError(f"{model.config.name} has a camera decoder that reads its backbone: give --trained all")
        model.requires_grad_(False).cam_dec.requires_grad_(True)
    return model


def with_gaussian_head(network: NetworkConfig, cameras_given: str = "given") -> NetworkConfig:
    """`network` with a Gaussian head as wide as its depth head, in this project's convention (splat/adapter.py)."""
    head = GaussianHeadConfig(
        features=network.head.features,
        out_channels=network.head.out_channels,
        convention="exact",
        rgb_residual=True,
        token_norm=True,
    )
    return replace(network, gs=head, cameras_given=cameras_given)


def add_head(model: GaussianModel, cameras_given: str = "given") -> GaussianModel:
    """The same network with a new Gaussian head, which starts as a plain splat on every pixel."""
    fresh = GaussianModel(with_gaussian_head(model.config, cameras_given))
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("gs_head.")}
    missing, unexpected = fresh.load_state_dict(weights, strict=False)
    wrong = [*unexpected, *(name for name in missing if not name.startswith("gs_head."))]
    if wrong:
        raise ValueError(f"{model.config.name}: {wrong[0]} does not fit the network with a new Gaussian head")
    return fresh


def prepare_blocks(model: nn.Module, *, checkpointing: bool, compiled: bool) -> None:
    """Compile the backbone's blocks, and have them forget their activations until the backward needs them.

    Parameters keep their names, so weights load and save as ever.
    """
    if compiled:
        # All blocks share one limit of 8, of which nano alone uses 9: three kinds of positions, with gradients and
        # without, and shapes. What is beyond it would run uncompiled.
        torch._dynamo.config.recompile_limit = 32
    for block in (m for m in model.backbone.modules() if isinstance(m, Block)):
        if compiled:
            block.forward = torch.compile(block.forward, dynamic=True)
        if checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
