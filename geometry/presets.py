"""The networks as data: configuration dataclasses, the published sizes, and their JSON form."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Literal

from geometry.cue import CueConfig

PATCH = 14  # pixels per side of a patch, in every network here


@dataclass(frozen=True)
class BackboneConfig:
    dim: int  # width of a token
    depth: int  # transformer blocks
    heads: int  # attention heads; 64 channels each in every preset
    out_layers: tuple[int, ...]  # the four blocks whose outputs feed the dense heads
    # From this block on: camera token, qk-norm, RoPE, and attention across all views in odd blocks. None: nowhere, and
    # views are seen one by one.
    alt_start: int | None
    ffn: Literal["mlp", "swiglu"] = "mlp"  # feed-forward network of a block
    mlp_ratio: float = 4.0  # its hidden width in units of dim (SwiGLU: two thirds of it, as DINOv2 rounds it)
    pos_grid: int = 37  # patches per side that the stored position embedding covers

    def __post_init__(self):
        check_range("backbone.dim", self.dim, 8, 16384)
        check_range("backbone.depth", self.depth, 4, 256)
        check_range("backbone.heads", self.heads, 1, 256)
        check_range("backbone.mlp_ratio", self.mlp_ratio, 0.125, 32)
        check_range("backbone.pos_grid", self.pos_grid, 1, 256)
        if self.dim % (4 * self.heads):
            raise ValueError(f"backbone: dim {self.dim} must be 4 * heads * k for 2D RoPE, got {self.heads} heads")
        layers = self.out_layers
        if len(layers) != 4 or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[3] >= self.depth:
            raise ValueError(f"backbone.out_layers must be 4 rising blocks below depth {self.depth}, got {layers}")
        if self.alt_start is not None:
            check_range("backbone.alt_start", self.alt_start, 1, self.depth - 1)


@dataclass(frozen=True)
class HeadConfig:
    features: int  # width of the pyramid's levels
    out_channels: tuple[int, ...]  # channels of the four reassembled maps, finest first
    ray_levels: int = 4  # levels of the ray branch that hold weights: 4 as published (one is used), 1, or 0: no branch

    def __post_init__(self):
        check_pyramid("head", self.features, self.out_channels)
        check_range("head.ray_levels", self.ray_levels, 0, 4)


@dataclass(frozen=True)
class CorrelationConfig:
    dim: int = 128  # width of a token
    depth: int = 3  # transformer blocks over the patches of a pair of views
    heads: int = 4  # attention heads

    def __post_init__(self):
        check_range("camera.correlation.dim", self.dim, 8, 16384)
        check_range("camera.correlation.depth", self.depth, 1, 256)
        check_range("camera.correlation.heads", self.heads, 1, 256)
        if self.dim % self.heads:
            raise ValueError(f"camera.correlation.heads must divide dim {self.dim}, got {self.heads}")


@dataclass(frozen=True)
class CameraConfig:
    depth: int = 4  # transformer blocks of the camera encoder
    heads: int = 16  # its attention heads, whatever the width
    correlation: CorrelationConfig | None = None  # camera decoder that compares views by the cue's features (`nano`)

    def __post_init__(self):
        check_range("camera.depth", self.depth, 0, 256)
        check_range("camera.heads", self.heads, 1, 256)


@dataclass(frozen=True)
class GaussianHeadConfig:
    features: int  # width of the pyramid's levels
    out_channels: tuple[int, ...]  # channels of the four reassembled maps, finest first
    sh_degree: int = 2  # highest band of the spherical harmonics, 0 to 2
    scale_min: float = 1e-5  # smallest standard deviation of a Gaussian, in units of 0.2 pixels at its depth
    scale_max: float = 30.0  # largest, likewise
    convention: Literal["upstream", "exact"] = "upstream"  # how head outputs become Gaussians, see splat.adapter
    rgb_residual: bool = False  # the pixel's colour is added to SH band 0
    token_norm: bool = False  # LayerNorm on the patch features, as the depth head has it; the published head does not
    reprojection: int = 0  # neighbours in which each pixel is looked up, to see whether they agree (`nano`), or none
    looks: int = 0  # at its own pictures of the inputs, after each of which it corrects the Gaussians (`nano`)
    backdrop: int = 0  # splats on a sphere behind all others, see splat.backdrop (`nano`), or none

    def __post_init__(self):
        check_pyramid("gs", self.features, self.out_channels)
        if self.sh_degree not in (0, 1, 2):
            raise ValueError(f"gs.sh_degree must be 0, 1 or 2, got {self.sh_degree}")
        check_range("gs.reprojection", self.reprojection, 0, 64)
        check_range("gs.looks", self.looks, 0, 16)
        check_range("gs.backdrop", self.backdrop, 0, 65536)

    @property
    def sh_bases(self) -> int:
        return (self.sh_degree + 1) ** 2

    @property
    def channels(self) -> int:
        """Raw values per pixel: xy offset 2, scales 3, quaternion 4, harmonics, depth offset 1."""
        return 2 + 3 + 4 + 3 * self.sh_bases + 1


@dataclass(frozen=True)
class NetworkConfig:
    """An any-view network: depth and cameras, and Gaussians where it has the head."""

    name: str  # preset that it is or was made from
    licence: str  # of the weights; goes along with everything trained from them
    backbone: BackboneConfig
    head: HeadConfig
    camera: CameraConfig = field(default_factory=CameraConfig)
    gs: GaussianHeadConfig | None = None  # Gaussian head, or none
    cue: CueConfig | None = None  # matching cue (`nano`), or none
    cameras_given: Literal["predicted", "given"] = "predicted"  # cameras of the result when the caller gave some
    precision: Literal["float32", "autocast"] = "float32"  # its dense heads were trained so, see geometry.precision
    kind: Literal["any-view"] = "any-view"

    def __post_init__(self):
        if self.backbone.alt_start is None:
            raise ValueError("backbone.alt_start must be a block: without one the views of a scene never meet")
        if self.backbone.dim % self.camera.heads:
            raise ValueError(f"camera.heads must divide backbone.dim {self.backbone.dim}, got {self.camera.heads}")
        if self.camera.correlation is not None and self.cue is None:
            raise ValueError("camera.correlation compares features of the cue: it needs a cue")
        if self.cue is not None and self.gs is not None and self.gs.features != self.head.features:
            raise ValueError(
                "the cue feeds both dense heads, so their features must be equal: "
                f"head {self.head.features}, gs {self.gs.features}"
            )


@dataclass(frozen=True)
class MonocularConfig:
    """A network that sees every image alone: depth and sky."""

    name: str  # preset that it is or was made from
    licence: str  # of the weights
    backbone: BackboneConfig
    head: HeadConfig
    # Depths times the focal length in pixels, over this, are metres. None: they are right up to a factor only.
    canonical_focal: float | None = None
    kind: Literal["monocular"] = "monocular"

    def __post_init__(self):
        if self.backbone.alt_start is not None:
            raise ValueError(f"backbone.alt_start must be null in a monocular network, got {self.backbone.alt_start}")
        if self.head.ray_levels:
            raise ValueError(f"head.ray_levels must be 0 in a monocular network, got {self.head.ray_levels}")


@dataclass(frozen=True)
class NestedConfig:
    """An any-view network whose unit of length a monocular one turns into metres."""

    name: str  # preset that it is or was made from
    licence: str  # of the weights
    anyview: NetworkConfig
    metric: MonocularConfig
    kind: Literal["nested"] = "nested"

    def __post_init__(self):
        if self.metric.canonical_focal is None:
            raise ValueError("metric.canonical_focal must be given: without it depths are not in metres")


ModelConfig = NetworkConfig | MonocularConfig | NestedConfig


def check_range(name: str, value: float, low: float, high: float) -> None:
    """ValueError unless `value` lies in low..high: a configuration may come from anywhere."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, got {value}")


