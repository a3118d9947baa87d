"""What a training run is: one dataclass, saved as config.json in the run's folder, and the named recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of train/losses.py; 0 leaves a term out and does not compute it."""

    depth: float = 1.0  # L_D and L_grad on the inputs' depth
    cue: float = 0.3  # plane sweep, nano only
    ray: float = 1.0  # ray map, steps without given poses
    camera: float = 1.0  # camera decoder, steps without given poses
    photometric: float = 2.5  # MSE (and SSIM) on target views
    ssim: float = 0.3  # 1 - SSIM beside the MSE
    perceptual: float = 0.0  # LPIPS on target views; needs backbone weights
    gaussian_depth: float = 0.1  # depth of the Gaussians themselves


@dataclass(frozen=True)
class TrainConfig:
    out: Path = Path("runs/nvs")  # the run's folder
    preset: str = "nano"  # network, a name in geometry/presets.py
    init: Path | None = None  # start from this checkpoint (folder or file) instead of random weights
    resume: bool = False  # go on from out/latest
    steps: int = 20_000  # optimiser steps in all
    geometry_steps: int = 8_000  # of these, the first that train geometry alone
    seed: int = 0
    # data
    scenes: Path | None = None  # folder of posed scene folders; none = synthetic only
    scenes_share: float = 0.5  # share of steps on those scenes, once they begin
    scenes_from: float = 0.75  # fraction of the run after which they begin
    photos: Path | None = None  # folder of photos whose crops join the synthetic textures
    textures: int = 768  # size of the synthetic texture atlas
    sizes: tuple[tuple[int, int], ...] = (
        (252, 252),
        (196, 252),
        (168, 252),
        (252, 196),
    )  # image sizes, multiples of 14
    geometry_sizes: tuple[tuple[int, int], ...] = ((196, 196), (168, 224), (196, 252), (224, 168))  # in geometry steps
    contexts: tuple[int, ...] = (2, 3, 4, 4, 4, 6)  # numbers of input views, drawn with equal chance
    targets: int = 2  # target views beside the inputs
    draw: int = 6  # steps in a row that share one draw of synthetic scenes, each with other scenes or other inputs
    views: int = 144  # input views per process and step at 252x252, before it is scaled to the size drawn
    joint_views: int = 72  # the same once Gaussians are rendered
    pose_dropout: float = 0.1  # share of steps in which the network is not given the cameras
    # optimiser
    trained: Literal["all", "gaussians"] = "all"  # the whole network, or its Gaussian head alone
    lr: float = 6e-4
    backbone_lr: float = 1.0  # factor on the backbone's rate; 0.1 when it comes pretrained
    warmup: int = 200
    decay: float = 0.45  # last fraction of the run over which the rate falls to 0
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    bf16: bool = True  # bfloat16 autocast on CUDA; float32 elsewhere
    # reports
    loss: LossWeights = field(default_factory=LossWeights)
    lpips_weights: Path | None = None  # backbone of the perceptual loss
    log_every: int = 20
    save_every: int = 1000
    validate_every: int = 1000
    val_scenes: Path | None = None  # folder of posed scene folders to validate on
    stop_after_minutes: float | None = None  # save and stop cleanly after this long


RECIPES = {
    "nano": TrainConfig(),
    # A minute on two cores: shows that the loop runs and learns, nothing else.
    "smoke": replace(
        TrainConfig(),
        steps=30,
        geometry_steps=20,
        textures=16,
        sizes=((56, 56),),
        geometry_sizes=((56, 56),),
        contexts=(2,),
        targets=1,
        views=4,
        joint_views=4,
        warmup=5,
        log_every=5,
        save_every=15,
        validate_every=30,
    ),
}
