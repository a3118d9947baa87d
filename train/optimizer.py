"""AdamW with its learning rate, and the running average of the weights that is validated and published."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from train.config import TrainConfig


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
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


def learning_rate(config: TrainConfig, step: int) -> float:
    """Factor on the peak rate.

    Linear warm-up, constant, then half a cosine down to 0 over the last `decay` of the run.
    """
    start = max(config.warmup, config.steps * (1 - config.decay))
    if step < config.warmup:
        return (step + 1) / config.warmup
    if step < start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - start) / max(1.0, config.steps - start))))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this process: of a sharded one its shard, of any other all of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Ema:
    """Exponential moving average of the trained parameters of `model`, by name; sharded as they are."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the parameters after `step`; the first step is taken over as it is."""
        averages, parameters = ([local(t) for t in d.values()] for d in (self.averages, self.parameters))
        torch._foreach_lerp_(averages, parameters, 1 - self.decay if step else 1.0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model's parameters are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            ours, theirs = local(self.averages[name]), local(parameter)
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)
