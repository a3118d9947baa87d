"""MegaDepth's scenes: the structure-from-motion release and its undistorted form, photos of many sizes and cameras.

    MegaDepth_v1_SfM/<scene>/{images, sparse/manhattan/<k>}     photos as found, SIMPLE_RADIAL lenses, undone on loading
    Undistorted_SfM/<scene>/{images, sparse, sparse-txt}        made from it by COLMAP's image_undistorter: PINHOLE

MegaDepth_v1 (phoenix/.../dense<k>/imgs) has depth maps but no cameras, and cannot be read alone.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from geometry.dataset_folders import folders_below
from geometry.read_colmap import find_model, read_colmap
from geometry.scene import Scene

SCENE = re.compile(r"\d{4}")
UNDISTORTED = "Undistorted_SfM"


def find_megadepth(root: Path) -> dict[str, Path]:
    """Scene number to folder of all scenes with a COLMAP model below `root`, ascending; undistorted ones win."""
    found: dict[str, Path] = {}
    for folder in folders_below(root, lambda path: bool(SCENE.fullmatch(path.name)), deepest=5):
        if models(folder) and (folder.name not in found or folder.parent.name == UNDISTORTED):
            found[folder.name] = folder
    return dict(sorted(found.items()))


def models(folder: Path) -> list[Path]:
    """The folders of COLMAP models of one scene; sub-model 0, where there are several, comes first."""
    model = find_model(folder)
    several = folder / "sparse" / "manhattan"
    numbered = sorted(p for p in several.iterdir() if find_model(p) == p) if several.is_dir() else []
    return numbered or ([] if model is None else [model])


def open_megadepth(folder: Path) -> Scene:
    """The scene in `folder`, from its sub-model 0 (the lowest there is), which is the one of dense0.

    Raises OSError or ValueError with one line that names the file and what is wrong with it.
    """
    found = models(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no COLMAP model in sparse or sparse/manhattan/0; get MegaDepth_v1_SfM")
    scene = read_colmap(folder, found[0])
    form = "undistorted photos" if folder.parent.name == UNDISTORTED else "original photos"
    more = (f"{len(found) - 1} other sub-model(s) were left out",) if len(found) > 1 else ()
    where = found[0].relative_to(folder)
    return replace(scene, name=folder.name, notes=(f"{form}, model {where}", *more, *scene.notes))
