"""Train a network from photographs to Gaussians: `accelerate launch train/nvs.py nano --out runs/nano`.

The run is this loop. A step draws a batch, brings its cameras into the network's frame, predicts depth (and, after the
geometry steps, Gaussians), renders the target views and takes the gradient of the losses in train/losses.py. Everything
that can be set stands in train/config.py; every sample is a pure function of (seed, step, rank).
"""

from __future__ import annotations

import json
import math
import random
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from geometry.cameras import Cameras
from geometry.network import Features, Geometry
from geometry.normalize import Unit, normalize
from geometry.presets import PRESETS
from splat.gaussians import Gaussians
from splat.model import GaussianModel
from splat.perceptual import Perceptual
from splat.render import render
from train import checkpoint, losses
from train.config import RECIPES, TrainConfig
from train.sources import Batch, SceneSource, Shape, Source, SyntheticSource, sample_seed
from train.validate import validate

# Nothing nearer is drawn, in units of the inputs' baseline: there, gradients of pixel positions grow without bound.
NEAR = 0.1


class Prediction(NamedTuple):
    features: Features
    geometry: Geometry
    gaussians: Gaussians | None


class Forward(nn.Module):
    """The whole network as one forward, which is what DistributedDataParallel wraps."""

    def __init__(self, model: GaussianModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, cameras: Cameras | None, rays: bool, gaussians: bool) -> Prediction:
        features = self.model.encode(images, cameras)
        geometry = self.model.decode(features, rays=rays)
        return Prediction(features, geometry, self.model.gaussians(features, geometry) if gaussians else None)


class Plan(NamedTuple):
    """What a step does; the same on every rank, so that no process waits for a slower one."""

    shape: Shape
    posed: bool  # the network is given the cameras
    joint: bool  # Gaussians are trained as well
    real: bool  # on the scenes on disk
    seed: int  # of the draw that `config.draw` steps share
    turn: int  # this step's place among them


def plan(config: TrainConfig, step: int) -> Plan:
    draw, turn = divmod(step, config.draw)
    rng = random.Random(sample_seed(config.seed, "plan", draw))
    joint = step >= config.geometry_steps
    size = rng.choice(config.sizes if joint else config.geometry_sizes)
    context = rng.choice(config.contexts)
    posed = rng.random() >= config.pose_dropout
    rng = random.Random(sample_seed(config.seed, "plan", draw, turn))
    begun = config.scenes is not None and joint and step >= config.scenes_from * config.steps
    real = begun and rng.random() < config.scenes_share
    budget = (config.joint_views if joint else config.views) * 252 * 252 / (size[0] * size[1])
    shape = Shape(max(1, int(budget / context)), context, config.targets if joint else 0, size)
    # Photos carry no depth: they train through pictures alone, with given poses.
    return Plan(shape, posed or real, joint and (posed or real), real, sample_seed(config.seed, "draw", draw), turn)


