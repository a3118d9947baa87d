"""Where a reconstruction is asked to render its targets: the three ways that a protocol can name."""

from __future__ import annotations

import torch
from torch import Tensor

from eval_nvs.methods import Reconstruction
from eval_nvs.methods.splats import Splats
from eval_nvs.protocol import Protocol
from geometry.alignment import align_cameras
from geometry.cameras import Cameras
from splat.render import render

# As many steps as ZipSplat's evaluation takes, starting at its rate; the loss is the squared error alone, so that no
# weights of LPIPS are needed.
STEPS, RATE = 200, 5e-3


def target_cameras(
    scene: Reconstruction, inputs: Cameras, targets: Cameras, photos: Tensor | None, protocol: Protocol
) -> Cameras:
    """Cameras [T] in the world of `scene` for targets [T] in the world of the data set, whose intrinsics are kept.

    "given": one world, nothing to do. "aligned": brought over by the similarity that takes the data set's input cameras
    [V] to those that the method found. "optimized": then fitted to the target `photos` [T, 3, H, W] with the scene
    frozen; it shows the method the answer, so such figures compare only with each other.
    """
    if protocol.cameras == "given":
        return targets
    near = align_cameras(inputs.to("cpu", torch.float64), scene.cameras.to("cpu", torch.float64))
    moved = near.cameras(targets.to("cpu", torch.float64)).to(scene.cameras.w2c)
    if protocol.cameras == "aligned":
        return moved
    if not isinstance(scene, Splats):
        raise ValueError(f"protocol '{protocol.name}' fits target cameras to Gaussians, and this method gives none")
    return optimize(scene, moved, photos)


def optimize(scene: Splats, cameras: Cameras, photos: Tensor, steps: int = STEPS) -> Cameras:
    """Cameras [T] whose renders come near `photos` [T, 3, H, W]: Adam on a rotation and a translation of each.

    The rate falls to 0 in a line. Translations are in units of the median distance from camera to Gaussian, so that it
    fits any scene.
    """
    photos = photos.to(scene.gaussians.means)
    background = photos.new_tensor(scene.protocol.background)
    sample = scene.gaussians.means[:: max(1, scene.gaussians.count // 10_000)]
    unit = torch.cdist(cameras.centers, sample).nanmedian()
    fitted = []
    for camera, K, photo in zip(cameras.w2c, cameras.K[:, None], photos, strict=True):
        motion = torch.zeros(6, device=camera.device, requires_grad=True)
        adam = torch.optim.Adam([motion], lr=RATE)
        for step in range(steps):
            adam.param_groups[0]["lr"] = RATE * (1 - step / steps)
            w2c = moved_by(motion, unit) @ camera
            seen = render(
                scene.gaussians, Cameras(w2c[None], K, cameras.size), background, near=scene.protocol.near
            ).color[0]
            loss = (seen.movedim(-1, 0) - photo).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        fitted.append(moved_by(motion.detach(), unit) @ camera)
    return Cameras(torch.stack(fitted), cameras.K, cameras.size)


def moved_by(motion: Tensor, unit: Tensor) -> Tensor:
    """The rigid motion [4, 4] of a twist [6]: rotation vector in radians, then translation in `unit`."""
    x, y, z = motion[:3]
    zero = torch.zeros_like(x)
    turn = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    top = torch.cat([turn, (motion[3:] * unit)[:, None]], 1)
    return torch.linalg.matrix_exp(torch.cat([top, torch.zeros_like(top[:1])]))
