"""How a process is set up for compiled kernels: where they are kept, how threads wait, what becomes of memory."""

import ctypes
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest

from geometry.compiled import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, cache_folder, keep_memory, let_threads_sleep
from splat import raster_cpu


def test_the_kernel_cache_goes_where_it_can_be_written(monkeypatch, tmp_path):
    sources = [Path(raster_cpu.__file__)]
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "wanted"))
    assert cache_folder(sources).startswith(str(tmp_path / "wanted"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert cache_folder(sources).startswith(os.path.dirname(raster_cpu.__file__))


@pytest.mark.parametrize(
    ("chosen", "then"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "6000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "9"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "9"}),
    ],
)
def test_threads_sleep_as_the_user_wants(monkeypatch, chosen, then):
    monkeypatch.setattr(os, "environ", dict(chosen))
    let_threads_sleep()
    assert os.environ == then


@pytest.mark.parametrize(
    ("libc", "chosen", "options"),
    [
        ("glibc", {}, {-3: 2**25, -1: 2**31 - 1}),
        ("glibc", {"MALLOC_TRIM_THRESHOLD_": "131072"}, {}),
        ("glibc", {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}, {}),
        ("", {}, {}),  # musl, macOS, Windows
    ],
)
def test_freed_memory_is_kept_unless_the_user_has_tuned_it(monkeypatch, libc, chosen, options):
    told = {}
    monkeypatch.setattr(os, "environ", dict(chosen))
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=told.__setitem__))
    keep_memory.__wrapped__()
    assert told == options


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_glibc_takes_what_it_is_told():
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(M_MMAP_THRESHOLD, 2**25) == mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1
