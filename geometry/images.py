"""One photo file to an upright uint8 RGB array, and the resampling that arrays and tensors share.

Arrays are [H, W, 3] uint8 RGB, tensors [..., 3, H, W] in [0, 1]; sizes are (height, width). Resampling is area
averaging when a picture shrinks and cubic when it grows, as in the published DA3 preprocessing.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def natural_key(name: str) -> list:
    """Sort key that puts `frame_9` before `frame_10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def is_image_name(name: str | Path) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def read_image(path: str | Path, upright: bool = True) -> np.ndarray:
    """The photo as uint8 RGB [H, W, 3].

    EXIF orientation is applied unless `upright` is False (COLMAP's pixels ignore it). Transparency is laid over
    white, 16-bit grey is scaled to 8 bit. Raises OSError with one line naming the file when it is missing, empty,
    truncated or no image.
    """
    with _open(path) as image:
        try:
            image.load()
            if upright:
                image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
        except DECODE_ERRORS as error:
            raise OSError(f"{path}: the image is damaged or truncated ({error}); replace or remove it") from error


def image_size(path: str | Path, upright: bool = True) -> tuple[int, int]:
    """(height, width) of what `read_image` returns, read from the header alone. Raises OSError as it does."""
    with _open(path) as image:
        width, height = image.size
        turned = upright and _exif(image).get(ExifTags.Base.Orientation) in TURNED
    return (width, height) if turned else (height, width)


def exif_focal(path: str | Path) -> float | None:
    """Focal length in pixels from the EXIF 35 mm equivalent; None when the file does not tell it."""
    with _open(path) as image:
        focal_35mm = _exif(image).get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
        width, height = image.size
    try:
        focal_35mm = float(focal_35mm or 0)
    except (TypeError, ValueError):
        return None
    # The equivalence is between diagonals; 36 x 24 mm film has one of 43.27 mm.
    return focal_35mm * float(np.hypot(width, height)) / 43.2666 if focal_35mm > 0 else None


def fit_size(sizes: list[tuple[int, int]], long_side: int, multiple: int = 1) -> tuple[int, int]:
    """(height, width) with this long side and the median aspect ratio of `sizes`, sides to the nearest multiple."""
    log_aspect = float(np.median([np.log(w / h) for h, w in sizes]))
    height = long_side * np.exp(-max(log_aspect, 0.0))
    width = long_side * np.exp(min(log_aspect, 0.0))
    return nearest_multiple(height, multiple), nearest_multiple(width, multiple)


def nearest_multiple(side: float, multiple: int) -> int:
    """The nearest multiple, at least one; ties go up."""
    return max(multiple, int(np.floor(side / multiple + 0.5)) * multiple)


def cover_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """`size` scaled, aspect kept to the pixel, to the smallest that covers `window`."""
    scale = max(window[0] / size[0], window[1] / size[1])
    return max(window[0], round(size[0] * scale)), max(window[1], round(size[1] * scale))


def center_window(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """(top, left) of the centred `window` in a picture of `size`."""
    return (size[0] - window[0]) // 2, (size[1] - window[1]) // 2


def resize_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, C] resampled to `size`; the dtype stays."""
    import cv2

    if image.shape[:2] == tuple(size):
        return image
    grows = size[0] > image.shape[0] or size[1] > image.shape[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA)


def crop_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The centred window of `size` of [H, W, C]."""
    top, left = center_window(image.shape[:2], size)
    return image[top : top + size[0], left : left + size[1]]


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 arrays [H, W, 3] of one size to float32 [V, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(255).contiguous()


def to_uint8(images: Tensor) -> np.ndarray:
    """[..., 3, H, W] in [0, 1] to uint8 [..., H, W, 3], rounded."""
    return (images.detach().clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()


def _open(path: str | Path) -> Image.Image:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        raise OSError(f"{path}: the image file is empty (0 bytes); replace or remove it")
    # By content, not by suffix: phones hand out JPEG named .HEIC and the reverse.
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        _enable_heif(path)
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise OSError(f"{path}: not an image that can be decoded; replace or remove it") from error
    except DECODE_ERRORS as error:
        raise OSError(f"{path}: the image cannot be opened ({error}); replace or remove it") from error


def _enable_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImportError(f"{path}: HEIC photos need pillow-heif: pip install raysplat[heic]") from error
    pillow_heif.register_heif_opener()


def _exif(image: Image.Image) -> Image.Exif:
    try:
        return image.getexif()
    except DECODE_ERRORS:
        return Image.Exif()


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range; convert it to 8 or 16 bit")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it
        grey = np.asarray(image).astype(np.float64) / 257
        return np.repeat(grey.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
