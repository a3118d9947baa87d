"""The matching cue: a learned plane sweep that tells a small network where its views agree.

A plain transformer trained from nothing in minutes does not learn to triangulate; with this cue it does within one. For
every view the features of its nearest views are warped over fronto-parallel planes and correlated with its own, first
coarsely over the whole range of depths at stride 7, then finely around the winner at stride 3.5. Where poses are given,
`nano` receives the result in three forms: added to its patch tokens, as a lateral map of its dense heads, and as the
log depth those heads refine. In DA3's terms it is a second form of pose conditioning. The published presets do not have
it.

Depths are counted in units of each view's own mean baseline to its neighbours, so scaling the cameras scales the
result. Without poses, and of one view, there is nothing to compare: all correlations are 0, and what the same networks
make of the features alone is depth as one picture tells it, where 1 is the mean distance of what is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from geometry.cameras import Cameras, pixel_rays
from geometry.candidates import KNOWN, CandidateChoice, candidates, what_is_known
from geometry.pointwise import Pointwise
from geometry.prope import RelativeCameras
from geometry.sweep import homographies, neighbor_rows, peak, sweep
from geometry.upsample import GuidedUpsampling, PixelGuide

ALONE = 0.125  # stands for the baseline where there is none, so that planes lie from 0.05 to 27 mean distances


@dataclass(frozen=True)
class CueConfig:
    neighbors: int = 3  # other views that each view is matched against, at most
    planes: int = 76  # coarse planes, log-spaced
    near: float = 0.4  # first plane, in mean baselines to the neighbours
    far: float = 220.0  # last plane, likewise; a video's neighbouring frames are this close together
    fine_planes: int = 16  # planes of the fine sweep, around the coarse winner
    fine_step: float = 0.016  # their spacing in log depth
    pixel_planes: int = 5  # planes of the last sweep, a pixel of motion apart (`geometry.pixel_sweep`)
    channels: tuple[int, int] = (48, 96)  # feature width at stride 3.5 and 7
    match_channels: int = 32  # width of the features that are correlated
    groups: int = 4  # groups of channels correlated apart


@dataclass(frozen=True)
class Cue:
    """What the sweep saw. h, w are 4 times the patch grid, h2, w2 twice; R = B*V."""

    patch_bias: Tensor  # [B, V, P, E] for the patch tokens
    lateral: Tensor  # [R, F, h, w] for the dense heads
    log_depth: Tensor  # [B, V, H, W] first estimate of log z-depth, in units of the cameras or the mean distance
    confidence: Tensor  # [R, h2, w2] probability mass around the coarse winner
    coarse_logits: Tensor  # [R, planes, h2, w2] over log-spaced planes
    coarse_start: Tensor  # [R] log depth of the first coarse plane
    coarse_step: float
    fine_logits: Tensor  # [R, fine_planes, h, w]
    fine_start: Tensor  # [R, h, w] log depth of the first fine plane
    fine_step: float
    compared: Comparison | None  # None where there was nothing to compare


@dataclass(frozen=True)
class Comparison:
    """What comparing the views gave: where there are two or more, and their poses are given."""

    source: Tensor  # [R, S] each view's neighbours, as rows of all views
    relative: RelativeCameras  # the projections for cross-view attention
    logits: Tensor  # [R, planes, h2, w2] what the correlations say by themselves, before a network has smoothed them
    candidates: Tensor  # [R, K, h, w] log depths among which the fine sweep's place was chosen
    scores: Tensor  # [R, K, h, w] of them


def neighbors(cameras: Cameras, count: int) -> tuple[Tensor, Tensor]:
    """Each view's nearest other views, and its mean distance to them.

    Returns indices [B, V, S] with S = min(count, V - 1), nearest first, and baselines [B, V] in the cameras' unit.
    Nearness counts the angle between viewing directions as well, since views that look apart have nothing to match.
    """
    centers = cameras.centers
    distance = torch.linalg.vector_norm(centers[:, :, None] - centers[:, None], dim=-1)
    forward = cameras.w2c[..., 2, :3]
    turn = 1 - (forward[:, :, None] * forward[:, None]).sum(-1)
    count = min(count, cameras.shape[1] - 1)
    unit = distance.mean((1, 2), keepdim=True).clamp_min(1e-8)
    itself = torch.eye(cameras.shape[1], device=centers.device, dtype=torch.bool)
    cost = (distance / unit + 2 * turn).masked_fill(itself, float("inf"))
    index = cost.topk(count, largest=False).indices
    return index, distance.gather(2, index).mean(-1).clamp_min(1e-6)


def baseline_unit(cameras: Cameras, count: int = 3) -> Tensor:
    """The scene's unit of length [B].

    The mean over views of the baseline to their nearest `count` views; 1 for a single view.
    """
    if cameras.shape[1] == 1:
        return torch.ones_like(cameras.w2c[:, 0, 0, 0])
    return neighbors(cameras, count)[1].mean(1)


class Pairs:
    """Each view of cameras [B, V] and its nearest others, as the sweeps compare them."""

    def __init__(self, cameras: Cameras, count: int, grid: tuple[int, int]):
        index, baseline = neighbors(cameras, count)
        self.source = neighbor_rows(index)  # [R, S]
        self.log_baseline = baseline.flatten().log()  # [R]
        self.coarse = homographies(cameras, self.source, (2 * grid[0], 2 * grid[1]))
        self.fine = homographies(cameras, self.source, (4 * grid[0], 4 * grid[1]))
        self.relative = RelativeCameras(cameras)


class MatchingCue(nn.Module):
    """Images [B, V, 3, H, W] in [0, 1] and their cameras [B, V], or None, to a `Cue`; H and W are multiples of 14."""

    def __init__(self, config: CueConfig, embed_dim: int, features: int):
        super().__init__()
        self.config = config
        fine, coarse = config.channels
        self.stem = nn.Conv2d(48, fine, 3, padding=1)
        self.fine_blocks = residual_blocks(fine, dilations=(1, 1))
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse_blocks = residual_blocks(coarse, dilations=(1, 2, 1, 4, 1))
        self.up = Pointwise(coarse, fine)
        self.fine_match = Pointwise(fine, config.match_channels)
        self.coarse_match = Pointwise(coarse, config.match_channels)
        self.coarse_agree = Agreement(config.groups)
        self.fine_agree = Agreement(config.groups)
        self.coarse_net = nn.Sequential(
            nn.Conv2d(config.planes + coarse, 128, 3, padding=1),
            *residual_blocks(128, dilations=(1, 2, 4, 1, 8, 1)),
        )
        self.coarse_out = Pointwise(128, config.planes)
        self.coarse_to_fine = Pointwise(128, fine)
        self.fine_net = nn.Sequential(
            nn.Conv2d(config.fine_planes + fine * 2 + 2, 64, 3, padding=1),
            *residual_blocks(64, dilations=(1, 1)),
        )
        self.fine_out = Pointwise(64, config.fine_planes)
        self.cells_guide = nn.Sequential(nn.Conv2d(2 * fine, 32, 3, padding=1), nn.ReLU(inplace=True))
        # Sharp: between a front and a back surface a blend of both depths is neither.
        self.upsample_cells = GuidedUpsampling(32, sharpness=3.0)
        self.choose = CandidateChoice(2 * config.groups + KNOWN, 2 * fine)
        self.pixels_guide = PixelGuide(64, 24)
        self.upsample_pixels = GuidedUpsampling(24, sharpness=1.0)
        self.to_lateral = Pointwise(64, features)
        self.coarse_to_patch = nn.Conv2d(128, embed_dim, 2, stride=2)
        self.fine_to_patch = nn.Conv2d(64, embed_dim, 4, stride=4)
        self.rays_to_patch = nn.Linear(9, embed_dim)

    def forward(self, images: Tensor, cameras: Cameras | None = None) -> Cue:
        batch, views, _, height, width = images.shape
        grid = (height // 14, width // 14)
        config = self.config
        pairs = rays = None
        # Autocast would round the cameras to bfloat16: they are dealt with before any layer runs.
        with torch.autocast(images.device.type, enabled=False):
            if cameras is not None:
                rays = ray_embedding(cameras, grid)
                if views > 1:
                    pairs = Pairs(cameras, config.neighbors, grid)

        fine, coarse = self.encode(images.flatten(0, 1), grid)
        coarse_step = math.log(config.far / config.near) / (config.planes - 1)
        log_baseline = pairs.log_baseline if pairs else images.new_full(coarse.shape[:1], math.log(ALONE))
        coarse_start = log_baseline + math.log(config.near)
        if pairs is None:
            agreement = coarse.new_zeros(len(coarse), config.planes, *coarse.shape[-2:])
        else:
            planes = coarse_start[:, None] + coarse_step * torch.arange(config.planes, device=images.device)
            planes = planes[..., None, None].expand(-1, -1, *coarse.shape[-2:])
            matched = self.in_groups(self.coarse_match(coarse))
            correlation = self.correlate(matched, pairs.source, pairs.coarse, planes)
            agreement = self.coarse_agree(correlation.to(coarse.dtype))
        seen = torch.cat([agreement, coarse], 1)
        if not seen.is_cuda:  # the CPU's convolutions take a tenth less with channels last
            seen = seen.contiguous(memory_format=torch.channels_last)
        coarse_features = self.coarse_net(seen)
        coarse_logits = (agreement + self.coarse_out(coarse_features)).float()
        plane, confidence = peak(coarse_logits)

        context = F.interpolate(self.coarse_to_fine(coarse_features), fine.shape[-2:], mode="bilinear")
        place = torch.cat([fine, context], 1)
        cells = torch.stack([(coarse_start[:, None, None] + coarse_step * plane).detach(), confidence], 1)
        cells = self.upsample_cells(cells, self.cells_guide(place))
        winner, certainty = cells[:, 0], cells[:, 1:]
        steps = torch.arange(config.fine_planes, device=images.device, dtype=torch.float32)
        half = 0.5 * (config.fine_planes - 1) * config.fine_step
        if pairs is None:
            compared, start = None, winner - half
            agreement = fine.new_zeros(len(fine), config.fine_planes, *fine.shape[-2:])
        else:
            matched = self.in_groups(self.fine_match(fine))
            looked_at = candidates(winner, coarse_logits, coarse_start, coarse_step)
            matches = self.correlate(matched, pairs.source, pairs.fine, looked_at).transpose(1, 2)
            known = what_is_known(looked_at, coarse_logits, coarse_start, coarse_step, pairs.source, pairs.fine)
            scores = self.choose(torch.cat([matches, known], 2).to(fine.dtype), place)
            compared = Comparison(pairs.source, pairs.relative, agreement.float(), looked_at, scores)
            # Sharp: between a front and a back surface there is nothing.
            winner = ((4 * scores).softmax(1) * torch.cat([winner[:, None], looked_at[:, 1:]], 1)).sum(1)
            start = winner - half
            planes = start[:, None] + config.fine_step * steps[:, None, None]
            correlation = self.correlate(matched, pairs.source, pairs.fine, planes)
            agreement = self.fine_agree(correlation.to(fine.dtype))
        relative_depth = (winner - log_baseline[:, None, None])[:, None].detach()
        fine_features = self.fine_net(
            torch.cat([agreement, place, relative_depth.to(fine.dtype), certainty.to(fine.dtype)], 1)
        )
        fine_logits = (agreement + self.fine_out(fine_features)).float()
        offset = (fine_logits.softmax(1) * steps[:, None, None]).sum(1)
        log_depth = start + config.fine_step * offset
        log_depth = self.upsample_pixels(log_depth[:, None], self.pixels_guide(images.flatten(0, 1), fine_features))

        bias = self.coarse_to_patch(coarse_features) + self.fine_to_patch(fine_features)
        bias = rearrange(bias, "(b v) c h w -> b v (h w) c", v=views)
        return Cue(
            patch_bias=bias if rays is None else bias + self.rays_to_patch(rays),
            lateral=self.to_lateral(fine_features),
            log_depth=log_depth.view(batch, views, height, width),
            confidence=confidence,
            coarse_logits=coarse_logits,
            coarse_start=coarse_start,
            coarse_step=coarse_step,
            fine_logits=fine_logits,
            fine_start=start.detach(),
            fine_step=config.fine_step,
            compared=compared,
        )

    def encode(self, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Features [R, C, 4ph, 4pw] and [R, C', 2ph, 2pw] of images [R, 3, H, W]."""
        # 16 pixels for the 14 of a patch, so that 4x4 fold into channels: nothing of the image is lost, and the centres
        # of the features are exactly where resized cameras expect them.
        even = F.interpolate(images, (16 * grid[0], 16 * grid[1]), mode="bilinear")
        fine = self.fine_blocks(self.stem(F.pixel_unshuffle(even * 2 - 1, 4)))
        coarse = self.coarse_blocks(self.down(fine))
        return fine + F.interpolate(self.up(coarse), fine.shape[-2:], mode="bilinear"), coarse

    def cells(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the coarse sweep compares in images [R, 3, H, W]: groups of length 1 [R, G, C, 2ph, 2pw]."""
        _, coarse = self.encode(images, grid)
        return self.in_groups(self.coarse_match(coarse)).unflatten(1, (self.config.groups, -1))

    def in_groups(self, features: Tensor) -> Tensor:
        """Features [R, C, h, w] whose groups of channels have length 1, in float32."""
        groups = features.float().unflatten(1, (self.config.groups, -1))
        return (groups * torch.rsqrt(groups.square().sum(2, keepdim=True) + 1e-4)).flatten(1, 2)

    def correlate(self, features: Tensor, source: Tensor, warp: tuple[Tensor, Tensor], log_depth: Tensor) -> Tensor:
        """Group-wise cosine of features [R, C, h, w], as of `in_groups`, with their neighbours' at planes [R, D, h, w].

        Mean and best over neighbours [R, 2G, D, h, w].
        """
        return sweep(features, source, *warp, log_depth.detach(), self.config.groups)


class Agreement(nn.Module):
    """Correlations [R, 2G, D, h, w] to one score per plane [R, D, h, w], by a small network along the planes."""

    def __init__(self, groups: int, hidden: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * groups, hidden, (3, 1), padding=(1, 0)),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, (3, 1), padding=(1, 0)),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, correlation: Tensor) -> Tensor:
        _, _, planes, h, w = correlation.shape
        x = correlation.flatten(3).contiguous(memory_format=torch.channels_last)  # as in PixelGuide
        for layer in self.layers:
            x = along_planes(x, layer) if x.is_cuda and isinstance(layer, nn.Conv2d) else layer(x)
        return x[:, 0].view(-1, planes, h, w)


def along_planes(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution of x [R, C, D, P] along D as a matrix product; cuDNN took 8 ms for one of its gradients (H100)."""
    reach = layer.kernel_size[0] // 2
    padded = F.pad(x, (0, 0, reach, reach))
    shifted = torch.cat([padded[:, :, k : k + x.shape[2]] for k in range(2 * reach + 1)], 1)
    weight = layer.weight[..., 0].transpose(1, 2).flatten(1)
    product = (weight @ shifted.flatten(2)).unflatten(-1, x.shape[2:])
    return product + layer.bias[:, None, None].to(product.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip, normalised in groups of channels."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        return x + self.conv2(F.relu(self.norm2(y), inplace=True))


def residual_blocks(channels: int, dilations: tuple[int, ...]) -> nn.Sequential:
    """One `ResidualBlock` after the other."""
    return nn.Sequential(*(ResidualBlock(channels, dilation) for dilation in dilations))


def ray_embedding(cameras: Cameras, grid: tuple[int, int]) -> Tensor:
    """Where each patch looks.

    Direction in its camera, and the Plücker line in the frame of the cameras [B, V, P, 9].
    """
    world = F.normalize(pixel_rays(cameras, grid).float(), dim=-1)
    local = torch.einsum("bvij,bvhwj->bvhwi", cameras.w2c[..., :3, :3].float(), world)
    moment = torch.linalg.cross(cameras.centers[:, :, None, None].float().expand_as(world), world, dim=-1)
    return torch.cat([local, world, moment], -1).flatten(2, 3)
