"""What a network sees in some views of one scene, as much of it as is asked for, in the caller's frame and unit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor

from geometry.alignment import Similarity, align_cameras
from geometry.camera_heads import normalize_cameras
from geometry.cameras import Cameras, relative_to_first
from geometry.consistency import consistent_depth
from geometry.cue import baseline_unit
from geometry.match_cameras import cameras_from_matches
from geometry.metric import metric_depth, scale_note
from geometry.network import Geometry
from geometry.normalize import rescale
from geometry.precision import Precision, default_precision, in_float32, precision
from geometry.presets import NetworkConfig
from geometry.ray_cameras import cameras_from_rays
from splat.adapter import pose_scale
from splat.asked import CamerasFrom, Model, Output, check_asked, check_looks
from splat.depth_splats import splats_from_depth
from splat.gaussians import Gaussians, transform
from splat.model import GaussianModel, MonocularModel, NestedModel

# Peak of the forward beside the weights, per pixel of all views: nano takes 0.7 to 1 kB (CPU, 4 and 8 views of 252 and
# 504 pixels), wider networks take more.
_BYTES_PER_PIXEL = 1500

# A look takes back the less of what is missing the more views share it: so many call for one more (docs/nano.md).
VIEWS_PER_LOOK = 4

_SEEN = 0.05  # exposures that are less off their mean are not told of

_ONE_PHOTO = "depth of one photo alone is a guess, and its unit the mean distance of what is seen"


@dataclass(frozen=True)
class Prediction:
    """Of V views, what was asked for; the rest is None.

    All in one world: that of the given cameras, else the first view's. The unit is that of the given cameras; else
    metres where the network knows them, or a unit of its own.
    """

    cameras: Cameras | None = None  # [V]: the given ones, where some were
    depth: Tensor | None = None  # [V, H, W] z-depth
    confidence: Tensor | None = None  # [V, H, W] above 1; None from a monocular network
    sky: Tensor | None = None  # [V, H, W] about 1 in the sky; from nested and monocular networks
    gaussians: Gaussians | None = None  # [N]
    backdrop: int = 0  # how many of these, the last ones, are of the sphere behind all others
    features: dict[int, Tensor] = field(default_factory=dict)  # patch tokens [V, ph, pw, E] by block
    exposure: Tensor | None = None  # [V, 3], where views were brought to one: `geometry.exposure`
    metres: float | None = None  # length of the unit, where the network knows it
    notes: tuple[str, ...] = ()  # what the user should know

    def to(self, device: torch.device | str) -> Prediction:
        kept = ("features", "backdrop", "metres", "notes")
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in kept}
        moved = {name: None if value is None else value.to(device) for name, value in moved.items()}
        return replace(self, features={i: x.to(device) for i, x in self.features.items()}, **moved)


def predict(
    images: Tensor,
    cameras: Cameras | None,
    model: Model,
    outputs: Collection[Output] = ("depth", "cameras", "gaussians"),
    *,
    K: Tensor | None = None,
    photos: Tensor | None = None,
    looks: int | None = None,
    backdrop: bool = True,
    frame: Literal["given", "network"] = "given",
    cameras_from: CamerasFrom = "decoder",
    reference_view: str = "saddle_balanced",
    export_layers: tuple[int, ...] = (),
    mode: Precision | None = None,
) -> Prediction:
    """Run `model` on images [V, 3, H, W] in [0, 1], H and W multiples of 14; nothing is computed that is not asked for.

    `cameras` [V] are known cameras, or None to have them predicted. Intrinsics `K` [V, 3, 3] without poses are used as
    they are: as a known camera for one view, in place of the predicted ones for more. `looks` is how many times a
    network that looks at its own pictures (`nano`; `splat.correction`) corrects its Gaussians by them: None is as often
    as in training for every four views begun, more is better and slower, each time by less. One that has a `backdrop`
    (`nano`; `splat.backdrop`) gives its Gaussians after all others, unless it is not wanted. `frame` "network" leaves
    all in the network's own world and unit, cameras as it sees them. `cameras_from` "rays" takes predicted cameras from
    the ray maps, with their principal points, in place of the camera decoder's; "matches" brings the decoder's to where
    SIFT matches between the images meet (`geometry.match_cameras`) and runs the network once more, with these for
    given; a note says how many views that placed. `photos` [V, 3, kH, kW] are the same images larger, to be matched in
    their place: they show more keypoints, and where they are more exactly. `reference_view` is the published rule by
    which the network chooses its world (`geometry.reference_view`), `export_layers` are blocks whose patch tokens are
    wanted, `mode` is "float32" or "bfloat16" (default: `geometry.precision.default_precision`).

    Where cameras are given to a network with a matching cue (`nano`), depth is brought to where its views agree
    (`geometry.consistency`), which its Gaussians are not. These have the mean exposure of the images
    (`geometry.exposure`); a note says by how much the images differ from it, if that can be seen. A network without a
    Gaussian head gives splats made of its depth, which a note says. Where a network predicts cameras even though some
    are given, its world is brought to theirs by the similarity of `geometry.alignment.align_cameras`: that says what
    holds for one view, two, and cameras in a line. Runs where the model is. Raises ValueError for what does not fit or
    cannot be had from this network, MemoryError, with what to lower, when there is too little memory.
    """
    check_asked(images, cameras, K, photos, outputs, frame, cameras_from)
    check_looks(looks, model)
    device = next(model.parameters()).device
    images = images.to(device, torch.float32)
    size = tuple(images.shape[-2:])
    if cameras_from == "matches":
        options = {"looks": looks, "backdrop": backdrop, "frame": frame, "mode": mode}
        options |= {"reference_view": reference_view, "export_layers": export_layers}
        if cameras is None and len(images) > 1:
            return _with_matched_cameras(images, photos, K, model, outputs, options)
        return predict(images, cameras, model, outputs, K=K, **options)
    if K is not None:
        K = K.to(device, torch.float32)
        if len(images) == 1:
            cameras = Cameras(torch.eye(4, device=device)[None], K, size)
    try:
        with torch.no_grad(), precision(mode or default_precision(device), device):
            if isinstance(model, MonocularModel):
                return _monocular(images, cameras, K, model, outputs, export_layers)
            world = _World(cameras, model.da3.config if isinstance(model, NestedModel) else model.config, device)
            options = {"reference_view": reference_view, "export_layers": export_layers}
            return _any_view(images, world, K, model, outputs, looks, backdrop, frame, cameras_from, options)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        need = estimate_bytes(model, len(images), size) / 1e9
        raise MemoryError(
            f"{len(images)} views of {size[0]}x{size[1]} need about {need:.1f} GB, more than {device} has free; "
            "lower --views or --size"
        ) from error


def estimate_bytes(model: Model, views: int, size: tuple[int, int]) -> int:
    """Memory that `predict` needs at its peak, roughly, weights included."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights + views * size[0] * size[1] * _BYTES_PER_PIXEL


