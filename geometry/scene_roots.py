"""All posed scenes below a folder, in whatever layout each is; listing opens none of them."""

from __future__ import annotations

import os
from pathlib import Path

from geometry.byte_ranges import files_below, is_url
from geometry.scene import Scene, open_scene, scene_name
from geometry.scene_pack import SUFFIX, open_pack

DEEPEST = 4  # folders between the root and a scene: DL3DV's <release>/<batch>/<hash>, and one to spare
# What a folder holds that is a scene: transforms.json, a COLMAP model, or a folder with one of these.
MARKS = ("transforms.json", "cameras.bin", "cameras.txt")
INSIDE = ("nerfstudio", "sparse", "sparse/0", "colmap/sparse/0", "sparse-txt", "sparse/manhattan/0")


def find_scenes(root: str | Path) -> dict[str, str | Path]:
    """Name to path of the scenes below `root`: packs, folders with transforms.json or a COLMAP model.

    A name is the path below `root`, without the suffix of a pack; sorted. `root` may be one scene itself, or a URL
    below which there are packs. Raises FileNotFoundError for a root that is not there, ValueError when it has no scene.
    """
    if is_url(root):
        url = str(root).rstrip("/")
        found = [(url.rsplit("/", 1)[-1], url)] if url.endswith(SUFFIX) else files_below(url, SUFFIX)
        scenes = {name.removesuffix(SUFFIX): place for name, place in found}
    else:
        root = Path(root)
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder")
        if root.suffix == SUFFIX or is_scene_folder(root):
            scenes = {scene_name(root) if root.is_dir() else root.stem: root}
        else:
            scenes = dict(sorted(_below(root, "", DEEPEST).items()))
    if not scenes:
        raise ValueError(f"{root}: no scene with cameras here: no {SUFFIX} file, transforms.json or COLMAP model")
    return scenes


def open_any(path: str | Path, image_folder: str | None = None, points: bool = True) -> Scene:
    """The scene at `path`: a pack (`points` as in `open_pack`), or whatever `open_scene` reads."""
    return open_pack(path, points) if str(path).endswith(SUFFIX) else open_scene(path, image_folder)


def is_scene_folder(folder: Path) -> bool:
    """Whether `open_scene` would find cameras in `folder`."""
    return folder.is_dir() and _has_cameras(folder, {entry.name for entry in os.scandir(folder)})


def _below(folder: Path, prefix: str, deepest: int) -> dict[str, Path]:
    """One listing per folder, since there may be ten thousand of them on a network disk."""
    scenes, folders = {}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(SUFFIX):
                scenes[prefix + entry.name.removesuffix(SUFFIX)] = folder / entry.name
            elif entry.is_dir():
                folders.append(entry.name)
    for name in folders:
        inner = folder / name
        if is_scene_folder(inner):
            scenes[prefix + name] = inner
        elif deepest > 1:
            scenes |= _below(inner, f"{prefix}{name}/", deepest - 1)
    return scenes


def _has_cameras(folder: Path, names: set[str]) -> bool:
    if any(mark in names for mark in MARKS):
        return True
    inner = (folder / name for name in INSIDE if name.split("/")[0] in names)
    return any((path / mark).is_file() for path in inner for mark in MARKS)
