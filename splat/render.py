"""Gaussians to pictures: one function, whatever the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from geometry.cameras import Cameras
from splat import raster_cpu, raster_cuda
from splat.gaussians import Gaussians


@dataclass(frozen=True)
class Render:
    """What cameras see: `color` [..., V, H, W, 3], expected z-`depth` and `alpha` in 0..1 [..., V, H, W]."""

    color: Tensor
    depth: Tensor
    alpha: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor | None = None,
    *,
    near: float = 0.01,
    far: float = 1e10,
    antialiased: bool = False,
) -> Render:
    """Render Gaussians [..., N] in cameras [..., V] whose batch axes `...` agree; differentiable, in float32.

    `background` is None (black), [3], [V, 3] or [..., V, 3]. Gaussians whose centre lies nearer than `near` or beyond
    `far`, or that hold NaN or infinity, are culled; both are z-depths in the unit of the cameras, so a world in
    kilometres wants a smaller `near`. `antialiased` dims splats smaller than a pixel by the energy that the 0.3 px^2
    screen blur adds (Mip-Splatting, Yu et al. 2024). Depth is sum(weight * z) / max(alpha, 1e-10).

    Gradients reach every field of the Gaussians, `background` and `cameras.w2c`; `cameras.K` gets none. On CUDA gsplat
    renders (ImportError when it is missing), elsewhere compiled CPU kernels; both use the conventions of gsplat 1.5.3.
    Raises ValueError when shapes, devices or depth limits disagree.
    """
    lead, device = _check(gaussians, cameras, near, far), gaussians.means.device
    if background is not None:
        background = _expand(background, (*lead, *cameras.shape[-1:], 3), device)
    flat, flat_cameras = _flat(gaussians, cameras, lead)
    flat_background = None if background is None else background.reshape(lead.numel(), *background.shape[-2:])
    options = {"near": near, "far": far, "antialiased": antialiased}

    if gaussians.count == 0 or cameras.shape.numel() == 0:
        color, depth, alpha = _empty_picture(flat_cameras, flat_background)
    elif device.type == "cuda":
        color, depth, alpha = raster_cuda.rasterize(flat, flat_cameras, flat_background, **options)
    else:
        color, depth, alpha = (
            t.to(device) for t in raster_cpu.rasterize(flat.to("cpu"), flat_cameras.to("cpu"), **options)
        )
        depth = depth / alpha.clamp_min(1e-10)
        if flat_background is not None:
            color = color + (1 - alpha)[..., None] * flat_background[:, :, None, None]
    return Render(*(t.reshape(*lead, *t.shape[1:]) for t in (color, depth, alpha)))


@dataclass(frozen=True)
class BackProjection:
    """What pictures lack, brought back to the Gaussians [..., N] that colour them; see `back_project`."""

    color: Tensor  # [..., V, H, W, 3] as of `Render`
    alpha: Tensor  # [..., V, H, W] likewise
    lack: Tensor  # [..., N, 3] mean over the pixels that show the Gaussian of emphasis(image - color)
    size: Tensor  # [..., N] mean over the same of |image - color|, the mean of its channels
    share: Tensor  # [..., N] sum of the Gaussian's weights in all pixels: how many it fills, as it were
    by_opacity: Tensor  # [..., N] sum over the pixels of emphasis(image - color) . d color / d logit of its opacity
    by_size: Tensor  # [..., N] likewise, by the logarithm of its size


@torch.no_grad()
def back_project(
    gaussians: Gaussians,
    cameras: Cameras,
    images: Tensor,
    *,
    near: float = 0.01,
    far: float = 1e10,
    faint: float = 0.0,
    emphasis: Callable[[Tensor], Tensor] | None = None,
) -> BackProjection:
    """Render Gaussians [..., N], and go back from what the pictures lack of `images` [..., V, 3, H, W] to them.

    In a mean each pixel counts by the Gaussian's weight in its colour; 0 for what no pixel shows. Without gradient.
    `emphasis` takes what pictures lack [..., H, W, 3] to what goes back in its place. On the CPU nothing goes back to a
    Gaussian from a tile of 32x16 pixels in which its weights add up to less than `faint`, which saves time. Other
    arguments and what raises as in `render`, and ValueError for images that do not fit the cameras.
    """
    lead, device = _check(gaussians, cameras, near, far), gaussians.means.device
    shape = (*cameras.shape, 3, *cameras.size)
    if images.shape != shape or images.device != device:
        raise ValueError(f"images must be {[*shape]} on {device}, got {[*images.shape]} on {images.device}")
    flat, flat_cameras = _flat(gaussians, cameras, lead)
    options = {"near": near, "far": far, "emphasis": emphasis or (lambda lack: lack)}
    wanted = images.movedim(-3, -1).float().reshape(lead.numel(), *cameras.shape[-1:], *cameras.size, 3)
    if gaussians.count == 0 or cameras.shape.numel() == 0:
        color, _, alpha = _empty_picture(flat_cameras, None)
        sums = color.new_zeros(lead.numel(), gaussians.count, 7)
    elif device.type == "cuda":
        color, alpha, sums = raster_cuda.back_project(flat, flat_cameras, wanted, **options)
    else:
        on_cpu = flat.to("cpu"), flat_cameras.to("cpu"), wanted.to("cpu")
        parts = raster_cpu.back_project(*on_cpu, faint=faint, **options)
        color, alpha, sums = (t.to(device) for t in parts)
    color, alpha, sums = (t.reshape(*lead, *t.shape[1:]) for t in (color, alpha, sums))
    share, by_opacity, by_size = sums[..., 4:].unbind(-1)
    means = sums[..., :4] / share[..., None].clamp_min(1e-8)
    return BackProjection(color, alpha, means[..., :3], means[..., 3], share, by_opacity, by_size)


def _check(gaussians: Gaussians, cameras: Cameras, near: float, far: float) -> torch.Size:
    """The batch axes that Gaussians and cameras share. ValueError for what `render` says."""
    lead, device = gaussians.means.shape[:-2], gaussians.means.device
    if not cameras.shape or cameras.shape[:-1] != lead:
        raise ValueError(f"gaussians {[*lead, 'N']} need cameras {[*lead, 'V']}, got cameras {list(cameras.shape)}")
    if cameras.w2c.device != device:
        raise ValueError(f"gaussians are on {device}, cameras on {cameras.w2c.device}; move one of them")
    if not 0 < near < far:
        raise ValueError(f"depth limits must be 0 < near < far, got near={near}, far={far}")
    return lead


def _flat(gaussians: Gaussians, cameras: Cameras, lead: torch.Size) -> tuple[Gaussians, Cameras]:
    """In float32, with one batch axis for the backends, whatever the scene has."""

    def flatten(tensor: Tensor) -> Tensor:
        return tensor.float().reshape(lead.numel(), *tensor.shape[len(lead) :])

    flat = Gaussians(*(flatten(getattr(gaussians, f.name)) for f in fields(Gaussians)))
    return flat, Cameras(flatten(cameras.w2c), flatten(cameras.K), cameras.size)


def _expand(background: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """`background` as float32 of `shape` [..., V, 3] on `device`."""
    try:
        return background.to(device, torch.float32).expand(shape)
    except RuntimeError as error:
        raise ValueError(
            f"background must be [3], [V, 3] or [..., V, 3] = {[*shape]}, got {[*background.shape]}"
        ) from error


def _empty_picture(cameras: Cameras, background: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    nothing = cameras.w2c.new_zeros(*cameras.shape, *cameras.size)
    color = nothing[..., None].expand(*nothing.shape, 3)
    if background is not None:
        color = color + background[:, :, None, None]
    return color, nothing, nothing
