"""The texture atlas: packed mip pyramids, a trilinear lookup, and textures made from noise or from photographs.

An atlas is one int32 tensor [T, N]: T pyramids of square textures, level after level from S x S down to 1 x 1, each
texel packed as 0x00BBGGRR so that one gather reads a colour. Textures repeat as mirror images: no seams anywhere.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
RAMP = 5  # colours in a ramp


def pack(textures: Tensor) -> Tensor:
    """Textures [T, 3, S, S] in [0, 1], S a power of two -> atlas int32 [T, N]."""
    size = textures.shape[-1]
    if textures.shape[-2] != size or size & (size - 1):
        raise ValueError(f"textures must be square with a power of two as side, got {tuple(textures.shape)}")
    levels = []
    for _ in range(int(math.log2(size)) + 1):
        texels = (textures * 255 + 0.5).clamp(0, 255).to(torch.int32)
        levels.append((texels[:, 0] | texels[:, 1] << 8 | texels[:, 2] << 16).flatten(1))
        textures = F.avg_pool2d(textures, 2) if textures.shape[-1] > 1 else textures
    return torch.cat(levels, 1)


def side(atlas: Tensor) -> int:
    """The side S of an atlas's finest level."""
    size = 1 << ((atlas.shape[1] * 3 // 4).bit_length() // 2)
    if (4 * size * size - 1) // 3 != atlas.shape[1]:
        raise ValueError(f"{tuple(atlas.shape)} is no atlas [T, N]; make one by make_atlas or pack")
    return size


def unpack(atlas: Tensor) -> Tensor:
    """The finest level [T, 3, S, S] in [0, 1] of an atlas."""
    size = side(atlas)
    texels = atlas[:, : size * size].reshape(-1, size, size)
    return torch.stack([(texels >> shift) & 255 for shift in (0, 8, 16)], 1) / 255


def lookup(atlas: Tensor, texture: Tensor, u: Tensor, v: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Trilinear colours (r, g, b), each shaped like the arguments.

    `texture` int32 picks the pyramid, (u, v) count repeats of it, `level` is log2 of the footprint in finest texels.
    """
    size = side(atlas)
    top = int(math.log2(size))
    flat = atlas.reshape(-1)
    level = level.clamp(0, top - 1e-3)
    fine = torch.floor(level)
    between = level - fine
    rgb = [0.0, 0.0, 0.0]
    for step in (0, 1):
        depth = fine.to(torch.int32) + step
        s = torch.bitwise_right_shift(torch.full_like(depth, size), depth)
        start = texture * atlas.shape[1] + (size * size - s * s) // 3 * 4
        x, y = u * s - 0.5, v * s - 0.5
        x0, y0 = torch.floor(x), torch.floor(y)
        wx, wy = x - x0, y - y0
        weight = between if step else 1 - between
        for dy in (0, 1):
            row = mirror(y0.to(torch.int32) + dy, s) * s
            wy_row = weight * (wy if dy else 1 - wy)
            for dx in (0, 1):
                texel = flat[start + row + mirror(x0.to(torch.int32) + dx, s)]
                w = wy_row * (wx if dx else 1 - wx) * (1 / 255)
                rgb = [c + w * ((texel >> shift) & 255) for c, shift in zip(rgb, (0, 8, 16), strict=True)]
    return tuple(rgb)


def mirror(index: Tensor, size: Tensor) -> Tensor:
    """Texel index folded into [0, size) by mirrored repetition; `size` is a power of two."""
    folded = index & (2 * size - 1)
    return torch.where(folded < size, folded, 2 * size - 1 - folded)


def make_atlas(
    seed: int, count: int, size: int = 256, device: torch.device | str = "cpu", photos: Path | None = None
) -> Tensor:
    """An atlas of `count` textures [count, N]: procedural, or half of it crops of photographs if `photos` is given.

    `photos` is a folder that is searched for images at any depth. Raises ValueError if it holds none.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    from_photos = count // 2 if photos else 0
    makers = (noise_texture, noise_texture, plain_texture, plain_texture, tile_texture, grain_texture,
              cell_texture, spot_texture, glyph_texture, gradient_texture)  # fmt: skip
    textures = [makers[i % len(makers)](generator, size) for i in range(count - from_photos)]
    if from_photos:
        textures += photo_crops(Path(photos), from_photos, size, generator)
    return pack(torch.stack(textures)).to(device)


def rand(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def noise(generator: torch.Generator, size: int, first: int, octaves: int, gain: float = 0.55) -> Tensor:
    """Value noise [S, S] in [0, 1]; the coarsest octave has `first` knots a side, in general not the same both ways."""
    total = torch.zeros(size, size)
    stretch = 2 ** rand(generator, -1, 1) if rand(generator) < 0.4 else 1.0
    for octave in range(octaves):
        knots = [max(2, int(first * s * 2**octave)) for s in (stretch, 1 / stretch)]
        if max(knots) > size:
            break
        layer = torch.rand(1, 1, *knots, generator=generator)
        total += gain**octave * F.interpolate(layer, (size, size), mode="bicubic", align_corners=True)[0, 0]
    total -= total.min()
    return total / total.max().clamp_min(1e-6)


def muted_colors(generator: torch.Generator, count: int) -> Tensor:
    """Colours [count, 3] as in photographs: mostly grey or brown, near each other in hue, of any lightness."""
    hue = rand(generator) if rand(generator) < 0.5 else rand(generator, 0.02, 0.16)
    hues = hue + 0.06 * torch.randn(count, generator=generator)
    saturation = rand(generator) ** 2 * 0.8 * (0.6 + 0.4 * torch.rand(count, generator=generator))
    value = torch.rand(count, generator=generator) * 0.8 + 0.1
    phase = hues[:, None] + torch.tensor([0.0, -1 / 3, 1 / 3])
    pure = ((phase - phase.round()).abs() * -6 + 2).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * (1 - pure))


def ramp(generator: torch.Generator, value: Tensor) -> Tensor:
    """Values [S, S] in [0, 1] -> colours [3, S, S] along a random ramp."""
    colors = muted_colors(generator, RAMP)
    if rand(generator) < 0.6:
        colors = colors[colors.sum(-1).argsort()]
    place = value.clamp(0, 1) * (RAMP - 1)
    lower = place.floor().long().clamp(0, RAMP - 2)
    share = (place - lower)[..., None]
    return (colors[lower] * (1 - share) + colors[lower + 1] * share).permute(2, 0, 1)


def grid(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Coordinates u, v [S, S] in [0, 1), slightly warped."""
    line = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(line, line, indexing="ij")
    warp = rand(generator, 0, 0.03) if rand(generator) < 0.5 else 0.0
    return u + warp * (noise(generator, size, 3, 3) - 0.5), v + warp * (noise(generator, size, 3, 3) - 0.5)


def speckle(generator: torch.Generator, size: int, strength: float) -> Tensor:
    """Multiplicative dirt [S, S] about 1: coarse stains and fine grain."""
    stains = noise(generator, size, 3, 6, rand(generator, 0.5, 0.8)) - 0.5
    return 1 + strength * (stains + 0.5 * (torch.rand(size, size, generator=generator) - 0.5))


def noise_texture(generator: torch.Generator, size: int) -> Tensor:
    """Clouds, marble or ridges."""
    value = noise(generator, size, int(rand(generator, 2, 9)), 8, rand(generator, 0.45, 0.85))
    kind = rand(generator)
    if kind < 0.25:
        u, v = grid(generator, size)
        value = 0.5 + 0.5 * torch.sin((u + 0.4 * v) * rand(generator, 6, 30) + 9 * value)
    elif kind < 0.4:
        value = 1 - (2 * value - 1).abs()
    return ramp(generator, value)


def plain_texture(generator: torch.Generator, size: int) -> Tensor:
    """One colour with faint stains: painted walls, plastic, paper."""
    color = muted_colors(generator, 1)[0]
    if rand(generator) < 0.5:
        color = 1 - 0.5 * (1 - color)
    return (color[:, None, None] * speckle(generator, size, rand(generator, 0.01, 0.15))).clamp(0, 1)


def tile_texture(generator: torch.Generator, size: int) -> Tensor:
    """Bricks, tiles, checks, planks and stripes, each tile with a shade of its own."""
    u, v = grid(generator, size)
    rows, columns = int(rand(generator, 2, 14)), int(rand(generator, 1, 12))
    y = v * rows
    shift = rand(generator) * (rand(generator) < 0.6)
    x = u * columns + shift * y.floor()
    color = muted_colors(generator, 2)
    shade = torch.rand(rows + 3, columns + rows + 3, generator=generator)
    shade = shade[y.floor().long().clamp(0, rows + 2), x.floor().long().clamp(0, columns + rows + 2)]
    if rand(generator) < 0.25:
        shade = ((x.floor() + y.floor()) % 2) * 0.9
    amount = rand(generator, 0.1, 1.0)
    gap = rand(generator, 0.01, 0.1)
    joint = ((x % 1) < gap * columns / rows) | ((y % 1) < gap)
    tile = ramp(generator, 0.5 + amount * (shade - 0.5)) * speckle(generator, size, rand(generator, 0.05, 0.5))
    return torch.where(joint, color[0][:, None, None] * 0.8, tile).clamp(0, 1)


def grain_texture(generator: torch.Generator, size: int) -> Tensor:
    """Wood: rings cut lengthwise."""
    u, v = grid(generator, size)
    bend = noise(generator, size, 3, 4)
    distance = torch.sqrt(((u - rand(generator)) * rand(generator, 0.1, 1)) ** 2 + (v - rand(generator)) ** 2)
    rings = (distance * rand(generator, 6, 40) + bend * rand(generator, 0.5, 3)) % 1
    fibres = F.interpolate(torch.rand(1, 1, size, 8, generator=generator), (size, size), mode="bilinear")[0, 0]
    return ramp(generator, 0.6 * rings**2 + 0.4 * fibres) * speckle(generator, size, 0.2).clamp(0, 1.2)


def cell_texture(generator: torch.Generator, size: int) -> Tensor:
    """Voronoi cells: pebbles, cobbles, leaves, cracked mud."""
    u, v = grid(generator, size)
    points = torch.rand(int(rand(generator, 12, 160)), 2, generator=generator)
    distance = torch.cdist(torch.stack([u, v], -1).reshape(-1, 2), points)
    nearest, index = distance.topk(2, largest=False)
    edge = (nearest[:, 1] - nearest[:, 0]).reshape(size, size) * len(points) ** 0.5
    shade = torch.rand(len(points), generator=generator)[index[:, 0]].reshape(size, size)
    light = (edge * rand(generator, 1, 6)).clamp(0, 1) * 0.8 + 0.2
    return (ramp(generator, shade) * light * speckle(generator, size, 0.3)).clamp(0, 1)


def spot_texture(generator: torch.Generator, size: int) -> Tensor:
    """Discs of many sizes on a ground: fabric, terrazzo, foliage."""
    u, v = grid(generator, size)
    image = ramp(generator, noise(generator, size, 3, 6))
    count = int(rand(generator, 20, 160))
    radius = torch.exp(torch.rand(count, generator=generator) * 2.2 - 4.6)
    place, colors = torch.rand(count, 2, generator=generator), muted_colors(generator, count)
    squeeze = torch.exp(torch.randn(count, generator=generator) * 0.5)
    for i in range(count):
        inside = ((u - place[i, 0]) * squeeze[i]) ** 2 + (v - place[i, 1]) ** 2 < radius[i] ** 2
        image = torch.where(inside, colors[i][:, None, None], image)
    return image


def glyph_texture(generator: torch.Generator, size: int) -> Tensor:
    """Lines of strokes like print, on paper or a sign."""
    line = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(line, line, indexing="ij")
    colors = muted_colors(generator, 2)
    paper, ink = 1 - 0.4 * (1 - colors[0]), colors[1] * 0.5
    rows = int(rand(generator, 3, 20))
    strokes = rows * int(rand(generator, 2, 6))
    on = torch.zeros(size, size, dtype=torch.bool)
    row, column = (v * rows).long(), (u * strokes).long()
    for _ in range(2):
        mask = torch.rand(rows, strokes, generator=generator) < 0.4
        low, high = torch.rand(2, rows, strokes, generator=generator).sort(0).values
        y = (v * rows) % 1
        on |= mask[row, column] & (y > 0.2 + 0.5 * low[row, column]) & (y < 0.4 + 0.5 * high[row, column])
    inked = torch.where(on, ink[:, None, None], paper[:, None, None])
    return (inked * speckle(generator, size, 0.1)).clamp(0, 1)


def gradient_texture(generator: torch.Generator, size: int) -> Tensor:
    """Smooth shades, as of glazed or defocused things."""
    u, v = grid(generator, size)
    angle = rand(generator, 0, 2 * math.pi)
    value = 0.5 + (u - 0.5) * math.cos(angle) + (v - 0.5) * math.sin(angle)
    value = 0.6 * value + 0.4 * noise(generator, size, 2, 3)
    return (ramp(generator, value) * speckle(generator, size, 0.05)).clamp(0, 1)


def photo_crops(folder: Path, count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """`count` square crops [3, S, S] of the images below `folder`, log-uniform between a tenth of a side and all."""
    from PIL import Image, ImageOps

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise ValueError(f"{folder}: no image ({', '.join(sorted(PHOTO_SUFFIXES))}) to take textures from")
    order = torch.randperm(len(paths), generator=generator).tolist()
    crops = []
    used = [order[i % len(order)] for i in range(min(count, len(order)))]
    for place, index in enumerate(used):
        with Image.open(paths[index]) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        # Each photograph is opened once and gives its share of the crops.
        for _ in range(place, count, len(used)):
            shortest = min(image.size)
            width = max(32, int(shortest * math.exp(rand(generator, math.log(0.1), 0))))
            width = min(width, shortest)
            left, top = (int(rand(generator, 0, s - width + 0.99)) for s in image.size)
            crop = image.crop((left, top, left + width, top + width)).resize((size, size), Image.Resampling.LANCZOS)
            pixels = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8)
            crops.append(pixels.reshape(size, size, 3).permute(2, 0, 1) / 255)
    return crops
