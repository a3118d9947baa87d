"""Train a network from photographs to Gaussians: `accelerate launch train/nvs.py nano --out runs/nano`.

The run is the loop in `main`. A step draws its batches, brings their cameras into the network's frame, predicts depth
and Gaussians, renders the target views and takes the gradient of the losses (train/objective.py). Everything that can
be set stands in train/config.py, named runs in train/recipes.py. Every sample is a pure function of (seed, step, place
in the step), whatever the number of processes; docs/training.md tells how to start many.
"""

from __future__ import annotations

import errno
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from geometry.presets import NetworkConfig
from splat.atomic import whole_file
from splat.checkpoint import config_text
from splat.model import GaussianModel
from splat.perceptual import Perceptual
from train import checkpoint, metrics_log, processes
from train.config import TrainConfig, check
from train.flops import FlopCount, peak_tflops
from train.guard import Guard, Sample
from train.objective import Forward, Objective
from train.optimizer import Ema, learning_rate, make_optimizer
from train.plan import Plan, plan, shares
from train.prefetch import Prefetcher
from train.recipes import RECIPES
from train.sources import Batch, Source, SyntheticSource, open_scene_sources, sample_seed
from train.start import make_model, prepare_blocks
from train.validate import validate

SHOWN = ("loss", "depth", "delta_1.25", "psnr", "images_per_s")  # beside the progress bar


def main(config: TrainConfig) -> None:
    """Run, or go on with, the training that `config` describes. Errors that the user can mend are one line."""
    began = time.monotonic()
    check(config)
    accelerator = processes.start(config)
    device, first = accelerator.device, accelerator.is_main_process
    torch.manual_seed(sample_seed(config.seed, "init") % 2**32)
    # Cameras are multiplied in float32: TF32 would move the pixels that they project by a tenth and more.
    torch.set_float32_matmul_precision("highest")

    saved = find_checkpoint(config, first)
    model = make_model(config).to(device, memory_format=torch.channels_last)
    network = model.config
    if config.sweep_steps and network.cue is None:
        raise ValueError(f"{network.name} has no plane sweeps to train alone: give --sweep-steps 0")
    prepare_blocks(model, checkpointing=config.checkpointing, compiled=config.compile)
    flops = FlopCount(model)
    forward = processes.spread(accelerator, Forward(model, config.bf16 and device.type == "cuda"))
    optimizer, ema = make_optimizer(config, model), Ema(model, config.ema)
    state = checkpoint.resume(saved, model, ema, optimizer) if saved else {"step": 0, "skipped": 0}

    mine = shares(config.batches, accelerator.process_index, accelerator.num_processes)
    synthetic, real = open_sources(config, device, draws=len(mine))
    objective = make_objective(config, network, device)
    if first:
        open_folder(config, network, state["step"])
        count = accelerator.num_processes
        print(f"{network.name} on {device.type}, {count} process{'es' * (count > 1)}", file=sys.stderr)
    accelerator.init_trackers("raysplat", init_kwargs={"tensorboard": {"purge_step": state["step"] + 1}})

    def draw(step: int, index: int) -> Batch:
        now = plan(config, step)
        return (real if now.real else synthetic).batch(sample_seed(now.seed, index), now.shape, now.turn)

    def draw_ahead(place: tuple[int, int]) -> Batch | None:
        # Synthetic scenes come from the device, which is busy with the step before.
        return draw(*place) if plan(config, place[0]).real else None

    guard = Guard(config, draw, state["skipped"], began)
    meter = metrics_log.Meter(device, peak_tflops(device))

    steps = range(state["step"], config.steps)
    places = ((step, share.index) for step in steps for share in mine)
    with Prefetcher(draw_ahead, places, config.prefetch) as ahead:
        bar = tqdm(steps, initial=state["step"], total=config.steps, disable=not first)
        for step in bar:
            now, done, samples = plan(config, step), step + 1, []
            for share in mine:
                with meter.waiting():
                    batch = next(ahead) or draw(step, share.index)
                with processes.without_sync(forward, last=share is mine[-1]):
                    loss, scalars = objective(forward, batch, now.posed, now.joint, now.alone)
                    # The gradients of processes are averaged, the losses of batches are to be summed by weight.
                    (loss * (share.weight * accelerator.num_processes)).backward()
                samples.append(Sample(share.index, batch.names, scalars["loss"].isfinite()))
                meter.add(in_kind(now, scalars), share.weight)
                meter.images += batch.images.shape[:2].numel() * (share.weight > 0)
            norm = processes.clip_gradients(model, config.clip)
            # Where this is 1 the fused optimiser changes nothing; to read it on the host would stall every step.
            optimizer.found_inf = guard.reach(step, norm, samples)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate(config, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(step)
            meter.flops += flops.take()
            meter.add({"norm": norm, "skipped": optimizer.found_inf}, 1.0)

            stopped = guard.settle(behind=1)
            last = stopped or done == config.steps
            logs, saves, validates = (
                last or done % every == 0 for every in (config.log_every, config.save_every, config.validate_every)
            )
            if logs or saves:
                guard.settle(behind=0)
            if logs:
                values = meter.report() | {"lr": optimizer.param_groups[-1]["lr"], "skipped_in_all": guard.skipped}
                metrics_log.write(accelerator, config.out, done, values)
                bar.set_postfix({k: f"{values[k]:.3g}" for k in SHOWN if k in values})
            if saves:
                state = {"step": done, "skipped": guard.skipped}
                checkpoint.save(config.out, state, model, ema, optimizer, writes=first)
            if validates and not stopped:  # who stops a run may not wait for long
                drawings = config.out / "validation" / f"step-{done:07d}" if first else None
                with ema.in_place():
                    values = validate(forward, network, config, synthetic, objective.perceptual, drawings)
                    processes.reshard(forward)
                if values:
                    metrics_log.write(accelerator, config.out, done, values)
                if values and first:
                    bar.write(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()), file=sys.stderr)
                meter.reset()
            if last:
                break
    with ema.in_place():
        publish(config.out / "model", model, writes=first)
        processes.reshard(forward)
    if first and state["step"] < config.steps:
        print(f"stopped by {guard.stopped_by} after step {state['step']}; go on with --resume", file=sys.stderr)
    accelerator.end_training()


