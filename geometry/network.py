"""Photographs to geometry: the any-view network of Depth Anything 3 (paper section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from geometry.backbone import Backbone
from geometry.camera_heads import CameraDecoder, CameraEncoder, decode_cameras
from geometry.cameras import Cameras
from geometry.correlation_decoder import CorrelationDecoder, compared_grid
from geometry.cue import Comparison, Cue, MatchingCue
from geometry.dpt import DualDPT
from geometry.exposure import evened, exposures
from geometry.pixel_sweep import pixel_sweep
from geometry.precision import in_float32, of_heads
from geometry.presets import PATCH, NetworkConfig
from geometry.reference_view import check_strategy
from geometry.tables import image_statistics


@dataclass(frozen=True)
class Geometry:
    """What the network knows of V views, in one frame.

    Shapes: `depth` [..., V, H, W] z-depth above 0; `confidence` [..., V, H, W] above 1; `rays` [..., V, h, w, 6],
    unnormalised direction and camera centre in the world, and `ray_confidence` [..., V, h, w], or None when not asked
    for; `cameras` [..., V] at (H, W). Where lengths are in metres (`geometry.metric`), `sky` [..., V, H, W], 0 to about
    1, says what is sky, and `scale` [...] metres per unit of the network. Raises ValueError when shapes disagree.
    """

    depth: Tensor
    confidence: Tensor
    rays: Tensor | None
    ray_confidence: Tensor | None
    cameras: Cameras
    sky: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self):
        lead, size = self.depth.shape[:-2], tuple(self.depth.shape[-2:])
        if self.confidence.shape != self.depth.shape:
            raise ValueError(
                f"Geometry.confidence must be {tuple(self.depth.shape)}, got {tuple(self.confidence.shape)}"
            )
        if self.cameras.shape != lead or tuple(self.cameras.size) != size:
            raise ValueError(
                f"Geometry.cameras must be {tuple(lead)} at {size}, "
                f"got {tuple(self.cameras.shape)} at {self.cameras.size}"
            )
        if (self.rays is None) != (self.ray_confidence is None):
            raise ValueError("Geometry.rays and Geometry.ray_confidence must both be given or both be None")
        if self.rays is not None and (
            self.rays.shape[:-3] != lead or self.rays.shape != (*self.ray_confidence.shape, 6)
        ):
            raise ValueError(
                f"Geometry.rays must be {tuple(lead)} + (h, w, 6) beside ray_confidence "
                f"{tuple(self.ray_confidence.shape)}, got {tuple(self.rays.shape)}"
            )
        if (self.sky is None) != (self.scale is None):
            raise ValueError("Geometry.sky and Geometry.scale must both be given or both be None")
        if self.sky is not None and (self.sky.shape != self.depth.shape or self.scale.shape != lead[:-1]):
            raise ValueError(
                f"Geometry.sky must be {tuple(self.depth.shape)} and .scale {tuple(lead[:-1])}, "
                f"got {tuple(self.sky.shape)} and {tuple(self.scale.shape)}"
            )

    def to(self, *args, **kwargs) -> Geometry:
        parts = vars(self).items()
        return Geometry(**{name: part if part is None else part.to(*args, **kwargs) for name, part in parts})


@dataclass(frozen=True)
class Features:
    """What `encode` hands to the heads."""

    images: Tensor  # [B, V, 3, H, W] in [0, 1], as given; `evened` by `exposure`, where there is one
    cameras: Cameras | None  # [B, V], as given
    patches: tuple[Tensor, ...]  # four times [B, V, P, 2E]; E in a monocular network
    camera: Tensor  # [B, V, 2E]; E in a monocular network
    cue: Cue | None  # of the matching cue, where the network has one
    reference: Tensor  # [B] int, the view whose frame is the world where no cameras were given
    layers: dict[int, Tensor] = field(default_factory=dict)  # `export_layers` by block: [B, V, ph, pw, E], normalised
    exposure: Tensor | None = None  # [B, V, 3] of `geometry.exposure`, where the matching cue compared views

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return tuple(self.images.shape[-2:])

    @property
    def compared(self) -> Comparison | None:
        """What the matching cue saw in the views of each other."""
        return None if self.cue is None else self.cue.compared

    @property
    def lateral(self) -> Tensor | None:
        """[B*V, F, 4ph, 4pw] for the finest level of the dense heads."""
        return None if self.cue is None else self.cue.lateral

    @property
    def log_depth(self) -> Tensor | None:
        """[B, V, H, W] that the depth head refines."""
        return None if self.cue is None else self.cue.log_depth


class GeometryNetwork(nn.Module):
    """Depth and cameras from any number of views, posed or not. Precision: see `geometry.precision`."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        dim = config.backbone.dim
        self.backbone = Backbone(config.backbone)
        self.head = DualDPT(2 * dim, config.head)
        self.cam_enc = CameraEncoder(dim, config.camera)
        compares = config.camera.correlation
        self.cam_dec = CameraDecoder(2 * dim) if compares is None else CorrelationDecoder(compares)
        self.cue = None if config.cue is None else MatchingCue(config.cue, dim, config.head.features)

    def encode(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        *,
        reference_view: str = "saddle_balanced",
        export_layers: tuple[int, ...] = (),
    ) -> Features:
        """Features of images [B, V, 3, H, W] in [0, 1].

        `cameras` [B, V], if given, must be normalised (`normalize_cameras`). `reference_view` chooses the view whose
        frame becomes the world when there are three or more and no cameras. `export_layers` are blocks whose patch
        tokens are wanted for their own sake, as `Features.layers`. ValueError for sizes that do not fit.
        """
        check_images(images, cameras)
        check_strategy(reference_view)
        tokens, cue, exposure = None, None, None
        if cameras is not None:
            with in_float32(images):
                tokens = self.cam_enc(cameras)
        if self.cue is not None:
            cue = self.cue(images, cameras)
        compared = None if cue is None else cue.compared
        if compared is not None:
            exposure = exposures(images, cue.log_depth, cameras)
            images = evened(images, exposure)
        seen = self.backbone(
            normalize_images(images),
            tokens,
            reference_view=reference_view,
            export_layers=export_layers,
            patch_bias=None if cue is None else cue.patch_bias,
            relative=None if compared is None else compared.relative,
        )
        return Features(images, cameras, seen.patches, seen.camera, cue, seen.reference, seen.layers, exposure)

    def decode(self, features: Features, *, rays: bool = False) -> Geometry:
        """Geometry from features; the ray branch runs only when asked for."""
        with of_heads(features.images, self.config.precision):
            maps = self.head(
                features.patches, features.size, lateral=features.lateral, log_depth=features.log_depth, rays=rays
            )
        if features.compared is not None:
            source, planes = features.compared.source, self.config.cue.pixel_planes
            maps = (pixel_sweep(maps[0], features.images, features.cameras, source, planes), *maps[1:])
        if features.cameras is not None and self.config.cameras_given == "given":
            return Geometry(*maps, features.cameras)
        return Geometry(*maps, self.predict_cameras(features))

    def predict_cameras(self, features: Features) -> Cameras:
        """The cameras [B, V] that the network sees, whatever was given."""
        if self.config.camera.correlation is not None:
            return self.compare_views(features.images, features.reference)
        with in_float32(features.images):
            return decode_cameras(self.cam_dec(features.camera.float()), features.size)

    def compare_views(self, images: Tensor, reference: Tensor) -> Cameras:
        """The cameras [B, V] of images [B, V, 3, H, W] in the frame of view `reference` [B], by their likeness alone.

        For networks with a `CorrelationDecoder`; nothing else of them runs but the features that it compares.
        """
        batch, views, _, *size = images.shape
        with of_heads(images, self.config.precision):
            with torch.no_grad():
                cells = self.cue.cells(images.flatten(0, 1), compared_grid(size))
            encoding = self.cam_dec(cells.unflatten(0, (batch, views)), reference)
        with in_float32(images):
            cameras = decode_cameras(encoding, tuple(size))
            # Two angles of view were decoded, but the pixels of photos are square.
            focal = cameras.K.diagonal(dim1=-2, dim2=-1)[..., :2].log().mean(-1).exp()
            K = cameras.K.clone()
            K[..., 0, 0] = K[..., 1, 1] = focal
            return replace(cameras, K=K)

    def forward(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        *,
        reference_view: str = "saddle_balanced",
        rays: bool = False,
    ) -> Geometry:
        """`encode`, then `decode`."""
        return self.decode(self.encode(images, cameras, reference_view=reference_view), rays=rays)


def check_images(images: Tensor, cameras: Cameras | None = None) -> None:
    """ValueError unless a network can take these images [B, V, 3, H, W] and cameras [B, V]."""
    if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
        raise ValueError(f"images must be [B, V, 3, H, W] with B and V > 0, got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height % PATCH or width % PATCH:
        raise ValueError(f"image height and width must be multiples of {PATCH}, got {height} x {width}")
    if cameras is not None and (cameras.shape != images.shape[:2] or tuple(cameras.size) != (height, width)):
        raise ValueError(
            f"cameras must be {tuple(images.shape[:2])} at {(height, width)} like the images, "
            f"got {tuple(cameras.shape)} at {cameras.size}"
        )


def normalize_images(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [0, 1] with ImageNet's mean and deviation taken out."""
    mean, std = image_statistics(images.device)
    return (images - mean) / std