def check_pyramid(name: str, features: int, out_channels: tuple[int, ...]) -> None:
    """ValueError unless a dense head can have these widths, on which positions in sines and cosines are added."""
    if len(out_channels) != 4:
        raise ValueError(f"{name}.out_channels must be 4 widths, got {out_channels}")
    for width in out_channels:
        check_range(f"{name}.out_channels", width, 4, 16384)
    check_range(f"{name}.features", features, 8, 4096)
    if features % 8:
        raise ValueError(f"{name}.features must be a multiple of 8, got {features}")


APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC BY-NC 4.0, non-commercial use only"
_WIDE = (256, 512, 1024, 1024)

ANY_VIEW: dict[str, NetworkConfig] = {
    # Ours: trained from nothing by train/nvs.py and shipped with the package.
    "nano": NetworkConfig(
        name="nano",
        licence=APACHE,
        backbone=BackboneConfig(dim=256, depth=12, heads=4, out_layers=(5, 7, 9, 11), alt_start=4),
        head=HeadConfig(features=64, out_channels=(32, 64, 96, 128), ray_levels=1),
        camera=CameraConfig(depth=1, correlation=CorrelationConfig()),
        gs=GaussianHeadConfig(
            features=64,
            out_channels=(32, 64, 96, 128),
            sh_degree=1,
            convention="exact",
            rgb_residual=True,
            token_norm=True,
            reprojection=3,
            looks=1,
            backdrop=2562,
        ),
        cue=CueConfig(),
        cameras_given="given",
        precision="autocast",
    ),
    "small": NetworkConfig(
        name="small",
        licence=APACHE,
        backbone=BackboneConfig(dim=384, depth=12, heads=6, out_layers=(5, 7, 9, 11), alt_start=4),
        head=HeadConfig(features=64, out_channels=(48, 96, 192, 384)),
    ),
    "base": NetworkConfig(
        name="base",
        licence=APACHE,
        backbone=BackboneConfig(dim=768, depth=12, heads=12, out_layers=(5, 7, 9, 11), alt_start=4),
        head=HeadConfig(features=128, out_channels=(96, 192, 384, 768)),
    ),
    "large": NetworkConfig(
        name="large",
        licence=NON_COMMERCIAL,
        backbone=BackboneConfig(dim=1024, depth=24, heads=16, out_layers=(11, 15, 19, 23), alt_start=8),
        head=HeadConfig(features=256, out_channels=_WIDE),
    ),
    "giant": NetworkConfig(
        name="giant",
        licence=NON_COMMERCIAL,
        backbone=BackboneConfig(dim=1536, depth=40, heads=24, out_layers=(19, 27, 33, 39), alt_start=13, ffn="swiglu"),
        head=HeadConfig(features=256, out_channels=_WIDE),
        gs=GaussianHeadConfig(features=256, out_channels=_WIDE),
    ),
}

