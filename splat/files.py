"""Gaussians from and to files, whatever their format."""

from __future__ import annotations

from pathlib import Path

from splat.gaussians import Gaussians
from splat.ply import read_ply, write_ply

READERS = {".ply": read_ply}
WRITERS = {".ply": lambda gaussians, path: write_ply(path, gaussians)}


def read_gaussians(path: str | Path) -> Gaussians:
    """Gaussians [N] of a file, by its suffix; float32 on the CPU, OpenCV axes. Raises ValueError or OSError."""
    return _by_suffix(READERS, path)(path)


def write_gaussians(gaussians: Gaussians, path: str | Path) -> int:
    """Write Gaussians [N] in the format that the suffix of `path` names; returns how many non-finite were dropped."""
    return _by_suffix(WRITERS, path)(gaussians, path)


def _by_suffix(table, path: str | Path):
    suffix = Path(path).suffix.lower()
    if suffix not in table:
        raise ValueError(f"{path}: Gaussian files end in {', '.join(table)}")
    return table[suffix]
