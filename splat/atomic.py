"""Files and folders that appear whole or not at all, whatever stops the program in between."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it becomes `path` when the block ends without an error.

    The temporary name keeps the suffix, because encoders choose the format by it. Raises FileNotFoundError when the
    folder is missing, OSError as the writing does.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; it becomes `path` when the block ends without an error.

    An older folder at `path` is removed once the new one is whole. Raises FileExistsError as `check_target` does.
    """
    path = Path(path).absolute()
    check_target(path, replaces)
    temporary, old = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}") for kind in ("new", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for rest in (temporary, old):
            shutil.rmtree(rest, ignore_errors=True)


def check_target(path: str | Path, replaces: Collection[str] = ()) -> None:
    """Raise FileExistsError unless `path` is free, or a folder that holds nothing but entries named in `replaces`.

    `whole_folder` checks this too; asked before the work, it spares minutes. Other files are never removed: someone's
    photos may lie there.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} exists and is a file; the results need a folder of their own")
    entries = sorted(os.listdir(path)) if path.is_dir() else []
    if entries and not replaces:
        raise FileExistsError(f"{path} exists and is not empty; choose another folder or pass --overwrite")
    others = [name for name in entries if name not in replaces]
    if others:
        raise FileExistsError(f"{path} also holds {others[0]}, which would be lost; choose another folder")
