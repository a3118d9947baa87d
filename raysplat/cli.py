"""The console command `raysplat`. Sub-commands are imported when they are called, so that `--help` is instant."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from importlib import import_module

from geometry.compiled import let_threads_sleep
from raysplat import __version__

COMMANDS = {
    "reconstruct": "photos, a video, COLMAP or transforms.json to 3D Gaussians, pictures and a video",
    "render": "pictures or a video of Gaussians, through the cameras of a cameras.json",
    "pack": "scenes with cameras to one file per scene, from which training reads single views",
    "convert": "files of Gaussians: .ply, .splat and .spz from one to the other",
    "view": "a scene, photos, an evaluation or a training run in the browser",
    "check-data": "every fault of a data set: damaged photos, impossible poses, files cut off",
    "demo": "all of it on a small scene made on the spot; no GPU and no network needed",
    "doctor": "what this machine can do, and what to install for the rest",
}

_LISTED = "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items())
USAGE = f"""usage: raysplat [--help] [--version] <command> ...

Photographs in, 3D Gaussians and novel views out.

{_LISTED}

raysplat <command> --help lists the options of a command."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0, 1 for an error told in one line, 2 for wrong usage, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"raysplat {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"raysplat: error: no command '{argv[0]}'; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    warnings.formatwarning = lambda message, *_: f"raysplat: warning: {message}\n"
    let_threads_sleep()
    # `kill` and a batch system's time limit clean up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(argv[0], argv[1:])
    except KeyboardInterrupt:
        print("raysplat: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("RAYSPLAT_TRACEBACK"):
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"raysplat: error: {message}", file=sys.stderr)
        return 1


def _run(name: str, argv: list[str]) -> int:
    import tyro

    command = import_module(f"raysplat.commands.{name.replace('-', '_')}")
    description = command.__doc__.strip()
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(command.Options, prog=f"raysplat {name}", description=description, args=argv, config=config)
    return command.run(options)


if __name__ == "__main__":
    sys.exit(main())
