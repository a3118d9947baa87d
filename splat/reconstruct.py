"""Photographs to one scene of Gaussians, in the frame and the unit of the cameras that were given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.exposure import evened
from splat.asked import Model
from splat.gaussians import Gaussians
from splat.predict import predict


@dataclass(frozen=True)
class Reconstruction:
    """One scene: `gaussians` [N] and, for each of V input views, `cameras` [V], z-`depth` and `confidence` [V, H, W].

    All in one world: that of the given cameras, else the first view's, in metres or the network's unit of length.
    `images` [V, 3, H, W] are the inputs in [0, 1], `names` theirs; `weights` names the network and its licence; `notes`
    are what the user should know. Networks that see sky give `sky` [V, H, W], about 1 there; those that see each image
    alone give no `confidence`. `metres` is the length of the unit where it is known. `backdrop` of the Gaussians, the
    last ones, are of the sphere behind all others (`splat.backdrop`). `exposure` [V, 3] is how much brighter each image
    is than all are on average, where the Gaussians have that average (`geometry.exposure`). Tensors are where the
    network ran.
    """

    gaussians: Gaussians
    cameras: Cameras
    depth: Tensor
    confidence: Tensor | None
    images: Tensor
    names: tuple[str, ...]
    weights: str
    notes: tuple[str, ...] = ()
    sky: Tensor | None = None
    metres: float | None = None
    backdrop: int = 0
    exposure: Tensor | None = None

    @property
    def evened(self) -> Tensor:
        """The images [V, 3, H, W] as the Gaussians show them: at one exposure."""
        return self.images if self.exposure is None else evened(self.images, self.exposure)

    def to(self, device: torch.device | str) -> Reconstruction:
        tensors = ("gaussians", "cameras", "depth", "confidence", "images", "sky", "exposure")
        present = (name for name in tensors if getattr(self, name) is not None)
        return replace(self, **{name: getattr(self, name).to(device) for name in present})

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write scene.ply, cameras.json, depth/, contact.png and orbit.mp4 to `folder`; see `splat.outputs.save`."""
        from splat.outputs import save

        save(self, folder, overwrite)


def reconstruct(
    images: Tensor, cameras: Cameras | None, model: Model, names: tuple[str, ...] | None = None, **options
) -> Reconstruction:
    """Reconstruct one scene from images [V, 3, H, W] in [0, 1] and their cameras [V], or None to have them predicted.

    `options` are those of `splat.predict.predict`, which raises what it says there.
    """
    seen = predict(images, cameras, model, **options)
    return Reconstruction(
        gaussians=seen.gaussians,
        cameras=seen.cameras,
        depth=seen.depth,
        confidence=seen.confidence,
        images=images.to(seen.depth),
        names=names or tuple(f"{i:04d}" for i in range(len(images))),
        weights=f"{model.config.name} ({model.config.licence})",
        notes=seen.notes,
        sky=seen.sky,
        metres=seen.metres,
        backdrop=seen.backdrop,
        exposure=seen.exposure,
    )
