"""Photographs (a folder, a video, COLMAP or transforms.json) to 3D Gaussians.

OUT receives scene.ply, cameras.json, depth/, confidence/, images/, contact.png and orbit.mp4, all or none.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

SizeRule = Literal["common", "upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]
ReferenceView = Literal["saddle_balanced", "saddle_sim_range", "middle", "first"]


@dataclass(frozen=True)
class Options:
    photos: Annotated[Positional[Path], arg(metavar="PHOTOS")]
    """folder of photos, one photo, a video, a COLMAP folder, or a transforms.json or its folder"""
    out: Annotated[Path, arg(aliases=["-o"])]
    """new folder for the results"""
    weights: str = "nano"
    """network: nano, small, base, large, giant, nested (metres), metric or mono (one photo), a published name such as
    DA3-LARGE-1.1, a folder, a .safetensors file, or a Hugging Face id owner/name"""
    views: int | None = None
    """how many views to use, spread over the scene; default: all, at most 12"""
    size: int = 252
    """long side in pixels at which the network sees the photos; more shows finer detail and takes more memory"""
    size_rule: SizeRule = "common"
    """how photos come to that size: common cuts them to the aspect that most have, the others are published rules"""
    cameras_from: Literal["auto", "decoder", "rays", "matches"] = "auto"
    """where cameras come from if none are given: the network's camera decoder, its ray maps (slower; finds principal
    points), or SIFT matches that correct the decoder's (seconds more); auto is the decoder, but for nano structure from
    motion, and matches where that fails"""
    reference_view: ReferenceView = "saddle_balanced"
    """rule by which the network chooses the view it takes for the world, where no poses are given"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 on a GPU and on CPUs with instructions for it, else float32, which is exact and slower"""
    looks: int | None = None
    """how often nano corrects its Gaussians by its own pictures; default: once for every four views begun"""
    refine: int = 0
    """steps of optimisation on the photos after the network's one pass; 20 take seconds and make pictures sharper"""
    backdrop: bool = True
    """a far sphere of splats in the photos' colours, so that nothing is black where no photo looked (nano)"""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    overwrite: bool = False
    """replace earlier results in OUT"""


def run(options: Options) -> int:
    """Reconstruct and save; the lines that say what happens go to stderr, the folder of the results to stdout."""
    from splat.atomic import check_target
    from splat.outputs import FILES, save
    from splat.pipeline import reconstruct

    # Said before the work, not after it.
    check_target(options.out, FILES if options.overwrite else ())

    start = time.perf_counter()
    result = reconstruct(
        options.photos,
        options.weights,
        options.views,
        options.size,
        options.device,
        report=lambda line: print(line, file=sys.stderr),
        size_rule=None if options.size_rule == "common" else options.size_rule,
        cameras_from=options.cameras_from,
        reference_view=options.reference_view,
        mode=None if options.precision == "auto" else options.precision,
        looks=options.looks,
        refine=options.refine,
        backdrop=options.backdrop,
    )
    took = time.perf_counter() - start
    print(f"{result.gaussians.count} Gaussians after {took:.1f} s; writing pictures and video", file=sys.stderr)
    dropped = save(result, options.out, options.overwrite)
    if dropped:
        print(f"{dropped} Gaussians that are not finite were left out", file=sys.stderr)
    print(options.out)
    return 0
