"""Parts of a file by their place, from a disk or from object storage; the one module that knows fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def is_url(path: str | Path) -> bool:
    """Whether `path` names something that is not on this machine's disks, such as s3://bucket/scenes."""
    return "://" in str(path)


def read_range(path: str | Path, start: int, length: int) -> bytes:
    """`length` bytes from `start` on; fewer where the file ends. OSError or ImportError as the file or its store gives.

    Nothing is kept open in between, so tens of thousands of files may be in use at once.
    """
    if not is_url(path):
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            # One read call may stop early, on a network disk for example.
            parts = [file.read(length)]
            while parts[-1] and sum(map(len, parts)) < length:
                parts.append(file.read(length - sum(map(len, parts))))
            return b"".join(parts)
    system, inner = _open(path)
    return system.cat_file(inner, start=start, end=start + length)


def file_size(path: str | Path) -> int:
    """Bytes in the file. OSError when it is not there."""
    if not is_url(path):
        return os.stat(path).st_size
    system, inner = _open(path)
    return system.size(inner)


def files_below(root: str | Path, suffix: str) -> Iterator[tuple[str, str]]:
    """(path below `root`, URL) of all files below the URL `root` whose name ends with `suffix`, sorted."""
    system, inner = _open(root)
    for found in sorted(system.find(inner)):
        if found.endswith(suffix) and not found.rsplit("/", 1)[-1].startswith("."):
            yield found[len(inner) :].lstrip("/"), system.unstrip_protocol(found)


def _open(url: str | Path):
    """fsspec's file system of a URL, and the path in it; fsspec keeps one per store."""
    import fsspec

    return fsspec.core.url_to_fs(str(url))
