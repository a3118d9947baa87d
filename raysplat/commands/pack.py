"""Scenes with cameras to scene packs: one file per scene, from which training reads single views.

All scenes below IN_ROOT are packed to files of the same names below OUT_ROOT: DL3DV as it is unpacked, COLMAP,
transforms.json. A pack that is there, whole and made with the same options is kept, so a broken run can be repeated.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Options:
    in_root: Annotated[Positional[Path], arg(metavar="IN_ROOT")]
    """folder below which the scenes are"""
    out_root: Annotated[Positional[Path], arg(metavar="OUT_ROOT")]
    """folder for the packs"""
    size: tuple[int, int] | None = None
    """height and width that photos shall just cover, such as 270 480; they are shrunk, never enlarged or cut"""
    photos: str | None = None
    """folder of photos to take where a scene has several: images_4, images_8, ..."""
    quality: int = 95
    """JPEG quality of photos that are encoded anew; a JPEG that needs no change is stored as it is"""
    lossless: bool = False
    """encode as PNG instead: larger, and slower to read"""
    max_bad: float = 0.1
    """share of a scene's photos that may be damaged and left out; with more, the scene is not packed"""
    workers: Annotated[int, arg(aliases=["-j"])] = min(8, os.cpu_count() or 1)
    """scenes packed at once"""


def run(options: Options) -> int:
    """Pack; prints a summary, then what went wrong. Returns 1 when a scene could not be packed."""
    if options.workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {options.workers}")
    from tqdm import tqdm

    from geometry.scene_pack import SUFFIX, PackSettings
    from geometry.scene_roots import find_scenes

    settings = PackSettings(options.size, options.quality, options.lossless)
    scenes = find_scenes(options.in_root)
    targets = {name: options.out_root / f"{name}{SUFFIX}" for name in scenes}
    made, kept, damaged, faults = 0, 0, {}, {}
    pool = ThreadPoolExecutor(options.workers)
    try:
        jobs = {pool.submit(pack, scenes[name], targets[name], settings, options): name for name in scenes}
        with tqdm(total=len(jobs), unit="scene", disable=not sys.stderr.isatty()) as bar:
            for job in as_completed(jobs):
                bar.update()
                try:
                    left_out = job.result()
                except (ValueError, OSError) as error:
                    if isinstance(error, OSError) and error.errno == 28:  # a full disk fails every scene
                        raise
                    faults[jobs[job]] = " ".join(str(error).split())
                    continue
                made, kept = made + (left_out is not None), kept + (left_out is None)
                if left_out:
                    damaged[jobs[job]] = left_out
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{options.out_root}: {made} packed, {kept} kept, {len(faults)} failed of {len(scenes)} scenes")
    for name, lines in sorted(damaged.items()):
        print(f"{name}: {len(lines)} photos left out, for example: {lines[0]}", file=sys.stderr)
    for name, fault in sorted(faults.items()):
        print(f"not packed: {name}: {fault}", file=sys.stderr)
    return 1 if faults else 0


def pack(source: str | Path, target: Path, settings, options: Options) -> list[str] | None:
    """Pack one scene; the photos left out, or None when a whole pack with these settings is there."""
    from geometry.scene_pack import verify_pack, write_pack
    from geometry.scene_roots import open_any

    if target.exists():
        try:
            verify_pack(target, settings)
            return None
        except ValueError:
            pass  # cut off, damaged or made with other options: made anew
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_pack(open_any(source, options.photos), target, settings, options.max_bad)
