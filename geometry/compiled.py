"""Where numba keeps the code it compiles, a word to the user while it does, and how the process is set up for it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LOCK = threading.Lock()  # numba's setting belongs to the whole process


def let_threads_sleep() -> None:
    """Have OpenMP's idle threads sleep after a while, unless the user has chosen; call it before torch is loaded.

    Threads that spin on make two processes that share the cores many times slower; those that sleep at once take a
    tenth to a fifth longer alone (docs/nano.md). GNU's OpenMP reads the second variable, others the first.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "6000")


@lru_cache
def keep_memory() -> None:
    """Have glibc keep what is freed for what comes next, unless the user has tuned it; elsewhere nothing happens.

    By default it goes back to the system, and the next forward waits while fresh pages are cleared: 30,000 of them, 3
    to 8 % of its time (docs/nano.md). The process stays as large as it once was.
    """
    tuned = {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    if platform.libc_ver()[0] != "glibc" or not tuned.isdisjoint(os.environ):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that all versions take
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@lru_cache
def kernels(name: str, room: str = "geometry") -> ModuleType:
    """The module `<room>.cpu.<name>`, compiled on first use. ImportError without numba."""
    here = Path(__file__).parent
    there = here.parent / room
    shared = sorted({*here.glob("cpu/*.py"), there / "cpu" / f"{name}.py"})
    sources = [*shared, there / f"{name}.py"]  # its constants stand in its twin
    try:
        with compiling(f"{room}.{name} for the CPU", 4, sources):
            return import_module(f"{room}.cpu.{name}")
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise ImportError("networks on the CPU need numba: pip install numba") from error


@contextmanager
def compiling(what: str, seconds: int, sources: list[Path]) -> Iterator[None]:
    """Kernels defined or imported inside are compiled, or loaded where they were kept; stderr says if it takes long.

    `what` and about how many `seconds` are for that line; `sources` are all files that the kernels are made of.
    """
    let_threads_sleep()  # torch has its OpenMP by now, but numba may bring one of its own
    keep_memory()
    import numba

    text = f"compiling {what}, once (about {seconds} seconds) ..."
    notice = threading.Timer(2.0, print, [text], {"file": sys.stderr, "flush": True})
    with _LOCK:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache_folder(sources)
        notice.start()
        try:
            yield
        finally:
            notice.cancel()
            numba.config.CACHE_DIR = before


def cache_folder(sources: list[Path]) -> str:
    """A writable place for compiled kernels: NUMBA_CACHE_DIR, beside the last source, the user's cache, or temporary.

    The last part names the sources: numba notices a change in a kernel's own file, not in the files that it imports.
    """
    name = "raysplat-" + hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for base in (os.environ.get("NUMBA_CACHE_DIR"), sources[-1].parent / "__pycache__", user):
        if base:
            try:
                Path(base, name).mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            if os.access(Path(base, name), os.W_OK):
                return str(Path(base, name))
    return tempfile.mkdtemp(prefix=name)
