"""Pictures beside each other, as large as the page lets them be."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from geometry.images import resize_array

_GAP, _LINE, _FONT = 8, 22, 15
_PAPER, _INK = (250, 250, 250), (60, 60, 60)


def sheet(pictures: dict[str, np.ndarray], canvas: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] of a `canvas` (H, W) with labelled pictures (uint8 [h, w, 3], shape of the first) on it.

    They stand in a row, in a column, or in rows of two, whichever shows them largest.
    """
    height, width = next(iter(pictures.values())).shape[:2]
    count = len(pictures)
    layouts = [(-(-count // columns), columns) for columns in range(1, count + 1)]
    zooms = [
        min((canvas[0] - rows * (_LINE + _GAP)) / rows / height, (canvas[1] - (columns + 1) * _GAP) / columns / width)
        for rows, columns in layouts
    ]
    zoom, (rows, columns) = max(zip(zooms, layouts, strict=True))
    h, w = max(1, int(zoom * height)), max(1, int(zoom * width))
    page = Image.new("RGB", (canvas[1], canvas[0]), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    top = (canvas[0] - rows * (h + _LINE + _GAP)) // 2
    left = (canvas[1] - columns * (w + _GAP) + _GAP) // 2
    for i, (label, picture) in enumerate(pictures.items()):
        x, y = left + i % columns * (w + _GAP), top + i // columns * (h + _LINE + _GAP)
        draw.text((x, y), label, _INK, font)
        page.paste(Image.fromarray(resize_array(picture, (h, w))), (x, y + _LINE))
    return np.array(page)
