"""Scene packs: one file per scene, from which any view can be read without the rest.

    8 bytes   magic, with the version
    8 bytes   length of the index, little endian
    4 bytes   CRC-32 of the index
    index     JSON: name, notes, settings, size of the file; where each photo, depth map and array lies, with its CRC-32
    blobs     arrays (cameras first, so that one read opens a scene), then photos as JPEG or PNG and depth maps as .npy

A checksum is compared on every read and every place is checked against the size of the file, so a damaged pack says so
in one line. CRC-32 finds damage, not malice: it takes 1 % of the time of decoding, a cryptographic sum 7 %.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import struct
import tempfile
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from geometry.byte_ranges import file_size, read_range
from geometry.encoded_photo import decode_photo, encode_photo, same_picture
from geometry.images import cover_size, resize_array
from geometry.scene import Scene, SparsePoints
from geometry.scene_depth import depth_file, parse_depth

SUFFIX = ".scene"
MAGIC = b"RSPACK\x00\x01"
START = struct.Struct("<8sQI")
FIRST_READ = 1 << 17  # holds the index and the cameras of 700 views
LONGEST_INDEX = 1 << 26
SPOOL = 1 << 28  # larger packs wait on disk, not in memory, until their index is known


@dataclass(frozen=True)
class PackSettings:
    """How photos go into a pack."""

    size: tuple[int, int] | None = None  # (H, W) that the photos shall just cover; they are shrunk, never enlarged
    quality: int = 95  # of the JPEG, without chroma subsampling, for photos that cannot be kept as they are stored
    lossless: bool = False  # PNG for those instead: about 6 times the bytes and 3 times the time to decode

    def __post_init__(self):
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"the size of packed photos must be above 0, got {self.size[0]}x{self.size[1]}")
        if not 50 <= self.quality <= 100:
            raise ValueError(f"the JPEG quality of a pack must lie in 50..100, got {self.quality}")


DEFAULTS = PackSettings()


@dataclass(frozen=True)
class Blob:
    """Bytes `start` to `start + length` of a pack and their checksum."""

    start: int
    length: int
    crc: int


@dataclass(frozen=True)
class PackedPhotos:
    """The photos of an open pack; what `Scene.load` is for one. Reads only what it is asked for; holds no file open."""

    path: str
    sizes: tuple[tuple[int, int], ...]
    photos: tuple[Blob, ...]
    depths: tuple[Blob | None, ...]

    def __call__(self, i: int, least: tuple[int, int] | None = None) -> np.ndarray:
        """View `i` as uint8 RGB [H, W, 3].

        With `least` (H, W), a picture of at least that size, halved up to three times where that divides its sides: a
        JPEG decodes at half its size in half the time. Raises OSError or ValueError naming the pack and the view.
        """
        blob, what = _checked(self.path, self.photos[i]), f"{self.path}: view {i}"
        return decode_photo(blob, self.sizes[i], what, least)

    def depth(self, i: int) -> np.ndarray | None:
        """The stored depth map [h, w] float32 of view `i`, if there is one; see geometry/scene_depth.py."""
        blob = self.depths[i]
        return None if blob is None else parse_depth(_checked(self.path, blob), f"{self.path}: depth of view {i}")


def write_pack(scene: Scene, path: str | Path, settings: PackSettings = DEFAULTS, bad_share: float = 0.1) -> list[str]:
    """Write `scene` to the file `path`, whole or not at all; returns a line for each photo that was left out.

    A JPEG that `scene.load` gives unchanged is stored byte for byte; a photo that the reader turned, undistorted or
    that is shrunk here is encoded anew, and K follows. Depth maps beside the photos come along. Photos that do not
    decode are left out and named in the notes; more than `bad_share` of them raise ValueError.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    views, kept, left_out, sizes = [], [], [], []
    with tempfile.SpooledTemporaryFile(SPOOL) as blobs:
        for i, name in enumerate(scene.names):
            try:
                photo, size = _packed_photo(scene, i, settings)
                depth = depth_file(scene, i)
                depth = depth.read_bytes() if depth is not None else None
                if depth is not None:
                    parse_depth(depth, f"{scene.root}: depth of {name}")
            except OSError as error:
                left_out.append(" ".join(str(error).split()))
                if len(left_out) > bad_share * len(scene):
                    raise ValueError(
                        f"{scene.root}: {len(left_out)} of the first {i + 1} photos (of {len(scene)}) cannot be read, "
                        f"for example: {left_out[0]}"
                    ) from error
                continue
            kept.append(i)
            sizes.append(size)
            view = {"name": name, "size": size, "photo": _append(blobs, photo)}
            views.append(view if depth is None else view | {"depth": _append(blobs, depth)})
        whole, notes = scene.sizes, tuple(f"left out: {line}" for line in left_out)
        scene = replace(scene.select(kept), notes=(*scene.notes, *notes))
        head = _index(scene, views, _arrays(scene, [whole[i] for i in kept], sizes), settings)
        _write_whole(path, head, blobs)
    return left_out


