"""Training losses. Each returns (value, scalars to log); what it is weighted with stands in train/config.py."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geometry.camera_heads import encode_cameras
from geometry.cameras import Cameras, pixel_rays
from geometry.cue import Comparison, Cue
from geometry.network import Geometry
from splat.gaussians import Gaussians
from splat.render import render
from splat.sh import C0
from splat.similarity import structural_similarity

Scalars = dict[str, Tensor]

SHARPNESS = 3  # of `spread_loss`: its cosine is lowest where depths differ by pi / 3 of log, a factor of 2.8
FARTHEST = 1.6  # of log depth, five times too far: relative error grows no further, or it would drown the rest


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`; 0 for an empty mask."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp_min(1)


def depth_loss(geometry: Geometry, depth: Tensor, valid: Tensor) -> tuple[Tensor, Scalars]:
    """L_D and L_grad of the paper (section 3.3) on log depth [B, V, H, W], with the learned confidence.

    Logarithms make near and far count alike and leave the unit of length out. L_D is the mean of their difference and
    of the relative error: by logarithms alone, pixels that may be near or far end up between, and there far ones have
    most of the relative error (docs/nano.md). The confidence c is trained by c * error - 0.2 log c, with the error held
    fixed: else the network would profit from doubting hard pixels.
    """
    target = depth.clamp_min(1e-6).log()
    difference = geometry.depth.float().clamp_min(1e-6).log() - target
    error, relative = difference.abs(), difference.clamp_max(FARTHEST).expm1().abs()
    accuracy = masked_mean(0.5 * (error + relative), valid)
    confidence = geometry.confidence.float()
    doubt = masked_mean(confidence * error.detach() - 0.2 * confidence.log(), valid)
    gradient = gradient_loss(difference, valid)
    with torch.no_grad():
        good = masked_mean((error < 0.2231).float(), valid)  # ratio under 1.25
        logarithm, ratio = masked_mean(error, valid), masked_mean(difference.expm1().abs(), valid)
    value = accuracy + 0.5 * gradient + 0.05 * doubt
    return value, {"depth": logarithm, "abs_rel": ratio, "depth_gradient": gradient, "delta_1.25": good}


def gradient_loss(difference: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute slope of a difference of log depths [..., H, W], over `scales` halvings: keeps edges and planes."""
    total = difference.new_zeros(())
    for scale in range(scales):
        d, m = difference[..., :: 2**scale, :: 2**scale], valid[..., :: 2**scale, :: 2**scale]
        total = total + masked_mean((d[..., 1:] - d[..., :-1]).abs(), m[..., 1:] & m[..., :-1])
        total = total + masked_mean((d[..., 1:, :] - d[..., :-1, :]).abs(), m[..., 1:, :] & m[..., :-1, :])
    return total / scales


def cue_loss(cue: Cue, depth: Tensor, valid: Tensor) -> tuple[Tensor, Scalars]:
    """Cross-entropy of both plane sweeps against the true plane, shared between the two planes next to it.

    Where views are compared the first sweep counts twice: smoothed, and as its correlations alone have it, which tells
    the features that are compared directly what is right. The choice among candidates counts there too.
    """
    planes = (depth, valid, cue.coarse_start[:, None, None], cue.coarse_step)
    coarse = _plane_entropy(cue.coarse_logits, *planes)
    fine = _plane_entropy(cue.fine_logits, depth, valid, cue.fine_start, cue.fine_step)
    with torch.no_grad():
        error = (cue.log_depth - depth.clamp_min(1e-6).log()).abs()
        good = masked_mean((error < 0.2231).float(), valid)
    value, scalars = coarse + 0.5 * fine, {"sweep_coarse": coarse, "sweep_fine": fine, "sweep_delta_1.25": good}
    if cue.compared is not None:
        alone = _plane_entropy(cue.compared.logits, *planes)
        choice = _choice_entropy(cue.compared, depth, valid)
        value, scalars = value + 0.3 * alone + 0.5 * choice, scalars | {"sweep_alone": alone, "sweep_choice": choice}
    return value, scalars


