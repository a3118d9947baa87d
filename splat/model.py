"""Photographs to Gaussians: the geometry network with a Gaussian head and the adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.network import Features, Geometry, GeometryNetwork, normalize_images
from geometry.presets import NetworkConfig
from splat import checkpoint
from splat.adapter import adapt
from splat.gaussians import Gaussians
from splat.gs_head import GaussianHead


class GaussianModel(GeometryNetwork):
    """`GeometryNetwork` that also makes Gaussians, where its configuration has a Gaussian head.

    Geometry alone comes from `geometry`, which never computes the Gaussian parts. All results are in the frame and unit
    of the network: the normalised cameras, or the reference view's frame without any.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__(config)
        self.gs_head = None if config.gs is None else GaussianHead(2 * config.backbone.dim, config.gs)

    def forward(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        *,
        reference_view: str = "saddle_balanced",
        rays: bool = False,
    ) -> tuple[Geometry, Gaussians]:
        """Geometry of images [B, V, 3, H, W] in [0, 1] and a Gaussian per pixel [B, V*H*W]; options as for `encode`."""
        features = self.encode(images, cameras, reference_view=reference_view)
        geometry = self.decode(features, rays=rays)
        return geometry, self.gaussians(features, geometry)

    def geometry(self, images: Tensor, cameras: Cameras | None = None, **options) -> Geometry:
        """What `GeometryNetwork.forward` gives: depth, confidence and cameras, no Gaussians."""
        return super().forward(images, cameras, **options)

    def gaussians(self, features: Features, geometry: Geometry) -> Gaussians:
        """Gaussians [B, V*H*W] of what `encode` and `decode` gave. ValueError if the network has no Gaussian head."""
        if self.gs_head is None:
            raise ValueError(
                f"{self.config.name!r} has no Gaussian head, it gives geometry only; for Gaussians take nano or giant"
            )
        with self.head_precision(features.images):
            raw, opacity = self.gs_head(features.patches, normalize_images(features.images), lateral=features.lateral)
        return adapt(
            raw,
            opacity,
            geometry.depth,
            geometry.cameras,
            self.config.gs,
            given=features.cameras,
            images=features.images,
        )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> GaussianModel:
        """The model in evaluation mode, on the CPU, in float32.

        `source` is a preset's name (downloaded on first use), a Hugging Face repository "owner/name", a folder with
        config.json and model.safetensors, or a .safetensors file with a configuration beside it. ValueError or OSError
        in one line for what cannot be loaded: every parameter must be there, and nothing else.
        """
        path, config = checkpoint.locate(source)
        # Parameters are taken from the file, so none need be allocated or initialised before.
        with torch.device("meta"):
            model = cls(config)
        checkpoint.load_into(model, path)
        checkpoint.show_licence(config)
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors (stored as `dtype`) into `folder`, each whole or not at all."""
        checkpoint.save(self, self.config, Path(folder), dtype)
