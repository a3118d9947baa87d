"""From a batch to its loss: into the network's frame, through the network, against the terms of train/losses.py."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geometry.camera_heads import normalize_cameras
from geometry.cameras import Cameras, transform
from geometry.cue import Cue
from geometry.network import Features, Geometry
from geometry.normalize import normalize, rescale
from geometry.presets import NetworkConfig
from splat.adapter import pose_scale
from splat.gaussians import Gaussians, join
from splat.model import GaussianModel
from splat.perceptual import Perceptual
from splat.render import render
from train import losses
from train.batch import Batch
from train.config import LossWeights
from train.plan import Part

# Nothing nearer is drawn, in the unit of the cameras: there, gradients of pixel positions grow without bound.
NEAR = 0.1


class Prediction(NamedTuple):
    """What a step needs of the network; None is what it does not train."""

    cue: Cue | None = None
    cameras: Cameras | None = None
    features: Features | None = None
    geometry: Geometry | None = None
    gaussians: Gaussians | None = None
    drafts: tuple[Gaussians, ...] = ()  # these before each look at their pictures, where the network takes any
    backdrop: Gaussians | None = None  # what is drawn behind them, where the network has any


class Forward(nn.Module):
    """The whole network as one forward, which is what DDP and FSDP wrap."""

    def __init__(self, model: GaussianModel, bf16: bool):
        super().__init__()
        self.model = model
        self.bf16 = bf16

    def forward(
        self,
        images: Tensor,
        cameras: Cameras | None,
        *,
        alone: Part | None = None,
        rays: bool = False,
        gaussians: bool = True,
    ) -> Prediction:
        with autocast(images, self.bf16):
            if alone == "sweeps":
                return Prediction(self.model.cue(images, cameras))
            if alone == "cameras":
                first = torch.zeros(len(images), dtype=torch.int64, device=images.device)
                return Prediction(cameras=self.model.compare_views(images, first))
            # The targets of steps without poses are in the first view's frame. A reference chosen among shuffled views
            # would be another one each time, and cameras could not be learnt.
            features = self.model.encode(images, cameras, reference_view="first")
            geometry = self.model.decode(features, rays=rays)
            if not gaussians:
                return Prediction(features.cue, geometry.cameras, features, geometry)
            *drafts, made = self.model.stages(features, geometry)
            behind = self.model.backdrop(features, geometry)
            return Prediction(features.cue, geometry.cameras, features, geometry, made, tuple(drafts), behind)


def autocast(like: Tensor, bf16: bool) -> AbstractContextManager:
    return torch.autocast(like.device.type, torch.bfloat16, enabled=bf16)


@dataclass(frozen=True)
class Objective:
    """The loss of a batch; calling it gives (loss, scalars to log)."""

    network: NetworkConfig
    weights: LossWeights
    perceptual: Perceptual | None = None
    teacher: GaussianModel | None = None

    def __call__(
        self,
        forward: nn.Module,
        batch: Batch,
        posed: bool,
        joint: bool,
        alone: Part | None = None,
    ) -> tuple[Tensor, losses.Scalars]:
        """`posed`: the network is given the cameras; `joint`: Gaussians are made and rendered.

        `alone`: that part runs and learns, nothing else.
        """
        n, weights, scalars = batch.context, self.weights, {}
        cameras, depth = into_network(self.network, batch, posed)
        images, inputs = batch.images[:, :n], cameras[:, :n]
        prediction: Prediction = forward(
            images, inputs if posed else None, alone=alone, rays=not posed, gaussians=joint
        )
        cue, geometry = prediction.cue, prediction.geometry
        total = images.new_zeros(())

        def add(weight: float, term: tuple[Tensor, losses.Scalars]) -> None:
            nonlocal total
            total = total + weight * term[0]
            scalars.update(term[1])

        def finish() -> tuple[Tensor, losses.Scalars]:
            return total, {name: value.detach() for name, value in scalars.items()} | {"loss": total.detach()}

        if not posed and weights.camera > 0:
            add(weights.camera, losses.camera_loss(prediction.cameras, inputs))
        if not posed and weights.fov > 0:
            add(weights.fov, losses.fov_loss(prediction.cameras, inputs))
        if alone == "cameras":
            return finish()
        known = None if batch.depth is None else batch.depth[:, :n] > 0
        if depth is not None and weights.cue > 0 and cue is not None:
            add(weights.cue, losses.cue_loss(cue, depth[:, :n], known))
        if alone == "sweeps":
            add(weights.cue, losses.sweep_depth_loss(cue, depth[:, :n], known))
            return finish()
        if depth is not None and weights.depth > 0:
            add(weights.depth, losses.depth_loss(geometry, depth[:, :n], known))
        if weights.ssi_depth > 0 and self.teacher is not None:
            term = losses.ssi_depth_loss(geometry.depth, *self.teach(images, inputs if posed else None))
            add(weights.ssi_depth, (term[0], {f"teacher_{name}": value for name, value in term[1].items()}))
        if weights.ssi_depth > 0 and batch.depth is not None:
            add(weights.ssi_depth, losses.ssi_depth_loss(geometry.depth, batch.depth[:, :n], known))
        if not posed and weights.ray > 0:
            add(weights.ray, losses.ray_loss(geometry, inputs))
        if joint:
            target, seen_from = batch.images[:, n:].flatten(0, 1), cameras[:, n:]
            add(1, self.picture_loss(draw(self.network, prediction, inputs, seen_from), target))
            for looks, draft in enumerate(prediction.drafts if weights.draft > 0 else ()):
                # A look has no gradient back to what was seen. With nothing to ask for good pictures before it, splats
                # grow into blobs, whose colours it then has to sharpen (docs/nano.md).
                before = prediction._replace(gaussians=draft)
                value, seen = self.picture_loss(draw(self.network, before, inputs, seen_from), target)
                add(weights.draft, (value, {f"psnr_after_{looks}_looks": seen["psnr"]}))
            if depth is not None and weights.gaussian_depth > 0:
                term = losses.gaussian_depth_loss(prediction.gaussians, inputs, depth[:, :n], known)
                add(weights.gaussian_depth, term)
            if weights.spread > 0:
                # True depth is in the frame of the given cameras, predicted Gaussians may not be.
                shared = posed and self.network.cameras_given == "given" and depth is not None
                surface = torch.where(batch.valid[:, n:], depth[:, n:], 0.0) if shared else None
                moved = into_frame(self.network, prediction, inputs, seen_from)
                add(weights.spread, losses.spread_loss(prediction.gaussians, moved, surface, NEAR))
            if weights.opacity > 0:
                add(weights.opacity, losses.opacity_loss(prediction.gaussians))
            if weights.scale > 0:
                add(weights.scale, losses.scale_loss(prediction.gaussians, geometry.cameras))
        return finish()

    def picture_loss(self, color: Tensor, target: Tensor) -> tuple[Tensor, losses.Scalars]:
        """What pictures [B, T, 3, H, W] of the Gaussians cost against the photos [B*T, 3, H, W]."""
        weights, color = self.weights, color.flatten(0, 1)
        # Weight 0 leaves the gradient out and the PSNR in the log.
        terms = [(weights.mse, losses.mse_loss(color, target))]
        if weights.psnr > 0:
            terms.append((weights.psnr, losses.psnr_loss(color, target)))
        if weights.ssim > 0:
            terms.append((weights.ssim, losses.ssim_loss(color, target)))
        if weights.perceptual > 0:
            terms.append((weights.perceptual, losses.perceptual_loss(self.perceptual, color, target)))
        total = sum(weight * value for weight, (value, _) in terms)
        return total, {name: value for _, (_, scalars) in terms for name, value in scalars.items()}

    @torch.no_grad()
    def teach(self, images: Tensor, cameras: Cameras | None) -> tuple[Tensor, Tensor]:
        """The teacher's depth of the inputs [B, V, H, W], and where it is a number."""
        with autocast(images, images.device.type == "cuda"):
            depth = self.teacher.geometry(images, cameras).depth.float()
        return depth, depth.isfinite()


