"""Score a checkpoint on procedural scenes, whose depth and cameras are exact: `python eval_nvs/procedural.py`.

Every scene is one that no training run has seen (`geometry/synthetic`, seeds of its own), with the light, the lenses
and the paths of the training scenes. With poses: the depth of the inputs and the pictures of targets between them.
Without: the depth of the inputs and of the first alone, brought to the true scale by the median of their ratio, and the
angles between predicted and true orientations, from the network alone and after matches between the inputs
(`geometry.match_cameras`). This is a table of nano's model card. With `--lenses` the views of a scene zoom, as photos
of one place by many people do, and with `--wild` the inputs are of different days, as those are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from geometry.alignment import rotation_error
from geometry.cameras import Cameras
from geometry.synthetic import LENS_FOV, SyntheticConfig, in_the_wild, make_atlas, sample_batch
from splat.atomic import whole_file
from splat.metrics import depth_errors, psnr
from splat.model import GaussianModel
from splat.predict import predict
from splat.render import render

SEED = 1 << 40  # of the first scene; training draws 63-bit seeds at random
NAMES = {
    "abs_rel": "depth AbsRel",
    "delta": "depth delta 1.25",
    "psnr": "PSNR of targets, dB",
    "copy_psnr": "PSNR of the nearest input, dB",
    "unposed_abs_rel": "depth AbsRel without poses, scale aligned",
    "unposed_delta": "its delta 1.25",
    "single_abs_rel": "depth AbsRel of one photo alone, scale aligned",
    "single_delta": "its delta 1.25",
    "rotation": "rotation error of own poses (their median pair), degrees",
    "matched_rotation": "the same, after matches between the inputs",
}
HIGH_IS_GOOD = ("delta", "psnr", "copy_psnr", "unposed_delta", "single_delta")


@dataclass(frozen=True)
class Args:
    weights: str = "nano"  # preset, folder, file or hub id
    scenes: int = 32  # how many
    size: int = 252  # side of the images, px, a multiple of 14
    context: int = 4  # input views of a scene
    targets: int = 2  # target views of a scene
    lenses: bool = False  # scenes whose views have lenses of their own, with a field of view of up to 118 degrees
    wild: bool = False  # inputs with tones and skies of their own, and people and leaves that no other view has
    textures: int = 256  # size of the texture atlas; all are made up, none comes from a photo
    device: str = "cuda" if torch.cuda.is_available() else "cpu"  # where scenes, network and renderer run
    out: Path | None = None  # folder for results.json, table.md and a PNG per scene


@dataclass(frozen=True)
class Sample:
    """One scene: inputs first."""

    images: Tensor  # [V, 3, H, W] in [0, 1]
    cameras: Cameras  # [V]
    depth: Tensor  # [V, H, W] z-depth
    valid: Tensor  # [V, H, W] bool: a surface is seen


def draw(args: Args, number: int, atlas: Tensor) -> Sample:
    """Scene `number`, always the same on the same kind of device."""
    config = SyntheticConfig(targets=args.targets)
    if args.lenses:
        config = replace(config, lenses=1.0, fov=LENS_FOV)
    size, views = (args.size, args.size), args.context + args.targets
    made = sample_batch(SEED + number, 1, views, size, atlas, args.device, config)
    images, depth, valid = made.images, made.depth, made.valid
    if args.wild:
        depth = torch.where(valid, depth, 2 * depth.amax())
        images, depth, valid = in_the_wild(SEED + number, images, depth, valid, args.context, atlas)
    return Sample(images[0], made.cameras[0], depth[0], valid[0])


def score(model: GaussianModel, sample: Sample, context: int) -> tuple[dict[str, float], Tensor]:
    """The scene's figures by NAMES, and a row of pictures [N, 3, H, W].

    The row: inputs, a target, its render, the first input's true and predicted inverse depth.
    """
    images, cameras = sample.images[:context], sample.cameras[:context]
    posed = predict(images, cameras, model, ("depth", "gaussians"))
    own = predict(images, None, model, ("depth", "cameras"))
    single = predict(images[:1], None, model, ("depth",))
    matched = predict(images, None, model, ("cameras",), cameras_from="matches")
    color = render(posed.gaussians, sample.cameras[context:]).color.clamp(0, 1).movedim(-1, -3)
    targets = sample.images[context:]
    nearest = torch.cdist(sample.cameras.centers[context:], cameras.centers).argmin(1)
    known, depth = sample.valid[:context], sample.depth[:context]
    abs_rel, delta = depth_errors(posed.depth[known], depth[known])
    unposed_abs_rel, unposed_delta = aligned_errors(own.depth[known], depth[known])
    single_abs_rel, single_delta = aligned_errors(single.depth[known[:1]], depth[:1][known[:1]])
    values = {
        "abs_rel": abs_rel,
        "delta": delta,
        "psnr": np.mean([psnr(a, b) for a, b in zip(color, targets, strict=True)]),
        "copy_psnr": np.mean([psnr(a, b) for a, b in zip(images[nearest], targets, strict=True)]),
        "unposed_abs_rel": unposed_abs_rel,
        "unposed_delta": unposed_delta,
        "single_abs_rel": single_abs_rel,
        "single_delta": single_delta,
        "rotation": rotation_error(own.cameras, cameras),
        "matched_rotation": rotation_error(matched.cameras, cameras),
    }
    scale = 0.4 * sample.depth[0][known[0]].median()
    inverse = [scale / depth.clamp_min(1e-6) for depth in (sample.depth[0], posed.depth[0])]
    inverse[0] = inverse[0] * known[0]
    shades = torch.stack(inverse).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
    row = torch.cat([images, targets[:1], color[:1], shades])
    return {name: float(value) for name, value in values.items()}, row.cpu()


def aligned_errors(depth: Tensor, truth: Tensor) -> tuple[float, float]:
    """AbsRel and delta 1.25 of depths [N] at the scale that brings the median of their ratio to the truth's to 1."""
    return depth_errors(depth / (depth / truth).median(), truth)