def _with_matched_cameras(
    images: Tensor, photos: Tensor | None, K: Tensor | None, model: Model, outputs, options
) -> Prediction:
    """What the network sees when its own cameras, brought to where matches between the images meet, are given to it."""
    guess = predict(images, None, model, ("depth", "cameras"), K=K, mode=options["mode"])
    seen_in = images if photos is None else photos
    matched = cameras_from_matches(seen_in, guess.cameras, guess.depth, focal_known=K is not None)
    if matched is None:
        seen = predict(images, None, model, outputs, K=K, **options)
        note = "too few keypoints match between the images to place them; cameras are the network's guess, expect less"
    else:
        cameras = relative_to_first(matched.cameras).to("cpu", torch.float32)
        seen = predict(images, cameras, model, outputs, **options)
        note = f"matches between the images place {len(matched.placed)} of {len(images)} views ({matched.error:.2f} px)"
        if len(matched.placed) < len(images):
            alone = ", ".join(str(i) for i in range(len(images)) if i not in matched.placed)
            note += f"; where view {alone} stands (counted from 0) is a guess, expect less there"
    return replace(seen, notes=(note, *seen.notes))


class _World:
    """The caller's world and the network's: given cameras into the one, results back into the other."""

    def __init__(self, cameras: Cameras | None, config: NetworkConfig, device: torch.device):
        self.config, self.cameras, self.normalized = config, None, None
        if cameras is None:
            return
        self.cameras = cameras.to(device, torch.float32)
        # Worlds may be far from their origin, where float32 has few digits left.
        self.exact = cameras.to("cpu", torch.float64)
        batch = Cameras(self.exact.w2c[None], self.exact.K[None], cameras.size)
        if config.cue is None:
            normalized, unit = normalize_cameras(batch)
        else:
            batch = relative_to_first(batch)
            unit = baseline_unit(batch)
            normalized = rescale(batch, 1 / unit)
        self.normalized, self.unit = normalized.to(device, torch.float32), unit[0]

    def home(self, seen: Cameras) -> Similarity:
        """What takes the network's world, in which it sees cameras [1, V], to the caller's."""
        if self.cameras is None:
            w2c = seen.w2c[0, 0].double().cpu()
            home = Similarity(w2c[:3, :3], w2c[:3, 3], torch.ones((), dtype=torch.float64))
        elif self.config.cameras_given == "given":
            c2w = self.exact.c2w[0]
            home = Similarity(c2w[:3, :3], c2w[:3, 3], self.unit)
        else:
            home = align_cameras(self.exact, seen[0].to("cpu", torch.float64)).inverse()
        return home.to(seen.w2c)

    def adapted(self, seen: Cameras) -> Tensor | float:
        """The factor by which the published adapter has already scaled Gaussians towards the given cameras."""
        if self.cameras is None or self.config.cameras_given == "given" or self.config.gs.convention != "upstream":
            return 1.0
        return pose_scale(seen.centers, self.normalized.centers)[0].clamp(1 / 3, 3)


