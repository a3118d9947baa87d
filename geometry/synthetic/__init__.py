"""Procedural scenes on the training device: images with exact depth and cameras, without end.

`make_atlas` makes textures once, `sample_batch` turns a seed into a batch of scenes, `write_sample` writes a small
folder of photographs for demonstrations and tests.
"""

from .batch import LENS_FOV, SyntheticBatch, SyntheticConfig, sample_batch
from .sample import write_sample
from .textures import make_atlas
from .wild import in_the_wild

__all__ = ["LENS_FOV", "SyntheticBatch", "SyntheticConfig", "in_the_wild", "make_atlas", "sample_batch", "write_sample"]
