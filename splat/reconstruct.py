"""Photographs to one scene of Gaussians, in the frame and the unit of the cameras that were given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from geometry.camera_heads import normalize_cameras
from geometry.cameras import Cameras, relative_to_first
from geometry.cue import baseline_unit
from geometry.network import Geometry
from geometry.normalize import rescale
from geometry.presets import NetworkConfig
from splat.adapter import pose_scale
from splat.depth_splats import splats_from_depth
from splat.gaussians import Gaussians, transform
from splat.model import GaussianModel

# Peak of the forward beside the weights, per pixel of all views: nano takes 0.7 to 1 kB (CPU, 4 and 8 views of 252 and
# 504 pixels), wider networks take more.
_BYTES_PER_PIXEL = 1500


@dataclass(frozen=True)
class Reconstruction:
    """One scene: `gaussians` [N] and, for each of V input views, `cameras` [V], z-`depth` and `confidence` [V, H, W].

    All in one world: that of the given cameras, else the first view's, in the network's unit of length.
    `images` [V, 3, H, W] are the inputs in [0, 1], `names` theirs; `weights` names the network and its licence; `notes`
    are what the user should know. Tensors are where the network ran.
    """

    gaussians: Gaussians
    cameras: Cameras
    depth: Tensor
    confidence: Tensor
    images: Tensor
    names: tuple[str, ...]
    weights: str
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Reconstruction:
        tensors = ("gaussians", "cameras", "depth", "confidence", "images")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write scene.ply, cameras.json, depth/, contact.png and orbit.mp4 to `folder`; see `splat.outputs.save`."""
        from splat.outputs import save

        save(self, folder, overwrite)


def reconstruct(
    images: Tensor, cameras: Cameras | None, model: GaussianModel, names: tuple[str, ...] | None = None
) -> Reconstruction:
    """Reconstruct one scene from images [V, 3, H, W] in [0, 1] and their cameras [V], or None to have them predicted.

    H and W must be multiples of 14. Runs where the model is, in bfloat16 on CUDA. A network without a Gaussian head
    gives splats made of its depth, which a note says. Raises ValueError for shapes that do not fit, MemoryError, with
    what to lower, when there is too little memory.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [V, 3, H, W], got {tuple(images.shape)}")
    config, device = model.config, next(model.parameters()).device
    images = images.to(device, torch.float32)
    given, unit = None, None
    if cameras is not None:
        cameras = cameras.to(device, torch.float32)
        given, unit = _to_network(_batch(cameras), config)
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = model.encode(images[None], given)
            geometry = model.decode(features)
            gaussians = None if config.gs is None else model.gaussians(features, geometry)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        views, _, h, w = images.shape
        need = estimate_bytes(model, views, (h, w)) / 1e9
        raise MemoryError(
            f"{views} views of {h}x{w} need about {need:.1f} GB, more than {device} has free; lower --views or --size"
        ) from error
    geometry = geometry.to(torch.float32)
    notes: list[str] = []
    if given is None:
        # The network's world is the view that it took as reference, which need not be the first.
        to_first, depth = geometry.cameras.w2c[0, 0], geometry.depth[0]
        cameras = relative_to_first(geometry.cameras)[0]
        gaussians = None if gaussians is None else transform(_one(gaussians), to_first[:3, :3], to_first[:3, 3])
    else:
        depth, gaussians = _to_given(geometry, gaussians, given, unit, cameras, config)
    if gaussians is None:
        gaussians = splats_from_depth(images, depth, geometry.confidence[0], cameras)
        notes.append(f"{config.name} has no Gaussian head: these are plain splats, one a pixel, made of its depth")
    return Reconstruction(
        gaussians=gaussians,
        cameras=cameras,
        depth=depth,
        confidence=geometry.confidence[0],
        images=images,
        names=names or tuple(f"{i:04d}" for i in range(len(images))),
        weights=f"{config.name} ({config.licence})",
        notes=tuple(notes),
    )


def estimate_bytes(model: GaussianModel, views: int, size: tuple[int, int]) -> int:
    """Memory that `reconstruct` needs at its peak, roughly, weights included."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights + views * size[0] * size[1] * _BYTES_PER_PIXEL


def _to_network(cameras: Cameras, config: NetworkConfig) -> tuple[Cameras, Tensor]:
    """Cameras [1, V] in the frame and unit that the network was trained in, and that unit [1] in the caller's."""
    if config.cue is None:
        return normalize_cameras(cameras)
    cameras = relative_to_first(cameras)
    unit = baseline_unit(cameras)
    return rescale(cameras, 1 / unit), unit


def _to_given(
    geometry: Geometry,
    gaussians: Gaussians | None,
    given: Cameras,
    unit: Tensor,
    cameras: Cameras,
    config: NetworkConfig,
) -> tuple[Tensor, Gaussians | None]:
    """Depth [V, H, W] and Gaussians [N] in the world of the caller's `cameras` [V], normalised: `given` [1, V].

    Networks that predict cameras even where some are given answer in the frame of their prediction: the similarity that
    takes it to the given cameras is applied as well, the rotation from the orientations, so that two views suffice.
    """
    like = unit[0]
    rotation, translation, scale = torch.eye(3).to(like), torch.zeros(3).to(like), torch.ones(()).to(like)
    if config.cameras_given == "predicted":
        predicted = geometry.cameras
        scale = pose_scale(predicted.centers, given.centers)[0]
        turns = given.c2w[0, :, :3, :3] @ predicted.w2c[0, :, :3, :3]
        u, _, vt = torch.linalg.svd(turns.mean(0))
        u[:, 2] *= torch.linalg.det(u @ vt)
        rotation = u @ vt
        translation = given.centers[0].mean(0) - scale * rotation @ predicted.centers[0].mean(0)
    depth = geometry.depth[0] * scale * unit[0]
    if gaussians is None:
        return depth, None
    if config.cameras_given == "predicted" and config.gs.convention == "upstream":
        # Its adapter has brought the Gaussians to the scale of the given cameras already, within these limits.
        scale = scale / scale.clamp(1 / 3, 3)
    to_world = cameras.c2w[0]
    return depth, transform(
        _one(gaussians),
        to_world[:3, :3] @ rotation,
        to_world[:3, :3] @ (unit[0] * translation) + to_world[:3, 3],
        unit[0] * scale,
    )


def _batch(cameras: Cameras) -> Cameras:
    return Cameras(cameras.w2c[None], cameras.K[None], cameras.size)


def _one(gaussians: Gaussians) -> Gaussians:
    return Gaussians(*(x[0].float() for x in vars(gaussians).values()))
