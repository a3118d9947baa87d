"""The processes of a run: how they start, share the network, talk and end."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import NoReturn

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.export import register_dataclass

from geometry.backbone import Block
from geometry.cameras import Cameras
from geometry.cue import Comparison, Cue
from geometry.network import Features, Geometry
from splat.gaussians import Gaussians
from train.config import TrainConfig

# FSDP looks for the tensors in what a module returns, and finds them in the containers that it knows.
for kind in (Cameras, Comparison, Cue, Features, Gaussians, Geometry):
    register_dataclass(kind)


def start(config: TrainConfig) -> Accelerator:
    """Join the processes that `accelerate launch` started, or be the only one."""
    if config.wandb and find_spec("wandb") is None:
        raise ImportError("--wandb needs the wandb package: pip install wandb")
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",  # our own autocast: cameras and the renderer need float32, whatever the launcher says
        log_with=["tensorboard"] + ["wandb"] * config.wandb,
        project_dir=config.out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def spread(accelerator: Accelerator, forward: nn.Module) -> nn.Module:
    """`forward` over all processes: sharded (FSDP) where the launcher's file asks for it, else a copy on each (DDP)."""
    if accelerator.num_processes == 1:
        return forward
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return accelerator.prepare(forward)
    forward.to(memory_format=torch.contiguous_format)  # shards of anything else there are none
    for module in forward.modules():
        if isinstance(module, Block):
            fully_shard(module, reshard_after_forward=True)
    return fully_shard(forward, reshard_after_forward=True)


def without_sync(forward: nn.Module, last: bool) -> AbstractContextManager:
    """DDP averages gradients over processes once, at a step's last batch; FSDP does always, since shards must."""
    return forward.no_sync() if hasattr(forward, "no_sync") and not last else nullcontext()


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients down to a norm of at most `limit`; returns the norm before, the same on every process."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def gather(value: object) -> list:
    """`value` of every process, in the order of their ranks, on every process."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def reshard(forward: nn.Module) -> None:
    """Drop full copies of sharded parameters, which would outlive a change of the shards."""
    if isinstance(forward, FSDPModule):
        forward.reshard()


def fail(error: Exception) -> NoReturn:
    """End this process with one line and exit code 1; the others, left without it, end as well."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    who = f"process {os.environ['RANK']} of {processes}: " if processes > 1 else ""
    message = str(error).strip().split("\n")[0]
    print(f"train/nvs.py: error: {who}{message}", file=sys.stderr, flush=True)
    if processes > 1:
        # An orderly exit would first wait for the others, which wait for this one.
        os._exit(1)
    raise SystemExit(1)


def lost_peer(error: RuntimeError) -> bool:
    """The error only says that another process has gone, which has told why itself."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")
    return dist.is_initialized() and any(sign in str(error) for sign in signs)
