"""Choose images that make textures for procedural scenes: `python train/textures.py FOLDER ... --out PHOTOS`.

Training draws half of its textures from the folder that `--photos` names. Games, wallpapers and photo collections have
thousands of images, among them icons, sprites, normal maps and plain areas. This keeps those that look like surfaces,
once each, no larger than crops of them need, and says how many it left out and why. Whether their licences allow it is
for you to know.
"""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from geometry.images import DECODE_ERRORS, image_size, is_image_name, read_image
from splat.atomic import whole_folder

LEAST_SIDE = 256  # px, of the shorter side: that of a texture in the atlas
LONGEST_SHAPE = 2.2  # sides to each other: beyond are strips of sprites
OPAQUE = 250  # alpha of 255: holes would become black areas
DETAIL = 0.012  # mean difference of a pixel to the one below, of 1
LEVEL, MOST_LEVEL = 0.004, 0.35  # below the first two such pixels are alike, and more than this share of them is plain
CONTRAST = 0.05  # standard deviation of a colour channel at 64x64 px
NORMAL_MAP = (150, 40)  # mean blue, and by how much it is above red: directions painted as colours
QUALITY = 85


@dataclass(frozen=True)
class Args:
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]  # searched at any depth
    out: Path  # folder for the JPEGs, new or empty
    longest: int = 512  # long side that larger images are brought down to, px
    most: int | None = None  # keep no more than so many, drawn with equal chance
    seed: int = 0  # of that draw


def main(args: Args) -> None:
    if not args.folders:
        raise ValueError("name one or more folders of images")
    if args.longest < LEAST_SIDE:
        raise ValueError(f"--longest must be {LEAST_SIDE} or more, got {args.longest}")
    if args.most is not None and args.most < 1:
        raise ValueError(f"--most must be 1 or more, got {args.most}")
    for folder in args.folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    if args.out.is_dir() and any(args.out.iterdir()):
        raise FileExistsError(f"{args.out} is not empty: give another --out, or empty it")
    paths = sorted(p for folder in args.folders for p in folder.rglob("*") if p.is_file() and is_image_name(p))
    random.Random(args.seed).shuffle(paths)
    kept, reasons, looks = [], Counter(), set()
    with ThreadPoolExecutor() as threads, tqdm(total=len(paths), unit="image") as progress:
        for path, (reason, look) in zip(paths, threads.map(judge, paths)):
            progress.update()
            if not reason and look in looks:
                reason = "like another"
            if reason:
                reasons[reason] += 1
            else:
                looks.add(look)
                kept.append(path)
    if not kept:
        raise ValueError(f"none of {len(paths)} images in {', '.join(map(str, args.folders))} makes a texture")
    chosen = sorted(kept[: args.most])
    with whole_folder(args.out) as folder:
        for number, path in enumerate(tqdm(chosen, unit="texture")):
            shrunk(path, args.longest).save(folder / f"{number:05d}.jpg", quality=QUALITY)
    left = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "all"
    print(f"{len(chosen)} textures in {args.out}, of {len(kept)} that qualify among {len(paths)} images ({left})")


def judge(path: Path) -> tuple[str, bytes]:
    """Why an image makes no texture, in a word or two, or ""; and what it looks like from afar, as its copies do."""
    try:
        shorter, longer = sorted(image_size(path))
        if shorter < LEAST_SIDE:
            return "too small", b""
        if longer > LONGEST_SHAPE * shorter:
            return "too long", b""
        with Image.open(path) as image:
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < OPAQUE:
                return "see-through", b""
        image = shrunk(path, 2 * LEAST_SIDE)
    except (*DECODE_ERRORS, ImportError):  # the latter for a HEIC photo without its reader
        return "unreadable", b""
    grey = np.asarray(image.convert("L"), np.float32) / 255
    below = np.abs(np.diff(grey, axis=0))
    red, _, blue = np.asarray(image, np.float32).mean((0, 1))
    small = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
    if blue > NORMAL_MAP[0] and blue > red + NORMAL_MAP[1]:
        return "normal maps or sky", b""
    if below.mean() < DETAIL or (below < LEVEL).mean() > MOST_LEVEL or small.std((0, 1)).mean() < CONTRAST:
        return "plain", b""
    return "", (np.asarray(image.resize((8, 8), Image.Resampling.BOX)) // 24).tobytes()


def shrunk(path: Path, longest: int) -> Image.Image:
    """The image as RGB, with a long side of at most `longest` px."""
    image = Image.fromarray(read_image(path))
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return image


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (ValueError, OSError, MemoryError) as error:
        raise SystemExit(f"train/textures.py: error: {error}") from error
