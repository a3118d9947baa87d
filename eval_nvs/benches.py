"""The benchmarks as they lie on disk: which scenes they have, which are missing, where to get them.

`dl3dv`, `tnt` and `megadepth` are those of the paper, in any layout of their releases; `sample` is made on the spot and
needs no download; `folder` is any folder of posed scenes, or one scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval_nvs.sample import write_samples
from geometry.dl3dv import BENCHMARK, find_dl3dv, open_dl3dv
from geometry.megadepth import find_megadepth, open_megadepth
from geometry.scene import Scene
from geometry.scene_roots import find_scenes, open_any
from geometry.tanks_and_temples import find_tanks, open_tanks


@dataclass(frozen=True)
class Bench:
    """One benchmark on disk. `scenes` are those of the published list that are there, in its order, and `missing` the
    others. `others` are scenes found that the list does not have: they may be opened, but are no part of the mean. Only
    where no published scene is there do the others stand in `scenes`."""

    name: str
    root: Path
    scenes: tuple[str, ...]
    missing: tuple[str, ...]
    licence: str
    notes: tuple[str, ...]
    others: tuple[str, ...] = ()
    paths: dict[str, Path] = field(default_factory=dict, repr=False)
    reader: Callable[[Path], Scene] = field(default=open_any, repr=False)

    def open(self, scene: str) -> Scene:
        """The scene of this id, with poses. Raises OSError or ValueError with one line saying what is wrong."""
        if scene not in self.paths:
            raise ValueError(f"{self.root}: no scene {scene} in benchmark {self.name}")
        opened = self.reader(self.paths[scene])
        if opened.w2c is None:
            raise ValueError(f"{self.paths[scene]}: this scene has no camera poses; the benchmark needs them")
        return replace(opened, name=scene)


@dataclass(frozen=True)
class _Source:
    """A published benchmark: its list of scenes, how to find and read them, and what to tell who lacks it."""

    expected: tuple[str, ...]
    find: Callable[[Path], dict[str, Path]]
    reader: Callable[[Path], Scene]
    key: Callable[[str], str]  # from the name of a scene's folder to its name in the list
    folder: str  # where it is looked for when no root is given
    layout: str
    obtain: str
    licence: str


_SOURCES = {
    "dl3dv": _Source(
        BENCHMARK, find_dl3dv, open_dl3dv, lambda name: name[:16], "data/DL3DV-Benchmark",
        "<hash>/nerfstudio/transforms.json, <hash>/gaussian_splat/sparse/0 or <batch>/<hash>/transforms.json",
        "accept the terms of huggingface.co/datasets/DL3DV/DL3DV-Benchmark and download it with its download.py",
        "DL3DV-10K terms of use and CC BY-NC 4.0; no redistribution",
    ),
    "tnt": _Source(
        ("Barn", "Caterpillar", "Church", "Ignatius", "Meetingroom", "Truck"), find_tanks, open_tanks, str.lower,
        "data/tanks-and-temples",
        "<Scene>/{images,sparse/0} or photos in <Scene> with <Scene>_COLMAP_SfM.log",
        "get the training set's images and camera poses from www.tanksandtemples.org/download",
        "CC BY-NC-SA 3.0 (www.tanksandtemples.org/license)",
    ),
    "megadepth": _Source(
        tuple(str(number) for number in range(5000, 5019)), find_megadepth, open_megadepth, str, "data/MegaDepth",
        "Undistorted_SfM/<scene>/{images,sparse} or MegaDepth_v1_SfM/<scene>/{images,sparse/manhattan/0}",
        "get the SfM release MegaDepth_v1_SfM from www.cs.cornell.edu/projects/megadepth",
        "photos of Flickr users under their own licences; for research",
    ),
}  # fmt: skip

BENCHES = (*_SOURCES, "sample", "folder")


def open_bench(name: str, root: Path | None = None) -> Bench:
    """The benchmark `name` below `root` (default: data/... here; the user's cache for `sample`).

    Raises OSError with one line that tells what was looked for, where, and how to obtain it; ValueError for a name that
    is not in BENCHES and for `folder` without a root.
    """
    if name == "sample":
        paths = write_samples(root)
        where = next(iter(paths.values())).parent
        return Bench(name, where, tuple(paths), (), "CC0: made by this program", (), paths=paths)
    if name == "folder":
        return _folder(root)
    if name not in _SOURCES:
        raise ValueError(f"no benchmark '{name}'; there are {', '.join(BENCHES)}")
    source = _SOURCES[name]
    where = Path(source.folder) if root is None else Path(root)
    paths = source.find(where) if where.is_dir() else {}
    if not paths:
        looked = "no scene in this folder" if where.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{where}: {looked}; benchmark {name} was looked for as {source.layout}. To obtain it, {source.obtain}; "
            "then pass its folder with --root"
        )
    listed = {source.key(scene): scene for scene in paths}
    scenes = tuple(listed[source.key(e)] for e in source.expected if source.key(e) in listed)
    missing = tuple(e for e in source.expected if source.key(e) not in listed)
    others = tuple(scene for scene in paths if scene not in scenes)
    notes = ()
    if others:
        use = "they are left out" if scenes else "none that is: these are not the benchmark's figures"
        notes = (f"{len(others)} scene(s) here are not of the published list, {use}: {', '.join(others[:3])}",)
    return Bench(name, where, scenes or others, missing, source.licence, notes, others, paths, source.reader)


def _folder(root: Path | None) -> Bench:
    if root is None:
        raise ValueError("benchmark folder needs --root: a scene (transforms.json, COLMAP), or a folder of such scenes")
    paths = {scene: Path(path) for scene, path in find_scenes(root).items()}
    return Bench("folder", Path(root), tuple(paths), (), "that of the photos", (), paths=paths)
