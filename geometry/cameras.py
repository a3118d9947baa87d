"""Pinhole cameras as one value, and the algebra on them.

Frame: OpenCV, x right, y down, z forward. `w2c` maps world points into the camera, `K` is in pixels and the
centre of the top left pixel lies at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras that share one image size.

    Shapes: `w2c` [..., 4, 4] world-to-camera, `K` [..., 3, 3] in pixels, `size` (height, width) in pixels.
    Raises ValueError when shapes disagree; values are checked by `validate`, because that reads the device.
    """

    w2c: Tensor
    K: Tensor
    size: tuple[int, int]

    def __post_init__(self):
        if self.w2c.shape[-2:] != (4, 4):
            raise ValueError(f"Cameras.w2c must be [..., 4, 4], got {tuple(self.w2c.shape)}")
        if self.K.shape[-2:] != (3, 3):
            raise ValueError(f"Cameras.K must be [..., 3, 3], got {tuple(self.K.shape)}")
        if self.w2c.shape[:-2] != self.K.shape[:-2]:
            raise ValueError(
                f"Cameras.w2c and Cameras.K disagree on the batch: {tuple(self.w2c.shape)} and {tuple(self.K.shape)}"
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"Cameras.size must be (height, width) in pixels, got {self.size}")

    @property
    def shape(self) -> torch.Size:
        """The batch shape, for example [B, V]."""
        return self.w2c.shape[:-2]

    @property
    def c2w(self) -> Tensor:
        """Camera-to-world matrices [..., 4, 4]; the rotation is taken as orthonormal."""
        return invert_rigid(self.w2c)

    @property
    def centers(self) -> Tensor:
        """Camera centres in the world [..., 3]."""
        return self.c2w[..., :3, 3]

    def __getitem__(self, index) -> Cameras:
        """Index the batch axes, `cameras[:, :4]` for instance."""
        return Cameras(self.w2c[index], self.K[index], self.size)

    def to(self, *args, **kwargs) -> Cameras:
        return Cameras(self.w2c.to(*args, **kwargs), self.K.to(*args, **kwargs), self.size)


