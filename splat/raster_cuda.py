"""Rendering on CUDA by gsplat, the only module that knows it."""

from __future__ import annotations

import torch
from torch import Tensor

from geometry.cameras import Cameras
from splat.gaussians import Gaussians


def rasterize(
    gaussians: Gaussians, cameras: Cameras, background: Tensor | None, *, near: float, far: float, antialiased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [B, V, H, W, 3], expected depth [B, V, H, W] and alpha [B, V, H, W], in one call for the whole batch.

    Gaussians [B, N, ...], cameras [B, V] and background [B, V, 3] or None: float32 on one CUDA device.
    Gaussians that hold NaN or infinity are culled. Raises ImportError when gsplat is not installed.
    """
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise ImportError("rendering on CUDA needs gsplat: pip install raysplat[gs]") from error
    height, width = cameras.size
    picture, alpha, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.scales,
        opacities=_cull_broken(gaussians),
        colors=gaussians.sh,
        viewmats=cameras.w2c,
        Ks=cameras.K,
        width=width,
        height=height,
        near_plane=near,
        far_plane=far,
        sh_degree=gaussians.sh_degree,
        packed=False,
        backgrounds=background,
        render_mode="RGB+ED",
        rasterize_mode="antialiased" if antialiased else "classic",
    )
    return picture[..., :3], picture[..., 3], alpha[..., 0]


def _cull_broken(gaussians: Gaussians) -> Tensor:
    """The opacities, 0 where any field is not finite: gsplat drops those before it reads the rest."""
    with torch.no_grad():
        sums = gaussians.means.sum(-1) + gaussians.scales.sum(-1) + gaussians.quats.sum(-1) + gaussians.sh.sum((-1, -2))
        finite = torch.isfinite(sums + gaussians.opacities)
    return torch.where(finite, gaussians.opacities, 0.0)
