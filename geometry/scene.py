"""A scene as the user brings it: named photos, perhaps with cameras and sparse points; and the views made from it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from geometry import images as im
from geometry.cameras import Cameras, validate

# Folders that data sets put between a scene's own name and its photos or cameras.
INNER_FOLDERS = ("images", "nerfstudio", "gaussian_splat", "colmap", "sparse", "sparse-txt", "manhattan", "dense", "0")
DECODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class SparsePoints:
    """Points of structure from motion: `xyz` [P, 3] float64 world; `visible`, per view, the indices of those it saw."""

    xyz: np.ndarray
    visible: tuple[np.ndarray, ...] | None = None


@dataclass(frozen=True)
class Scene:
    """V photos of one place; nothing is decoded until `load` is called.

    `names` are unique, in the reader's order; `sizes` are (height, width) of what `load(i)` returns: uint8 RGB
    [H, W, 3], turned upright by EXIF unless the cameras were made for the stored raster, and without lens distortion.
    `w2c` [V, 4, 4] float64 (OpenCV) and `K` [V, 3, 3] float64 in pixels of that picture, either None; poses never
    come without intrinsics. `files` are the photo files, None for a video or pictures in memory. `notes` say in one
    line each what the reader left out or changed. Raises ValueError when lengths disagree, a name occurs twice, or a
    camera is not usable.
    """

    name: str
    root: Path
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    load: Callable[[int], np.ndarray]
    w2c: np.ndarray | None = None
    K: np.ndarray | None = None
    points: SparsePoints | None = None
    files: tuple[Path, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        count = len(self.names)
        if count == 0:
            raise ValueError(f"{self.root}: no image is left in this scene")
        twice = [name for name, times in Counter(self.names).items() if times > 1]
        if twice:
            raise ValueError(f"{self.root}: {len(twice)} image(s) are listed twice, for example {twice[0]}")
        if len(self.sizes) != count or (self.files is not None and len(self.files) != count):
            raise ValueError(f"{self.root}: {count} names, but {len(self.sizes)} sizes or another number of files")
        if self.w2c is not None and (self.K is None or self.w2c.shape != (count, 4, 4)):
            raise ValueError(f"{self.root}: poses must be [{count}, 4, 4] and need intrinsics")
        if self.K is not None and self.K.shape != (count, 3, 3):
            raise ValueError(f"{self.root}: intrinsics must be [{count}, 3, 3], got {list(self.K.shape)}")
        if self.K is not None:
            w2c = np.broadcast_to(np.eye(4), (count, 4, 4)) if self.w2c is None else self.w2c
            cameras = Cameras(torch.tensor(w2c), torch.tensor(self.K), self.sizes[0])
            validate(cameras, [f"{self.root}: {name}" for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> Scene:
        """The scene of these views alone, in this order."""
        indices, load, points = [int(i) for i in indices], self.load, self.points
        if points is not None and points.visible is not None:
            points = SparsePoints(points.xyz, tuple(points.visible[i] for i in indices))
        return replace(
            self,
            names=tuple(self.names[i] for i in indices),
            sizes=tuple(self.sizes[i] for i in indices),
            load=lambda i: load(indices[i]),
            w2c=None if self.w2c is None else self.w2c[indices],
            K=None if self.K is None else self.K[indices],
            points=points,
            files=None if self.files is None else tuple(self.files[i] for i in indices),
        )


def scene_name(folder: Path) -> str:
    """What people call the scene kept in `folder`: `07d9/nerfstudio` and `truck/images` are 07d9 and truck."""
    folder = folder.resolve()
    return next((part for part in reversed(folder.parts) if part not in INNER_FOLDERS), folder.name)


def views(
    scene: Scene,
    indices: Sequence[int] | None = None,
    size: int | tuple[int, int] = 504,
    multiple: int = 1,
    fit: Literal["crop", "stretch"] = "crop",
) -> tuple[Tensor, Cameras | None]:
    """Images [V, 3, H, W] float32 in [0, 1] of the views `indices` (default: all) at one size, and float32 `Cameras`.

    `size` is (H, W), or the long side: then H and W follow the median aspect ratio of these views, each rounded to
    `multiple` (14 for the network). `fit`: "crop" scales each photo to cover the window and cuts its centre;
    "stretch" resamples the whole photo to it, which may change its aspect. K follows both exactly. Cameras are None
    when the scene has no poses (intrinsics alone stay in the scene). Raises ValueError for a size that `multiple`
    does not divide and for poses too far from the origin for float32, OSError naming the photo that does not decode.
    """
    chosen = scene if indices is None else scene.select(indices)
    if isinstance(size, int):
        size = im.fit_size(chosen.sizes, size, multiple)
    elif size[0] % multiple or size[1] % multiple:
        near = [im.nearest_multiple(side, multiple) for side in size]
        raise ValueError(f"size {size[0]}x{size[1]} is no multiple of {multiple}; the nearest is {near[0]}x{near[1]}")
    resampled = [tuple(size) if fit == "stretch" else im.cover_size(s, size) for s in chosen.sizes]

    def decode(i: int) -> np.ndarray:
        return im.crop_array(im.resize_array(chosen.load(i), resampled[i]), size)

    with ThreadPoolExecutor(DECODERS) as pool:
        images = im.to_tensor(list(pool.map(decode, range(len(chosen)))))
    if chosen.w2c is None:
        return images, None
    _check_float32(scene)
    K = chosen.K.copy()
    for i, (old, new) in enumerate(zip(chosen.sizes, resampled)):
        top, left = im.center_window(new, size)
        K[i, 0] *= new[1] / old[1]
        K[i, 1] *= new[0] / old[0]
        K[i, :2, 2] -= (left, top)
    return images, Cameras(torch.from_numpy(chosen.w2c).float(), torch.from_numpy(K).float(), tuple(size))


def scene_from_tensors(images: Tensor, cameras: Cameras | None = None, name: str = "scene") -> Scene:
    """A scene in memory from images [V, 3, H, W] in [0, 1] and their cameras [V]; names are 0000, 0001, ..."""
    pixels = im.to_uint8(images)
    return Scene(
        name=name,
        root=Path(name),
        names=tuple(f"{i:04d}" for i in range(len(pixels))),
        sizes=(tuple(pixels.shape[1:3]),) * len(pixels),
        load=lambda i: pixels[i],
        w2c=None if cameras is None else cameras.w2c.detach().double().cpu().numpy(),
        K=None if cameras is None else cameras.K.detach().double().cpu().numpy(),
    )


def open_scene(path: str | Path, image_folder: str | None = None) -> Scene:
    """Open whatever holds a scene: a folder of photos, one photo, a video, COLMAP, transforms.json, or a scene pack.

    A folder with a COLMAP model (cameras.bin or .txt there or in sparse/0) is read as such, else one with
    transforms.json as nerfstudio's (DL3DV's layouts among them), else as plain photos. `image_folder` picks among
    images, images_4, ... when a scene has cameras; by default the largest photos present. Frames without a pose are
    left out and counted in `notes`. Raises OSError or ValueError with one line that names the file and what is wrong
    with it.
    """
    if str(path).lower().endswith(".scene"):  # a file or a URL
        from geometry.scene_pack import open_pack

        return open_pack(path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    # The readers import this module for Scene, and bring libraries that a plain folder does not need.
    from geometry.read_colmap import find_model, read_colmap
    from geometry.read_nerfstudio import find_transforms, read_nerfstudio
    from geometry.read_video import SUFFIXES as VIDEO_SUFFIXES
    from geometry.read_video import read_video

    if path.is_file():
        if path.suffix.lower() == ".json":
            return read_nerfstudio(path, image_folder)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return read_video(path)
        if im.is_image_name(path):
            return _read_photos(path.stem, path.parent, [path.name], ())
        raise ValueError(f"{path}: neither a photo, a video nor a transforms.json; give one of these or a folder")
    model, transforms = find_model(path), find_transforms(path)
    if model is not None:
        scene = read_colmap(path, model, image_folder)
        both = f"the COLMAP model was read, not {transforms.name}; name that file to read it" if transforms else None
        return replace(scene, notes=(*scene.notes, both)) if both else scene
    if transforms is not None:
        return read_nerfstudio(transforms, image_folder)
    return _read_folder(path)


def _check_float32(scene: Scene) -> None:
    """Refuse map coordinates (UTM and the like): float32 would round the distances between cameras away."""
    centers = -np.einsum("vji,vj->vi", scene.w2c[:, :3, :3], scene.w2c[:, :3, 3])
    origin, spread = np.median(centers, axis=0), float(np.ptp(centers, axis=0).max())
    if len(scene) > 1 and np.linalg.norm(origin) > 1e4 * spread > 0:
        raise ValueError(
            f"{scene.root}: the cameras lie around {origin.round(1).tolist()}, only {spread:.3g} apart; "
            "subtract that position from the poses, or single precision blurs them"
        )


def _read_folder(path: Path) -> Scene:
    """Photos in natural order, from the folder itself or its `images`."""
    folder, files = path, _visible_files(path)
    if not any(map(im.is_image_name, files)) and (path / "images").is_dir():
        folder, files = path / "images", _visible_files(path / "images")
    names = sorted(filter(im.is_image_name, files), key=im.natural_key)
    if not names:
        raise ValueError(f"{folder}: no photos here; known types are {' '.join(im.SUFFIXES)}")
    ignored = len(files) - len(names)
    notes = (f"{ignored} file(s) that are no photos were ignored",) if ignored else ()
    return _read_photos(scene_name(path), folder, names, notes)


def _visible_files(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]


def _read_photos(name: str, folder: Path, names: list[str], notes: tuple[str, ...]) -> Scene:
    files = tuple(folder / name for name in names)
    return Scene(
        name=name,
        root=folder,
        names=tuple(names),
        sizes=tuple(im.image_size(file) for file in files),
        load=lambda i: im.read_image(files[i]),
        files=files,
        notes=notes,
    )
