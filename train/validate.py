"""Validation within a training run.

Fixed synthetic scenes, whose depth is known, and fixed windows of real ones, scored and drawn. Every process does the
same, since a sharded network answers only when all ask; one of them writes the pictures.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from geometry.alignment import rotation_error
from geometry.cameras import Cameras
from geometry.presets import NetworkConfig
from geometry.scene import views
from geometry.scene_roots import find_scenes, open_any
from geometry.view_selection import windows
from splat.metrics import depth_errors, psnr
from splat.perceptual import Perceptual
from splat.similarity import structural_similarity
from train.batch import Batch, Shape, Source, sample_seed
from train.config import TrainConfig
from train.objective import Prediction, draw, into_network


@torch.no_grad()
def validate(
    forward: nn.Module,
    network: NetworkConfig,
    config: TrainConfig,
    synthetic: Source | None,
    perceptual: Perceptual | None,
    drawings: Path | None,
) -> dict[str, float]:
    """Scores by name: means over images of PSNR, SSIM and, where there is a `perceptual`, LPIPS.

    Where some steps are without poses, also the degrees by which predicted rotations are off at the median of scenes.

    Rows of inputs | target | render | nearest input go to the folder `drawings`, if given, as PNG.
    """
    was_training = forward.training
    forward.eval()
    device = next(forward.parameters()).device
    values, sheets = {}, {}
    if synthetic is not None:
        made = validate_synthetic(forward, network, config, synthetic)
        values |= {f"val/{name}": value for name, value in made[0].items()}
        sheets["synthetic"] = made[1]
    if config.val_scenes is not None:
        made = validate_scenes(forward, network, config, perceptual, device)
        values |= made[0]
        sheets["scenes"] = made[1]
    if drawings is not None and sheets:
        drawings.mkdir(parents=True, exist_ok=True)
        for name, rows in sheets.items():
            save_sheet(rows, drawings / f"{name}.png")
    forward.train(was_training)
    return values


def predict(forward: nn.Module, network: NetworkConfig, batch: Batch) -> tuple[Prediction, Tensor, Tensor | None]:
    """The network's answer with poses given, its pictures [B, T, 3, H, W] of the targets, the inputs' true depth."""
    n = batch.context
    cameras, depth = into_network(network, batch, posed=True)
    prediction = forward(batch.images[:, :n], cameras[:, :n])
    color = draw(network, prediction, cameras[:, :n], cameras[:, n:]).clamp(0, 1)
    return prediction, color, None if depth is None else depth[:, :n]


def validate_synthetic(
    forward: nn.Module, network: NetworkConfig, config: TrainConfig, source: Source, batches: int = 4, scenes: int = 8
) -> tuple[dict[str, float], list[Tensor]]:
    side, context = config.val_size // 14 * 14, config.val_context
    scores, rows = defaultdict(list), []
    for i in range(batches):
        shape = Shape(scenes, context, config.val_targets, (side, side))
        batch = source.batch(sample_seed("validation", i), shape)
        prediction, color, depth = predict(forward, network, batch)
        known = batch.valid[:, :context]
        abs_rel, delta = depth_errors(prediction.geometry.depth.float()[known], depth[known])
        scores["abs_rel"].append(abs_rel)
        scores["delta_1.25"].append(delta)
        if config.pose_dropout > 0:
            own = forward(batch.images[:, :context], None, gaussians=False).cameras
            scores["rotation"] += [float(rotation_error(a, b)) for a, b in zip(own, batch.cameras[:, :context])]
        target = batch.images[:, context:]
        scores["psnr"].append(mean_psnr(color, target))
        scores["ssim"].append(float(structural_similarity(color.flatten(0, 1), target.flatten(0, 1))))
        rows.append(torch.cat([batch.images[0, :context], batch.images[0, context:][:1], color[0, :1]]))
    rotation = {"rotation": float(np.median(scores.pop("rotation")))} if "rotation" in scores else {}
    return {name: float(np.mean(values)) for name, values in scores.items()} | rotation, rows


def validate_scenes(
    forward: nn.Module,
    network: NetworkConfig,
    config: TrainConfig,
    perceptual: Perceptual | None,
    device: torch.device,
) -> tuple[dict[str, float], list[Tensor]]:
    n, scores, rows = config.val_context, defaultdict(list), []
    for name, images, cameras in real_windows(config.val_scenes, n, config.val_targets, config.val_size):
        images = images.to(device)[None]
        cameras = Cameras(cameras.w2c[None], cameras.K[None], cameras.size).to(device, torch.float32)
        batch = Batch(images, cameras, None, None, n, (name,))
        _, color, _ = predict(forward, network, batch)
        target, copy = images[:, n:], images[:, nearest_input(cameras, n)]
        ours, copied = mean_psnr(color, target), mean_psnr(copy, target)
        scores["scenes_psnr"].append(ours)
        scores["scenes_copy"].append(copied)
        scores["scenes_ssim"].append(float(structural_similarity(color[0], target[0])))
        if perceptual is not None:
            scores["scenes_lpips"].append(float(perceptual(color[0], target[0]).mean()))
        scores[f"scenes/{name}"].append(ours - copied)
        rows.append(torch.cat([images[0, :n], target[0, :1], color[0, :1], copy[0, :1]]))
    return {name: float(np.mean(values)) for name, values in scores.items()}, rows[::2]


@lru_cache(maxsize=1)
def real_windows(root: Path, context: int, targets: int, size: int) -> list[tuple[str, Tensor, Cameras]]:
    """Two windows a scene.

    Name, images [V, 3, H, W] and cameras, inputs first. Kept, since validation comes back to them. OSError where there
    is no such folder, ValueError for one without scenes and for a scene without poses.
    """
    found = []
    for name, path in find_scenes(root).items():
        scene = open_any(path, points=False)
        if scene.w2c is None:
            raise ValueError(f"{path}: the scene has no poses, which validation needs")
        for inputs, between in windows(scene.w2c, context, targets, groups=2):
            images, cameras = views(scene, [*inputs, *between], size, multiple=14)
            found.append((name, images, cameras))
    return found


def nearest_input(cameras: Cameras, context: int) -> list[int]:
    """For each target of one scene [1, V], the input whose camera centre is nearest."""
    centers = cameras.centers[0]
    return torch.cdist(centers[context:], centers[:context]).argmin(1).tolist()


def mean_psnr(color: Tensor, target: Tensor) -> float:
    """Mean over images [B, T, 3, H, W] of their PSNR."""
    return float(np.mean([psnr(a, b) for a, b in zip(color.flatten(0, 1), target.flatten(0, 1), strict=True)]))


def save_sheet(rows: list[Tensor], path: Path) -> None:
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
