"""3D Gaussians as one value: activated, in world coordinates, ready for a rasteriser."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from geometry.rotations import left_product_matrices, quats_from_matrices
from splat.sh import sh_basis


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians with any batch axes in front.

    Shapes: `means` [..., N, 3] world; `scales` [..., N, 3] linear standard deviations; `quats` [..., N, 4] unit, wxyz,
    local axes to world; `opacities` [..., N] in 0..1; `sh` [..., N, K, 3] spherical harmonics in the 3DGS real basis,
    K = (degree + 1)^2, colour = 0.5 + sum(sh * basis). Raises ValueError when shapes disagree.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    sh: Tensor

    def __post_init__(self):
        lead = self.means.shape[:-1]
        want = {"means": (*lead, 3), "scales": (*lead, 3), "quats": (*lead, 4), "opacities": (*lead,)}
        for name, shape in want.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"Gaussians.{name} must be {shape}, got {tuple(getattr(self, name).shape)}")
        bands = self.sh.shape[-2] if self.sh.ndim >= 2 else 0
        if self.sh.shape[:-2] != lead or self.sh.shape[-1] != 3 or bands not in (1, 4, 9, 16):
            raise ValueError(f"Gaussians.sh must be {(*lead, '1|4|9|16', 3)}, got {tuple(self.sh.shape)}")

    @property
    def count(self) -> int:
        """N, the number of Gaussians in each batch element."""
        return self.means.shape[-2]

    @property
    def sh_degree(self) -> int:
        return {1: 0, 4: 1, 9: 2, 16: 3}[self.sh.shape[-2]]

    def to(self, *args, **kwargs) -> Gaussians:
        return Gaussians(*(getattr(self, f.name).to(*args, **kwargs) for f in fields(self)))

    def select(self, index) -> Gaussians:
        """The Gaussians at `index` along N (a mask, slice or index tensor); batch axes are kept."""
        lead = (slice(None),) * (self.means.ndim - 2)
        return Gaussians(*(getattr(self, f.name)[(*lead, index)] for f in fields(self)))


def join(*parts: Gaussians) -> Gaussians:
    """All Gaussians of `parts` [..., N_i] as one [..., sum of N_i]; batch axes and bands must be equal."""
    axis = parts[0].means.ndim - 2
    return Gaussians(*(torch.cat([getattr(part, f.name) for part in parts], axis) for f in fields(Gaussians)))


def transform(gaussians: Gaussians, rotation: Tensor, translation: Tensor, scale: Tensor | float = 1.0) -> Gaussians:
    """Gaussians after the world is moved by the similarity x -> scale * rotation @ x + translation.

    With cameras moved alike (`geometry.cameras.transform`) pictures stay the same and depths grow by `scale`.
    Shapes: `rotation` [..., 3, 3], `translation` [..., 3], `scale` (a number or [...]), broadcast to the batch axes.
    """
    scale = torch.as_tensor(scale, dtype=gaussians.means.dtype, device=gaussians.means.device)
    rotation, translation = rotation.to(gaussians.means), translation.to(gaussians.means)
    turn = left_product_matrices(quats_from_matrices(rotation))
    return Gaussians(
        means=scale[..., None, None] * (gaussians.means @ rotation.transpose(-1, -2)) + translation[..., None, :],
        scales=scale[..., None, None] * gaussians.scales,
        quats=gaussians.quats @ turn.transpose(-1, -2),
        opacities=gaussians.opacities,
        sh=_turn_sh(gaussians.sh, _sh_rotation(rotation, gaussians.sh_degree)),
    )


def _turn_sh(sh: Tensor, turn: Tensor) -> Tensor:
    """Coefficients [..., N, K, 3] turned by [..., K, K], in one product: N small ones take several times as long."""
    colors = torch.kron(turn, torch.eye(3).to(turn))
    return (sh.flatten(-2) @ colors.transpose(-1, -2)).unflatten(-1, sh.shape[-2:])


def _sh_rotation(rotation: Tensor, degree: int) -> Tensor:
    """Matrices [..., K, K] on SH coefficients: the rotated colour at direction d is the old one at R^T d."""
    # The bands of a degree are closed under rotation, so any 64 directions in general position determine the matrix.
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=-1)
    directions = directions.to(rotation.device)
    before = sh_basis(directions @ rotation.double(), degree)
    return (torch.linalg.pinv(sh_basis(directions, degree)) @ before).to(rotation)