def table(rows: list[dict[str, float]]) -> str:
    """Markdown: each figure's mean, median and worst over scenes; one scene that fails can be most of a mean."""
    lines = [f"| {len(rows)} procedural scenes | mean | median | worst |", "|---|---|---|---|"]
    for key, name in NAMES.items():
        values = [row[key] for row in rows]
        worst = min(values) if key in HIGH_IS_GOOD else max(values)
        cells = (f"{x:.3f}" if x < 1 else f"{x:.2f}" for x in (np.mean(values), np.median(values), worst))
        lines.append(f"| {' | '.join((name, *cells))} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    if args.size % 14 or args.size < 28:
        raise ValueError(f"--size must be a multiple of 14 from 28 on, got {args.size}")
    if min(args.scenes, args.targets) < 1 or args.context < 2:
        raise ValueError("--scenes and --targets must be 1 or more, --context 2 or more")
    model = GaussianModel.from_pretrained(args.weights).to(args.device)
    atlas = make_atlas(SEED, args.textures, device=args.device)
    rows = []
    for number in tqdm(range(args.scenes), unit="scene"):
        values, pictures = score(model, draw(args, number, atlas), args.context)
        rows.append(values)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            strip = (pictures.clamp(0, 1) * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2)
            Image.fromarray(strip.numpy()).save(args.out / f"{number:03d}.png")
    print(table(rows))
    if args.out is not None:
        asked = {name: getattr(args, name) for name in ("weights", "size", "context", "lenses", "wild")}
        result = {**asked, "scenes": rows}
        for name, text in (("table.md", table(rows) + "\n"), ("results.json", json.dumps(result, indent=1))):
            with whole_file(args.out / name) as temporary:
                temporary.write_text(text)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ValueError, OSError, ImportError, MemoryError) as error:
        raise SystemExit(f"eval_nvs/procedural.py: error: {error}") from error
