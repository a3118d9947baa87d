"""Dense heads: four levels of patch features to full-resolution maps, after DPT (Ranftl et al., 2021).

`Pyramid` is what all heads share; `DualDPT` (paper section 3.2) predicts depth and rays, `DPT` depth and sky. Parameter
names are those of the checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from geometry.pointwise import Pointwise
from geometry.presets import PATCH, GaussianHeadConfig, HeadConfig
from geometry.tables import uv_encoding

# Where convolutions see padding, a refining head learns spikes, one a patch: these outermost pixels of its factor on
# depth, or a quarter of a small picture, are copies of those inside.
BORDER = 8
VIEWS_AT_ONCE = 8  # heads run over so many views at a time, which keeps memory flat
LARGEST = 40.0  # logarithm that a head may give; seen above 88, where one pixel made the loss of a whole step infinite


class ResidualUnit(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))


class FusionBlock(nn.Module):
    """Joins a level [R, F, h, w] with what came from the coarser ones and resamples to the next finer size."""

    def __init__(self, features: int, coarsest: bool = False):
        super().__init__()
        if not coarsest:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, top: Tensor, level: Tensor | None, size: tuple[int, int]) -> Tensor:
        if level is not None:
            top = top + self.resConfUnit1(level)
        # The 1x1 convolution commutes with the resampling and is four times cheaper before it.
        return resample(self.out_conv(self.resConfUnit2(top)), size)


class Pyramid(nn.Module):
    """Reassembles four patch features [R, P, dim_in] into levels of F channels and fuses them coarse to fine."""

    positions = True  # where a pixel lies is added to the maps

    def __init__(self, dim_in: int, config: HeadConfig | GaussianHeadConfig, channels_out: int):
        super().__init__()
        widths, features = config.out_channels, config.features
        self.projects = nn.ModuleList(nn.Conv2d(dim_in, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = nn.Module()
        for k, width in enumerate(widths, start=1):
            setattr(self.scratch, f"layer{k}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            setattr(self.scratch, f"refinenet{k}", FusionBlock(features, coarsest=k == 4))
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = output_layers(features, channels_out)

    def levels(self, patches: list[Tensor], size: tuple[int, int], lateral: Tensor | None = None) -> list[Tensor]:
        """The levels [R, F, h, w] for images of `size`, finest (4ph x 4pw) first; `lateral` is added to that one."""
        grid = (size[0] // PATCH, size[1] // PATCH)
        levels = []
        for k, tokens in enumerate(patches):
            x = self.projects[k](rearrange(tokens, "r (h w) c -> r c h w", h=grid[0]))
            x = self.resize_layers[k](add_position(x, size) if self.positions else x)
            levels.append(getattr(self.scratch, f"layer{k + 1}_rn")(x))
        if lateral is not None:
            levels[0] = levels[0] + lateral
        return levels

    def fuse(self, levels: list[Tensor], suffix: str = "") -> Tensor:
        """The fused map [R, F, 8ph, 8pw]."""
        top = None
        for k in (4, 3, 2, 1):
            block = getattr(self.scratch, f"refinenet{k}{suffix}")
            height, width = levels[0].shape[-2:]
            size = (2 * height, 2 * width) if k == 1 else levels[k - 2].shape[-2:]
            top = block(levels[3], None, size) if k == 4 else block(top, levels[k - 1], size)
        return top


class DualDPT(Pyramid):
    """Depth and confidence at full resolution, and rays with theirs at 8 pixels a patch, from levels they share."""

    def __init__(self, dim_in: int, config: HeadConfig):
        super().__init__(dim_in, config, channels_out=2)
        features, half = config.features, config.features // 2
        self.norm = nn.LayerNorm(dim_in)
        self.ray_levels = config.ray_levels
        if config.ray_levels == 0:
            return
        for k in (1, 2, 3, 4):
            setattr(self.scratch, f"refinenet{k}_aux", FusionBlock(features, coarsest=k == 4))
        # The published checkpoints hold four output branches, of which only the last is used, round one shared norm.
        norm = nn.LayerNorm(32)
        self.scratch.output_conv1_aux = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(features, half, 3, padding=1),
                nn.Conv2d(half, features, 3, padding=1),
                nn.Conv2d(features, half, 3, padding=1),
                nn.Conv2d(half, features, 3, padding=1),
                nn.Conv2d(features, half, 3, padding=1),
            )
            for _ in range(config.ray_levels)
        )
        self.scratch.output_conv2_aux = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(half, 32, 3, padding=1), ChannelsLast(), norm, ChannelsFirst(), nn.ReLU(), nn.Conv2d(32, 7, 1)
            )
            for _ in range(config.ray_levels)
        )

    def forward(
        self,
        patches: tuple[Tensor, ...],
        size: tuple[int, int],
        *,
        lateral: Tensor | None = None,
        log_depth: Tensor | None = None,
        rays: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Depth [B, V, H, W], its confidence above 1, and with `rays` the rays [B, V, 8ph, 8pw, 6] and theirs.

        Shapes: four `patches` [B, V, P, dim_in]; `lateral` [B*V, F, 4ph, 4pw]; `log_depth` [B, V, H, W] that the depth
        refines. Rays are a direction (unnormalised) and the camera's centre, in the world. ValueError if the network
        has no ray branch.
        """
        if rays and not self.ray_levels:
            raise ValueError("this network has no ray branch (head.ray_levels is 0); decode it without rays")
        lead = patches[0].shape[:2]

        def run(lateral: Tensor | None, log_depth: Tensor | None, *tokens: Tensor) -> list[Tensor]:
            levels = self.levels([self.norm(t) for t in tokens], size, lateral)
            x = resample(self.scratch.output_conv1(self.fuse(levels)), size)
            log, confidence = self.scratch.output_conv2(add_position(x, size)).float().unbind(1)
            if log_depth is not None:
                # A factor beyond 4.8 is a spike, not from the picture. No tanh: its gradient ends so early that
                # training could not take back spikes that it had made.
                border = min(BORDER, *(side // 4 for side in size))
                inside = torch.atan(log)[..., border:-border, border:-border]
                log = log_depth + F.pad(inside, [border] * 4, "replicate")
            maps = [bounded_exp(log), bounded_exp(confidence) + 1]
            if rays:
                x = self.scratch.output_conv1_aux[-1](self.fuse(levels, "_aux"))
                x = self.scratch.output_conv2_aux[-1](add_position(x, size)).float().permute(0, 2, 3, 1)
                maps += [x[..., :6], bounded_exp(x[..., 6]) + 1]
            return maps

        log_depth = None if log_depth is None else log_depth.flatten(0, 1)
        maps = in_chunks(run, lateral, log_depth, *(tokens.flatten(0, 1) for tokens in patches))
        maps = [m.unflatten(0, lead) for m in maps]
        return tuple(maps) if rays else (*maps, None, None)


class DPT(Pyramid):
    """Depth, and how much of a pixel is sky, of images seen one by one."""

    positions = False

    def __init__(self, dim_in: int, config: HeadConfig):
        super().__init__(dim_in, config, channels_out=1)
        self.scratch.sky_output_conv2 = output_layers(config.features, 1)

    def forward(self, patches: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Depth above 0 and sky from 0 (none), each [B, V, H, W], from four `patches` [B, V, P, dim_in]."""
        lead = patches[0].shape[:2]

        def run(*tokens: Tensor) -> list[Tensor]:
            x = resample(self.scratch.output_conv1(self.fuse(self.levels(list(tokens), size))), size)
            depth, sky = self.scratch.output_conv2(x).float(), self.scratch.sky_output_conv2(x).float()
            return [bounded_exp(depth[:, 0]), sky[:, 0].relu()]

        depth, sky = in_chunks(run, *(tokens.flatten(0, 1) for tokens in patches))
        return depth.unflatten(0, lead), sky.unflatten(0, lead)


def bounded_exp(x: Tensor) -> Tensor:
    """exp(x), but no larger than a float32 whose square is one too."""
    return x.clamp_max(LARGEST).exp()


def output_layers(features: int, channels_out: int) -> nn.Sequential:
    """The last convolutions of a head, from half of the pyramid's width."""
    return nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(inplace=True), Pointwise(32, channels_out))


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def add_position(x: Tensor, image_size: tuple[int, int]) -> Tensor:
    """A map [R, C, h, w] with the position of its pixels added, in place: `x` must be fresh."""
    channels, height, width = x.shape[1:]
    columns, rows = uv_encoding(height, width, channels, image_size, x.device)
    position = torch.cat([columns.expand(-1, height, -1), rows.expand(-1, -1, width)])[None]
    # In the layout and number format of x: the CPU takes several times as long to add maps that differ in these.
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return x.add_(position.to(x.dtype, memory_format=layout))


def in_chunks(run: Callable[..., list[Tensor]], *inputs: Tensor | None) -> list[Tensor]:
    """`run` over slices of at most VIEWS_AT_ONCE of the inputs [R, ...] (None stays None), its outputs put together.

    In training all goes at once: what the backward needs is kept anyway.
    """
    count = inputs[-1].shape[0]
    step = count if torch.is_grad_enabled() else VIEWS_AT_ONCE
    chunks = [run(*(None if x is None else x[start : start + step] for x in inputs)) for start in range(0, count, step)]
    return chunks[0] if len(chunks) == 1 else [torch.cat(parts) for parts in zip(*chunks)]
