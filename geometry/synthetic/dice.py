"""Random numbers dealt from one seeded generator, so that a whole batch of scenes is a pure function of its seed."""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

BLOCK = 4096


@cache
def constant(values: tuple, device: torch.device) -> Tensor:
    """A float32 tensor of fixed numbers, sent to the device once: sending it anew would stop for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)


class Dice:
    """Deals random tensors whose leading axis is the batch.

    Uniform numbers come in large blocks from one generator on the device: a draw is then a slice and not a kernel
    launch, and nothing is read back to the host.
    """

    def __init__(self, seed: int, batch: int, device: torch.device | str):
        self.batch = batch
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.block = torch.empty(batch, 0, device=self.device)
        self.used = 0

    def uniform(self, *shape: int, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
        """[B, *shape] in [low, high); the limits are numbers or tensors that broadcast."""
        count = math.prod(shape)
        if self.used + count > self.block.shape[1]:
            size = max(BLOCK, count)
            self.block = torch.rand(self.batch, size, generator=self.generator, device=self.device)
            self.used = 0
        numbers = self.block[:, self.used : self.used + count].reshape(self.batch, *shape)
        self.used += count
        if isinstance(low, float | int) and isinstance(high, float | int):
            return numbers if (low, high) == (0, 1) else numbers * (high - low) + low
        return low + (high - low) * numbers

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """[B, *shape] in [low, high), uniform in the logarithm."""
        return torch.exp(self.uniform(*shape, low=math.log(low), high=math.log(high)))

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        """[B, *shape] with mean 0."""
        return std * math.sqrt(2) * torch.erfinv(self.uniform(*shape, low=-0.9999, high=0.9999))

    def chance(self, probability: float, *shape: int) -> Tensor:
        """bool [B, *shape], true with the given probability."""
        return self.uniform(*shape) < probability

    def choice(self, weights: tuple[float, ...], *shape: int) -> Tensor:
        """int64 [B, *shape]: an index of `weights`, drawn in proportion to them."""
        edges = tuple(accumulate(weights))
        number = self.uniform(*shape, high=edges[-1])
        return (number[..., None] >= constant(edges[:-1], self.device)).sum(-1)
