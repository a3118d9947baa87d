"""The command line of the viewer, for `python -m viewer` and `raysplat view`; `--help` imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from geometry.compiled import let_threads_sleep


@dataclass(frozen=True)
class Options:
    things: Annotated[Positional[tuple[Path, ...]], arg(metavar="THING")] = ()
    """a file of Gaussians, the folder of a reconstruction, photos, a video, COLMAP, a transforms.json, the folder of a
    training run or of an evaluation; the first is shown, the others can be chosen and compared; without any, photos are
    uploaded in the page"""
    host: str = "127.0.0.1"
    """address to listen on; anything but this machine's own lets others see and use the page"""
    port: int = 8080
    """port to listen on; 0 takes any that is free"""
    device: str = "auto"
    """where to reconstruct and render: auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    splats: int = 500_000
    """how many Gaussians a browser draws at most; larger scenes are thinned there, never on the server; 0 leaves all
    drawing to the server, for a browser without a GPU"""


def run(options: Options) -> int:
    """Serve until Ctrl-C; returns 0 then. Raises as `viewer.server.serve` does."""
    let_threads_sleep()  # jobs and pictures share the processor
    from viewer.server import serve

    return serve(options.things, options.host, options.port, options.device, options.splats)
