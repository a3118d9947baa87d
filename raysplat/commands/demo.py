"""A small scene made on the spot, reconstructed on the CPU by the shipped network and scored on unseen views."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class Options:
    out: Annotated[Path, arg(aliases=["-o"])] = Path("demo")
    """folder for the results; what an earlier demo left there is replaced"""


# Every third view, from the second on, is kept from the network.
_HELD_OUT = slice(1, None, 3)


def run(options: Options) -> int:
    """Make, reconstruct, save, score."""
    from splat.atomic import check_target
    from splat.outputs import FILES

    check_target(options.out, FILES)
    from geometry.scene import open_scene, views
    from geometry.synthetic import write_sample
    from splat.metrics import psnr
    from splat.outputs import render_views, save
    from splat.pipeline import reconstruct

    with tempfile.TemporaryDirectory() as folder:
        print("making a sample scene", file=sys.stderr)
        write_sample(Path(folder))
        scene = open_scene(folder)
        unseen = list(range(len(scene)))[_HELD_OUT]
        inputs = [i for i in range(len(scene)) if i not in unseen]
        result = reconstruct(scene, views=inputs, device="cpu", report=lambda line: print(line, file=sys.stderr))
        truth, cameras = views(scene, unseen, tuple(result.images.shape[-2:]))
        save(result, options.out, overwrite=True)
    color, _ = render_views(result.gaussians, cameras)
    scores = [psnr(picture, photo) for picture, photo in zip(color, truth, strict=True)]
    for i, score in zip(unseen, scores, strict=True):
        print(f"view {scene.names[i]}, not shown to the network: PSNR {score:.2f} dB")
    print(f"mean of {len(scores)} views: PSNR {sum(scores) / len(scores):.2f} dB")
    print(f"results: {options.out / 'contact.png'}, {options.out / 'orbit.mp4'}, {options.out / 'scene.ply'}")
    return 0
