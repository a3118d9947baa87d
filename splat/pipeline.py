"""From a scene as it lies on disk to a reconstruction: choose views, find poses, load the network, run it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from geometry.cameras import Cameras
from geometry.images import exif_focal
from geometry.match_cameras import photos_to_match
from geometry.pose_check import check_poses
from geometry.precision import Precision
from geometry.preprocess import SizeRule, preprocess
from geometry.presets import PATCH
from geometry.scene import Scene, open_scene
from geometry.scene import views as load_views
from geometry.sfm import PosesNotFound, reconstruct_poses
from geometry.view_selection import farthest_points, pose_distance
from splat.asked import CamerasFrom, check_looks
from splat.gaussians import Gaussians
from splat.metrics import psnr
from splat.model import GaussianModel, MonocularModel, NestedModel, from_pretrained
from splat.predict import estimate_bytes
from splat.reconstruct import Reconstruction
from splat.reconstruct import reconstruct as reconstruct_views
from splat.refine import refine as refine_gaussians
from splat.render import render

# More views than this are thinned out unless asked for: each costs time and memory, and neighbours repeat each other.
MOST_VIEWS = 12
# Structure from motion takes seconds a photo; this many, evenly spread, place the views well enough.
MOST_PHOTOS_TO_POSE = 60


def reconstruct(
    scene: Scene | str | Path,
    weights: str | Path = "nano",
    views: int | Sequence[int] | None = None,
    size: int = 252,
    device: str = "auto",
    report: Callable[[str], None] = lambda line: None,
    *,
    size_rule: SizeRule | None = None,
    cameras_from: Literal["auto"] | CamerasFrom = "auto",
    reference_view: str = "saddle_balanced",
    mode: Precision | None = None,
    looks: int | None = None,
    refine: int = 0,
    backdrop: bool = True,
) -> Reconstruction:
    """Reconstruct a scene (or what `open_scene` opens) with a network by name, folder, file or hub id.

    `views` is how many to use, spread over the scene (default: all, at most 12), or which, as indices. `size` is the
    long side in pixels that the network sees; photos are cut to the aspect that most have, or brought to size by a
    published `size_rule` (`geometry.preprocess`). `device` is "auto" (the GPU, if there is one), "cpu", "cuda" or
    "cuda:1". `reference_view`, `mode`, `looks` and `backdrop` are for `splat.predict.predict`. `refine` is how many
    steps on the photos follow (`splat.refine`). Progress and notes go to `report`, a line each.

    `cameras_from` says how a scene without poses gets them; "decoder", "rays" and "matches" are those of `predict`.
    "auto" is the decoder for networks that predict cameras well, and for one with a matching cue, nano, structure from
    motion; where that finds none, or pycolmap is not installed, "matches". Known intrinsics without poses are used;
    focal lengths come from EXIF where nothing else tells them to a monocular network or to the matching. Raises
    ValueError, OSError, ImportError, or MemoryError.
    """
    if not isinstance(scene, Scene):
        scene = open_scene(scene)
    for note in scene.notes:
        report(note)
    if views is not None and not isinstance(views, int):
        scene, views = scene.select(_checked(scene, views)), len(set(views))
    elif views is not None:
        _check_count(scene, views)  # before poses are looked for, which takes minutes
    device = pick_device(device)
    if refine < 0:
        raise ValueError(f"refine is a number of steps, 0 or more, got {refine}")
    if size < PATCH:
        raise ValueError(f"size {size} is too small; the network needs {PATCH} pixels or more")
    model = from_pretrained(weights)
    check_looks(looks, model)  # before poses are looked for
    notes: list[str] = []
    poses_given = scene.w2c is not None
    if cameras_from == "auto":
        cameras_from = "decoder"
        if not poses_given and _needs_poses(model) and len(scene) > 1:
            scene, note = _find_poses(scene, views, report)
            notes.append(note)
            views = None if views is None else min(views, len(scene))
            cameras_from = "matches"
    if isinstance(model, MonocularModel) or (cameras_from == "matches" and scene.w2c is None):
        scene = _with_focal(scene)
    indices = choose_views(scene, views)
    if len(indices) < len(scene):
        report(f"using {len(indices)} of {len(scene)} views (--views chooses how many)")
    images, cameras, K = _load(scene, indices, size, size_rule)
    photos = None
    # The published size rules cut a photo otherwise at another size: then the images themselves are matched.
    if cameras_from == "matches" and cameras is None and size_rule is None and len(indices) > 1:
        photos = photos_to_match(scene, indices, tuple(images.shape[-2:]))
    if poses_given and len(indices) > 1:
        check = check_poses(images, cameras, scene.select(indices).points)
        if check.suspicious:
            notes.append(f"warning: {check.message}")
            report(notes[-1])
    h, w = images.shape[-2:]
    need = estimate_bytes(model, len(images), (h, w)) / 1e9
    report(f"{model.config.name}: {len(images)} views of {h}x{w} on {device}, about {need:.1f} GB of memory")
    result = reconstruct_views(
        images,
        cameras,
        model.to(device),
        tuple(scene.names[i] for i in indices),
        K=K,
        photos=photos,
        cameras_from=cameras_from,
        reference_view=reference_view,
        mode=mode,
        looks=looks,
        backdrop=backdrop,
    )
    for note in result.notes:
        report(note)
    if result.metres is not None:
        report(f"one unit of length is {result.metres:.3g} m")
    if result.depth.is_cuda and find_spec("gsplat") is None:
        report("gsplat is not installed, so the CPU renders: pip install 'raysplat[gs]' (raysplat doctor says more)")
        result = result.to("cpu")
    if refine:
        result, note = _refined(result, refine)
        notes.append(note)
        report(note)
    return replace(result, notes=(*notes, *result.notes))


def choose_views(scene: Scene, count: int | None = None) -> list[int]:
    """Indices of `count` views, ascending: far apart from each other where poses are known, else evenly spread.

    None means all, at most 12. Raises ValueError when the scene has fewer.
    """
    total = len(scene)
    count = min(total, MOST_VIEWS) if count is None else count
    _check_count(scene, count)
    if scene.w2c is not None:
        return sorted(farthest_points(pose_distance(scene.w2c), count))
    return _spread(total, count)


def pick_device(device: str) -> str:
    """The device that "auto" means here; ValueError when the device named cannot be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{device}' cannot be used here; try --device cpu, and see raysplat doctor") from error
    return device