def into_network(network: NetworkConfig, batch: Batch, posed: bool) -> tuple[Cameras, Tensor | None]:
    """A batch's cameras [B, V] and metric depth [B, V, H, W] in the frame and unit that the network expects.

    As `splat.reconstruct` does it: networks with a matching cue take the mean baseline as the unit, the published ones
    their own rule. Where no poses are given the unit is the paper's, the mean distance of all points (section 3.3).
    """
    n, depth = batch.context, batch.depth if batch.metric else None
    if not posed or network.cue is not None:
        return normalize(batch.cameras, n, "baseline" if posed else "points", depth, batch.valid)
    _, unit = normalize_cameras(batch.cameras[:, :n])
    first = batch.cameras.c2w[:, :1]
    cameras = rescale(Cameras(batch.cameras.w2c @ first, batch.cameras.K, batch.cameras.size), 1 / unit)
    return cameras, None if depth is None else depth / unit[:, None, None, None]


def draw(network: NetworkConfig, prediction: Prediction, inputs: Cameras, targets: Cameras) -> Tensor:
    """Pictures [B, T, 3, H, W] of the predicted Gaussians in `targets` [B, T], which are in the frame of `inputs`."""
    gaussians, behind = prediction.gaussians, prediction.backdrop
    gaussians = gaussians if behind is None else join(gaussians, behind)
    return render(gaussians, into_frame(network, prediction, inputs, targets), near=NEAR).color.movedim(-1, -3)


def into_frame(network: NetworkConfig, prediction: Prediction, inputs: Cameras, targets: Cameras) -> Cameras:
    """`targets` [B, T], which are in the frame of `inputs` [B, V], in that of the predicted Gaussians."""
    given, seen = prediction.features.cameras, prediction.geometry.cameras
    if given is not None and network.cameras_given == "given":
        return targets
    if given is not None and network.gs.convention == "upstream":
        # Its adapter has brought the Gaussians to the scale of the given cameras, within these limits.
        seen = rescale(seen, pose_scale(seen.centers, given.centers).clamp(1 / 3, 3))
    return into_predicted(seen, inputs, targets)


@torch.no_grad()
def into_predicted(predicted: Cameras, inputs: Cameras, targets: Cameras) -> Cameras:
    """`targets` [B, T] moved by the similarity that takes the true `inputs` [B, V] to the `predicted` ones.

    A network that predicts its cameras puts its Gaussians into their frame. The rotation comes from the orientations
    and the scale from the centres, as `splat.reconstruct` has it the other way round, so that two views suffice.
    """
    predicted = predicted.to(torch.float32)
    scale = pose_scale(inputs.centers, predicted.centers)
    turns = predicted.c2w[..., :3, :3] @ inputs.w2c[..., :3, :3]
    u, _, vt = torch.linalg.svd(turns.mean(1))
    sign = torch.linalg.det(u @ vt)
    rotation = torch.cat([u[..., :2], u[..., 2:] * sign[:, None, None]], -1) @ vt
    center, goal = inputs.centers.mean(1), predicted.centers.mean(1)
    shift = goal - scale[:, None] * (rotation @ center[..., None])[..., 0]
    return transform(targets, rotation[:, None], shift[:, None], scale[:, None])
