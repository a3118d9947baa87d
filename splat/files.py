"""Gaussians from and to files, by the suffix of the name: .ply, .splat and .spz."""

from __future__ import annotations

from pathlib import Path

from splat.gaussians import Gaussians
from splat.ply import read_ply, write_ply
from splat.splat_file import read_splat, write_splat
from splat.spz import read_spz, write_spz

_FORMATS = {".ply": (read_ply, write_ply), ".splat": (read_splat, write_splat), ".spz": (read_spz, write_spz)}
SUFFIXES = tuple(_FORMATS)


def read_gaussians(path: str | Path) -> Gaussians:
    """The Gaussians [N] of a file; float32 on the CPU, OpenCV axes.

    Rows without a finite Gaussian are dropped with a warning. Raises ValueError in one line for another suffix and for
    a file that is broken, OSError when it cannot be read, ImportError when its compression needs a missing package.
    """
    return _FORMATS[suffix(path)][0](path)


def write_gaussians(gaussians: Gaussians, path: str | Path) -> int:
    """Write one scene of Gaussians [N] and return how many rows were dropped as not finite.

    A .ply keeps all; a .splat keeps the colour of the first SH band only and bytes; a .spz keeps all bands in bytes.
    Raises ValueError for another suffix and for a batch of scenes, OSError when the file cannot be written.
    """
    return _FORMATS[suffix(path)][1](path, gaussians)


def suffix(path: str | Path) -> str:
    """The suffix of a Gaussian file in lower case. Raises ValueError when it is none."""
    found = Path(path).suffix.lower()
    if found not in _FORMATS:
        raise ValueError(f"{path}: files of Gaussians end in {', '.join(SUFFIXES)}")
    return found
