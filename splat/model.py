"""The models by kind, and weights into them.

| kind              | of                                     | gives                                                 |
|-------------------|----------------------------------------|-------------------------------------------------------|
| `GaussianModel`   | nano, small, base, large, giant        | `Geometry`; `Gaussians` too, of nano and giant        |
| `NestedModel`     | nested (giant, and metric beside it)   | both in metres                                        |
| `MonocularModel`  | mono, metric                           | `MonocularGeometry`, each image alone                 |
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from geometry.cameras import Cameras
from geometry.cue import neighbors
from geometry.metric import in_metres
from geometry.monocular import MonocularNetwork
from geometry.network import Features, Geometry, GeometryNetwork, normalize_images
from geometry.precision import of_heads
from geometry.presets import ModelConfig, MonocularConfig, NestedConfig, NetworkConfig
from geometry.reprojection import reproject
from splat import checkpoint
from splat.adapter import adapt
from splat.backdrop import backdrop
from splat.correction import look_back
from splat.gaussians import Gaussians, join
from splat.gs_head import GaussianHead

Kind = TypeVar("Kind", bound="Pretrained")


class Pretrained:
    """Loading and saving, the same for every kind of model."""

    config: ModelConfig

    @classmethod
    def from_pretrained(cls: type[Kind], source: str | Path) -> Kind:
        """As `splat.model.from_pretrained`; ValueError if `source` holds another kind of model."""
        path, config = checkpoint.locate(source)
        kind = KINDS[type(config)]
        if not issubclass(kind, cls):
            raise ValueError(f"{source} is a {kind.__name__} ({config.name}), not a {cls.__name__}")
        # Parameters are taken from the file, so none need be allocated or initialised before.
        with torch.device("meta"):
            model = kind(config)
        checkpoint.load_into(model, path)
        checkpoint.show_licence(config)
        return model.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors (stored as `dtype`) into `folder`, each whole or not at all.

        The published code reads them as well, where the network is a published one and `dtype` is not int8.
        """
        checkpoint.save(self, Path(folder), dtype)


def from_pretrained(source: str | Path) -> GaussianModel | NestedModel | MonocularModel:
    """The model in evaluation mode, on the CPU, in float32; its kind follows from its configuration.

    `source` is a name (nano, small, base, large, giant, nested, mono, metric, or a published one as DA3-LARGE-1.1;
    downloaded on first use), a Hugging Face repository "owner/name", a folder with config.json and model.safetensors,
    or a .safetensors file with a configuration beside it. ValueError or OSError in one line for what cannot be loaded:
    every parameter must be there and finite, and nothing else.
    """
    return Pretrained.from_pretrained(source)


class GaussianModel(Pretrained, GeometryNetwork):
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

    def gaussians(
        self, features: Features, geometry: Geometry, backdrop: bool = True, looks: int | None = None
    ) -> Gaussians:
        """Gaussians [B, V*H*W] of what `encode` and `decode` gave, then those of its `backdrop`, where it has one.

        `looks` as of `stages`. ValueError if the network has no Gaussian head.
        """
        made = self.stages(features, geometry, looks)[-1]
        behind = self.backdrop(features, geometry) if backdrop else None
        return made if behind is None else join(made, behind)

    def backdrop(self, features: Features, geometry: Geometry) -> Gaussians | None:
        """The Gaussians [B, config.gs.backdrop] of `splat.backdrop`, or None."""
        gs = self.config.gs
        if not gs.backdrop:
            return None
        return backdrop(features.images, geometry.depth, geometry.cameras, gs.backdrop, gs.sh_bases)

    def stages(self, features: Features, geometry: Geometry, looks: int | None = None) -> list[Gaussians]:
        """What the Gaussian head makes, then what each look at its pictures makes of that; raises as `gaussians`.

        `looks` is how many, where the network takes any (`splat.correction`); None is as many as in training.
        """
        if self.gs_head is None:
            raise ValueError(
                f"{self.config.name!r} has no Gaussian head, it gives geometry only; for Gaussians take nano or giant"
            )
        images, cameras, config = features.images, geometry.cameras, self.config.gs
        reprojected = None
        if config.reprojection and images.shape[1] > 1:
            index, _ = neighbors(cameras, config.reprojection)
            reprojected = reproject(images, geometry.depth, cameras, index)
        with of_heads(images, self.config.precision):
            raw = self.gs_head(
                features.patches, normalize_images(images), lateral=features.lateral, reprojected=reprojected
            )
        stages = [self._adapt(raw, features, geometry)]
        for _ in range(config.looks if looks is None else looks):
            seen = look_back(stages[-1], images, geometry.cameras)
            with of_heads(images, self.config.precision):
                raw = self.gs_head.correction(raw, seen)
            stages.append(self._adapt(raw, features, geometry))
        return stages

    def _adapt(self, raw: Tensor, features: Features, geometry: Geometry) -> Gaussians:
        values, opacity = raw[..., :-1], torch.sigmoid(raw[..., -1])
        options = {"given": features.cameras, "images": features.images}
        return adapt(values, opacity, geometry.depth, geometry.cameras, self.config.gs, **options)


class MonocularModel(Pretrained, MonocularNetwork):
    """`MonocularNetwork` that can be loaded and saved."""


class NestedModel(Pretrained, nn.Module):
    """An any-view model and a monocular one that measures its unit of length, under their published names.

    `forward` and `geometry` run both and answer in metres, in the frame of the reference view. For anything else use
    the parts, for example `model.da3.encode` where metres are not wanted, then `to_metres`.
    """

    def __init__(self, config: NestedConfig):
        super().__init__()
        self.config = config
        self.da3 = GaussianModel(config.anyview)
        self.da3_metric = MonocularModel(config.metric)

    def forward(self, images: Tensor, cameras: Cameras | None = None, **options) -> tuple[Geometry, Gaussians]:
        """As `GaussianModel.forward`, in metres."""
        return self.to_metres(images, *self.da3(images, cameras, **options))

    def geometry(self, images: Tensor, cameras: Cameras | None = None, **options) -> Geometry:
        """As `GaussianModel.geometry`, in metres."""
        return self.to_metres(images, self.da3.geometry(images, cameras, **options))[0]

    def to_metres(
        self, images: Tensor, geometry: Geometry, gaussians: Gaussians | None = None
    ) -> tuple[Geometry, Gaussians | None]:
        """What the any-view model made of `images` [B, V, 3, H, W], in metres; the factors [B] are `Geometry.scale`.

        The depth of the sky is replaced; Gaussians there stay where the any-view model saw them. The factor is 1 where
        there is nothing but sky (`geometry.metric.scale_note` says so).
        """
        geometry = in_metres(geometry, self.da3_metric(images), self.config.metric.canonical_focal)
        if gaussians is None:
            return geometry, None
        scale = geometry.scale[:, None, None]
        return geometry, replace(gaussians, means=gaussians.means * scale, scales=gaussians.scales * scale)


KINDS: dict[type, type[Pretrained]] = {
    NetworkConfig: GaussianModel,
    NestedConfig: NestedModel,
    MonocularConfig: MonocularModel,
}
