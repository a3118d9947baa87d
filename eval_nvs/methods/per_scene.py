"""Gaussians fitted to the inputs of each scene: what optimisation reaches in a given time. Meant for CUDA (gsplat).

They start from the scene's sparse points that the inputs see, each split into a few beside it, or from random places in
front of the cameras. Adam steps with the rates and the loss of 3D Gaussian splatting (Kerbl et al., 2023), colours
without view dependence, dead Gaussians reborn on living ones in place of densification (after Kheradmand et al., 2024).
The clock starts with the call and stops it, so two runs give nearly the same pictures, not the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eval_nvs.methods import Options
from eval_nvs.methods.splats import Splats, check_renderer
from eval_nvs.protocol import Protocol
from geometry.cameras import Cameras, project
from splat.gaussians import Gaussians
from splat.render import render
from splat.sh import C0
from splat.similarity import splatting_loss

RATES = {"means": 1.6e-4, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "colors": 2.5e-3}
DEAD, REBIRTH = 0.005, 100  # opacity below which a Gaussian is dead, and steps between two rebirths


@dataclass
class PerScene:
    protocol: Protocol
    seconds: float
    device: str
    count: int = 100_000  # Gaussians of a scene
    own_size, needs_poses = False, True

    @property
    def identity(self) -> dict:
        device = self.device.split(":")[0]
        return {"method": "gsplat", "seconds": self.seconds, "gaussians": self.count, "kind of device": device}

    def reconstruct(self, images: Tensor, cameras: Cameras, points: Tensor | None) -> Splats:
        end = time.perf_counter() + self.seconds
        images, cameras = images.to(self.device), cameras.to(self.device)
        generator = torch.Generator().manual_seed(0)
        means = start_points(points, cameras, self.count, generator).to(self.device)
        parameters, extent = start_values(means, images, cameras)
        rates = RATES | {"means": RATES["means"] * extent}
        groups = [{"params": [p], "lr": rates[name], "name": name} for name, p in parameters.items()]
        adam = torch.optim.Adam(groups, eps=1e-15)
        background, step = images.new_tensor(self.protocol.background), 0
        while (left := end - time.perf_counter()) > 0:
            adam.param_groups[0]["lr"] = rates["means"] * 0.01 ** (1 - left / self.seconds)
            view = int(torch.randint(len(images), (), generator=generator))
            seen = render(
                activate(parameters), cameras[view : view + 1], background, near=self.protocol.near
            ).color.movedim(-1, -3)
            adam.zero_grad()
            splatting_loss(seen, images[view : view + 1]).backward()
            adam.step()
            step += 1
            if step % REBIRTH == 0:
                rebirth(parameters, adam, generator)
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()  # the clock must see finished steps, not queued ones
        frozen = {name: parameter.detach() for name, parameter in parameters.items()}
        return Splats(activate(frozen), cameras, self.protocol)


def start_points(points: Tensor | None, cameras: Cameras, count: int, generator: torch.Generator) -> Tensor:
    """`count` places [N, 3] on the host: at and around `points` [P, 3], or in view, 1 to 20 baselines far."""
    if points is not None and len(points) >= 4:
        chosen = points.float().cpu()[torch.arange(count) % len(points)]
        spread = neighbour_distance(points.float().cpu())[torch.arange(count) % len(points)]
        jitter = torch.randn(count, 3, generator=generator) * spread[:, None] / 2
        jitter[: len(points)] = 0
        return chosen + jitter
    centers, c2w = cameras.centers.cpu(), cameras.c2w.cpu()
    baseline = torch.cdist(centers, centers).max().clamp_min(1e-6)
    view = torch.randint(len(centers), (count,), generator=generator)
    depth = baseline * 20 ** torch.rand(count, generator=generator)
    height, width = cameras.size
    pixels = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    K = cameras.K.cpu()[view]
    x = (pixels[:, 0] - K[:, 0, 2]) / K[:, 0, 0]
    y = (pixels[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
    rays = torch.stack([x, y, torch.ones_like(x)], -1) * depth[:, None]
    return centers[view] + (c2w[view, :3, :3] @ rays[..., None])[..., 0]


def start_values(means: Tensor, images: Tensor, cameras: Cameras) -> tuple[dict[str, Tensor], float]:
    """Raw parameters of round Gaussians as wide as their neighbours are far, in the colours that the inputs show there.

    And the radius of the scene, which the rate of the means goes by.
    """
    total, weight = torch.zeros_like(means), torch.zeros_like(means[:, :1])
    for i, image in enumerate(images):
        pixels, depth = project(means, cameras[i])
        grid = 2 * pixels / pixels.new_tensor([cameras.size[1], cameras.size[0]]) - 1
        inside = ((grid.abs() < 1).all(-1) & (depth > 0))[:, None]
        color = F.grid_sample(image[None], grid[None, None], align_corners=False)[0, :, 0].T
        total, weight = total + torch.where(inside, color, 0), weight + inside
    color = torch.where(weight > 0, total / weight.clamp_min(1), 0.5)
    width = neighbour_distance(means.cpu()).to(means).clamp_min(1e-7)
    values = {
        "means": means.clone(),
        "scales": width.log()[:, None].expand(-1, 3).clone(),
        "quats": means.new_tensor([1.0, 0, 0, 0]).expand(len(means), 4).clone(),
        "opacities": torch.logit(torch.full_like(means[:, 0], 0.1)),
        "colors": (color - 0.5) / C0,
    }
    centers = cameras.centers
    extent = 1.1 * float(torch.linalg.vector_norm(centers - centers.mean(0), dim=-1).max())
    return {name: value.requires_grad_() for name, value in values.items()}, max(extent, 1e-6)


def activate(raw: dict[str, Tensor]) -> Gaussians:
    return Gaussians(
        raw["means"], raw["scales"].exp(), F.normalize(raw["quats"], dim=-1), raw["opacities"].sigmoid(),
        raw["colors"][:, None],
    )  # fmt: skip


@torch.no_grad()
def rebirth(raw: dict[str, Tensor], adam: torch.optim.Adam, generator: torch.Generator) -> None:
    """Dead Gaussians move onto living ones, drawn by opacity; each pair shares the opacity of the one."""
    opacity = raw["opacities"].sigmoid()
    dead = (opacity < DEAD).nonzero()[:, 0]
    if len(dead) == 0 or len(dead) == len(opacity):
        return
    weights = torch.where(opacity < DEAD, 0, opacity).cpu()
    chosen = torch.multinomial(weights, len(dead), replacement=True, generator=generator).to(dead.device)
    raw["opacities"][chosen] = torch.logit((1 - (1 - opacity[chosen]).sqrt()).clamp(DEAD, 1 - 1e-6))
    for value in raw.values():
        value[dead] = value[chosen]
        for moment in ("exp_avg", "exp_avg_sq"):
            adam.state[value][moment][dead] = 0


def neighbour_distance(points: Tensor) -> Tensor:
    """Mean distance [N] of points [N, 3] to their three nearest neighbours."""
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(points.numpy()).query(points.numpy(), k=4)
    return torch.from_numpy(distance[:, 1:].mean(1)).float()


def load(options: Options, protocol: Protocol, device: str) -> PerScene:
    check_renderer(device)
    if not options.seconds > 0:
        raise ValueError(f"--seconds must be above 0, got {options.seconds}")
    return PerScene(protocol, options.seconds, device)
