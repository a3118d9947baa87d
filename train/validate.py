"""Validation within a training run.

Fixed synthetic scenes (depth is known) and fixed windows of real ones, scored and drawn.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geometry.cameras import Cameras
from geometry.normalize import normalize
from geometry.scene import open_scene, views
from geometry.view_selection import windows
from splat.model import GaussianModel
from splat.render import render
from train.sources import Shape, Source, sample_seed

SIZE = 252
CONTEXT, TARGETS = 4, 2


@torch.no_grad()
def validate(model: GaussianModel, synthetic: Source, val_scenes: Path | None, drawings: Path) -> dict[str, float]:
    """Scores by name; rows of inputs | target | render | nearest input go to `drawings` as PNG."""
    was_training = model.training
    model.eval()
    values, rows = validate_synthetic(model, synthetic)
    drawings.mkdir(parents=True, exist_ok=True)
    draw(rows, drawings / "synthetic.png")
    if val_scenes is not None:
        values |= validate_scenes(model, val_scenes, drawings / "scenes.png")
    model.train(was_training)
    return values


def validate_synthetic(
    model: GaussianModel, source: Source, batches: int = 4, scenes: int = 8
) -> tuple[dict[str, float], list[Tensor]]:
    error, good, psnr, rows = [], [], [], []
    for i in range(batches):
        batch = source.batch(sample_seed("validation", i), Shape(scenes, CONTEXT, TARGETS, (SIZE, SIZE)))
        cameras, depth = normalize(batch.cameras, CONTEXT, "baseline", batch.depth, batch.valid)
        geometry, gaussians = model(batch.images[:, :CONTEXT], cameras[:, :CONTEXT])
        color = render(gaussians, cameras[:, CONTEXT:]).color.movedim(-1, -3).clamp(0, 1)
        known, true = batch.valid[:, :CONTEXT], depth[:, :CONTEXT]
        ratio = (geometry.depth.float() / true.clamp_min(1e-6))[known]
        error.append((ratio - 1).abs().mean())
        good.append((torch.maximum(ratio, 1 / ratio.clamp_min(1e-6)) < 1.25).float().mean())
        psnr.append(score(color, batch.images[:, CONTEXT:]).mean())
        rows.append(torch.cat([batch.images[0, :CONTEXT], batch.images[0, CONTEXT:][:1], color[0, :1]]))
    means = [float(torch.stack(v).mean()) for v in (error, good, psnr)]
    return dict(zip(("val/abs_rel", "val/delta_1.25", "val/psnr"), means, strict=True)), rows


def validate_scenes(model: GaussianModel, root: Path, drawing: Path) -> dict[str, float]:
    device = next(model.parameters()).device
    ours, copies, rows, values = [], [], [], {}
    for name, images, cameras in real_windows(Path(root)):
        images = images.to(device)[None]
        cameras = Cameras(cameras.w2c[None], cameras.K[None], cameras.size).to(device)
        cameras, _ = normalize(cameras, CONTEXT, "baseline")
        _, gaussians = model(images[:, :CONTEXT], cameras[:, :CONTEXT])
        color = render(gaussians, cameras[:, CONTEXT:]).color.movedim(-1, -3).clamp(0, 1)
        copy = images[:, nearest_input(cameras)]
        ours.append(float(score(color, images[:, CONTEXT:]).mean()))
        copies.append(float(score(copy, images[:, CONTEXT:]).mean()))
        values.setdefault(f"scenes/{name}", []).append(ours[-1] - copies[-1])
        rows.append(torch.cat([images[0, :CONTEXT], images[0, CONTEXT:][:1], color[0, :1], copy[0, :1]]))
    draw(rows[::2], drawing)
    gains = {name: float(np.mean(gain)) for name, gain in values.items()}
    return {"scenes_psnr": float(np.mean(ours)), "scenes_copy": float(np.mean(copies))} | gains


@lru_cache(maxsize=1)
def real_windows(root: Path) -> list[tuple[str, Tensor, Cameras]]:
    """Two windows a scene.

    Name, images [6, 3, H, W] and cameras, inputs first. Kept, since validation comes back to them.
    """
    found = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        scene = open_scene(folder)
        for inputs, targets in windows(scene.w2c, CONTEXT, TARGETS, groups=2):
            images, cameras = views(scene, [*inputs, *targets], SIZE, multiple=14)
            found.append((scene.name, images, cameras))
    return found


def nearest_input(cameras: Cameras) -> list[int]:
    """For each target of one scene [1, V], the input whose camera centre is nearest."""
    centers = cameras.centers[0]
    return torch.cdist(centers[CONTEXT:], centers[:CONTEXT]).argmin(1).tolist()


def score(color: Tensor, target: Tensor) -> Tensor:
    """PSNR of images [..., 3, H, W] in [0, 1]."""
    return -10 * (color - target).square().mean((-3, -2, -1)).clamp_min(1e-10).log10()


def draw(rows: list[Tensor], path: Path) -> None:
    """Rows of images [N, 3, H, W], top left aligned on white."""
    height = sum(row.shape[2] for row in rows)
    width = max(row.shape[0] * row.shape[3] for row in rows)
    sheet = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        picture = (row.clamp(0, 1) * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2).cpu().numpy()
        sheet[top : top + picture.shape[0], : picture.shape[1]] = picture
        top += picture.shape[0]
    Image.fromarray(sheet).save(path)