def invert_rigid(matrix: Tensor) -> Tensor:
    """Inverse [..., 4, 4] of rigid transforms [..., 4, 4], without a general matrix inverse."""
    rotation_t = matrix[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(matrix)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -(rotation_t @ matrix[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def invert_intrinsics(K: Tensor) -> Tensor:
    """Inverse [..., 3, 3] of upper triangular intrinsics [..., 3, 3] in closed form, which needs no host sync."""
    fx, fy, skew = K[..., 0, 0], K[..., 1, 1], K[..., 0, 1]
    cx, cy = K[..., 0, 2], K[..., 1, 2]
    inverse = torch.zeros_like(K)
    inverse[..., 0, 0] = 1 / fx
    inverse[..., 0, 1] = -skew / (fx * fy)
    inverse[..., 0, 2] = (skew * cy - cx * fy) / (fx * fy)
    inverse[..., 1, 1] = 1 / fy
    inverse[..., 1, 2] = -cy / fy
    inverse[..., 2, 2] = 1
    return inverse


def resize(cameras: Cameras, size: tuple[int, int]) -> Cameras:
    """The same cameras with their images resampled to `size` (height, width)."""
    scale_y, scale_x = size[0] / cameras.size[0], size[1] / cameras.size[1]
    scale = cameras.K.new_tensor([scale_x, scale_y, 1.0])
    return Cameras(cameras.w2c, cameras.K * scale[:, None], tuple(size))


def crop(cameras: Cameras, top: int, left: int, size: tuple[int, int]) -> Cameras:
    """The same cameras after cutting the window of `size` (height, width) whose corner is (top, left)."""
    K = cameras.K.clone()
    K[..., 0, 2] -= left
    K[..., 1, 2] -= top
    return Cameras(cameras.w2c, K, tuple(size))


def transform(cameras: Cameras, rotation: Tensor, translation: Tensor, scale: Tensor | float = 1.0) -> Cameras:
    """Cameras after the world is moved by the similarity x -> scale * rotation @ x + translation.

    Shapes: `rotation` [..., 3, 3] and `translation` [..., 3], broadcast against the cameras; `scale` a number or [...].
    """
    scale = torch.as_tensor(scale, dtype=cameras.w2c.dtype, device=cameras.w2c.device)
    w2c = torch.zeros_like(cameras.w2c)
    new_rotation = cameras.w2c[..., :3, :3] @ rotation.transpose(-1, -2)
    w2c[..., :3, :3] = new_rotation
    w2c[..., :3, 3] = scale[..., None] * cameras.w2c[..., :3, 3] - (new_rotation @ translation[..., None])[..., 0]
    w2c[..., 3, 3] = 1
    return Cameras(w2c, cameras.K, cameras.size)


def relative_to_first(cameras: Cameras) -> Cameras:
    """Cameras [..., V] in the frame of each batch element's first view."""
    return Cameras(cameras.w2c @ invert_rigid(cameras.w2c[..., :1, :, :]), cameras.K, cameras.size)


def pixel_rays(cameras: Cameras, size: tuple[int, int] | None = None) -> Tensor:
    """World directions [..., h, w, 3] through the pixel centres of a grid of `size` (default: the image).

    Directions have unit z in the camera, so `center + z_depth * direction` is the point seen (paper section 3.1).
    """
    h, w = size or cameras.size
    device, dtype = cameras.K.device, cameras.K.dtype
    y = (torch.arange(h, device=device, dtype=dtype) + 0.5) * (cameras.size[0] / h)
    x = (torch.arange(w, device=device, dtype=dtype) + 0.5) * (cameras.size[1] / w)
    v, u = torch.meshgrid(y, x, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    to_world = cameras.w2c[..., :3, :3].transpose(-1, -2) @ invert_intrinsics(cameras.K)
    return torch.einsum("...ij,hwj->...hwi", to_world, pixels)


def unproject(depth: Tensor, cameras: Cameras) -> Tensor:
    """World points [..., H, W, 3] at z-depth [..., H, W]."""
    rays = pixel_rays(cameras, depth.shape[-2:])
    return cameras.centers[..., None, None, :] + depth[..., None] * rays


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Pixels [..., N, 2] and z-depth [..., N] of world points [..., N, 3] (broadcast against the cameras' batch)."""
    local = points @ cameras.w2c[..., :3, :3].transpose(-1, -2) + cameras.w2c[..., None, :3, 3]
    image = local @ cameras.K.transpose(-1, -2)
    return image[..., :2] / image[..., 2:].clamp_min(1e-8), local[..., 2]


def validate(cameras: Cameras, names: list[str] | None = None, tolerance: float = 1e-3) -> None:
    """Raise ValueError naming the first camera [V] that is not usable: NaN, no rotation, or a focal length <= 0.

    This reads the values on the host; call it where data enters, never in a loop over steps.
    """
    w2c, K = cameras.w2c.detach().double().cpu(), cameras.K.detach().double().cpu()
    w2c, K = w2c.reshape(-1, 4, 4), K.reshape(-1, 3, 3)
    rotation = w2c[:, :3, :3]
    error = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    determinant = torch.linalg.det(rotation)
    # Not `error > tolerance`: a NaN must count as bad.
    good = (error <= tolerance) & (determinant > 0) & (K[:, 0, 0] > 0) & (K[:, 1, 1] > 0)
    good &= torch.isfinite(w2c).all((1, 2)) & torch.isfinite(K).all((1, 2))
    for i in (~good).nonzero()[:1, 0].tolist():
        name = names[i] if names else f"camera {i}"
        if not bool(torch.isfinite(w2c[i]).all()):
            raise ValueError(f"{name}: its pose holds NaN or infinity; remove the image or fix the pose")
        if not bool(torch.isfinite(K[i]).all()):
            raise ValueError(f"{name}: its intrinsics hold NaN or infinity; fix fx, fy, cx, cy")
        if not (float(error[i]) <= tolerance and float(determinant[i]) > 0):
            raise ValueError(
                f"{name}: the upper 3x3 of its pose is not a rotation (error {float(error[i]):.2g}, "
                f"det {float(determinant[i]):.3g}); poses must be rigid, without scale or mirror"
            )
        raise ValueError(f"{name}: focal length {float(K[i, 0, 0]):g}, {float(K[i, 1, 1]):g} px must be above 0")
