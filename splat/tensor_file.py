"""Tensors to a .safetensors file that those may read who may read its neighbours."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write contiguous tensors and what to say `about` them; raises OSError and SafetensorError as the writing does.

    safetensors 0.8 makes every file its owner's alone (its issue 782): a run's weights would be lost on colleagues.
    """
    path.touch()
    as_others = path.stat().st_mode
    save_file(tensors, path, metadata=about)
    path.chmod(as_others)
