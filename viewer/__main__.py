"""A scene in the browser: Gaussians, a reconstruction, photos (reconstructed first), or a training run.

The page is served to this machine only, until Ctrl-C.
"""

from __future__ import annotations

import sys

import tyro

from viewer.options import Options, run


def main() -> int:
    """Run the command line; 0 after Ctrl-C (130 while it still opens), 1 for an error told in one line."""
    options = tyro.cli(Options, prog="python -m viewer", description=__doc__.strip())
    try:
        return run(options)
    except KeyboardInterrupt:  # while it was still opening things; later Ctrl-C is the way to end it
        print("viewer: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"viewer: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
