"""Scenes and runs of the benchmark small enough for tests, in this process or, as a program, in several."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import torch

from eval_nvs import run
from eval_nvs.methods import Options
from geometry.cameras import Cameras
from geometry.scene import scene_from_tensors
from geometry.write_scene import write_scene

SIZE = (270, 480)


def walk(views: int) -> Cameras:
    """Cameras that walk along x and look along z."""
    w2c = torch.eye(4).repeat(views, 1, 1)
    w2c[:, 0, 3] = -0.1 * torch.arange(views)
    K = torch.tensor([[400.0, 0, SIZE[1] / 2], [0, 400.0, SIZE[0] / 2], [0, 0, 1]])
    return Cameras(w2c, K.expand(views, 3, 3), SIZE)


def write_scenes(root: Path, names: tuple[str, ...], views: int = 15) -> None:
    """Smooth noise that drifts from view to view, so that neighbours are alike and no two are equal."""
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        wide = torch.rand(1, 3, 12, 24 + views, generator=generator)
        images = [torch.nn.functional.interpolate(wide[..., i : i + 24], SIZE, mode="bicubic")[0] for i in range(views)]
        write_scene(scene_from_tensors(torch.stack(images).clamp(0, 1), walk(views), name), root / name)


def arguments(root: Path, out: Path, method: str = "nearest", **changes) -> run.Args:
    of_method = changes.keys() & {"weights", "refine", "cameras_from", "seconds"}
    options = Options(method=method, **{name: changes.pop(name) for name in of_method})
    return dataclasses.replace(run.Args("folder"), root=root, out=out, what=options, device="cpu", **changes)


def run_process(environment: dict[str, str], said: Path, root: Path, out: Path) -> None:
    """One process of several, as `accelerate launch` would start it."""
    os.environ |= environment
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(run.main(arguments(root, out)))