def sweep_depth_loss(cue: Cue, depth: Tensor, valid: Tensor) -> tuple[Tensor, Scalars]:
    """L_D and L_grad of the paper (section 3.3) on the log depth of the sweeps, for steps that train them alone."""
    difference = cue.log_depth.float() - depth.clamp_min(1e-6).log()
    accuracy, gradient = masked_mean(difference.abs(), valid), gradient_loss(difference, valid)
    return accuracy + 0.5 * gradient, {"sweep_depth": accuracy, "sweep_gradient": gradient}


def _choice_entropy(compared: Comparison, depth: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of the scores of candidates, where one of them is right; those within 3 % share being the best."""
    target, known = _at_cells(depth, valid, compared.candidates.shape[-2:])
    error = (compared.candidates - target.clamp_min(1e-6).log()[:, None]).abs()
    known = known & (error.amin(1) < 0.2)
    right = torch.where(known[:, None], -error / 0.03, 0.0).softmax(1)
    return masked_mean(-(right * compared.scores.log_softmax(1)).sum(1), known)


def _at_cells(depth: Tensor, valid: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depth [R, h, w] and whether it is known, in the middle of each cell of a coarser grid."""
    target = F.interpolate(depth.flatten(0, 1)[:, None], size, mode="nearest")[:, 0]
    return target, F.interpolate(valid.flatten(0, 1)[:, None].float(), size, mode="nearest")[:, 0] > 0.5


def _plane_entropy(logits: Tensor, depth: Tensor, valid: Tensor, start: Tensor, step: float) -> Tensor:
    target, known = _at_cells(depth, valid, logits.shape[-2:])
    position = (target.clamp_min(1e-6).log() - start) / step
    last = logits.shape[1] - 1
    known = known & (position >= 0) & (position <= last)
    # Where nothing is known the position may be NaN, which no index may be made of.
    position = torch.where(known, position, 0.0).clamp(0, last - 1e-3)
    lower = position.floor().long()
    fraction = position - lower
    log_probability = logits.log_softmax(1)
    below = log_probability.gather(1, lower[:, None])[:, 0]
    above = log_probability.gather(1, lower[:, None] + 1)[:, 0]
    return masked_mean(-(1 - fraction) * below - fraction * above, known)


def ray_loss(geometry: Geometry, cameras: Cameras) -> tuple[Tensor, Scalars]:
    """L1 between the predicted ray map and the true one (paper section 3.1): directions R K^-1 p and camera centres."""
    h, w = geometry.rays.shape[-3:-1]
    directions = (geometry.rays[..., :3].float() - pixel_rays(cameras, (h, w))).abs().mean()
    origins = (geometry.rays[..., 3:].float() - cameras.centers[..., None, None, :]).abs().mean()
    return directions + origins, {"ray_direction": directions, "ray_origin": origins}


def camera_loss(predicted: Cameras, cameras: Cameras) -> tuple[Tensor, Scalars]:
    """L_C of the paper without its field of view: L1 on centre and quaternion of camera-to-world (section 3.3)."""
    ours, true = encode_cameras(predicted).float(), encode_cameras(cameras).float()
    translation = (ours[..., :3] - true[..., :3]).abs().mean()
    # q and -q are the same rotation.
    cosine = (ours[..., 3:7] * true[..., 3:7]).sum(-1, keepdim=True)
    rotation = (torch.where(cosine < 0, -1.0, 1.0) * ours[..., 3:7] - true[..., 3:7]).abs().mean()
    degrees = torch.rad2deg(2 * cosine.detach().abs().clamp(max=1).acos()).mean()
    return translation + rotation, {"camera_t": translation, "camera_q": rotation, "camera_degrees": degrees}


def fov_loss(predicted: Cameras, cameras: Cameras) -> tuple[Tensor, Scalars]:
    """The rest of L_C: L1 on the vertical and horizontal field of view in radians.

    It is a loss of its own since it is several times as large: weighted alike, `nano` learns nothing of poses.
    """
    value = (encode_cameras(predicted)[..., 7:].float() - encode_cameras(cameras)[..., 7:].float()).abs().mean()
    return value, {"camera_fov": value}


def align_depth(source: Tensor, target: Tensor, valid: Tensor, refits: int = 2) -> tuple[Tensor, Tensor]:
    """Scale s > 0 and shift t [B, 1, 1, 1] with s * source + t near `target`, both [B, V, H, W], where `valid`.

    Least squares in closed form, then again on the inliers: those whose residual is no farther from the median residual
    than all are on average. That is the paper's criterion (section 4, teacher alignment), which it applies within
    RANSAC; this one is deterministic and never waits for the device. Gradients flow through the last fit.
    """
    inliers = valid
    with torch.no_grad():
        for _ in range(refits):
            scale, shift = _fit_line(source, target, inliers)
            residual = (scale * source + shift - target).masked_fill(~valid, torch.nan).flatten(1)
            away = (residual - residual.nanmedian(1, keepdim=True).values).abs()
            inliers = (away <= away.nanmean(1, keepdim=True)).view_as(valid)
    return _fit_line(source, target, inliers)


def _fit_line(source: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    weight = known.to(source.dtype)
    total = weight.sum((1, 2, 3), keepdim=True).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        # Where nothing is known the values may be NaN.
        return torch.where(known, values, 0.0).sum((1, 2, 3), keepdim=True) / total

    mean_source, mean_target = mean(source), mean(target)
    a, b = source - mean_source, target - mean_target
    var_source, var_target = mean(a * a).clamp_min(1e-12), mean(b * b).clamp_min(1e-12)
    # A negative slope would turn depth inside out; the least one allowed still passes a gradient on.
    least = 1e-3 * (var_target / var_source).sqrt().detach()
    scale = torch.maximum(mean(a * b) / var_source, least)
    return scale, mean_target - scale * mean_source


def ssi_depth_loss(depth: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Scalars]:
    """L_D + L_grad of predicted depth [B, V, H, W], free of scale and shift (paper sections 3.3, 5.1; MiDaS, 2020).

    One scale and shift per scene brings the prediction to `target`, a teacher's depth or the sparse one of structure
    from motion, known where `valid`; errors count in units of the target's spread, so its unit of length drops out too.
    """
    depth, target = depth.float(), target.float()
    scale, shift = align_depth(depth, target, valid)
    with torch.no_grad():
        known = target.masked_fill(~valid, torch.nan).flatten(1)
        away = (known - known.nanmedian(1, keepdim=True).values).abs()
        spread = away.nanmean(1)[:, None, None, None].nan_to_num(1.0).clamp_min(1e-6)
    difference = torch.where(valid, (scale * depth + shift - target) / spread, 0.0)
    value, slope = masked_mean(difference.abs(), valid), gradient_loss(difference, valid)
    return value + slope, {"ssi_depth": value, "ssi_depth_gradient": slope}


def gaussian_depth_loss(gaussians: Gaussians, cameras: Cameras, depth: Tensor, valid: Tensor) -> tuple[Tensor, Scalars]:
    """L1 on the log z-depth of each pixel's Gaussian [B, V*H*W] in its own view, counted by its opacity.

    Keeps the offsets of the Gaussian head on the surface; a Gaussian that is transparent may lie anywhere.
    """
    means = gaussians.means.unflatten(1, (depth.shape[1], -1))
    forward = cameras.w2c[..., 2, :3]
    z = (means * forward[:, :, None]).sum(-1) + cameras.w2c[..., None, 2, 3]
    error = (z.clamp_min(1e-4).log() - depth.flatten(2).clamp_min(1e-6).log()).abs()
    opacity = gaussians.opacities.detach().view_as(error)
    value = (error * opacity * valid.flatten(2)).sum() / valid.sum().clamp_min(1)
    return value, {"gaussian_depth": value}


def spread_loss(gaussians: Gaussians, cameras: Cameras, depth: Tensor | None, near: float) -> tuple[Tensor, Scalars]:
    """How far the splats that draw a pixel lie from its surface, along rays of views [B, T] that were not given.

    With z-depth z and weight w of each splat in a pixel, the mean of sum(w * (1 - cos(3 * log(z / d)))): about the
    squared error of log depth, which levels off three times too near or too far. d is `depth` [B, T, H, W]; where that
    is None or 0, what the pixel's splats agree on. Haze is splats that a ray meets at many depths. It saves squared
    error of colours, and costs here.
    """
    views = cameras.shape[1]
    # Each view sees other depths, so each is a scene of its own.
    alone = Cameras(cameras.w2c.flatten(0, 1)[:, None], cameras.K.flatten(0, 1)[:, None], cameras.size)
    copies = Gaussians(*(getattr(gaussians, f.name).repeat_interleave(views, 0) for f in fields(Gaussians)))
    forward = alone.w2c[:, 0, 2]
    z = (copies.means * forward[:, None, :3]).sum(-1) + forward[:, 3:]
    phase = SHARPNESS * z.clamp_min(near).log()
    waves = torch.stack([phase.cos(), phase.sin(), torch.zeros_like(phase)], -1)
    # As colours they are (wave + 1) / 2, since none is below 0.
    drawn = render(replace(copies, sh=(waves / 2 / C0)[:, :, None]), alone, near=near)
    alpha = drawn.alpha[:, 0]
    cosine, sine = (2 * drawn.color[:, 0, ..., i] - alpha for i in range(2))
    near_it = (cosine.square() + sine.square() + 1e-8).sqrt()
    if depth is not None:
        surface = depth.flatten(0, 1)
        angle = SHARPNESS * surface.clamp_min(near).log()
        near_it = torch.where(surface > 0, cosine * angle.cos() + sine * angle.sin(), near_it)
    value = (alpha - near_it).mean()
    return value, {"spread": value}


def mse_loss(color: Tensor, target: Tensor) -> tuple[Tensor, Scalars]:
    """Squared error of renders against pictures, both [N, 3, H, W] (L_MSE, paper section 5.3)."""
    per_image = (color - target).square().mean((1, 2, 3))
    value = per_image.mean()
    return value, {"mse": value, "psnr": (-10 * per_image.detach().clamp_min(1e-10).log10()).mean()}


def psnr_loss(color: Tensor, target: Tensor) -> tuple[Tensor, Scalars]:
    """Mean of log10 of the squared error of renders against pictures, both [N, 3, H, W]: minus a tenth of the PSNR.

    Each picture counts by its decibels, as scores do. In the squared error one that is wrong outweighs a hundred that
    are nearly right, and nobody asks those for their last detail. Levels off at 40 dB.
    """
    per_image = (color - target).square().mean((1, 2, 3))
    return (per_image + 1e-4).log10().mean(), {}


def ssim_loss(color: Tensor, target: Tensor) -> tuple[Tensor, Scalars]:
    """1 - SSIM of renders against pictures, both [N, 3, H, W]."""
    value = 1 - structural_similarity(color, target)
    return value, {"dssim": value}


def perceptual_loss(perceptual: nn.Module, color: Tensor, target: Tensor) -> tuple[Tensor, Scalars]:
    """LPIPS of renders against pictures, both [N, 3, H, W] (L_LPIPS, paper section 5.3); see splat/perceptual.py."""
    value = perceptual(color, target).mean()
    return value, {"lpips": value}


def opacity_loss(gaussians: Gaussians) -> tuple[Tensor, Scalars]:
    """Mean opacity: what no picture needs fades (3DGS as MCMC, Kheradmand et al. 2024, section 3.5)."""
    value = gaussians.opacities.mean()
    return value, {"opacity": value}


def scale_loss(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Scalars]:
    """Mean size of the Gaussians [B, V*H*W] over the distance from their own view [B, V]: an angle.

    The regulariser of 3DGS as MCMC (Kheradmand et al. 2024, section 3.5) without the scene's unit of length.
    """
    views = cameras.shape[1]
    means, scales = (x.unflatten(1, (views, -1)) for x in (gaussians.means, gaussians.scales))
    distance = torch.linalg.vector_norm(means.detach() - cameras.centers[:, :, None], dim=-1).clamp_min(1e-6)
    value = (scales.mean(-1) / distance).mean()
    return value, {"scale": value}