def find_checkpoint(config: TrainConfig, tells: bool) -> Path | None:
    """The checkpoint to go on from, if --resume is given and there is one. ValueError rather than overwrite a run."""
    if not config.resume:
        if (config.out / "checkpoints" / "latest").exists():
            raise ValueError(f"{config.out} holds a run already: give --resume to go on, or another --out")
        return None
    found = checkpoint.find(config.out)
    if tells:
        print(f"going on from {found}" if found else f"{config.out}: nothing to resume, beginning", file=sys.stderr)
    return found


def open_sources(config: TrainConfig, device: torch.device, draws: int) -> tuple[Source | None, Source | None]:
    """Synthetic scenes, which keep as many as `draws`, and the real ones; None for what the run does not use."""
    synthetic = None
    if config.synthetic:
        synthetic = SyntheticSource(device, textures=config.textures, photos=config.photos, draws=draws)
    return synthetic, open_scene_sources(config.scenes, device, config.data) if config.scenes else None


def make_objective(config: TrainConfig, network: NetworkConfig, device: torch.device) -> Objective:
    perceptual = teacher = None
    if config.lpips_weights is not None:
        perceptual = Perceptual(config.lpips_weights, config.lpips_net).to(device)
    if config.teacher is not None and config.loss.ssi_depth > 0:
        teacher = GaussianModel.from_pretrained(config.teacher).to(device).requires_grad_(False)
    return Objective(network, config.loss, perceptual, teacher)


def open_folder(config: TrainConfig, network: NetworkConfig, step: int) -> None:
    """The run's folder with config.json and network.json; rows of the log that a resumed run will write again go.

    Each file is whole at any time: a run that is killed here must resume.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    path, now = config.out / "config.json", json.loads(json.dumps(asdict(config), default=str))
    if step and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in (name for name in now if name != "resume" and now[name] != before.get(name)):
            print(f"--{name.replace('_', '-')} was {before.get(name)} and is now {now[name]}", file=sys.stderr)
    for name, text in (("config.json", json.dumps(now, indent=1) + "\n"), ("network.json", config_text(network))):
        with whole_file(config.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for log in ("metrics.jsonl", "skipped.jsonl"):
        metrics_log.cut(config.out / log, step)


def in_kind(now: Plan, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars under the kind of step that they come from: they do not compare."""
    kind = "real/" if now.real else "" if now.posed else "unposed/"
    return {kind + name: value for name, value in scalars.items()}


def publish(folder: Path, model: GaussianModel, *, writes: bool) -> None:
    """Write the network as one that every command can load. Every process must call this, one `writes`."""
    weights = {name: checkpoint.full(tensor.detach()) for name, tensor in model.state_dict().items()}
    if writes:
        with torch.device("meta"):
            whole = GaussianModel(model.config)
        whole.load_state_dict(weights, assign=True)
        whole.save_pretrained(folder)


def run(config: TrainConfig) -> None:
    """`main`, with errors that the user can mend as one line and exit code 1."""
    try:
        main(config)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # its own words name no file
            error = OSError(f"{config.out}: no space left on the disk; make room and go on with --resume")
        processes.fail(error)
    except torch.OutOfMemoryError as error:
        what = str(error).splitlines()[0]
        processes.fail(MemoryError(f"{what} Lower --joint-views (or --views), or give --checkpointing"))
    except RuntimeError as error:
        if not processes.lost_peer(error):
            raise
        processes.fail(RuntimeError("another process has ended"))


if __name__ == "__main__":
    recipes = {name: (f"the {name} recipe", recipe) for name, recipe in RECIPES.items()}
    run(tyro.extras.overridable_config_cli(recipes))
