"""Gaussians that a network predicted, brought nearer to the photos they were made of by a few gradient steps.

A network cannot foresee how the splats of several views blend, but a picture shows it. Ten to thirty steps on the
inputs take out most of that blur, in seconds; many more only learn the inputs by heart. It is the optimisation of 3D
Gaussian splatting (Kerbl et al., 2023) from a start that needs no splitting and no pruning.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from geometry.cameras import Cameras
from splat.gaussians import Gaussians, join
from splat.render import render
from splat.similarity import splatting_loss

# Adam moves each value by about this much in the first step, less and less in those that follow. Centres count in the
# size of their splat, so that neither the unit of length nor the distance matters. Slow colours and fast centres are
# better in views that were not given (docs/nano.md).
RATES = {"sh": 0.005, "opacities": 0.1, "scales": 0.02, "quats": 0.01, "means": 0.4}
DISSIMILAR = 0.4  # what 1 - SSIM counts in the loss, twice as much as in 3D Gaussian splatting; likewise
VIEWS = 8  # drawn in one step


def refine(
    gaussians: Gaussians, images: Tensor, cameras: Cameras, steps: int, *, fixed: int = 0, progress: bool = False
) -> Gaussians:
    """Gaussians [N] after `steps` of Adam on their pictures of `images` [V, 3, H, W] in [0, 1] from `cameras` [V].

    The loss is `splat.similarity.splatting_loss` with more of SSIM. All values move, none are added or taken away, but
    the last `fixed` Gaussians stay as they are: a backdrop, of which the photos show next to nothing, would drift by
    noise. All tensors must be on one device. With more than 8 views a step draws 8 of them in a fixed random order, so
    the CPU repeats exactly. ValueError for images below 11 px a side.
    """
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"pictures of {images.shape[-2]}x{images.shape[-1]} are too small to refine on: 11 px or more")
    with torch.inference_mode(False), torch.enable_grad():
        # What was made in inference mode takes no part in gradients, its copies do.
        start = Gaussians(**{name: tensor.detach().float().clone() for name, tensor in vars(gaussians).items()})
        moving = start.count - fixed
        start, still = start.select(slice(0, moving)), start.select(slice(moving, None))
        images, cameras = images.float().clone(), Cameras(cameras.w2c.clone(), cameras.K.clone(), cameras.size)
        unit = start.scales.mean(-1, keepdim=True)
        moved = {
            "sh": start.sh.clone(),
            "opacities": torch.logit(start.opacities, 1e-3),
            "scales": start.scales.log(),
            "quats": start.quats.clone(),
            "means": torch.zeros_like(start.means),
        }
        groups = [{"params": [value.requires_grad_()], "lr": RATES[name]} for name, value in moved.items()]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, steps)

        def values() -> Gaussians:
            now = Gaussians(
                means=start.means + unit * moved["means"],
                scales=moved["scales"].exp(),
                quats=F.normalize(moved["quats"], dim=-1),
                opacities=moved["opacities"].sigmoid(),
                sh=moved["sh"],
            )
            return join(now, still)

        generator, order = torch.Generator().manual_seed(0), []
        for _ in tqdm(range(steps), desc="refining", unit="step", disable=not progress, file=sys.stderr):
            if len(images) <= VIEWS:
                chosen = list(range(len(images)))
            else:
                while len(order) < VIEWS:
                    order += torch.randperm(len(images), generator=generator).tolist()
                chosen, order = order[:VIEWS], order[VIEWS:]
            seen = render(values(), cameras[chosen]).color.movedim(-1, -3)
            adam.zero_grad()
            splatting_loss(seen, images[chosen], DISSIMILAR).backward()
            adam.step()
            falling.step()
        result = values()
    return Gaussians(**{name: tensor.detach() for name, tensor in vars(result).items()})
