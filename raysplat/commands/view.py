"""A scene in the browser: Gaussians, a reconstruction, photos (reconstructed first), or a training run.

The page is served to this machine only, until Ctrl-C.
"""

from __future__ import annotations

from viewer.options import Options, run

__all__ = ["Options", "run"]