def step_losses(
    config: TrainConfig, forward: nn.Module, batch: Batch, posed: bool, joint: bool, perceptual
) -> tuple[Tensor, dict]:
    """Loss of one batch and its scalars."""
    n = batch.context
    unit: Unit = "baseline" if posed else "points"
    cameras, depth = normalize(batch.cameras, n, unit, batch.depth, batch.valid)
    inputs, weights, scalars = cameras[:, :n], config.loss, {}
    prediction: Prediction = forward(batch.images[:, :n], inputs if posed else None, not posed, joint)
    total = batch.images.new_zeros(())

    def add(weight: float, term: tuple[Tensor, dict]) -> None:
        nonlocal total
        total = total + weight * term[0]
        scalars.update(term[1])

    if depth is not None:
        known = batch.depth[:, :n] > 0
        add(weights.depth, losses.depth_loss(prediction.geometry, depth[:, :n], known))
        if prediction.features.cue is not None and weights.cue > 0:
            add(weights.cue, losses.cue_loss(prediction.features.cue, depth[:, :n], known))
    if not posed:
        add(weights.ray, losses.ray_loss(prediction.geometry, inputs))
        add(weights.camera, losses.camera_loss(prediction.geometry.cameras, inputs))
    if joint:
        picture = render(prediction.gaussians, cameras[:, n:], near=NEAR)
        target = batch.images[:, n:]
        add(weights.photometric, losses.photometric_loss(picture.color, target, weights.ssim))
        if perceptual is not None:
            distance = perceptual(picture.color.movedim(-1, -3).flatten(0, 1), target.flatten(0, 1)).mean()
            add(weights.perceptual, (distance, {"lpips": distance}))
        if depth is not None:
            add(weights.gaussian_depth, losses.gaussian_depth_loss(prediction.gaussians, inputs, depth[:, :n], known))
    return total, {name: value.detach() for name, value in scalars.items()} | {"loss": total.detach()}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Factor on the peak rate.

    Linear warm-up, constant, then half a cosine down to 0 over the last `decay` of the run.
    """
    start = config.steps * (1 - config.decay)
    if step < config.warmup:
        return (step + 1) / config.warmup
    if step < start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / max(1.0, config.steps - start))))


def make_optimizer(config: TrainConfig, model: GaussianModel) -> torch.optim.Optimizer:
    """AdamW; decay on matrices only, and the backbone at its own rate."""
    groups = []
    for backbone in (True, False):
        for matrix in (True, False):
            chosen = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad and name.startswith("backbone.") == backbone and (p.ndim > 1) == matrix
            ]
            lr = config.lr * (config.backbone_lr if backbone else 1.0)
            groups.append({"params": chosen, "weight_decay": config.weight_decay * matrix, "lr": lr, "peak": lr})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def main(config: TrainConfig) -> None:
    accelerator = Accelerator(
        mixed_precision="bf16" if config.bf16 and torch.cuda.is_available() else "no",
        log_with="tensorboard",
        project_dir=config.out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    device, rank = accelerator.device, accelerator.process_index
    torch.manual_seed(sample_seed(config.seed, "init") % 2**32)
    # Cameras are multiplied in float32: TF32 would move the pixels that they project by a tenth and more.
    torch.set_float32_matmul_precision("highest")

    model = GaussianModel.from_pretrained(config.init) if config.init else GaussianModel(PRESETS[config.preset])
    if config.trained == "gaussians":
        model.requires_grad_(False).gs_head.requires_grad_(True)
    model.to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    averaged.n_averaged = averaged.n_averaged.cpu()  # it is read at every step, which must not wait for the device
    optimizer = make_optimizer(config, model)
    first = checkpoint.resume(config.out, model, averaged, optimizer) if config.resume else 0
    if not config.resume and (config.out / "checkpoints" / "latest").exists():
        raise ValueError(f"{config.out} holds a run already: give --resume to go on, or another --out")
    forward, optimizer = accelerator.prepare(Forward(model), optimizer)

    synthetic: Source = SyntheticSource(device, textures=config.textures, photos=config.photos)
    real: Source | None = SceneSource(config.scenes, device) if config.scenes else None
    perceptual = None
    if config.loss.perceptual > 0:
        if config.lpips_weights is None:
            raise ValueError("loss.perceptual > 0 needs --lpips-weights FILE, the AlexNet backbone of LPIPS")
        perceptual = Perceptual(config.lpips_weights).to(device)

    if accelerator.is_main_process:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "config.json").write_text(json.dumps(asdict(config), indent=1, default=str))
    accelerator.init_trackers("tensorboard")
    stopped = {"by": None}
    signal.signal(signal.SIGTERM, lambda *_: stopped.update(by="SIGTERM"))
    began, report = time.time(), {}
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, disable=not accelerator.is_main_process)
    for step in bar:
        now = plan(config, step)
        batch = (real if now.real else synthetic).batch(sample_seed(now.seed, rank), now.shape, now.turn)
        loss, scalars = step_losses(config, forward, batch, now.posed, now.joint, perceptual)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(config, step)
        # Where this is 1 the fused optimiser changes nothing; to read it on the host would stall every step. Gradients
        # are the same on all ranks by now, so all of them skip the same step.
        optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.update_parameters(model)
        done = step + 1
        scalars["skipped"] = optimizer.optimizer.found_inf
        for name, value in scalars.items():
            kind = "real/" if now.real else "" if now.posed else "unposed/"
            report.setdefault(name if name == "skipped" else kind + name, []).append(value)
        report.setdefault("scenes", []).append(torch.tensor(float(now.shape.scenes * accelerator.num_processes)))
        if done % config.log_every == 0:
            values = {name: float(torch.stack(v).mean()) for name, v in report.items()}
            values |= {
                "norm": float(norm),
                "lr": optimizer.param_groups[0]["lr"],
                "minutes": (time.time() - began) / 60,
            }
            report = {}
            if values["skipped"] == 1:
                raise FloatingPointError(
                    f"no finite gradient in {config.log_every} steps; the last samples were {batch.names}"
                )
            log(accelerator, config.out, done, values)
            bar.set_postfix({k: f"{values[k]:.3g}" for k in ("loss", "depth", "delta_1.25", "psnr") if k in values})
        if config.stop_after_minutes and time.time() - began > 60 * config.stop_after_minutes:
            stopped["by"] = "the time limit"
        last = done == config.steps or stopped["by"]
        if (done % config.validate_every == 0 or last) and accelerator.is_main_process:
            values = validate(
                averaged.module, synthetic, config.val_scenes, config.out / "validation" / f"step-{done:07d}"
            )
            log(accelerator, config.out, done, values)
            tqdm.write(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))
        if (done % config.save_every == 0 or last) and accelerator.is_main_process:
            checkpoint.save(config.out, done, model, averaged, optimizer.optimizer)
        if last:
            break
    if accelerator.is_main_process:
        averaged.module.save_pretrained(config.out / "model")
        if stopped["by"]:
            tqdm.write(f"stopped by {stopped['by']} after step {done}; go on with --resume", file=sys.stderr)
    accelerator.end_training()


def log(accelerator: Accelerator, out: Path, step: int, values: dict[str, float]) -> None:
    accelerator.log(values, step=step)
    if accelerator.is_main_process:
        with open(out / "metrics.jsonl", "a") as lines:
            lines.write(json.dumps({"step": step} | values) + "\n")


if __name__ == "__main__":
    recipes = {name: (f"the {name} recipe", recipe) for name, recipe in RECIPES.items()}
    try:
        main(tyro.extras.overridable_config_cli(recipes))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        raise SystemExit(f"train/nvs.py: error: {error}") from error