_VITL = BackboneConfig(dim=1024, depth=24, heads=16, out_layers=(4, 11, 17, 23), alt_start=None)
_MONO = MonocularConfig(
    name="mono",
    licence=APACHE,
    backbone=_VITL,
    head=HeadConfig(features=256, out_channels=_WIDE, ray_levels=0),
)
_METRIC = replace(_MONO, name="metric", canonical_focal=300.0)

PRESETS: dict[str, ModelConfig] = {
    **ANY_VIEW,
    "mono": _MONO,
    "metric": _METRIC,
    "nested": NestedConfig(name="nested", licence=NON_COMMERCIAL, anyview=ANY_VIEW["giant"], metric=_METRIC),
}


def config_from_dict(values: dict) -> ModelConfig:
    """The configuration that `dataclasses.asdict`, or its JSON, describes; any-view where it does not say its kind.

    Raises ValueError naming the first key that is unknown, missing or of the wrong kind.
    """
    kinds = {"any-view": NetworkConfig, "monocular": MonocularConfig, "nested": NestedConfig}
    kind = values.get("kind", "any-view") if isinstance(values, dict) else "any-view"
    if kind not in list(kinds):
        raise ValueError(f"config.kind must be one of {', '.join(kinds)}, got {kind!r:.100}")
    return _read(kinds[kind], values, "config")


def _read(kind: type, value, where: str):
    """`value` checked against and turned into `kind`: a dataclass, Literal, tuple, optional or plain type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _read(args[0], value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} must be one of {', '.join(args)}, got {value!r:.100}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {value!r:.100}")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if not dataclasses.is_dataclass(kind):
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r:.100}")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value!r:.100}")
        return kind(value)
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with keys, got {value!r:.100}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r:.100}; known are {', '.join(fields)}")
    nothing = dataclasses.MISSING
    required = [n for n, f in fields.items() if f.default is nothing and f.default_factory is nothing]
    missing = [name for name in required if name not in value]
    if missing:
        raise ValueError(f"{where} lacks the key {missing[0]!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})
