"""List every fault of a data set: damaged or missing photos, poses and intrinsics that cannot be, files cut off.

Goes on after each fault. Exit code 0: clean; 1: faults were found; 2: wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Options:
    root: Annotated[Positional[Path], arg(metavar="ROOT")]
    """folder of the data set, or of one scene"""
    layout: Literal["dl3dv", "tnt", "megadepth", "colmap", "nerfstudio"]
    """how it lies on disk: a release of DL3DV, Tanks and Temples or MegaDepth; or COLMAP or nerfstudio scenes"""
    json: Path | None = None
    """file for the report as JSON, beside the text"""
    workers: int = min(16, os.cpu_count() or 1)
    """photos decoded at a time"""


def run(options: Options) -> int:
    """Check, print one line per fault to stdout and the summary to stderr."""
    if not options.root.is_dir() or options.workers < 1:
        wrong = f"{options.root}: no such folder" if options.workers > 0 else "--workers must be at least 1"
        print(f"raysplat: error: {wrong}", file=sys.stderr)
        return 2
    from raysplat.check_data import check_data
    from splat.atomic import whole_file

    report = check_data(options.root, options.layout, options.workers)
    for fault in report.faults:
        print(f"{fault.path}: {fault.reason}")
    if options.json is not None:
        with whole_file(options.json) as temporary:
            temporary.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    count = len(report.faults)
    told = f"{count} fault{'s' * (count != 1)}" if count else "no fault"
    print(f"{report.scenes} scene(s), {report.photos} photo(s): {told}", file=sys.stderr)
    return 1 if count else 0
