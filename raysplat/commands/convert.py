"""One file of Gaussians to another format, smaller if you like.

The suffixes choose: .ply keeps all numbers; .spz is about a tenth of its size; .splat is 32 bytes a Gaussian, without
colours that change with the view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Options:
    scene: Annotated[Positional[Path], arg(metavar="IN")]
    """.ply (also compressed by SuperSplat, ASCII, by other programs), .splat or .spz"""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """.ply, .splat or .spz to write"""
    sh_degree: int | None = None
    """highest degree of the spherical harmonics to keep, 0 (one colour from everywhere) to 3; default: all"""
    min_opacity: float = 0.0
    """leave out Gaussians below this opacity, 0 to 1"""
    box: tuple[float, float, float, float, float, float] | None = None
    """leave out Gaussians whose centre is outside the box X0 Y0 Z0 X1 Y1 Z1 (axes and unit of the file: y is down)"""
    overwrite: bool = False
    """replace an earlier file"""


def run(options: Options) -> int:
    """Convert; prints what was written."""
    if options.sh_degree not in (None, 0, 1, 2, 3):
        raise ValueError(f"--sh-degree must be 0 to 3, got {options.sh_degree}")
    if not 0 <= options.min_opacity <= 1:
        raise ValueError(f"--min-opacity must be 0 to 1, got {options.min_opacity}")
    if options.box and not all(low < high for low, high in zip(options.box[:3], options.box[3:])):
        raise ValueError(f"--box must be X0 Y0 Z0 X1 Y1 Z1 with each first below its second, got {options.box}")
    if options.out.exists() and not options.overwrite:
        raise FileExistsError(f"{options.out} exists; choose another name or pass --overwrite")
    import torch

    from splat.files import read_gaussians, suffix, write_gaussians

    suffix(options.out)
    gaussians = read_gaussians(options.scene)
    keep = gaussians.opacities >= options.min_opacity
    if options.box:
        low, high = torch.tensor(options.box).reshape(2, 3)
        keep &= ((gaussians.means >= low) & (gaussians.means <= high)).all(-1)
    if gaussians.count and not keep.any():
        raise ValueError(f"--min-opacity and --box leave none of the {gaussians.count} Gaussians of {options.scene}")
    kept = gaussians if keep.all() else gaussians.select(keep)
    if options.sh_degree is not None:
        kept = replace(kept, sh=kept.sh[:, : (options.sh_degree + 1) ** 2])
    write_gaussians(kept, options.out)
    left_out = f" ({gaussians.count - kept.count} left out)" if kept.count < gaussians.count else ""
    before, after = options.scene.stat().st_size, options.out.stat().st_size
    print(f"{options.out}: {kept.count} Gaussians{left_out}, {before / 1e6:.1f} MB to {after / 1e6:.1f} MB")
    return 0
