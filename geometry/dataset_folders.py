"""Finding the scenes of a data set by the names of their folders, without looking into folders of photos."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def folders_below(root: Path, wanted: Callable[[Path], bool], deepest: int) -> Iterator[Path]:
    """`root` and the folders at most `deepest` below it that are `wanted`, shallow ones first, each level sorted.

    Nothing inside a folder that was wanted is looked at, nor are hidden folders and those named images*. Raises
    FileNotFoundError when there is no folder `root`.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    level = [root]
    for depth in range(deepest + 1):
        rest = []
        for folder in level:
            if wanted(folder):
                yield folder
            else:
                rest.append(folder)
        if depth < deepest:
            level = [inner for folder in rest for inner in _inside(folder)]


def _inside(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith((".", "images")) and e.is_dir()]
    return [folder / name for name in sorted(names)]
