"""The networks as data: configuration dataclasses, the published sizes, and their JSON form."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Literal

from geometry.cue import CueConfig

PATCH = 14  # pixels per side of a patch, in every network here


@dataclass(frozen=True)
class BackboneConfig:
    dim: int  # width of a token
    depth: int  # transformer blocks
    heads: int  # attention heads; 64 channels each in every preset
    out_layers: tuple[int, ...]  # the four blocks whose outputs feed the dense heads
    alt_start: int  # from this block on: camera token, qk-norm, RoPE, and attention across all views in odd blocks
    ffn: Literal["mlp", "swiglu"] = "mlp"  # feed-forward network of a block
    mlp_ratio: float = 4.0  # its hidden width in units of dim (SwiGLU: two thirds of it, as DINOv2 rounds it)
    pos_grid: int = 37  # patches per side that the stored position embedding covers

    def __post_init__(self):
        if self.dim % (4 * self.heads):
            raise ValueError(f"backbone: dim {self.dim} must be 4 * heads * k for 2D RoPE, got {self.heads} heads")
        if len(self.out_layers) != 4 or max(self.out_layers) >= self.depth or min(self.out_layers) < 0:
            raise ValueError(f"backbone.out_layers must be 4 blocks below depth {self.depth}, got {self.out_layers}")


@dataclass(frozen=True)
class HeadConfig:
    features: int  # width of the pyramid's levels
    out_channels: tuple[int, ...]  # channels of the four reassembled maps, finest first
    ray_levels: int = (
        4  # levels of the ray branch that hold weights: 4 as published (one is used), 1, or 0 for no branch
    )


@dataclass(frozen=True)
class CameraConfig:
    depth: int = 4  # transformer blocks of the camera encoder
    heads: int = 16  # its attention heads, whatever the width


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

    def __post_init__(self):
        if self.sh_degree not in (0, 1, 2):
            raise ValueError(f"gs.sh_degree must be 0, 1 or 2, got {self.sh_degree}")

    @property
    def sh_bases(self) -> int:
        return (self.sh_degree + 1) ** 2

    @property
    def channels(self) -> int:
        """Raw values per pixel: xy offset 2, scales 3, quaternion 4, harmonics, depth offset 1."""
        return 2 + 3 + 4 + 3 * self.sh_bases + 1


@dataclass(frozen=True)
class NetworkConfig:
    name: str  # preset that it is or was made from
    licence: str  # of the weights; goes along with everything trained from them
    backbone: BackboneConfig
    head: HeadConfig
    camera: CameraConfig = field(default_factory=CameraConfig)
    gs: GaussianHeadConfig | None = None  # Gaussian head, or none
    cue: CueConfig | None = None  # matching cue where poses are given (`nano`), or none
    cameras_given: Literal["predicted", "given"] = "predicted"  # cameras of the result when the caller gave some
    precision: Literal["float32", "autocast"] = "float32"  # of the dense heads; autocast: whatever the caller has on

    def __post_init__(self):
        if self.cue is not None and self.gs is not None and self.gs.features != self.head.features:
            raise ValueError(
                "the cue feeds both dense heads, so their features must be equal: "
                f"head {self.head.features}, gs {self.gs.features}"
            )


APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC BY-NC 4.0, non-commercial use only"
_WIDE = (256, 512, 1024, 1024)

PRESETS: dict[str, NetworkConfig] = {
    # Ours: trained from nothing by train/nvs.py and shipped with the package.
    "nano": NetworkConfig(
        name="nano",
        licence=APACHE,
        backbone=BackboneConfig(dim=256, depth=12, heads=4, out_layers=(5, 7, 9, 11), alt_start=4),
        head=HeadConfig(features=64, out_channels=(32, 64, 96, 128), ray_levels=1),
        camera=CameraConfig(depth=1),
        gs=GaussianHeadConfig(
            features=64,
            out_channels=(32, 64, 96, 128),
            sh_degree=1,
            convention="exact",
            rgb_residual=True,
            token_norm=True,
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


def config_from_dict(values: dict) -> NetworkConfig:
    """The configuration that `dataclasses.asdict`, or its JSON, describes.

    Raises ValueError naming the first key that is unknown, missing or of the wrong kind.
    """
    return _read(NetworkConfig, values, "config")


def _read(kind: type, value, where: str):
    """`value` checked against and turned into `kind`: a dataclass, Literal, tuple, optional or plain type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _read(args[0], value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} must be one of {', '.join(args)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if not dataclasses.is_dataclass(kind):
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}")
        return kind(value)
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with keys, got {value!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(fields)}")
    nothing = dataclasses.MISSING
    required = [n for n, f in fields.items() if f.default is nothing and f.default_factory is nothing]
    missing = [name for name in required if name not in value]
    if missing:
        raise ValueError(f"{where} lacks the key {missing[0]!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})
