"""Two pictures as one, and the error of every photo's view."""

from __future__ import annotations

from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch

from splat.outputs import psnr
from viewer.exhibit import Exhibit
from viewer.look import Look, rendered, shown

How = Literal["wipe", "side by side", "difference"]
_LINE = (255, 255, 255)
# Differences of this size (of 1) and more are shown in the last colour of the map.
_FULL_ERROR = 0.3


class ViewError(NamedTuple):
    """How well one photo is met: PSNR in dB and the mean absolute difference in 0..1."""

    index: int
    name: str
    psnr: float
    difference: float


def combine(a: np.ndarray, b: np.ndarray, how: How, split: float = 0.5) -> np.ndarray:
    """One uint8 picture [H, W, 3] of two: `a` left of the line at `split` (0..1 of the width), `b` right of it.

    "side by side" shows the middle half of both, "difference" the error map. Raises ValueError when shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"pictures of one shape can be compared, not {a.shape} and {b.shape}")
    if how == "difference":
        return error_map(a, b)
    width = a.shape[1]
    if how == "side by side":
        start, half = width // 4, width // 2
        joined = np.concatenate([a[:, start : start + half], b[:, start : start + width - half]], axis=1)
        return _line(joined, half)
    cut = int(round(min(max(split, 0.0), 1.0) * width))
    return _line(np.concatenate([a[:, :cut], b[:, cut:]], axis=1), cut)


def error_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The absolute difference of two uint8 pictures [H, W, 3] as colours: dark for none, yellow from 0.3 on."""
    error = np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(-1) / 255
    levels = (np.clip(error / _FULL_ERROR, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def view_error(exhibit: Exhibit, look: Look, index: int) -> ViewError:
    """The error of our picture against photo `index`, at the photo's size, on black as in evaluation."""
    gaussians = shown(exhibit, look)
    black = Look(degree=look.degree, near=look.near, background=(0.0, 0.0, 0.0))
    seen = rendered(exhibit, gaussians, exhibit.cameras[index : index + 1], black)
    color = seen.color[0].clamp(0, 1).movedim(-1, 0).cpu()
    photo = exhibit.images[index]
    return ViewError(index, exhibit.names[index], psnr(color, photo), float((color - photo).abs().mean()))


def error_table(errors: list[ViewError]) -> str:
    """A Markdown table, the worst view first, with the mean."""
    rows = [f"| {_plain(e.name)} | {e.psnr:.2f} | {e.difference:.3f} |" for e in sorted(errors, key=lambda e: e.psnr)]
    mean = f"| **mean** | **{np.mean([e.psnr for e in errors]):.2f}** | {np.mean([e.difference for e in errors]):.3f} |"
    return "\n".join(["| view | PSNR, dB | mean error |", "|---|---|---|", *rows, mean])


def paste(picture: np.ndarray, photo: torch.Tensor, place: tuple[int, int, int, int]) -> np.ndarray:
    """`picture` with photo [3, H, W] in [0, 1] laid over it at `place`: top, left, height, width."""
    top, left, height, width = place
    shrinks = height < photo.shape[1]
    pixels = (photo.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    laid = picture.copy()
    laid[top : top + height, left : left + width] = resized
    return laid


def _line(picture: np.ndarray, x: int) -> np.ndarray:
    if 0 < x < picture.shape[1]:
        picture[:, max(0, x - 1) : x + 1] = _LINE
    return picture


def _plain(text: str) -> str:
    """A file's name without what Markdown would read as a sign."""
    return "".join(c if c.isalnum() or c in " ._-/" else " " for c in text)[-40:]
