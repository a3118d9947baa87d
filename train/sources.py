"""Where training samples come from: the door to the sources, and mixtures of them.

Every batch is a pure function of its seed, which stands for (run, step, place among the step's batches); so a resumed
run sees what it would have seen, and the number of processes changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from train.augment import mirror
from train.batch import Batch, Shape, Source, sample_seed
from train.scene_sources import DEFAULTS, SceneOptions, SceneSource
from train.synthetic_source import SyntheticSource

__all__ = [
    "Batch",
    "MixedSource",
    "SceneOptions",
    "SceneSource",
    "Shape",
    "Source",
    "SyntheticSource",
    "mirror",
    "open_scene_sources",
    "sample_seed",
]


class MixedSource:
    """Each batch from one of several sources, drawn by weight. ValueError for weights that are not above 0."""

    def __init__(self, weights: Mapping[Source, float]):
        if not weights or min(weights.values()) <= 0:
            raise ValueError(f"a mixture needs sources, all with weights above 0, got {list(weights.values())}")
        self.sources, self.weights = list(weights), list(weights.values())

    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        rng = random.Random(sample_seed(seed, "mix", turn))
        return rng.choices(self.sources, self.weights)[0].batch(seed, shape, turn)


def open_scene_sources(
    roots: Sequence[str], device: torch.device, options: SceneOptions = DEFAULTS
) -> SceneSource | MixedSource:
    """The scenes below several roots, each given as ROOT or ROOT=WEIGHT, as one source; a root without weight has 1."""
    weights = {}
    for text in map(str, roots):
        root, _, weight = text.rpartition("=")
        try:
            root, share = (root, float(weight)) if root else (text, 1.0)
        except ValueError:
            root, share = text, 1.0  # a folder with = in its name
        weights[SceneSource(root, device, options)] = share
    return next(iter(weights)) if len(weights) == 1 else MixedSource(weights)
