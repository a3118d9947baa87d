"""Every fault of a data set on disk: all scenes, all frames, all photos; nothing stops at the first.

Finding scenes and parsing their cameras comes first; decoding the photos, which takes nearly all the time, is spread
over threads (Pillow decodes without holding Python's lock).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from geometry.dataset_folders import folders_below
from geometry.dl3dv import HASH, form_of
from geometry.megadepth import SCENE, models
from geometry.read_colmap import MODEL_FOLDERS
from geometry.scene_faults import Findings, colmap_findings, log_findings, nerfstudio_findings, photo_fault
from geometry.tanks_and_temples import find_log


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and with which file or folder."""

    scene: str
    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was looked at, and all that is wrong with it."""

    root: str
    layout: str
    scenes: int
    photos: int
    faults: tuple[Fault, ...]

    def as_json(self) -> dict:
        return asdict(self)


def check_data(root: Path, layout: str, workers: int, progress: bool = True) -> Report:
    """Check all scenes below `root`; `layout` is a key of LAYOUTS. Raises FileNotFoundError without a folder `root`."""
    scenes = list(LAYOUTS[layout](root))
    faults = [] if scenes else [Fault("", str(root), f"no scene in the layout of {layout} here")]
    photos: dict[Path, str] = {}
    bars = {"disable": None if progress else True, "leave": False}
    with ThreadPoolExecutor(workers) as pool:
        findings = tqdm(pool.map(lambda scene: scene[1](), scenes), "cameras", len(scenes), unit="scene", **bars)
        for (name, _), found in zip(scenes, findings):
            faults += [Fault(name, str(path), reason) for path, reason in found.faults]
            photos |= {photo: name for photo in found.photos if photo not in photos}
        results = tqdm(pool.map(photo_fault, photos), "photos", len(photos), unit="photo", **bars)
        seen: dict[tuple[str, Path, str], Path] = {}
        for (photo, name), (digest, reason) in zip(photos.items(), results):
            first = seen.setdefault((name, photo.parent, digest or photo.name), photo)
            if reason is None and first != photo:
                reason = f"the same picture, byte by byte, as {first.name}"
            if reason is not None:
                faults.append(Fault(name, str(photo), reason))
    faults = sorted(dict.fromkeys(faults), key=lambda fault: (fault.scene, fault.path, fault.reason))
    return Report(str(root), layout, len({name for name, _ in scenes}), len(photos), tuple(faults))


Task = tuple[str, Callable[[], Findings]]


def _dl3dv(root: Path) -> Iterator[Task]:
    for folder in folders_below(root, lambda path: bool(HASH.fullmatch(path.name)), deepest=4):
        form = form_of(folder)
        if form is None:
            yield (
                _name(root, folder),
                lambda f=folder: _only(f, "neither transforms.json nor gaussian_splat/sparse/0 here"),
            )
        elif (form / "transforms.json").is_file():
            yield _name(root, folder), lambda p=form / "transforms.json": nerfstudio_findings(p)
        for model in _model_folders(folder / "gaussian_splat"):
            yield _name(root, folder), lambda m=model: colmap_findings(m)


def _tnt(root: Path) -> Iterator[Task]:
    for folder in folders_below(root, lambda p: bool(_model_folders(p)) or find_log(p) is not None, deepest=2):
        for model in _model_folders(folder):
            yield _name(root, folder), lambda m=model: colmap_findings(m)
        log = find_log(folder)
        if log is not None:
            yield _name(root, folder), lambda f=folder, g=log: log_findings(f, g)


def _megadepth(root: Path) -> Iterator[Task]:
    for folder in folders_below(root, lambda path: bool(SCENE.fullmatch(path.name)), deepest=5):
        found = models(folder)
        if not found and (folder / "images").is_dir():
            yield _name(root, folder), lambda f=folder: _only(f, "no COLMAP model in sparse or sparse/manhattan/<k>")
        for model in found:
            yield _name(root, folder), lambda m=model: colmap_findings(m)


def _colmap(root: Path) -> Iterator[Task]:
    for folder in folders_below(root, lambda path: bool(_model_folders(path)), deepest=4):
        for model in _model_folders(folder):
            yield _name(root, folder), lambda m=model: colmap_findings(m)


def _nerfstudio(root: Path) -> Iterator[Task]:
    for folder in folders_below(root, lambda path: (path / "transforms.json").is_file(), deepest=4):
        yield _name(root, folder), lambda p=folder / "transforms.json": nerfstudio_findings(p)


LAYOUTS: dict[str, Callable[[Path], Iterator[Task]]] = {
    "dl3dv": _dl3dv,
    "tnt": _tnt,
    "megadepth": _megadepth,
    "colmap": _colmap,
    "nerfstudio": _nerfstudio,
}


def _model_folders(folder: Path) -> list[Path]:
    """Folders of COLMAP models of one scene; one file of a model is enough, because the others may be lost."""
    names = [f"{stem}.{kind}" for stem in ("cameras", "images") for kind in ("bin", "txt")]
    return [folder / inner for inner in MODEL_FOLDERS if any((folder / inner / name).is_file() for name in names)]


def _only(path: Path, reason: str) -> Findings:
    return Findings(faults=[(path, reason)])


def _name(root: Path, folder: Path) -> str:
    return folder.name if folder == root else folder.relative_to(root).as_posix()
