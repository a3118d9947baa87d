"""How a scene is drawn: which Gaussians, which picture of them, and the smaller set that a browser draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.rotations import matrices_from_quats
from splat.gaussians import Gaussians
from splat.render import Render, render
from splat.sh import sh_to_color
from splat.video import color_depth, depth_range
from viewer.exhibit import Exhibit

Kind = Literal["color", "depth", "alpha"]
# Below this opacity a pixel shows background rather than scene, and its depth is none.
_SEEN = 0.5
# A Gaussian that stands for many is widened by this factor at most.
_WIDEN = 3.0
# In the page's unit. The page draws nothing beyond 1000, and covariances above 65504 are too large for it.
_FAR = 250.0


@dataclass(frozen=True)
class Look:
    """Thresholds and colours of a view.

    `opacity` 0..1 and `confidence` (a share 0..1 of the Gaussians, the least sure first) hide Gaussians; `degree` cuts
    the spherical harmonics; `near`, in typical distances of the scene, clips; `backdrop` shows the sphere behind a
    scene that has one, `background`, RGB in 0..1, is what is seen where nothing is.
    """

    kind: Kind = "color"
    opacity: float = 0.0
    confidence: float = 0.0
    degree: int = 3
    near: float = 0.01
    backdrop: bool = True
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def choice(self) -> tuple:
        """The values that `shown` reads: as long as they stay, so do the Gaussians that are drawn."""
        return self.opacity, self.confidence, self.degree, self.backdrop


class BrowserSplats(NamedTuple):
    """What viser draws, float32: `centers` [N, 3], `covariances` [N, 3, 3], `rgbs` [N, 3] and `opacities` [N, 1]."""

    centers: np.ndarray
    covariances: np.ndarray
    rgbs: np.ndarray
    opacities: np.ndarray


def shown(exhibit: Exhibit, look: Look) -> Gaussians:
    """The Gaussians that the thresholds leave, with spherical harmonics up to the degree asked for."""
    gaussians = exhibit.gaussians
    keep = gaussians.opacities >= look.opacity
    confidence = exhibit.splat_confidence
    if look.confidence > 0 and confidence is not None:
        ranked = confidence.to(keep.device)
        cut = ranked.sort().values[min(int(look.confidence * len(ranked)), len(ranked) - 1)]
        keep[: len(ranked)] &= ranked >= cut
    if not look.backdrop:
        keep[len(keep) - exhibit.backdrop :] = False
    if not bool(keep.all()):
        gaussians = gaussians.select(keep)
    bands = (min(look.degree, gaussians.sh_degree) + 1) ** 2
    return Gaussians(
        *(getattr(gaussians, name) for name in ("means", "scales", "quats", "opacities")), gaussians.sh[:, :bands]
    )


def rendered(exhibit: Exhibit, gaussians: Gaussians, camera: Cameras, look: Look) -> Render:
    """What one camera [1] sees of `gaussians`, on the background of the look, clipped at its near distance."""
    device = gaussians.means.device
    background = torch.tensor(look.background, device=device)
    with torch.no_grad():
        return render(gaussians, camera.to(device), background, near=max(look.near, 1e-4) * exhibit.distance)


def picture(exhibit: Exhibit, gaussians: Gaussians, camera: Cameras, look: Look) -> np.ndarray:
    """uint8 RGB [H, W, 3] from one camera [1]: colour, colour-mapped depth, or alpha as grey."""
    seen = rendered(exhibit, gaussians, camera, look)
    if look.kind == "alpha":
        return np.repeat(_to_uint8(seen.alpha[0])[..., None], 3, axis=2)
    if look.kind == "depth":
        depth = torch.where(seen.alpha[0] > _SEEN, seen.depth[0], 0)
        near, far = exhibit.depth_range or depth_range(depth)
        return color_depth(depth, near, far)
    return _to_uint8(seen.color[0])


def thin(gaussians: Gaussians, most: int) -> Gaussians:
    """At most `most` Gaussians, evenly from everywhere, with a chance in proportion to opacity x size.

    Those that stand for others of their kind are widened so that together they cover as much as before. On a scene of
    150,000 this gives, with a quarter of them, a picture within 32 dB of the whole; the quarter with the largest
    opacity x size gives 11 dB, all of it floaters. The same scene gives the same choice.
    """
    if gaussians.count <= most:
        return gaussians
    # What a Gaussian covers seen face on is a product of two deviations; its root is a size.
    size = gaussians.scales.topk(2, dim=-1).values.prod(-1).sqrt()
    chance = _chances((gaussians.opacities * size).double(), most)
    steps = chance.cumsum(0).floor()
    kept = steps.diff(prepend=steps.new_zeros(1)) > 0
    chosen = gaussians.select(kept)
    wider = chance[kept].clamp_min(_WIDEN**-2).rsqrt().to(chosen.scales)
    return Gaussians(chosen.means, chosen.scales * wider[:, None], chosen.quats, chosen.opacities, chosen.sh)


def _chances(weights: Tensor, total: int) -> Tensor:
    """Probabilities [N] in proportion to `weights` [N], none above 1, that sum to `total` at most."""
    chance = weights * (total / weights.sum().clamp_min(1e-30))
    for _ in range(20):
        full = chance >= 1
        rest = weights[~full].sum()
        if not bool(full.any()) or float(rest) == 0:
            break
        chance = torch.where(full, 1.0, weights * ((total - int(full.sum())) / rest))
    return chance.clamp(max=1.0)


def browser_splats(gaussians: Gaussians, eye: Tensor, scale: float) -> BrowserSplats:
    """Splats in the page's unit (`scale` of the world's), in one colour each: the one seen from `eye` [3].

    Those farther from there than 250 are brought to within 500, in their order, and made smaller alike: from `eye` they
    look as before.
    """
    gaussians = gaussians.to("cpu", torch.float32)
    eye = eye.to(gaussians.means)
    away = gaussians.means - eye
    directions = torch.nn.functional.normalize(away, dim=-1)
    rgbs = sh_to_color(gaussians.sh, directions).clamp(0, 1)
    distance = scale * torch.linalg.vector_norm(away, dim=-1, keepdim=True)
    nearer = scale * torch.where(distance > _FAR, _FAR * (2 - _FAR / distance) / distance, 1.0)
    half = matrices_from_quats(gaussians.quats) * (nearer * gaussians.scales)[:, None, :]
    covariances = half @ half.transpose(-1, -2)
    centers = scale * eye + nearer * away
    return BrowserSplats(centers.numpy(), covariances.numpy(), rgbs.numpy(), gaussians.opacities[:, None].numpy())


def drawn_line(total: int, left: int, drawn: int) -> str:
    """How many Gaussians the browser draws, and why not all."""
    line = f"{total:,} Gaussians"
    if left < total:
        line += f", {left:,} above the thresholds"
    if drawn < left:
        line += f"; the browser draws {drawn:,} of them, chosen by opacity x size; the server renders all"
    return line


def _to_uint8(values: Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * 255).round().byte().cpu().numpy()
