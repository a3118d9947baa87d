"""`python -m viewer THING`: look at Gaussians, a reconstruction or a training run in the browser.

`raysplat view` does the same, and reconstructs photos too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from viewer.server import MOST_SPLATS, serve


@dataclass(frozen=True)
class Options:
    things: Annotated[Positional[tuple[Path, ...]], arg(metavar="THING")] = ()
    """.ply, .splat or .spz files, folders of reconstructions, the folder of a training run"""
    host: str = "127.0.0.1"
    """address to listen on; anything but this machine's own lets others see and use the page"""
    port: int = 8080
    """port to listen on; 0 takes any that is free"""
    device: str = "auto"
    """where the server renders: auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    splats: int = MOST_SPLATS
    """how many Gaussians a browser draws at most; larger scenes are thinned there, never on the server"""


def main() -> int:
    """Run the command line; 0 after Ctrl-C, 1 for an error told in one line."""
    options = tyro.cli(Options, prog="python -m viewer", description=__doc__.strip())
    try:
        return serve(
            options.things,
            host=options.host,
            port=options.port,
            device=options.device,
            most_splats=options.splats,
        )
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"viewer: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
