"""What a source of training samples is asked for and gives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from geometry.cameras import Cameras


@dataclass(frozen=True)
class Batch:
    """One step's scenes: the first `context` views are inputs, the others targets."""

    images: Tensor  # [B, V, 3, H, W] in [0, 1]
    cameras: Cameras  # [B, V], any frame and scale
    depth: Tensor | None  # [B, V, H, W] z-depth, 0 where unknown; the sky's is far away
    valid: Tensor | None  # [B, V, H, W] bool: a surface is seen here, at this depth
    context: int
    names: tuple[str, ...]  # one per scene, for error reports
    metric: bool = True  # depth is in the unit of the cameras; else in one of its own, with a scale and shift


@dataclass(frozen=True)
class Shape:
    """What a step asks of a source."""

    scenes: int
    context: int
    targets: int
    size: tuple[int, int]
    wide: bool = False  # synthetic views stand far apart around what they look at
    lenses: bool = False  # and many have lenses of their own, as photos by many people do
    wild: bool = False  # and synthetic inputs are of different days: tones, skies and passers-by


class Source(Protocol):
    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        """The batch of a seed. Steps that share a seed take turns 0, 1, 2, ...; each turn gives another batch."""
        ...


def sample_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
