"""Pictures for people: colour-mapped depth, 16-bit depth files, contact sheets and H.264 videos."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from splat.atomic import whole_file

_MARGIN = 4
_LABEL = 16


def depth_range(depth: Tensor) -> tuple[float, float]:
    """The 2 % and 98 % quantiles of the positive finite depths, (1, 2) where there is none; for `color_depth`."""
    good = depth[torch.isfinite(depth) & (depth > 0)].float().cpu().numpy()
    if good.size == 0:
        return 1.0, 2.0
    near, far = (float(x) for x in np.quantile(good, (0.02, 0.98)))
    return near, max(far, near * 1.01)


def color_depth(depth: Tensor, near: float, far: float) -> np.ndarray:
    """Depth [H, W] as uint8 RGB [H, W, 3] on the turbo map over inverse depth, red near; black where there is none."""
    depth = depth.detach().float().cpu().numpy()
    good = np.isfinite(depth) & (depth > 0)
    nearness = (1 / np.where(good, depth, far) - 1 / far) / (1 / near - 1 / far)
    levels = (np.clip(nearness, 0, 1) * 255).round().astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colors[~good] = 0
    return colors


def write_depths(folder: Path, depth: Tensor, names: list[str]) -> None:
    """Depth [V, H, W] as 16-bit PNGs `<name>.png` and a depth.json: depth = value * scale, 0 where there is none.

    One scale serves all views; depths are cut at 60 times the median, so that a step stays below 0.1 % of the median.
    """
    depth = depth.detach().float().cpu()
    good = torch.isfinite(depth) & (depth > 0)
    median = float(depth[good].median()) if bool(good.any()) else 1.0
    scale = min(float(depth[good].max()) if bool(good.any()) else 1.0, 60 * median) / 65535
    levels = torch.where(good, (depth / scale).round().clamp(1, 65535), torch.zeros_like(depth))
    for name, image in zip(names, levels.numpy().astype(np.uint16), strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    about = {"scale": scale, "depth": "value * scale, along the optical axis, in the unit of cameras.json; 0 = none"}
    (folder / "depth.json").write_text(json.dumps(about, indent=1) + "\n")


def contact_sheet(rows: dict[str, list[np.ndarray]], names: list[str]) -> Image.Image:
    """A sheet with a labelled row for each entry (uint8 pictures [H, W, 3] of one size) and a column for each view."""
    h, w = next(iter(rows.values()))[0].shape[:2]
    sheet = Image.new("RGB", (_MARGIN + len(names) * (w + _MARGIN), _LABEL + len(rows) * (h + _LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, name in enumerate(names):
        x = _MARGIN + column * (w + _MARGIN)
        draw.text((x, 1), _fitting(name, w, font), "black", font)
        for row, (label, pictures) in enumerate(rows.items()):
            y = _LABEL + row * (h + _LABEL)
            sheet.paste(Image.fromarray(pictures[column]), (x, y))
            if column == 0:
                draw.text((x, y + h + 1), _fitting(label, w, font), "dimgray", font)
    return sheet


def write_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: int = 30) -> None:
    """Write uint8 RGB frames [H, W, 3] of one size as H.264 (yuv420p, which every player shows).

    That format has even sides: an odd last row or column is left out. Raises ImportError when imageio-ffmpeg is
    missing, ValueError without frames, OSError when ffmpeg fails.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame")
    h, w = (side - side % 2 for side in first.shape[:2])
    with whole_file(path) as temporary:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", str(fps), "-i", "-"]
        codec = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        command = [_ffmpeg(), "-v", "error", *source, *codec, str(temporary)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
            try:
                for frame in chain([first], frames):
                    rest = memoryview(frame[:h, :w].tobytes())
                    # An unbuffered pipe takes a part at a time, and has nothing left to flush when ffmpeg dies.
                    while rest:
                        rest = rest[process.stdin.write(rest) :]
                _, said = process.communicate()
            except BrokenPipeError:
                said = process.stderr.read()
            finally:
                process.kill()
        if process.returncode != 0:
            lines = said.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise OSError(f"ffmpeg could not write {path}: {lines[-1]}")


def _ffmpeg() -> str:
    """The ffmpeg that imageio-ffmpeg brings along (or finds)."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ImportError("writing a video needs ffmpeg: pip install imageio-ffmpeg") from error


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """`text`, or its end after an ellipsis, so that it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
