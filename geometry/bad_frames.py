"""Frames of a scene that cannot be used: a few are left out and counted, too many refuse the scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Frame = TypeVar("Frame")

BAD_SHARE = 0.1  # of a scene's frames that may be left out


def usable_frames(
    where: Path, count: int, open_frame: Callable[[int], Frame], bad_share: float = BAD_SHARE
) -> tuple[list[int], list[Frame], tuple[str, ...]]:
    """What `open_frame` gives for each of `count` frames that it opens: their indices, it, and a note on the others.

    A frame is bad when `open_frame` raises OSError or ValueError. More than `bad_share` of them raise the same for the
    scene: one line that begins with `where`, counts them and quotes the first.
    """
    indices, frames, faults = [], [], []
    for i in range(count):
        try:
            frames.append(open_frame(i))
            indices.append(i)
        except (OSError, ValueError) as error:
            faults.append(error)
    if not faults:
        return indices, frames, ()
    told = f"{len(faults)} of {count} frames cannot be used"
    example = f"for example: {' '.join(str(faults[0]).split())}"
    if len(faults) > bad_share * count:
        kind = OSError if isinstance(faults[0], OSError) else ValueError
        raise kind(f"{where}: {told}, {example}") from faults[0]
    return indices, frames, (f"{told} and were left out, {example}",)
