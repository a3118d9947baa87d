"""Score a checkpoint on windows of posed scenes: `python eval_nvs/windows.py --root SCENES --weights nano`.

Every scene gives windows of neighbouring views: four are inputs, with their poses, and the two that lie most in between
are targets. Beside our render stands the copy of the nearest input, the least that a model must beat, and with
--seconds what optimisation reaches on the same inputs in that time (eval_nvs/methods/per_scene.py). PSNR and SSIM are
those of splat/metrics.py, means over the images of a scene, then over scenes; LPIPS needs --lpips-weights. The inputs'
depth is compared with the points of structure from motion that each of them saw; where the scene does not say which,
with all in the picture, hidden ones among them. With --cameras-from the inputs come with their intrinsics but without
poses; matches are looked for in the photos as large as they are stored, up to 1008 px. Targets follow by the similarity
between found and given poses, whose errors stand in the place of the depth's. This is the table of the model card; the
benchmark by published protocols is eval_nvs/run.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eval_nvs.methods.per_scene import PerScene
from eval_nvs.protocol import PROTOCOLS
from eval_nvs.stages import seen_points
from geometry.alignment import align_cameras, rotation_error
from geometry.cameras import Cameras
from geometry.match_cameras import photos_to_match
from geometry.scene import Scene, open_scene, views
from geometry.scene_depth import sparse_depth
from geometry.view_selection import windows
from splat.asked import CamerasFrom
from splat.atomic import whole_file
from splat.metrics import depth_errors, psnr, ssim
from splat.model import GaussianModel
from splat.perceptual import Perceptual
from splat.reconstruct import reconstruct
from splat.refine import refine
from splat.render import render

COLUMNS = {  # of the table: what a score is called, and how it is printed
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "lpips": ("LPIPS (Alex)", ".3f"),
    "copy_psnr": ("nearest copy", ".2f"),
    "gain": ("gain", "+.2f"),
    "rotation": ("rotation error", ".2f"),
    "worst_rotation": ("of the worst pair", ".2f"),
    "fitted_psnr": ("fitted to the inputs", ".2f"),
    "abs_rel": ("depth AbsRel", ".3f"),
    "delta": ("delta 1.25", ".3f"),
}


@dataclass(frozen=True)
class Args:
    root: Path  # folder of posed scene folders (transforms.json or COLMAP)
    weights: str = "nano"  # preset, folder, file or hub id
    size: int = 252  # long side of the images, px
    context: int = 4  # input views of a window
    targets: int = 2  # target views of a window
    groups: int = 2  # windows per scene
    cameras_from: Literal["given"] | CamerasFrom = "given"  # poses of the inputs: the scene's, or found without them
    looks: int | None = None  # at its own pictures, of a network that takes any; None: one for every four inputs begun
    refine: int = 0  # steps of splat.refine on the inputs after the forward pass
    seconds: float = 0  # time to fit Gaussians to the inputs of each window, from the scene's sparse points; 0: do not
    lpips_weights: Path | None = None  # AlexNet backbone of LPIPS (.npz or .safetensors); without it no LPIPS
    device: str = "cuda" if torch.cuda.is_available() else "cpu"  # where the network and the renderer run
    out: Path | None = None  # folder for results.json, table.md and a PNG per window


@dataclass(frozen=True)
class Score:
    """One target image."""

    scene: str
    inputs: tuple[str, ...]
    target: str
    psnr: float
    ssim: float
    copy_psnr: float
    lpips: float | None = None
    rotation: float | None = None  # degrees, of the median pair of input cameras
    worst_rotation: float | None = None  # of the worst pair: a single wrong camera shows here
    notes: tuple[str, ...] = ()  # on found cameras: how many views matches placed, for instance
    fitted_psnr: float | None = None
    abs_rel: float | None = None  # of the inputs' depth at the scene's points: mean relative error
    delta: float | None = None  # share of these points within a factor of 1.25

    @property
    def gain(self) -> float:
        return self.psnr - self.copy_psnr


def known_depth(scene: Scene, inputs: list[int], cameras: Cameras) -> Tensor:
    """Depth [V, H, W] of the points that each of the views `inputs` of a scene saw; 0 where nothing is known.

    Of all points, if the scene does not say which.
    """
    known = torch.zeros(len(inputs), *cameras.size)
    for v, i in enumerate(inputs):
        points = seen_points(scene, [scene.names[i]])
        if points is not None:
            w2c, K = cameras.w2c[v].numpy(), cameras.K[v].numpy()
            known[v] = torch.from_numpy(sparse_depth(points.double().numpy(), w2c, K, cameras.size))
    return known


def depth_scores(depth: Tensor, known: Tensor) -> dict[str, float]:
    """AbsRel and delta 1.25 of depth where `known`, both [V, H, W], is above 0; none where it nowhere is."""
    at = known > 0
    if not at.any():
        return {}
    abs_rel, delta = depth_errors(depth.cpu()[at], known[at])
    return {"abs_rel": abs_rel, "delta": delta}


def fit(images: Tensor, cameras: Cameras, points: Tensor | None, args: Args) -> list[float]:
    """PSNR of each target among images [V, 3, H, W] and cameras [V], inputs first, after a fit to the inputs."""
    method = PerScene(PROTOCOLS["paper"], args.seconds, args.device)
    fitted = method.reconstruct(images[: args.context], cameras[: args.context], points)
    color = fitted.render(cameras[args.context :]).cpu()
    return [psnr(a, b) for a, b in zip(color, images[args.context :], strict=True)]


def score_window(
    model: GaussianModel,
    images: Tensor,
    cameras: Cameras,
    known: Tensor | None,
    photos: Tensor | None,
    args: Args,
    perceptual: Perceptual | None = None,
) -> tuple[list[dict], Tensor]:
    """Scores of the targets among images [V, 3, H, W] and cameras [V], inputs first.

    `known` [context, H, W] is the inputs' depth, 0 where unknown, for given poses; in `photos` matches are looked for.
    Also returns a picture strip [3 * T + context, ...].
    """
    context = args.context
    inputs, targets = cameras[:context], cameras[context:]
    if args.cameras_from == "given":
        result = reconstruct(images[:context], inputs, model, looks=args.looks)
        found = depth_scores(result.depth, known)
    else:
        options = {"K": inputs.K, "cameras_from": args.cameras_from, "photos": photos, "looks": args.looks}
        result = reconstruct(images[:context], None, model, **options)
        seen = result.cameras.to("cpu", torch.float64)
        home = align_cameras(inputs.to("cpu", torch.float64), seen, turn_by="orientations")
        targets = home.cameras(targets.to("cpu", torch.float64))
        pairs = [list(pair) for pair in combinations(range(context), 2)]
        found = {
            "rotation": float(rotation_error(seen, inputs)),
            "worst_rotation": max(float(rotation_error(seen[pair], inputs[pair])) for pair in pairs),
            "notes": result.notes,
        }
    gaussians = result.gaussians
    if args.refine:
        gaussians = refine(gaussians, result.evened, result.cameras, args.refine, fixed=result.backdrop)
    with torch.inference_mode():
        color = render(gaussians, targets.to(gaussians.means.device, torch.float32)).color.clamp(0, 1).cpu()
    nearest = torch.cdist(cameras.centers[context:], cameras.centers[:context]).argmin(1)
    photos, ours, copies = images[context:], color.movedim(-1, -3), images[:context][nearest]
    rows = [
        {"psnr": psnr(our, photo), "ssim": ssim(our, photo), "copy_psnr": psnr(copy, photo)} | found
        for our, photo, copy in zip(ours, photos, copies, strict=True)
    ]
    if perceptual is not None:
        with torch.inference_mode():
            distances = perceptual(ours, photos).tolist()
        rows = [row | {"lpips": value} for row, value in zip(rows, distances, strict=True)]
    return rows, torch.cat([images[:context], photos, ours, copies])


def table(scores: list[Score]) -> str:
    """Markdown rows by scene, and their mean; a cell is empty where a scene has no such score."""
    columns = {key: column for key, column in COLUMNS.items() if any(getattr(s, key) is not None for s in scores)}
    rows = {}
    for scene in sorted({s.scene for s in scores}):
        images = [s for s in scores if s.scene == scene]
        rows[scene] = {key: mean_of([getattr(s, key) for s in images]) for key in columns}

    def cells(row: dict[str, float | None]) -> list[str]:
        return ["" if row[key] is None else format(row[key], layout) for key, (_, layout) in columns.items()]

    means = {key: mean_of([row[key] for row in rows.values()]) for key in columns}
    mean = [f"**{cell}**" for cell in (f"mean of {len(rows)} scenes", *cells(means))]
    names = ["scene", *(name for name, _ in columns.values())]
    body = [names, *([scene, *cells(row)] for scene, row in rows.items()), mean]
    head, *rest = (f"| {' | '.join(line)} |" for line in body)
    return "\n".join([head, "|" + "---|" * len(names), *rest])


def mean_of(values: list[float | None]) -> float | None:
    """Mean of those that there are."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def strip(pictures: Tensor) -> Image.Image:
    row = rearrange((pictures.clamp(0, 1) * 255).round().byte(), "n c h w -> h (n w) c")
    return Image.fromarray(row.numpy())


