"""Rendering on CUDA by gsplat, the only module that knows it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from splat.sh import sh_to_color

SPLATS_AT_ONCE = 2**24  # that are projected together on the way back, over all views: some 3 GB


def rasterize(
    gaussians: Gaussians, cameras: Cameras, background: Tensor | None, *, near: float, far: float, antialiased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [B, V, H, W, 3], expected depth [B, V, H, W] and alpha [B, V, H, W], in one call for the whole batch.

    Gaussians [B, N, ...], cameras [B, V] and background [B, V, 3] or None: float32 on one CUDA device.
    Gaussians that hold NaN or infinity are culled. Raises ImportError when gsplat is not installed.
    """
    rasterization = _gsplat()
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


def back_project(
    gaussians: Gaussians,
    cameras: Cameras,
    images: Tensor,
    *,
    near: float,
    far: float,
    emphasis: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """As `splat.raster_cpu.back_project`, float32 on one CUDA device. Raises ImportError without gsplat."""
    step = max(1, SPLATS_AT_ONCE // gaussians.opacities.numel())
    chunks = [slice(first, first + step) for first in range(0, cameras.shape[1], step)]
    parts = [_back_project(gaussians, cameras[:, v], images[:, v], near, far, emphasis) for v in chunks]
    color, alpha, sums = zip(*parts, strict=True)
    return torch.cat(color, 1), torch.cat(alpha, 1), sum(sums)


def _back_project(
    gaussians: Gaussians, cameras: Cameras, images: Tensor, near: float, far: float, emphasis: Callable
) -> tuple[Tensor, Tensor, Tensor]:
    """All sums are gradients of picture . values; the picture is linear in the colours, so theirs are sums of weights.

    For five values the colours get two channels more, which are 0 and add nothing to the gradients of the rest.
    """
    rasterization = _gsplat()
    height, width = cameras.size
    seen = sh_to_color(gaussians.sh[:, None], gaussians.means[:, None] - cameras.centers[:, :, None])
    # What was made in inference mode takes no part in gradients, copies do.
    with torch.inference_mode(False), torch.enable_grad():
        colors = F.pad(seen, (0, 2)).clone().requires_grad_()
        scales = gaussians.scales.detach().clone().requires_grad_()
        opacities = _cull_broken(gaussians).detach().clone().requires_grad_()
        picture, alpha, _ = rasterization(
            means=gaussians.means.detach().clone(),
            quats=gaussians.quats.detach().clone(),
            scales=scales,
            opacities=opacities,
            colors=colors,
            viewmats=cameras.w2c.clone(),
            Ks=cameras.K.clone(),
            width=width,
            height=height,
            near_plane=near,
            far_plane=far,
            packed=False,
        )
        color = picture[..., :3].detach()
        lack = images - color
        values = torch.cat([emphasis(lack), lack.abs().mean(-1, keepdim=True), torch.ones_like(lack[..., :1])], -1)
        by_color, by_opacity, by_scales = torch.autograd.grad(picture, (colors, opacities, scales), values)
    by_logit = by_opacity * gaussians.opacities * (1 - gaussians.opacities)
    by_size = (by_scales * gaussians.scales).sum(-1)
    sums = torch.cat([by_color.sum(1), by_logit[..., None], by_size[..., None]], -1)
    return color, alpha[..., 0].detach(), sums


def _gsplat() -> Callable:
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise ImportError("rendering on CUDA needs gsplat: pip install raysplat[gs]") from error
    return rasterization


def _cull_broken(gaussians: Gaussians) -> Tensor:
    """The opacities, 0 where any field is not finite: gsplat drops those before it reads the rest."""
    with torch.no_grad():
        sums = gaussians.means.sum(-1) + gaussians.scales.sum(-1) + gaussians.quats.sum(-1) + gaussians.sh.sum((-1, -2))
        finite = torch.isfinite(sums + gaussians.opacities)
    return torch.where(finite, gaussians.opacities, 0.0)
