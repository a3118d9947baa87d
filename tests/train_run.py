"""A training run small enough for tests, in the tests' process or in several of its own."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from geometry.cameras import Cameras
from geometry.cue import CueConfig
from geometry.presets import PRESETS, BackboneConfig, CameraConfig, GaussianHeadConfig, HeadConfig, NetworkConfig
from train.batch import Batch, Shape, sample_seed
from train.config import TrainConfig
from train.recipes import RECIPES

TINY = NetworkConfig(
    name="tiny",
    licence="Apache-2.0",
    backbone=BackboneConfig(dim=32, depth=4, heads=2, out_layers=(0, 1, 2, 3), alt_start=1),
    head=HeadConfig(features=16, out_channels=(8, 8, 8, 8), ray_levels=1),
    camera=CameraConfig(depth=1, heads=4),
    gs=GaussianHeadConfig(
        features=16, out_channels=(8, 8, 8, 8), sh_degree=1, convention="exact", rgb_residual=True, token_norm=True
    ),
    cue=CueConfig(planes=8, fine_planes=4, channels=(16, 24), match_channels=8),
    cameras_given="given",
    precision="autocast",
)


def tiny_config(out: Path, **changes) -> TrainConfig:
    """Four steps, two of geometry and two with Gaussians."""
    config = dataclasses.replace(
        RECIPES["smoke"],
        preset="tiny",
        out=out,
        steps=4,
        geometry_steps=2,
        sizes=((28, 42),),
        geometry_sizes=((28, 28),),
        views=0.05,
        joint_views=0.05,
        draw=1,
        log_every=2,
        save_every=2,
        validate_every=100,
        pose_dropout=0.3,
        val_size=28,
    )
    return dataclasses.replace(config, **changes)


def walk(views: int, size=(28, 42)) -> Cameras:
    """Cameras that walk along x and look along z."""
    w2c = torch.eye(4).repeat(views, 1, 1)
    w2c[:, 0, 3] = -0.3 * torch.arange(views)
    K = torch.tensor([[30.0, 0, 20], [0, 31, 14], [0, 0, 1]]).expand(views, 3, 3)
    return Cameras(w2c, K, size)


class Planes:
    """Stands for the synthetic scenes: noise on a plane of random depth. Writes down what was asked for.

    `poison`: the calls, counted from 0, whose images are NaN; `breaks`: the call that fails.
    """

    def __init__(self, poison: tuple[int, ...] = (), breaks: int | None = None, log: Path | None = None):
        self.calls, self.poison, self.breaks, self.log = 0, poison, breaks, log

    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(sample_seed(seed, turn))
        lead = (shape.scenes, shape.context + shape.targets)
        cameras = walk(lead[1], shape.size)
        cameras = Cameras(cameras.w2c.expand(*lead, 4, 4), cameras.K.expand(*lead, 3, 3), shape.size)
        images = torch.rand(*lead, 3, *shape.size, generator=generator)
        depth = torch.full((*lead, *shape.size), 1.0) + torch.rand(1, generator=generator)
        names = tuple(f"plane/{seed}/{turn}/{i}" for i in range(shape.scenes))
        if self.log is not None:
            with open(self.log, "a") as lines:
                lines.write("\n".join(names) + "\n")
        if self.calls == self.breaks:
            raise OSError("plane.jpg: cut off")
        if self.calls in self.poison:
            images = images * float("nan")
        self.calls += 1
        return Batch(images, cameras, depth, depth > 0, shape.context, names)


def run_process(environment: dict[str, str], said: Path, changes: dict) -> None:
    """The whole of a process: its place among others in `environment`, stderr to the file `said`."""
    from geometry import cue
    from train import nvs, processes

    os.environ.update(environment)
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, expected = processes.start, int(environment.get("WORLD_SIZE", 1))

    def start_all(config: TrainConfig):
        accelerator = start(config)
        assert (accelerator.num_processes, dist.is_initialized()) == (expected, expected > 1)
        return accelerator

    processes.start = start_all  # a launcher that starts one process in place of two says nothing
    planes = {key: changes.pop(key) for key in ("poison", "breaks", "log") if key in changes}
    PRESETS["tiny"] = TINY
    nvs.SyntheticSource = lambda *a, **k: Planes(**planes)
    # Which depths are candidates is a choice that the last bit may turn; runs that are to be equal would part there.
    cue.candidates = lambda mixture, *_: mixture.detach()[:, None].expand(-1, 7, -1, -1)
    nvs.run(tiny_config(**changes))
