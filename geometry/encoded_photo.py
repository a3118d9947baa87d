"""Photos as bytes: JPEG or PNG in memory to uint8 RGB and back, at the speed of libjpeg-turbo (within OpenCV)."""

from __future__ import annotations

import struct

import numpy as np

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that carry the size


def encode_photo(picture: np.ndarray, quality: int, lossless: bool) -> bytes:
    """uint8 RGB [H, W, 3] as JPEG without chroma subsampling, or as PNG."""
    import cv2

    if lossless:
        options = [cv2.IMWRITE_PNG_COMPRESSION, 6]
    else:
        whole = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, whole]
    done, encoded = cv2.imencode(".png" if lossless else ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels cannot be encoded")
    return encoded.tobytes()


def decode_photo(content: bytes, size: tuple[int, int], what: str, least: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 RGB of a JPEG or PNG, as its raster lies (no EXIF turn); `size` (H, W) is what it must be.

    With `least`, a JPEG is halved while decoding as often as (at most three times) its sides divide and both remain at
    least that long. Raises ValueError that begins with `what`.
    """
    import cv2

    # Before decoding: a few bytes can claim a gigapixel.
    if photo_size(content) != tuple(size):
        raise ValueError(f"{what}: not a JPEG or PNG of {size[1]}x{size[0]} pixels")
    halves = 1
    if least is not None and content.startswith(JPEG):
        halves = next(f for f in (8, 4, 2, 1) if f == 1 or all(s % f == 0 and s >= f * m for s, m in zip(size, least)))
    # The names of reduced sizes say grey; with the flag for RGB they give that.
    reduced = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
    flags = cv2.IMREAD_COLOR_RGB | reduced.get(halves, 0) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{what}: the photo cannot be decoded ({error.err})") from error
    if picture is None or picture.shape != (size[0] // halves, size[1] // halves, 3):
        raise ValueError(f"{what}: the photo cannot be decoded")
    return picture


def same_picture(content: bytes, picture: np.ndarray, lossless: bool) -> bool:
    """Whether `content` is a JPEG (or, if `lossless`, a PNG) that decodes to `picture`, but for rounding."""
    if not content.startswith((JPEG, PNG) if lossless else JPEG) or photo_size(content) != picture.shape[:2]:
        return False
    decoded = decode_photo(content, picture.shape[:2], "")
    return float(np.abs(decoded.astype(np.int16) - picture).mean()) < 0.5


def photo_size(content: bytes) -> tuple[int, int] | None:
    """(H, W) that the header of a JPEG or PNG states; None for anything else."""
    if content.startswith(PNG):
        return struct.unpack(">II", content[16:24])[::-1] if len(content) >= 24 else None
    at = 2 if content.startswith(JPEG) else len(content)
    while at + 9 <= len(content) and content[at] == 0xFF:
        if content[at + 1] in STARTS_OF_FRAME:
            return struct.unpack(">HH", content[at + 5 : at + 9])
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
