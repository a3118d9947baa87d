"""What a training run is: one dataclass, saved as config.json in the run's folder; train/recipes.py has named ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from train.scene_sources import SceneOptions


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of train/losses.py; 0 leaves a term out and does not compute it."""

    depth: float = 1.0  # L_D and L_grad on the inputs' depth, in the unit of the cameras
    ssi_depth: float = 0.0  # the same free of scale and shift, against the teacher's and the data set's depth each
    cue: float = 0.3  # plane sweep, nano only
    ray: float = 1.0  # ray map, steps without given poses
    camera: float = 1.0  # poses of the camera decoder, steps without given ones
    fov: float = 1.0  # its fields of view, likewise
    mse: float = 25.0  # squared error on target views
    psnr: float = 0.0  # its logarithm, so that every picture counts by its decibels; 0.3 is worth about mse 25
    ssim: float = 0.75  # 1 - SSIM on target views
    perceptual: float = 0.0  # LPIPS on target views; needs lpips_weights
    gaussian_depth: float = 0.1  # depth of the Gaussians themselves
    draft: float = 0.3  # mse, psnr, ssim and perceptual once more, this much, on the Gaussians before each look
    opacity: float = 0.0  # mean opacity
    scale: float = 0.0  # mean size of a Gaussian as an angle
    spread: float = 0.0  # along the rays of target views, how far splats lie from the surface or from each other


@dataclass(frozen=True)
class TrainConfig:
    out: Path = Path("runs/nvs")  # the run's folder
    preset: str = "nano"  # network, a name in geometry/presets.py; read when init is not given
    init: str | None = None  # start from these weights (preset, folder, file or owner/name) instead of random ones
    new_head: bool = False  # a new Gaussian head on init; it gets one anyway where it has none
    cameras_given: Literal["given", "predicted"] = "given"  # of a network with a new head, see NetworkConfig
    resume: bool = False  # go on from the latest checkpoint in out, or begin where there is none
    steps: int = 20_000  # optimiser steps in all
    geometry_steps: int = 8_000  # of these, the first that train geometry alone
    sweep_steps: int = 0  # and of those, the first that train the plane sweeps alone, where the network has them
    seed: int = 0
    # data
    scenes: tuple[str, ...] = ()  # folders of posed scenes, each ROOT or ROOT=WEIGHT; none = synthetic only
    data: SceneOptions = field(default_factory=SceneOptions)  # how samples are drawn from them
    prefetch: int = 2  # their batches that are made ahead of the loop
    scenes_share: float = 0.5  # share of steps on those scenes, once they begin
    scenes_from: float = 0.75  # fraction of the run after which they begin
    photos: Path | None = None  # folder of photos whose crops join the synthetic textures
    textures: int = 768  # size of the synthetic texture atlas
    wide_share: float = 0.0  # share of the synthetic draws whose views stand far apart around what they look at
    lens_share: float = 0.0  # share of the synthetic draws in most of whose scenes each view has a lens of its own
    wild_share: float = 0.0  # share of the synthetic draws whose inputs are of other days: tones, skies, passers-by
    sizes: tuple[tuple[int, int], ...] = ((252, 252), (196, 252), (168, 252), (252, 196))  # of images, multiples of 14
    geometry_sizes: tuple[tuple[int, int], ...] = ((196, 196), (168, 224), (196, 252), (224, 168))  # in geometry steps
    contexts: tuple[int, ...] = (2, 3, 4, 4, 4, 6)  # numbers of input views, drawn with equal chance
    targets: int = 2  # target views beside the inputs
    draw: int = 6  # steps in a row that share one draw of synthetic scenes, each with other scenes or other inputs
    views: float = 144  # input views per batch at 252x252, before it is scaled to the size drawn
    joint_views: float = 72  # the same once Gaussians are rendered
    batches: int | None = None  # batches whose gradients make one step, shared out over the processes; none = one each
    pose_dropout: float = 0.1  # share of steps in which the network is not given the cameras
    unposed_gaussians: bool = False  # in those steps Gaussians are trained too, in the frame that the network predicts
    # optimiser
    trained: Literal["all", "gaussians", "cameras"] = "all"  # the network, its Gaussian head or its camera decoder
    lr: float = 6e-4
    backbone_lr: float = 1.0  # factor on the backbone's rate; 0.1 when it comes pretrained
    warmup: int = 200
    decay: float = 0.45  # last fraction of the run over which the rate falls to 0; 1 = a cosine from the start
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    max_skips: int = 20  # steps in a row without a finite loss and gradient after which the run stops
    # machine
    bf16: bool = True  # bfloat16 autocast on CUDA; float32 elsewhere
    checkpointing: bool = False  # keep no activations inside the backbone's blocks; computes them twice
    compile: bool = False  # torch.compile on the backbone's blocks
    # losses
    loss: LossWeights = field(default_factory=LossWeights)
    lpips_weights: Path | None = None  # backbone of LPIPS (.npz or .safetensors), for the loss and for validation
    lpips_net: Literal["alex", "vgg"] = "alex"  # which backbone that is
    teacher: str | None = None  # network (as init) whose depth of the inputs is the target of ssi_depth
    # reports
    wandb: bool = False  # to Weights & Biases as well
    log_every: int = 20
    save_every: int = 1000
    validate_every: int = 1000
    val_scenes: Path | None = None  # folder of posed scene folders to validate on
    val_size: int = 252  # long side of the images there
    val_context: int = 4
    val_targets: int = 2
    stop_after_minutes: float | None = None  # save and stop cleanly this long after the start of the program

    @property
    def synthetic(self) -> bool:
        """Some steps are on synthetic scenes."""
        return not self.scenes or self.scenes_share < 1 or self.scenes_from > 0 or self.geometry_steps > 0


def check(config: TrainConfig) -> None:
    """ValueError in one line for settings that contradict each other; called before anything is loaded."""
    if config.loss.perceptual > 0 and config.lpips_weights is None:
        raise ValueError(
            "loss.perceptual > 0 needs --lpips-weights FILE, a backbone of LPIPS; --loss.perceptual 0 does without"
        )
    if not config.scenes and config.scenes_share == 1:
        raise ValueError("this recipe trains on posed scenes: give their folders as --scenes")
    if config.batches is not None and config.batches < 1:
        raise ValueError(f"--batches must be 1 or more, got {config.batches}")
    if not 0 <= config.geometry_steps <= config.steps:
        raise ValueError(f"--geometry-steps must lie in 0..{config.steps}, got {config.geometry_steps}")
    if not 0 <= config.sweep_steps <= config.geometry_steps:
        raise ValueError(f"--sweep-steps must lie in 0..{config.geometry_steps}, got {config.sweep_steps}")
    if config.trained == "gaussians" and config.geometry_steps > 0:
        raise ValueError("--trained gaussians leaves nothing to train in geometry steps: give --geometry-steps 0")
    if config.trained == "gaussians" and config.pose_dropout > 0 and not config.unposed_gaussians:
        raise ValueError(
            "--trained gaussians leaves nothing to train in steps without poses: "
            "give --pose-dropout 0 or --unposed-gaussians"
        )
    if config.trained == "cameras" and config.scenes:
        raise ValueError("--trained cameras learns from synthetic scenes alone: leave out --scenes")
    if config.new_head and config.init is None:
        raise ValueError("--new-head puts a head on weights that are given as --init")