def _refined(result: Reconstruction, steps: int) -> tuple[Reconstruction, str]:
    """The reconstruction after steps of optimisation on its inputs, and a line that says what they brought there."""

    def score(gaussians: Gaussians) -> float:
        with torch.inference_mode():
            pictures = render(gaussians, result.cameras).color.movedim(-1, -3)
        return float(np.mean([psnr(a, b) for a, b in zip(pictures, result.evened)]))

    better = refine_gaussians(
        result.gaussians,
        result.evened,
        result.cameras,
        steps,
        fixed=result.backdrop,
        progress=sys.stderr.isatty(),
    )
    note = f"refined by {steps} steps: its pictures of the inputs had {score(result.gaussians):.2f} dB,"
    return replace(result, gaussians=better), f"{note} now {score(better):.2f}"


def _needs_poses(model: NestedModel | GaussianModel) -> bool:
    """Whether the network is much better with poses: those with a matching cue are."""
    return isinstance(model, GaussianModel) and model.config.cue is not None


def _load(
    scene: Scene, indices: list[int], size: int, rule: SizeRule | None
) -> tuple[Tensor, Cameras | None, Tensor | None]:
    """Images [V, 3, H, W] of these views, and their cameras [V], or intrinsics [V, 3, 3] alone, or neither."""
    posed = scene.w2c is not None
    if scene.K is not None and not posed:
        scene = replace(scene, w2c=np.broadcast_to(np.eye(4), (len(scene), 4, 4)))
    if rule is None:
        images, cameras = load_views(scene, indices, size, multiple=PATCH)
    else:
        chosen = scene.select(indices)
        images, K = preprocess([chosen.load(i) for i in range(len(chosen))], chosen.K, size, rule)
        cameras = None if K is None else Cameras(torch.tensor(chosen.w2c).float(), K, tuple(images.shape[-2:]))
    if posed or cameras is None:
        return images, cameras, None
    return images, None, cameras.K


def _with_focal(scene: Scene) -> Scene:
    """The scene with intrinsics from EXIF, if it has none of its own and its photos tell."""
    if scene.K is not None or scene.files is None:
        return scene
    focal = [exif_focal(file) for file in scene.files]
    if None in focal:
        return scene
    K = [np.array([[f, 0, w / 2], [0, f, h / 2], [0, 0, 1]]) for f, (h, w) in zip(focal, scene.sizes)]
    return replace(scene, K=np.stack(K))


def _find_poses(scene: Scene, views: int | None, report: Callable[[str], None]) -> tuple[Scene, str]:
    """The scene with poses if they can be found, and a line that says where they come from."""
    most = max(MOST_PHOTOS_TO_POSE, views or 0)
    photos = scene.select(_spread(len(scene), most)) if len(scene) > most else scene
    report(f"no camera poses given: looking for them in {len(photos)} photos (structure from motion)")
    try:
        posed = reconstruct_poses(photos, progress=sys.stderr.isatty())
    except (PosesNotFound, ImportError) as error:
        note = f"no poses found ({error}); matches between the photos must do, expect less"
        report(note)
        return scene, note
    note = f"poses of {len(posed)} of {len(photos)} photos found; scale and orientation of the world are arbitrary"
    report(note)
    return posed, note


def _check_count(scene: Scene, count: int) -> None:
    if not 1 <= count <= len(scene):
        raise ValueError(f"{count} views are asked for, but {scene.root} has {len(scene)}")


def _checked(scene: Scene, indices: Sequence[int]) -> list[int]:
    if not len(indices) or not all(0 <= i < len(scene) for i in indices):
        raise ValueError(f"views must be indices from 0 to {len(scene) - 1}, got {list(indices)}")
    return sorted(set(indices))


def _spread(total: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, total - 1, count).round()]
