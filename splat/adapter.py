"""Raw values of the Gaussian head, depth and cameras to Gaussians in the world (paper section 3.4).

Raw channels: xy offset in pixels (2), scale logits (3), quaternion x, y, z, w in the camera (4), spherical harmonics,
colour-major (3 * bases), depth offset (1). One field, `convention`, says how they are read:

- "exact": depth is z-depth, as everywhere else, and orientations turn with their camera. The depth offset is a factor,
  so that nothing depends on the unit of length, and both offsets are bounded: an unbounded one, once it has sent
  Gaussians where no camera sees them, gets no gradient to bring them back. For networks trained here.
- "upstream": what the published weights were trained with. Depth is the distance along the ray, and quaternions are
  rolled by one place before and after they are turned, so they are only right for a camera that is not rotated. Where
  the caller gave cameras, depth and the predicted camera centres are brought to the scale of those.

Everything that depends on a view alone is computed once per view; a pixel costs two small matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from geometry.cameras import Cameras, invert_intrinsics
from geometry.compiled import kernels
from geometry.presets import GaussianHeadConfig
from geometry.rotations import left_product_matrices, quats_from_matrices
from geometry.tables import cached_table
from splat.gaussians import Gaussians
from splat.sh import C0

MAX_OFFSET = 4.0  # pixels that "exact" moves a Gaussian sideways, at most
MAX_LOG_OFFSET = 0.4  # and in the logarithm of its depth
SHORTEST = 1e-8  # quaternion that is brought to length 1; shorter ones are divided by this
BAND_WEIGHT = (1.0, 0.025, 0.00625)  # raw harmonics of bands 0, 1, 2 are multiplied by these


def adapt(
    raw: Tensor,
    opacity: Tensor,
    depth: Tensor,
    cameras: Cameras,
    config: GaussianHeadConfig,
    *,
    given: Cameras | None = None,
    images: Tensor | None = None,
) -> Gaussians:
    """Gaussians [B, V*H*W] in the frame of `cameras`, pixels in the order view, row, column.

    Shapes: `raw` [B, V, H, W, C]; `opacity` [B, V, H, W] in 0..1; `depth` [B, V, H, W]; `cameras` [B, V] at (H, W).
    `given` [B, V] are the caller's cameras, read by "upstream" only; `images` [B, V, 3, H, W] in [0, 1] are needed for
    `config.rgb_residual`. ValueError for shapes that do not fit.
    """
    batch, views, height, width, channels = raw.shape
    if channels != config.channels:
        raise ValueError(f"raw must have {config.channels} channels for sh_degree {config.sh_degree}, got {channels}")
    if cameras.shape != (batch, views) or tuple(cameras.size) != (height, width):
        raise ValueError(
            f"cameras must be {(batch, views)} at {(height, width)}, got {tuple(cameras.shape)} at {cameras.size}"
        )
    if config.rgb_residual and images is None:
        raise ValueError("config.rgb_residual adds the pixels' colours, so images must be given")
    # Autocast would round camera matrices and world coordinates.
    with torch.autocast(raw.device.type, enabled=False):
        inputs = raw, opacity, depth, cameras, config, images
        # What is compiled takes eight pixels of a row at once, and the "exact" convention for granted.
        if config.convention == "exact" and raw.device.type == "cpu" and width >= 8 and not _gradient_wanted(*inputs):
            return kernels("adapter", "splat").compiled_gaussians(*inputs)
        return reference_gaussians(*inputs, given)


def reference_gaussians(
    raw: Tensor,
    opacity: Tensor,
    depth: Tensor,
    cameras: Cameras,
    config: GaussianHeadConfig,
    images: Tensor | None = None,
    given: Cameras | None = None,
) -> Gaussians:
    """`adapt` in plain PyTorch, of inputs that fit, outside autocast."""
    raw = raw.float().flatten(2, 3)
    offset, scale, quat, sh, depth_offset = raw.split((2, 3, 4, 3 * config.sh_bases, 1), -1)
    z = depth.float().flatten(2)[..., None]
    if config.convention == "exact":
        offset = MAX_OFFSET * torch.tanh(offset / MAX_OFFSET)
        z = z * torch.exp(MAX_LOG_OFFSET * torch.tanh(depth_offset / MAX_LOG_OFFSET))
    c2w, K_inverse = cameras.c2w.float(), invert_intrinsics(cameras.K.float())
    rotation, centers = c2w[..., :3, :3], c2w[..., :3, 3]

    directions = _directions(offset, cameras.size, rotation @ K_inverse)
    if config.convention == "upstream":
        z = z + depth_offset
        directions = F.normalize(directions, dim=-1)
        if given is not None:
            unit = pose_scale(centers, given.centers).clamp(1 / 3, 3)[:, None, None]
            centers, z = centers * unit, z * unit[..., None]

    scales = config.scale_min + (config.scale_max - config.scale_min) * torch.sigmoid(scale)
    sh = (sh @ _harmonics_matrix(rotation, config.sh_degree)).unflatten(-1, (config.sh_bases, 3))
    if config.rgb_residual:
        sh[..., 0, :] += (images.float().flatten(3).transpose(2, 3) - 0.5) / C0
    return Gaussians(
        means=(centers[:, :, None] + directions * z).flatten(1, 2),
        scales=(scales * z * footprint(K_inverse)[..., None, None]).flatten(1, 2),
        quats=(F.normalize(quat, dim=-1, eps=SHORTEST) @ quat_matrix(rotation, config.convention)).flatten(1, 2),
        opacities=opacity.float().flatten(1),
        sh=sh.flatten(1, 2),
    )


def _gradient_wanted(raw, opacity, depth, cameras, config, images) -> bool:
    tensors = [raw, opacity, depth, cameras.w2c, cameras.K, *([images] if config.rgb_residual else [])]
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def pose_scale(source: Tensor, target: Tensor) -> Tensor:
    """Scale [B] of the similarity that best takes camera centres `source` [B, V, 3] to `target` (Umeyama, 1991).

    For two views and for collinear ones it is the ratio of their baselines or its least-squares likeness; 1 where all
    centres of either set coincide, hence for a single view. No gradient.
    """
    with torch.no_grad():
        x = source.double() - source.double().mean(1, keepdim=True)
        y = target.double() - target.double().mean(1, keepdim=True)
        C = y.transpose(1, 2) @ x
        # The scale is s1 + s2 +- s3 over the spread of x, s the singular values of C and the sign that of its
        # determinant. All follow from the largest eigenvalue of C^T C and two invariants, so no decomposition has to
        # sync with the host.
        A = C.transpose(1, 2) @ C
        cofactors = torch.linalg.cross(C, C.roll(-1, 1), dim=-1)
        det = (C[:, 2] * cofactors[:, 0]).sum(-1)
        mean = A.diagonal(dim1=1, dim2=2).mean(-1)
        centered = A - mean[:, None, None] * torch.eye(3, dtype=A.dtype, device=A.device)
        p = (centered.square().sum((1, 2)) / 6).sqrt().clamp_min(1e-300)
        centered = centered / p[:, None, None]
        half_det = (centered[:, 2] * torch.linalg.cross(centered[:, 0], centered[:, 1], dim=-1)).sum(-1) / 2
        largest = (mean + 2 * p * torch.cos(torch.acos(half_det.clamp(-1, 1)) / 3)).clamp_min(1e-300)
        s1 = largest.sqrt()
        rest = (cofactors.square().sum((1, 2)) - det.square() / largest) / largest + 2 * det / s1
        spread = x.square().sum((1, 2))
        scale = (s1 + rest.clamp_min(0).sqrt()) / spread.clamp_min(1e-300)
        degenerate = torch.minimum(spread, y.square().sum((1, 2))) < 1e-12
        return torch.where(degenerate, 1.0, scale).to(source.dtype)


def _directions(offset: Tensor, size: tuple[int, int], to_world: Tensor) -> Tensor:
    """World directions [B, V, H*W, 3] of unit camera z through pixels moved by `offset` [B, V, H*W, 2]."""
    height, width = size
    y = torch.arange(height, device=offset.device).repeat_interleave(width) + 0.5
    x = torch.arange(width, device=offset.device).repeat(height) + 0.5
    pixels = torch.stack([x, y], -1) + offset
    to_world = to_world.transpose(-1, -2)
    return pixels @ to_world[..., :2, :] + to_world[..., 2:, :]


def footprint(K_inverse: Tensor) -> Tensor:
    """The unit of scales [B, V] at unit depth: 0.1 (1 / fx + 1 / fy), a fifth of a pixel."""
    return 0.1 * (K_inverse[..., 0, 0] + K_inverse[..., 1, 1])


def quat_matrix(rotation: Tensor, convention: str) -> Tensor:
    """Matrices [B, V, 4, 4] that take a raw quaternion (a row) to a world quaternion wxyz (a row)."""
    product = left_product_matrices(quats_from_matrices(rotation))
    if convention == "exact":
        return product.roll(-1, -1).transpose(-1, -2)
    return product.roll(-2, -1).roll(-1, -2).transpose(-1, -2)


def _harmonics_matrix(rotation: Tensor, degree: int) -> Tensor:
    """Matrices [B, V, 3K, 3K] that take raw harmonics (a row, colour-major) to weighted ones in the world, [K, 3]."""
    colors = torch.eye(3, device=rotation.device)
    return torch.einsum("...ij,cd->...cjid", weighted_turn(rotation, degree), colors).flatten(-2).flatten(-3, -2)


def weighted_turn(rotation: Tensor, degree: int) -> Tensor:
    """Matrices [B, V, K, K] that take the raw harmonics of a colour (a column) to weighted ones in the world."""
    bases = (degree + 1) ** 2
    turn = torch.zeros(*rotation.shape[:-2], bases, bases, device=rotation.device)
    for band, block in enumerate(sh_rotation(rotation, degree)):
        turn[..., band**2 : (band + 1) ** 2, band**2 : (band + 1) ** 2] = BAND_WEIGHT[band] * block
    return turn


def sh_rotation(rotation: Tensor, degree: int) -> list[Tensor]:
    """Blocks [..., 2l + 1, 2l + 1] for bands l = 0..degree <= 2 that turn harmonics by R [..., 3, 3], 3DGS real basis.

    The turned function at direction d equals the first one at R^T d.
    """
    axes, forms = _sh_bases(rotation.device)
    blocks = [torch.ones_like(rotation[..., :1, :1])]
    if degree >= 1:
        blocks.append(axes @ rotation @ axes.T)
    if degree >= 2:
        turned = rotation[..., None, :, :] @ forms @ rotation[..., None, :, :].transpose(-1, -2)
        norm = forms[0].square().sum()
        blocks.append(torch.einsum("axy,...bxy->...ab", forms, turned) / norm)
    return blocks


@cached_table
def _sh_bases(device: torch.device) -> tuple[Tensor, Tensor]:
    """Band 1 as signed axes [3, 3] (-y, z, -x), and band 2 as symmetric forms [5, 3, 3] of equal norm."""
    axes = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    forms = torch.zeros(5, 3, 3)
    for i, (row, column) in {0: (0, 1), 1: (1, 2), 3: (0, 2)}.items():
        forms[i, row, column] = forms[i, column, row] = 1 if i == 0 else -1
    forms[2] = torch.diag(torch.tensor([-1.0, -1.0, 2.0]) / 3**0.5)
    forms[4] = torch.diag(torch.tensor([1.0, -1.0, 0.0]))
    return axes.to(device), forms.to(device)
