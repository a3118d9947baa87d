"""Rows that hold a finite Gaussian: the only ones that go into files, and the only ones that are taken out of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from splat.gaussians import Gaussians

# Files of flat splats say 0, the logarithm of which no other file could hold.
SMALLEST_SCALE = 1e-20


def finite_rows(gaussians: Gaussians) -> Tensor:
    """Mask [..., N] of the Gaussians without NaN, infinity, a scale <= 0 or a zero quaternion."""
    norms = torch.linalg.vector_norm(gaussians.quats, dim=-1)
    fine = gaussians.means.isfinite().all(-1) & norms.isfinite() & (norms > 0) & gaussians.opacities.isfinite()
    fine &= (gaussians.scales.isfinite() & (gaussians.scales > 0)).all(-1)
    return fine & gaussians.sh.isfinite().flatten(-2).all(-1)


def rows_to_write(gaussians: Gaussians) -> tuple[Gaussians, int]:
    """The finite ones of Gaussians [N], float32 on the CPU with unit quaternions, and how many were dropped.

    Raises ValueError for a batch of scenes.
    """
    if gaussians.means.ndim != 2:
        raise ValueError(f"a file takes one scene, means [N, 3], got {tuple(gaussians.means.shape)}")
    gaussians = Gaussians(*(x.detach().to("cpu", torch.float32) for x in vars(gaussians).values()))
    fine = finite_rows(gaussians)
    dropped = int((~fine).sum())
    kept = gaussians.select(fine) if dropped else gaussians
    norms = torch.linalg.vector_norm(kept.quats, dim=-1, keepdim=True)
    return replace(kept, quats=kept.quats / norms), dropped


def rows_as_read(gaussians: Gaussians, path: str | Path) -> Gaussians:
    """The finite ones of what was read from `path`, with unit quaternions; warns when others are dropped.

    Scales of 0 become tiny. Raises ValueError when there are Gaussians, but not a finite one.
    """
    scales = torch.where(gaussians.scales == 0, SMALLEST_SCALE, gaussians.scales)
    norms = torch.linalg.vector_norm(gaussians.quats, dim=-1, keepdim=True)
    gaussians = replace(gaussians, scales=scales, quats=gaussians.quats / norms)
    fine = finite_rows(gaussians)
    dropped = int((~fine).sum())
    if not dropped:
        return gaussians
    if dropped == gaussians.count:
        raise ValueError(f"{path}: none of its {gaussians.count} Gaussians is finite; is it damaged?")
    text = f"{path}: dropped {dropped} of {gaussians.count} rows that hold no finite Gaussian"
    warnings.warn(text, stacklevel=3)
    return gaussians.select(fine)
