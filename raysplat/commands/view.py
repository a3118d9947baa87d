"""A scene in the browser: Gaussians, a reconstruction, photos (reconstructed first), or a training run.

The page is served to this machine only, until Ctrl-C.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Options:
    things: Annotated[Positional[tuple[Path, ...]], arg(metavar="THING")] = ()
    """.ply, .splat or .spz files, folders of reconstructions, photos, a video, COLMAP, a transforms.json, the folder of
    a training run; the first is shown, the others can be chosen and compared"""
    host: str = "127.0.0.1"
    """address to listen on; anything but this machine's own lets others see and use the page"""
    port: int = 8080
    """port to listen on; 0 takes any that is free"""
    device: str = "auto"
    """where to reconstruct and render: auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    splats: int = 500_000
    """how many Gaussians a browser draws at most; larger scenes are thinned there, never on the server"""


def run(options: Options) -> int:
    """Serve until Ctrl-C."""
    from splat.pipeline import pick_device, reconstruct
    from viewer.server import serve

    if options.device != "auto":
        pick_device(options.device)
    return serve(
        options.things,
        reconstruct=reconstruct,
        host=options.host,
        port=options.port,
        device=options.device,
        most_splats=options.splats,
    )