def main(args: Args) -> None:
    folders = sorted(p for p in args.root.iterdir() if p.is_dir()) if args.root.is_dir() else []
    if not folders:
        raise ValueError(f"{args.root}: no scene folders here; give a folder that holds one folder a scene")
    model = GaussianModel.from_pretrained(args.weights).to(args.device)
    perceptual = None if args.lpips_weights is None else Perceptual(args.lpips_weights, "alex")
    scores: list[Score] = []
    for folder in tqdm(folders, unit="scene"):
        scene = open_scene(folder)
        for number, (inputs, targets) in enumerate(windows(scene.w2c, args.context, args.targets, args.groups)):
            images, cameras = views(scene, [*inputs, *targets], args.size, multiple=14)
            known = photos = None
            if args.cameras_from == "given":
                known = known_depth(scene, inputs, cameras[: args.context])
            elif args.cameras_from == "matches":
                photos = photos_to_match(scene, inputs, cameras.size)
            rows, pictures = score_window(model, images, cameras, known, photos, args, perceptual)
            if args.seconds > 0:
                fitted = fit(images, cameras, seen_points(scene, [scene.names[i] for i in inputs]), args)
                rows = [row | {"fitted_psnr": value} for row, value in zip(rows, fitted, strict=True)]
            names = tuple(scene.names[i] for i in inputs)
            scores += [Score(scene.name, names, scene.names[t], **row) for t, row in zip(targets, rows, strict=True)]
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                strip(pictures).save(args.out / f"{scene.name}-{number}.png")
    print(table(scores))
    if args.out is not None:
        result = {
            "weights": args.weights,
            "size": args.size,
            "cameras_from": args.cameras_from,
            "looks": args.looks,
            "refine": args.refine,
            "seconds": args.seconds,
            "images": [vars(s) for s in scores],
        }
        for name, text in (("table.md", table(scores) + "\n"), ("results.json", json.dumps(result, indent=1))):
            with whole_file(args.out / name) as temporary:
                temporary.write_text(text)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"eval_nvs/windows.py: error: {error}") from error
