"""Files from a browser: counted, measured, decoded, and kept in a temporary folder under names of our own.

Nothing that a browser sends becomes a path: a file is stored under its number, with the suffix of what it really is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from geometry.images import DECODE_ERRORS, image_size, read_image
from geometry.read_video import SUFFIXES as VIDEO_SUFFIXES

MEGABYTE = 1 << 20
MOST_FILES = 200
MOST_BYTES = 1024 * MEGABYTE  # of all files together
MOST_BYTES_PHOTO = 64 * MEGABYTE
MOST_PIXELS = 100_000_000
MOST_PARTS = 4096
# A photo of so many pixels takes gigabytes while it is decoded: one at a time, whoever sends them.
_decoding = threading.Lock()
_SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "HEIF": ".heic",
    "AVIF": ".avif",
    "TIFF": ".tif",
    "BMP": ".bmp",
}


@dataclass
class Transfer:
    """A file on its way: `path` grows until all `parts` have come."""

    label: str
    path: Path
    size: int
    parts: int
    number: int
    received: int = 0
    parts_received: int = 0

    @property
    def complete(self) -> bool:
        return self.parts_received == self.parts


class Inbox:
    """The uploads of one browser tab, in order: photos, or one video. `close` removes them; so does garbage collection.

    Every method raises ValueError in one line for what is refused, and forgets the file. Safe between threads.
    """

    def __init__(self):
        self._folder = TemporaryDirectory(prefix="raysplat-upload-")
        self._transfers: dict[str, Transfer] = {}
        self._files: dict[int, tuple[Path, str]] = {}
        self._made = 0
        self._lock = threading.Lock()

    @property
    def files(self) -> list[tuple[Path, str]]:
        """Checked files and what the user calls them, in the order in which they were sent."""
        with self._lock:
            return [self._files[number] for number in sorted(self._files)]

    @property
    def source(self) -> Path:
        """What to reconstruct: the folder of photos, or the video. ValueError when there is none."""
        files = self.files
        if not files:
            raise ValueError("upload photos or a video first")
        first = files[0][0]
        return first if first.suffix in VIDEO_SUFFIXES else first.parent

    def begin(self, key: str, name: str, size: int, parts: int) -> None:
        """Expect a file of `size` bytes in `parts` pieces, which follow under `key`."""
        label = _label(name)
        with self._lock:
            pending = list(self._transfers.values())
            stored = sum(path.stat().st_size for path, _ in self._files.values()) + sum(t.size for t in pending)
            if len(self._files) + len(pending) >= MOST_FILES:
                raise ValueError(f"{label}: at most {MOST_FILES} files are taken")
            if size == 0:
                raise ValueError(f"{label}: the file is empty")
            if not 0 < size <= MOST_BYTES or not 0 < parts <= MOST_PARTS or key in self._transfers:
                raise ValueError(f"{label}: a file of {size} bytes is not taken (at most {MOST_BYTES // MEGABYTE} MB)")
            if stored + size > MOST_BYTES:
                raise ValueError(f"{label}: all files together may have {MOST_BYTES // MEGABYTE} MB")
            if _video_suffix(name) is None and size > MOST_BYTES_PHOTO:
                raise ValueError(f"{label}: a photo may have {MOST_BYTES_PHOTO // MEGABYTE} MB")
            self._made += 1
            path = Path(self._folder.name) / f".{self._made:04d}{_video_suffix(name) or ''}"
            self._transfers[key] = Transfer(label, path, size, parts, self._made)

    def receive(self, key: str, index: int, content: bytes) -> Transfer:
        """Append piece `index`; they must come in order and add up to the size that was announced."""
        with self._lock:
            transfer = self._transfers.get(key)
            if transfer is None:
                raise ValueError("a piece of a file came that was not announced")
            transfer.received += len(content)
            transfer.parts_received += 1
            wrong = index != transfer.parts_received - 1 or transfer.received > transfer.size
            if wrong or (transfer.complete and transfer.received != transfer.size):
                del self._transfers[key]
                transfer.path.unlink(missing_ok=True)
                raise ValueError(f"{transfer.label}: its pieces do not fit together; send it again")
            with open(transfer.path, "ab") as file:
                file.write(content)
            return transfer

    def finish(self, key: str) -> str:
        """Check a complete file by decoding it and keep it; returns its label. This takes a moment for large photos."""
        with self._lock:
            transfer = self._transfers.pop(key)
        try:
            with _decoding:
                suffix = _check(transfer.path)
            with self._lock:
                videos = [path for path, _ in self._files.values() if path.suffix in VIDEO_SUFFIXES]
                if videos or (suffix in VIDEO_SUFFIXES and self._files):
                    raise ValueError(f"{transfer.label}: either photos or one video, not both; remove the others first")
                final = transfer.path.with_name(f"{transfer.number:04d}{suffix}")
                transfer.path.rename(final)
                self._files[transfer.number] = (final, transfer.label)
        except (ValueError, OSError, ImportError, MemoryError) as error:
            transfer.path.unlink(missing_ok=True)
            reason = str(error).replace(f"{transfer.path}: ", "").replace(f"{transfer.label}: ", "")
            reason = reason or "there is too little memory for it"
            raise ValueError(f"{transfer.label}: {reason}") from error
        return transfer.label

    def clear(self) -> None:
        """Remove all files that are complete."""
        with self._lock:
            files, self._files = self._files, {}
        for path, _ in files.values():
            path.unlink(missing_ok=True)

    def release(self) -> TemporaryDirectory:
        """Hand the files over, to a job that may outlive the tab, and go on with an empty folder."""
        with self._lock:
            folder, self._folder = self._folder, TemporaryDirectory(prefix="raysplat-upload-")
            self._files, self._transfers = {}, {}
        return folder

    def close(self) -> None:
        with self._lock:
            self._transfers, self._files = {}, {}
            self._folder.cleanup()


def _check(path: Path) -> str:
    """The suffix that a file's content deserves. Raises ValueError or OSError when it is no photo and no video."""
    if path.suffix in VIDEO_SUFFIXES:
        _check_video(path)
        return path.suffix
    height, width = image_size(path)
    if height * width > MOST_PIXELS:
        raise ValueError(f"{width}x{height} pixels are too many (at most {MOST_PIXELS // 1_000_000} million)")
    if min(height, width) < 16:
        raise ValueError(f"{width}x{height} pixels are too few")
    # Before anything is decoded: Pillow would hand a PostScript file to an interpreter.
    try:
        with Image.open(path) as image:
            kind = image.format or ""
    except DECODE_ERRORS as error:
        raise OSError(f"no photo ({error})") from error
    if kind not in _SUFFIXES:
        raise ValueError(f"photos of the type {kind or 'unknown'} are not taken; send JPEG or PNG")
    read_image(path)
    return _SUFFIXES[kind]


def _check_video(path: Path) -> None:
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        fine, frame = video.read()
    finally:
        video.release()
    if not fine or frame is None:
        raise ValueError("the video cannot be decoded; send H.264 in an .mp4")


def _video_suffix(name: str) -> str | None:
    """The video suffix that a name ends in, as we spell it."""
    return next((suffix for suffix in VIDEO_SUFFIXES if name.lower().endswith(suffix)), None)


def _label(name: str) -> str:
    """A browser's file name for people: its last part, printable, short."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in " ._-()" else "_" for c in last)[:60] or "file"
