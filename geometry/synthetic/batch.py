"""Batches of synthetic scenes: images, exact depth and exact cameras as a pure function of a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import Cameras
from .dice import Dice
from .intersect import INDEX_BITS, Counts
from .parts import UNUSED_SIZE
from .rigs import candidates, choose, clear_of, into_frames, path, sample_intrinsics, without_obstacles
from .scenes import ambience_table, primitive_table, sample_layout
from .shade import FIELD, World, trace
from .transforms import apply, inverse, product, rigid, rotations

CAMERAS = 64  # whose samples are held at a time
LENS_FOV = (25.0, 115.0)  # `fov` for scenes with `lenses`: from a portrait lens to an action camera's


@dataclass(frozen=True)
class SyntheticConfig:
    """What scenes and cameras are like. Sizes of images and the number of views are arguments of `sample_batch`."""

    targets: int = 2  # the last views of a scene lie between the others, sometimes beyond them or nearer
    boxes: int = 32  # slots for boxes in a scene (powers of two waste no lanes of a GPU)
    rounds: int = 16  # slots for solids of revolution
    panels: int = 32  # slots for flat outlines: leaves, pictures, windows, grids
    implicits: int = 2  # slots for lumpy bodies and rolling ground, which are ray-marched
    steps: int = 24  # samples along a ray through an implicit
    kinds: tuple[float, ...] = (3, 2, 1.5, 1.5, 2, 1.5, 1, 1.5, 2)  # weights of scenes.KINDS
    fov: tuple[float, float] = (30.0, 90.0)  # degrees across the longer side
    lenses: float = 0.0  # share of the scenes whose views have lenses of their own, half as long to twice as long
    baseline: tuple[float, float] = (0.015, 1.2)  # neighbouring context views, in units of the distance looked over
    rigs: tuple[float, ...] = (4, 2, 1, 1, 3, 1)  # weights of rigs.RIGS
    shadows: float = 0.7  # share of the batches in which lamps cast shadows
    exposure: float = 0.4  # share of the scenes whose views differ in exposure and white balance
    noise: float = 0.01  # largest standard deviation of sensor noise
    world_scale: tuple[float, float] = (0.2, 5.0)  # one metre in the units of the cameras that come out

    def __post_init__(self):
        for name, least in (("boxes", 28), ("rounds", 11), ("panels", 14)):
            if getattr(self, name) < least:
                raise ValueError(f"SyntheticConfig.{name} must be at least {least}, got {getattr(self, name)}")
        if self.counts.total > INDEX_BITS:
            raise ValueError(f"a scene has at most {INDEX_BITS} slots for primitives, got {self.counts.total}")

    @property
    def counts(self) -> Counts:
        return Counts(self.boxes, self.rounds, self.panels, self.implicits)


@dataclass(frozen=True)
class SyntheticBatch:
    """B scenes of V views: `images` [B, V, 3, H, W] in [0, 1], z-`depth` [B, V, H, W] at pixel centres in units of the
    cameras' world (0 where `valid` [B, V, H, W] is false: the sky), `cameras` [B, V], and `kind` [B], an index of
    scenes.KINDS."""

    images: Tensor
    depth: Tensor
    valid: Tensor
    cameras: Cameras
    kind: Tensor


def sample_batch(
    seed: int,
    batch: int,
    views: int,
    size: tuple[int, int],
    textures: Tensor,
    device: torch.device | str = "cpu",
    config: SyntheticConfig | None = None,
) -> SyntheticBatch:
    """Draw `batch` scenes of `views` views of `size` (H, W); `textures` is an atlas of `make_atlas` on the device.

    The same arguments give the same batch on the same device; the global generators are not touched and nothing is
    read back to the host. Raises ValueError if there is no view left beside the config's targets.
    """
    config = config or SyntheticConfig()
    contexts = views - config.targets
    if contexts < 1:
        raise ValueError(f"{views} views leave no context view beside config.targets = {config.targets}")
    dice = Dice(seed, batch, device)
    counts = config.counts
    layout, kind = sample_layout(dice, counts, config.kinds)
    table = primitive_table(dice, layout, textures.shape[0])
    ambience = ambience_table(dice, layout, textures.shape[0])
    K, fov = sample_intrinsics(dice, views, size, config.fov, config.lenses)
    offset, inward = path(dice, views, config.targets, config.baseline, config.rigs)
    tries = candidates(dice, layout, offset, inward, fov)
    best, median = choose(tries, K, size, contexts, table, layout.waves, counts, config.steps)
    c2w = tries[torch.arange(batch, device=dice.device), best]
    table = without_obstacles(table, c2w, clear_of(median, c2w, contexts), counts)
    # One draw on the host, since it decides what is computed.
    shadows = float(torch.rand((), generator=torch.Generator().manual_seed(seed))) < config.shadows
    light, depth = cast(
        table, layout.waves, ambience, c2w, K, size, textures, config, shadows, draw_pixel_filter(dice, views)
    )
    images = develop(dice, light, config)
    valid = depth < torch.inf
    w2c, scale = into_world(dice, c2w, config.world_scale)
    depth = torch.where(valid, depth * scale[:, None, None, None], 0.0)
    return SyntheticBatch(images, depth, valid, Cameras(w2c, K, size), kind)


def draw_pixel_filter(dice: Dice, views: int) -> Tensor:
    """Weight [B, V] of each neighbour sample in the pixel filter: a soft (0.25, a tent) to a crisp lens."""
    return dice.uniform(1, low=0.18, high=0.25) + dice.uniform(views, low=-0.01, high=0.01)


def cast(
    table: Tensor,
    waves: Tensor,
    ambience: Tensor,
    c2w: Tensor,  # [B, V, 4, 4]
    K: Tensor,  # [B, V, 3, 3]
    size: tuple[int, int],
    textures: Tensor,
    config: SyntheticConfig,
    shadows: bool,
    soft: Tensor,  # [B, V]
) -> tuple[Tensor, Tensor]:
    """Linear light [B, V, 3, H, W] and z-depth [B, V, H, W] (infinity: sky).

    Samples lie on a grid of half pixels, so every second one of a row is a pixel centre, where depth is taken; a
    pixel's light is a small tent over 3 x 3 samples, of which it shares all but one with its neighbours.
    """
    batch, views = c2w.shape[:2]
    counts = config.counts
    if K.device.type == "cpu":
        # Here reading values costs nothing, and every slot counts.
        if batch > 1:
            each = [
                cast(*(value[i : i + 1] for value in (table, waves, ambience, c2w, K)), size, textures, config, shadows,
                     soft[i : i + 1]) for i in range(batch)
            ]  # fmt: skip
            return tuple(torch.cat(values) for values in zip(*each, strict=True))
        table, waves, counts = without_unused(table, waves, counts)
    grid = (2 * size[0] + 1, 2 * size[1] + 1)
    count = grid[0] * grid[1]
    to_local, eye_local = into_frames(table, c2w)
    scenes = (field.repeat_interleave(views, 0) for field in (table, waves, ambience))
    lens = torch.stack([K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]], -1).flatten(0, 1)
    world = World(*scenes, to_local, eye_local, c2w.flatten(0, 1)[:, :3], lens)
    width = torch.full((), grid[1], dtype=torch.int32, device=K.device)
    strip, strips, rows = strip_sizes(count, config, K.device)
    first = torch.arange(strips, dtype=torch.int32, device=K.device) * strip
    lights, depths = [], []
    for start in range(0, batch * views, CAMERAS):
        cameras = torch.arange(start, min(start + CAMERAS, batch * views), device=K.device)
        camera, begin = cameras.repeat_interleave(strips), first.repeat(len(cameras))
        samples = torch.empty(4, len(camera), strip, device=K.device)
        for top in range(0, len(camera), rows):
            stop = min(top + rows, len(camera))
            here = World(*(field[camera[top:stop]] for field in world))
            traced = trace(here, begin[top:stop], width, strip, textures, counts, config.steps, shadows)
            for channel, values in zip(samples, traced, strict=True):
                channel[top:stop] = values
        samples = samples.view(4, len(cameras), -1)[:, :, :count].unflatten(2, grid)
        lights.append(pixel_filter(samples[:3], soft.flatten()[cameras, None, None]).transpose(0, 1))
        depths.append(samples[3, :, 1::2, 1::2].clone())
    return torch.cat(lights).unflatten(0, (batch, views)), torch.cat(depths).unflatten(0, (batch, views))


def without_unused(table: Tensor, waves: Tensor, counts: Counts) -> tuple[Tensor, Tensor, Counts]:
    """One scene's table and waves less the empty slots; of what is reduced over, the first ones stay."""
    used = table[0, FIELD["half_x"]] > UNUSED_SIZE
    used[[0, counts.boxes, counts.boxes + counts.rounds]] = True
    kept = Counts(*(int(part.sum()) for part in used.split(counts)))
    return table[:, :, used], waves[:, used[counts.total - counts.implicits :]], kept


