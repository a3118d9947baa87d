"""Photos of any size to the network's input, by the published size rules, pixel for pixel; intrinsics follow.

Two resamplings of 8-bit pixels, first to the wanted size, then to multiples of the patch: one would be quicker, but
gives other pixels. Here images stay in [0, 1]; the networks normalise them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from geometry.images import center_window, crop_array, nearest_multiple, read_image, resize_array, to_tensor
from geometry.presets import PATCH

SizeRule = Literal["upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]
SIZE_RULES: tuple[SizeRule, ...] = get_args(SizeRule)
MAX_ASPECT = 8  # with the lower bounds the long side is not bounded otherwise


def preprocess(
    images: Sequence[np.ndarray | str | Path],
    K: Tensor | np.ndarray | None = None,
    size: int = 504,
    method: SizeRule = "upper_bound_resize",
) -> tuple[Tensor, Tensor | None]:
    """Images [V, 3, H, W] in [0, 1] and their intrinsics [V, 3, 3] in pixels (None without `K`), float32.

    `images` are files or uint8 RGB arrays [H, W, 3] of any sizes, `K` [V, 3, 3] belongs to their pixels. Upper bounds
    bring the long side to `size`, lower bounds the short one; "resize" then rounds each side to a multiple of 14, ties
    upwards, "crop" cuts both down to one, centred. Images that differ in size after that are cut to the smallest height
    and width. With identities for `K` the result maps pixels of the files to pixels of the output.

    Raises ValueError naming the image when an array is not uint8 RGB, when a crop would leave nothing, or when a lower
    bound meets an image more than 8 times as long as wide; OSError when a file cannot be read.
    """
    if method not in SIZE_RULES:
        raise ValueError(f"method must be one of {', '.join(SIZE_RULES)}, got {method!r}")
    if size < 1:
        raise ValueError(f"size must be 1 pixel or more, got {size}")
    if len(images) == 0:
        raise ValueError("images is empty; give one photo or more")
    if K is not None:
        K = torch.as_tensor(K).detach().to("cpu", torch.float64).numpy()
        if K.shape != (len(images), 3, 3):
            raise ValueError(f"K must be {(len(images), 3, 3)} for {len(images)} images, got {K.shape}")

    def one(i: int) -> tuple[np.ndarray, np.ndarray]:
        return _fit(images[i], f"image {i}", size, method)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1, len(images))) as pool:
        arrays, moves = zip(*pool.map(one, range(len(images))))
    window = (min(a.shape[0] for a in arrays), min(a.shape[1] for a in arrays))
    moves = [_crop_move(a.shape[:2], window) @ move for a, move in zip(arrays, moves)]
    tensor = to_tensor([crop_array(a, window) for a in arrays])
    return tensor, None if K is None else torch.from_numpy(np.stack(moves) @ K).float()


def output_size(original: tuple[int, int], size: int, method: SizeRule) -> tuple[int, int]:
    """(height, width) that `preprocess` gives an image of `original` (height, width) alone; ValueError as it does."""
    bounded = _bounded_size(original, size, method)
    if method.endswith("resize"):
        return nearest_multiple(bounded[0], PATCH), nearest_multiple(bounded[1], PATCH)
    height, width = (side // PATCH * PATCH for side in bounded)
    if min(height, width) == 0:
        raise ValueError(
            f"{original[0]}x{original[1]} pixels become {bounded[0]}x{bounded[1]}, and a crop to multiples of {PATCH} "
            f"leaves nothing; use {method.replace('crop', 'resize')} or a larger size"
        )
    return height, width


def _bounded_size(original: tuple[int, int], size: int, method: SizeRule) -> tuple[int, int]:
    """`original` scaled, aspect kept to the pixel, until its long (upper bound) or short side is `size`."""
    if method.startswith("lower") and max(original) > MAX_ASPECT * min(original):
        raise ValueError(
            f"{original[0]}x{original[1]} pixels are more than {MAX_ASPECT} times as long as wide, too long for "
            f"{method}; use {method.replace('lower', 'upper')} or cut the image"
        )
    scale = size / (max(original) if method.startswith("upper") else min(original))
    height, width = (max(1, round(side * scale)) for side in original)
    return height, width


def _fit(source: np.ndarray | str | Path, name: str, size: int, method: SizeRule) -> tuple[np.ndarray, np.ndarray]:
    """One image at its output size, and the map [3, 3] from its pixels to the new ones."""
    if isinstance(source, (str, Path)):
        name, image = str(source), read_image(source)
    else:
        image = np.asarray(source)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"{name}: must be uint8 RGB [H, W, 3], got {image.dtype} {image.shape}")
    original = image.shape[:2]
    try:
        bounded, final = _bounded_size(original, size, method), output_size(original, size, method)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    image, move = resize_array(image, bounded), _resize_move(original, bounded)
    if method.endswith("resize"):
        return resize_array(image, final), _resize_move(bounded, final) @ move
    return crop_array(image, final), _crop_move(bounded, final) @ move


def _resize_move(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    return np.diag([new[1] / old[1], new[0] / old[0], 1.0])


def _crop_move(size: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    top, left = center_window(size, window)
    return np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