def open_pack(path: str | Path, points: bool = True) -> Scene:
    """The scene in the pack at `path`, a file or a URL that fsspec knows (s3://, gs://, https://, memory://).

    Its `load` is a `PackedPhotos`. `points` = False leaves the sparse points unread. Raises OSError when the file is
    not there, ValueError in one line when it is no pack, cut off or damaged.
    """
    index, head = _read_index(str(path))
    try:
        views, arrays = index["views"], index["arrays"]
        sizes = tuple((int(view["size"][0]), int(view["size"][1])) for view in views)
        photos = tuple(Blob(*view["photo"]) for view in views)
        depths = tuple(Blob(*view["depth"]) if "depth" in view else None for view in views)
        places = {name: (entry["dtype"], tuple(entry["shape"]), Blob(*entry["at"])) for name, entry in arrays.items()}
        names, notes = tuple(str(view["name"]) for view in views), tuple(map(str, index["notes"]))
        name, size = str(index["name"]), index["bytes"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: the index of the pack lacks or misstates {error}; pack the scene again") from error
    for blob in (*photos, *filter(None, depths), *(place[2] for place in places.values())):
        numbers = (blob.start, blob.length, blob.crc)
        inside = all(type(n) is int for n in numbers) and blob.length >= 0 and blob.start >= START.size
        if not inside or blob.start + blob.length > size:
            raise ValueError(f"{path}: the index of the pack points outside the file; pack the scene again")

    def array(key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if key not in places:
            return None
        found, dims, blob = places[key]
        fits = len(dims) == len(shape) and all(w in (-1, d) for d, w in zip(dims, shape))
        if found != dtype or not fits or math.prod(dims) * np.dtype(dtype).itemsize != blob.length:
            raise ValueError(f"{path}: {key} in the pack has another shape or type than it must; pack the scene again")
        return np.frombuffer(_checked(str(path), blob, head), dtype).reshape(dims).copy()

    count = len(views)
    return Scene(
        name=name,
        root=Path(path),
        names=names,
        sizes=sizes,
        load=PackedPhotos(str(path), sizes, photos, depths),
        w2c=array("w2c", "<f8", (count, 4, 4)),
        K=array("K", "<f8", (count, 3, 3)),
        points=_points(path, array, count) if points else None,
        notes=notes,
    )


def verify_pack(path: str | Path, settings: PackSettings | None = None) -> Scene:
    """Read every byte of a pack and compare the checksums; ValueError or OSError as `open_pack`.

    With `settings`, ValueError also when the pack was written with others.
    """
    scene = open_pack(path)
    load: PackedPhotos = scene.load
    for blob in (*load.photos, *filter(None, load.depths)):
        _checked(load.path, blob)
    if settings is not None and _read_index(load.path)[0]["settings"] != json.loads(json.dumps(asdict(settings))):
        raise ValueError(f"{path}: was packed with other settings")
    return scene


def _packed_photo(scene: Scene, i: int, settings: PackSettings) -> tuple[bytes, tuple[int, int]]:
    """What is stored for view `i`, and its size."""
    picture = scene.load(i)
    old = picture.shape[:2]
    size = old if settings.size is None else cover_size(old, settings.size)
    if size[0] < old[0] and size[1] < old[1]:
        return encode_photo(resize_array(picture, size), settings.quality, settings.lossless), size
    if scene.files is not None:
        stored = scene.files[i].read_bytes()
        if same_picture(stored, picture, settings.lossless):
            return stored, old
    return encode_photo(picture, settings.quality, settings.lossless), old


def _arrays(scene: Scene, old: list[tuple[int, int]], new: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """The arrays of a pack; K moves from photos of the sizes `old` to `new`."""
    arrays = {}
    if scene.w2c is not None:
        arrays["w2c"] = scene.w2c.astype("<f8")
    if scene.K is not None:
        scale = np.array([[b[1] / a[1], b[0] / a[0], 1.0] for a, b in zip(old, new)])
        arrays["K"] = (scene.K * scale[:, :, None]).astype("<f8")
    if scene.points is not None:
        arrays["points"] = scene.points.xyz.astype("<f8")
        if scene.points.visible is not None:
            arrays["seen"] = np.array([len(seen) for seen in scene.points.visible], "<i4")
            arrays["visible"] = np.concatenate(scene.points.visible).astype("<i4")
    return arrays


def _index(scene: Scene, views: list[dict], arrays: dict[str, np.ndarray], settings: PackSettings) -> bytes:
    """Everything before the photos: start, index and arrays.

    Places count from the beginning of the file, which depends on how long the index is; so they are shifted until the
    index no longer grows.
    """
    data = {key: array.tobytes() for key, array in arrays.items()}
    payload, length = b"".join(data.values()), 0
    photos = sum(blob[1] for view in views for blob in (view["photo"], view.get("depth", [0, 0]))) + len(payload)
    while True:
        start, entries = START.size + length, {}
        for key, array in arrays.items():
            at = [start, len(data[key]), zlib.crc32(data[key])]
            entries[key] = {"dtype": array.dtype.str, "shape": array.shape, "at": at}
            start += len(data[key])
        moved = [
            view | {kind: [start + view[kind][0], *view[kind][1:]] for kind in ("photo", "depth") if kind in view}
            for view in views
        ]
        index = {
            "name": scene.name,
            "notes": scene.notes,
            "settings": asdict(settings),
            "bytes": START.size + length + photos,
            "arrays": entries,
            "views": moved,
        }
        text = json.dumps(index, separators=(",", ":")).encode()
        if len(text) <= length:
            text = text.ljust(length)
            return START.pack(MAGIC, len(text), zlib.crc32(text)) + text + payload
        length = len(text)


def _append(blobs: BinaryIO, content: bytes) -> list[int]:
    place = [blobs.tell(), len(content), zlib.crc32(content)]
    blobs.write(content)
    return place


def _write_whole(path: Path, head: bytes, blobs: BinaryIO) -> None:
    """`head` and then `blobs` to `path`, so that a reader sees the old or the new file, never half of one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            file.write(head)
            blobs.seek(0)
            shutil.copyfileobj(blobs, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_index(path: str) -> tuple[dict[str, Any], bytes]:
    """The index of a pack, checked as a whole, and the bytes that came with it."""
    size = file_size(path)
    head = read_range(path, 0, min(FIRST_READ, size))
    if len(head) < START.size or head[:6] != MAGIC[:6]:
        raise ValueError(f"{path}: not a scene pack")
    magic, length, crc = START.unpack_from(head)
    if magic != MAGIC:
        raise ValueError(f"{path}: a scene pack of version {magic[7]}; this program reads version {MAGIC[7]}")
    end = START.size + length
    if length > LONGEST_INDEX or end > size:
        raise ValueError(f"{path}: the pack ends within its index ({size} bytes); pack the scene again")
    if end > len(head):
        head += read_range(path, len(head), end - len(head))
    text = head[START.size : end]
    if zlib.crc32(text) != crc:
        raise ValueError(f"{path}: the index of the pack is damaged; pack the scene again")
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the index of the pack is no JSON ({error})") from error
    if not isinstance(index, dict) or index.get("bytes") != size:
        told = index.get("bytes") if isinstance(index, dict) else None
        raise ValueError(f"{path}: the pack has {size} bytes and should have {told}; pack the scene again")
    return index, head


def _checked(path: str, blob: Blob, head: bytes = b"") -> bytes:
    """The bytes of a blob, out of `head` if they lie there. ValueError when their checksum is another."""
    end = blob.start + blob.length
    content = head[blob.start : end] if end <= len(head) else read_range(path, blob.start, blob.length)
    if len(content) != blob.length or zlib.crc32(content) != blob.crc:
        raise ValueError(f"{path}: bytes {blob.start} to {end} of the pack are damaged; pack the scene again")
    return content


def _points(path: str | Path, array, count: int) -> SparsePoints | None:
    xyz, seen, visible = array("points", "<f8", (-1, 3)), array("seen", "<i4", (count,)), array("visible", "<i4", (-1,))
    if xyz is None or seen is None or visible is None:
        return None if xyz is None else SparsePoints(xyz)
    inside = not len(visible) or (visible.min() >= 0 and visible.max() < len(xyz))
    if (seen < 0).any() or int(seen.sum(dtype=np.int64)) != len(visible) or not inside:
        raise ValueError(f"{path}: the pack's points and the views that see them disagree; pack the scene again")
    return SparsePoints(xyz, tuple(np.split(visible.astype(np.int64), np.cumsum(seen)[:-1])))