def strip_sizes(count: int, config: SyntheticConfig, device: torch.device) -> tuple[int, int, int]:
    """Samples in a strip, strips of an image of `count` samples, and strips in a call of the ray caster.

    On the CPU its [samples, primitives] matrices should stay in the cache. On CUDA there are none, and a call wants
    to be large: each of its hundreds of small operations must keep the device busy for longer than it takes to launch.
    """
    if device.type == "cuda":
        budget = 2**23
    else:
        budget = 2**20 // max(config.boxes, config.rounds, config.panels, config.steps)
    strips = -(-count // budget)
    strip = -(-count // strips)
    return strip, strips, max(1, budget // strip)


def pixel_filter(samples: Tensor, soft: Tensor) -> Tensor:
    """Pixels [..., H, W] from samples [..., 2H + 1, 2W + 1] by the weights (soft, 1 - 2 soft, soft) along both axes."""
    rows = soft * (samples[..., :-2:2, :] + samples[..., 2::2, :]) + (1 - 2 * soft) * samples[..., 1::2, :]
    return soft * (rows[..., :-2:2] + rows[..., 2::2]) + (1 - 2 * soft) * rows[..., 1::2]


def develop(dice: Dice, light: Tensor, config: SyntheticConfig) -> Tensor:
    """Linear light [B, V, 3, H, W] -> images in [0, 1]: exposure, white balance, a film curve and noise."""
    batch, views = light.shape[:2]
    level = light.clamp(0, 20).sqrt().mean((1, 2, 3, 4)).square()
    gain = dice.log_uniform(low=0.13, high=0.32) / level.clamp_min(1e-4)
    varied = torch.where(dice.chance(config.exposure, 1), 1.0, 0.0)
    exposure = torch.exp(varied * dice.normal(views, std=0.12))
    balance = torch.exp(varied[..., None] * dice.normal(views, 3, std=0.025))
    factor = (gain[:, None] * exposure)[..., None] * balance
    image = torch.sqrt(1 - torch.exp(-light * factor[..., None, None]) + 1e-6)
    contrast = dice.uniform(low=0.9, high=1.3)[:, None, None, None, None]
    image = 0.5 + contrast * (image - 0.5)
    sigma = config.noise * torch.where(dice.chance(0.5), dice.uniform(), 0.0)
    grain = torch.randn(image.shape, generator=dice.generator, device=image.device)
    return (image + sigma[:, None, None, None, None] * grain).clamp(0, 1)


def into_world(dice: Dice, c2w: Tensor, scales: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """w2c [B, V, 4, 4] after a random similarity of the world, and its scale [B]."""
    scale = dice.log_uniform(low=scales[0], high=scales[1])
    rotation = rotations(dice.uniform(3, low=-3.1416, high=3.1416))[:, None]
    center = (apply(rotation, c2w[..., :3, 3]) + dice.normal(1, 3, std=3)) * scale[:, None, None]
    return inverse(rigid(product(rotation, c2w[..., :3, :3]), center)), scale