def _any_view(images, world: _World, K, model, outputs, looks, backdrop, frame, cameras_from, options) -> Prediction:
    nested, network = isinstance(model, NestedModel), world.config
    anyview: GaussianModel = model.da3 if nested else model
    features = anyview.encode(images[None], world.normalized, **options)
    layers = {i: tokens[0].float() for i, tokens in features.layers.items()}
    if not outputs:
        return Prediction(features=layers)
    if set(outputs) == {"cameras"} and cameras_from == "decoder" and not nested:
        seen = world.normalized if world.cameras is not None else anyview.predict_cameras(features)
        return Prediction(_cameras_home(seen, world, K, frame), features=layers)

    geometry = anyview.decode(features, rays=cameras_from == "rays")
    if cameras_from == "rays" and geometry.cameras is not world.normalized:
        seen = cameras_from_rays(geometry.rays.float(), geometry.ray_confidence.float(), features.size)
        geometry = replace(geometry, cameras=seen)
    if K is not None and world.cameras is None:
        geometry = replace(geometry, cameras=Cameras(geometry.cameras.w2c, K[None], features.size))
    wanted, gaussians, behind, factor = "gaussians" in outputs, None, 0, 1.0
    if wanted and network.gs is not None:
        looks = network.gs.looks * -(-len(images) // VIEWS_PER_LOOK) if looks is None else looks
        gaussians = anyview.gaussians(features, geometry, backdrop, looks)
        factor = world.adapted(geometry.cameras)
        behind = network.gs.backdrop if backdrop else 0
    notes, metres = [], None
    if nested:
        geometry, gaussians = model.to_metres(images[None], geometry, gaussians)
        notes += [note for note in [scale_note(geometry)] if note is not None]
        metres = None if notes else 1.0
    if network.cue is not None and len(images) == 1:
        notes.append(_ONE_PHOTO)
    exposure = None if features.exposure is None else features.exposure[0]
    if exposure is not None and wanted:
        notes += _uneven(exposure)
    geometry = geometry.to(torch.float32)
    with in_float32(images):  # world coordinates have no digits to lose
        home = _identity(geometry) if frame == "network" else world.home(geometry.cameras)
        depth = geometry.depth
        if features.compared is not None and "depth" in outputs:
            depth = consistent_depth(depth, features.cameras, features.compared.source)
        depth = depth[0] * home.scale
        cameras = _cameras_home(geometry.cameras, world, K, frame)
        if gaussians is not None:
            gaussians = Gaussians(*(x[0].float() for x in vars(gaussians).values()))
            if frame == "given":
                gaussians = transform(gaussians, home.rotation, home.translation, home.scale / factor)
        elif wanted:
            gaussians = splats_from_depth(features.images[0], depth, geometry.confidence[0], cameras)
            notes.append(_plain_splats(network.name))
    return Prediction(
        cameras=cameras if "cameras" in outputs else None,
        depth=depth if "depth" in outputs else None,
        confidence=geometry.confidence[0] if "depth" in outputs else None,
        sky=None if geometry.sky is None else geometry.sky[0],
        gaussians=gaussians,
        backdrop=behind,
        features=layers,
        exposure=exposure,
        metres=None if metres is None else metres / float(home.scale),
        notes=tuple(notes),
    )


def _identity(geometry: Geometry) -> Similarity:
    like = geometry.depth
    return Similarity(torch.eye(3).to(like), torch.zeros(3).to(like), torch.ones(()).to(like))


def _cameras_home(seen: Cameras, world: _World, K: Tensor | None, frame: str) -> Cameras:
    """Cameras [V] of the result, from those [1, V] that the network sees."""
    if world.cameras is not None and frame == "given":
        return world.cameras
    seen = seen if K is None or world.cameras is not None else Cameras(seen.w2c, K[None], seen.size)
    seen = seen[0].to(torch.float32)
    with in_float32(seen.w2c):
        return seen if frame == "network" else relative_to_first(seen)


def _monocular(images, cameras, K, model: MonocularModel, outputs, export_layers) -> Prediction:
    name, focal, size = model.config.name, model.config.canonical_focal, tuple(images.shape[-2:])
    cameras = None if cameras is None else cameras.to(images.device, torch.float32)
    K = K if cameras is None else cameras.K
    if "gaussians" in outputs and (cameras is None or len(images) > 1):
        raise ValueError(
            f"{name} sees each image alone, so only one image with known intrinsics becomes Gaussians; "
            "for more take nested, giant or nano"
        )
    if "cameras" in outputs and cameras is None:
        raise ValueError(f"{name} sees each image alone and predicts no cameras; give them, or ask for depth only")
    features = model.encode(images[None], export_layers=export_layers)
    seen = Prediction(
        cameras=cameras if "cameras" in outputs else None,
        features={i: tokens[0].float() for i, tokens in features.layers.items()},
    )
    if not {"depth", "gaussians"} & set(outputs):
        return seen
    geometry = model.decode(features).to(torch.float32)
    depth = geometry.depth[0]
    if focal is not None:
        if K is None:
            raise ValueError(f"{name} measures depth by the focal length; give K or cameras")
        anywhere = torch.eye(4, device=K.device).expand(1, len(K), 4, 4)
        depth = metric_depth(geometry, Cameras(anywhere, K[None], size), focal)[0]
    gaussians, notes = None, ()
    if "gaussians" in outputs:
        with in_float32(images):
            gaussians = splats_from_depth(images, depth, None, cameras)
        notes = (_plain_splats(name),)
    return replace(
        seen,
        depth=depth if "depth" in outputs else None,
        sky=geometry.sky[0],
        gaussians=gaussians,
        metres=None if focal is None else 1.0,
        notes=notes,
    )


def _uneven(exposure: Tensor) -> list[str]:
    """A note if the tones of the pictures will differ from those of some photo in a way that is seen."""
    most = float(exposure.log().abs().max().expm1())
    if most < _SEEN:
        return []
    return [f"exposure or white balance of the photos is up to {most:.0%} off their mean, which the Gaussians have"]


def _plain_splats(name: str) -> str:
    return f"{name} has no Gaussian head: these are plain splats, one a pixel, made of its depth"
