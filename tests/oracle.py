"""A slow renderer to judge the quick ones by: every Gaussian in every pixel, float64, gradients by autograd."""

import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.rotations import matrices_from_quats
from splat.gaussians import Gaussians
from splat.render import Render
from splat.sh import sh_to_color


def render_slowly(
    gaussians: Gaussians, cameras: Cameras, background: Tensor | None = None, near=0.01, far=1e10, antialiased=False
) -> Render:
    """Gaussians [N] in cameras [V], background [3] or None, by the conventions of gsplat 1.5.3. Memory: N H W."""
    pictures = [_picture(gaussians, cameras[v : v + 1], near, far, antialiased) for v in range(len(cameras.w2c))]
    color, depth, alpha = (torch.stack(planes) for planes in zip(*pictures))
    if background is not None:
        color = color + (1 - alpha)[..., None] * background
    return Render(color, depth / alpha.clamp_min(1e-10), alpha)


def _picture(gaussians, camera, near, far, antialiased):
    height, width = camera.size
    W, t = camera.w2c[0, :3, :3], camera.w2c[0, :3, 3]
    focal, center = camera.K[0].diagonal()[:2], camera.K[0, :2, 2]

    local = gaussians.means @ W.T + t
    gaussians = gaussians.select(order := _near_to_far(local[:, 2], near, far))
    local = local[order]
    z = local[:, 2:]
    mean2d = focal * local[:, :2] / z + center

    extent = torch.tensor([width, height], dtype=z.dtype)
    margin = 0.15 * extent / focal
    slope = torch.minimum(torch.maximum(local[:, :2] / z, -center / focal - margin), (extent - center) / focal + margin)
    J = torch.cat([torch.diag_embed(focal / z), -(focal * slope / z)[..., None]], -1)
    axes = J @ W @ matrices_from_quats(gaussians.quats) * gaussians.scales[:, None, :]
    cov = axes @ axes.transpose(-1, -2)
    blurred = cov + 0.3 * torch.eye(2, dtype=z.dtype)
    opacity = gaussians.opacities
    if antialiased:
        opacity = opacity * (torch.linalg.det(cov) / torch.linalg.det(blurred)).clamp_min(0).sqrt()

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    delta = mean2d[:, None] - (torch.stack([x, y], -1).reshape(-1, 2) + 0.5)  # [N, H W, 2]
    exponent = 0.5 * torch.einsum("npi,nij,npj->np", delta, torch.linalg.inv(blurred), delta)
    alpha = (opacity[:, None] * torch.exp(-exponent)).clamp_max(0.999)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    after = torch.cumprod(1 - alpha, 0)
    alpha = torch.where(after > 1e-4, alpha, 0)  # once a pixel is full it stays so
    after = torch.cumprod(1 - alpha, 0)
    weight = alpha * torch.cat([torch.ones_like(after[:1]), after[:-1]])

    eye = torch.linalg.inv(camera.w2c[0])[:3, 3]
    color = sh_to_color(gaussians.sh, gaussians.means - eye)
    planes = weight.T @ torch.cat([color, z], -1)
    return *(p.reshape(height, width, -1).squeeze(-1) for p in planes.split([3, 1], -1)), 1 - after[-1].reshape(
        height, width
    )


def _near_to_far(z, near, far):
    """Indices of the Gaussians between the limits, by float32 depth; ties keep their order."""
    order = torch.sort(z.detach().float(), stable=True).indices
    return order[((z >= near) & (z <= far))[order]]
