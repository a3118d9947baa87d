"""Files in the .spz format: the bytes that Niantic's own library makes, the picture, and hostile files.

tests/data/woven_v3.spz and woven_v4.spz are `woven(270, 1)` as PlayCanvas's splat-transform 2.7.1 wrote it from our
.ply, by Niantic's library.
"""

import gzip
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splat.files import read_gaussians, write_gaussians
from splat.gaussians import Gaussians
from splat.metrics import psnr
from splat.spz import read_spz, write_spz
from tests.gaussian_samples import picture, woven

DATA = Path(__file__).parent / "data"


def head(version=3, count=1, degree=0, bits=12, flags=0, magic=b"NGSP", last=0) -> bytes:
    return struct.pack("<4sIIBBBB", magic, version, count, degree, bits, flags, last)


def test_the_bytes_are_those_of_the_original_library(tmp_path):
    write_spz(tmp_path / "scene.spz", woven(270, 1))
    ours, theirs = (gzip.decompress(p.read_bytes()) for p in (tmp_path / "scene.spz", DATA / "woven_v3.spz"))
    assert len(ours) == len(theirs) == 16 + 270 * (9 + 1 + 3 + 3 + 4 + 9)
    # A number on the edge of two steps may fall to either side on another processor.
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= 3


@pytest.mark.parametrize("version", [3, 4])
def test_files_of_the_original_library_are_read(version):
    if version == 4:
        pytest.importorskip("zstandard")
    gaussians, want = read_spz(DATA / f"woven_v{version}.spz"), woven(270, 1)
    torch.testing.assert_close(gaussians.means, want.means, rtol=0, atol=0.5 / 4096 + 1e-6)
    torch.testing.assert_close(gaussians.scales.log(), want.scales.log(), rtol=0, atol=0.5 / 16 + 1e-4)
    torch.testing.assert_close(gaussians.opacities, want.opacities, rtol=0, atol=0.5 / 255 + 1e-6)
    assert float((gaussians.quats * want.quats).sum(-1).abs().min()) > 1 - 1e-5
    torch.testing.assert_close(gaussians.sh[:, 0], want.sh[:, 0], rtol=0, atol=0.5 / 38.25 + 1e-5)
    torch.testing.assert_close(gaussians.sh[:, 1:], want.sh[:, 1:], rtol=0, atol=4.6 / 128)


def test_version_2_keeps_three_components_of_the_rotation(tmp_path):
    """x, y, z in bytes, w >= 0 from them; the axes of the file are turned half round x."""
    rows = [bytes(9), b"\xff", b"\x80" * 3, bytes([160] * 3), bytes([255, 128, 128]), bytes([191, 64, 191])]
    rows[0] = (4096).to_bytes(3, "little") + (8192).to_bytes(3, "little") + (2**24 - 4096).to_bytes(3, "little")
    for rotation, quat in ((rows[4], (0, 1, 0, 0)), (rows[5], (0.50, 0.50, 0.50, -0.50))):
        content = head(version=2) + b"".join([*rows[:4], rotation])
        (tmp_path / "a.spz").write_bytes(gzip.compress(content))
        gaussian = read_spz(tmp_path / "a.spz")
        torch.testing.assert_close(gaussian.means, torch.tensor([[1.0, -2.0, 1.0]]))
        torch.testing.assert_close(gaussian.scales, torch.ones(1, 3))
        torch.testing.assert_close(gaussian.quats, torch.tensor([quat]).float(), rtol=0, atol=0.01)


@pytest.mark.parametrize(("degree", "floor"), [(0, 48), (1, 44), (2, 37), (3, 34)])
def test_the_picture_is_kept(tmp_path, degree, floor):
    """A band with the wrong sign, or a turned axis, costs 10 dB and more."""
    gaussians = woven(3000, degree)
    assert write_gaussians(gaussians, tmp_path / "scene.spz") == 0
    back = read_gaussians(tmp_path / "scene.spz")
    assert back.sh_degree == degree and psnr(picture(back), picture(gaussians)) > floor


def test_positions_are_as_fine_as_the_scene_needs(tmp_path):
    """A scene in another unit keeps its shape: the point moves within the 24 bits."""
    for unit in (1e-2, 1, 1e3):
        gaussians = woven(300, 0)
        write_spz(
            tmp_path / "a.spz",
            Gaussians(gaussians.means * unit, gaussians.scales * unit, *list(vars(gaussians).values())[2:]),
        )
        error = (read_spz(tmp_path / "a.spz").means / unit - gaussians.means).abs().max()
        assert float(error) < 0.002, unit


def test_a_scene_too_wide_for_the_format_is_told(tmp_path):
    gaussians = woven(300, 0)
    gaussians.means[0, 2] = 1e6
    with pytest.warns(UserWarning, match="crop or scale"):
        write_spz(tmp_path / "a.spz", gaussians)
    gaussians = woven(300, 0)
    gaussians.scales[:] *= 1e-4
    with pytest.warns(UserWarning, match="300 of 300 Gaussians are smaller or larger"):
        write_spz(tmp_path / "a.spz", gaussians)


def test_rows_that_are_not_finite_are_dropped(tmp_path):
    gaussians = woven(10, 1)
    gaussians.sh[2, 3, 1] = float("inf")
    gaussians.quats[5] = 0
    assert write_spz(tmp_path / "a.spz", gaussians) == 2
    assert read_spz(tmp_path / "a.spz").count == 8


def test_the_same_scene_gives_the_same_bytes(tmp_path):
    for name in ("a.spz", "b.spz"):
        write_spz(tmp_path / name, woven(50, 2))
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


def test_degree_4_is_cut_and_extensions_are_skipped(tmp_path):
    rows = bytes(9) + b"\xff" + b"\x80" * 3 + bytes([160] * 3) + bytes(4) + bytes([128 + 64] * 72)
    (tmp_path / "a.spz").write_bytes(gzip.compress(head(degree=4, flags=2) + rows + b"more"))
    with pytest.warns(UserWarning) as caught:
        gaussian = read_spz(tmp_path / "a.spz")
    assert [str(w.message).split(": ")[1] for w in caught] == [
        "extensions of another program are skipped",
        "SH of degree 4 is cut to degree 3",
    ]
    assert gaussian.sh_degree == 3 and set(gaussian.sh[0, 1:].abs().flatten().tolist()) == {0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .spz file|ends early"),
        (b"nonsense, not gzip", "not a .spz file"),
        (gzip.compress(b""), "ends early"),
        (gzip.compress(head()), "ends early"),
        (gzip.compress(head(magic=b"PLY!") + bytes(20)), "does not begin with NGSP"),
        (gzip.compress(head(version=1) + bytes(20)), "version 1 "),
        (gzip.compress(head(version=9) + bytes(20)), "version 9 "),
        (gzip.compress(head(degree=5) + bytes(200)), "SH degree 5"),
        (gzip.compress(head(bits=25) + bytes(20)), "25 fraction bits"),
        (gzip.compress(head(count=2**32 - 1) + bytes(1 << 20)), "refused as a bomb"),
        (gzip.compress(head(count=100) + bytes(1999)), "ends early"),
        (gzip.compress(head(count=100) + bytes(2000))[:-30], "ends early"),
        (head(version=4), "ends early"),
        (head(version=4, last=5) + bytes(16), "table of streams"),
        (head(version=4, last=5) + struct.pack("<I12x", 2**32 - 1), "table of streams"),
        (head(version=4, count=2**32 - 1, last=5) + bytes(200), "refused as a bomb"),
        (head(version=4, last=5) + struct.pack("<I12x", 32) + bytes(80), "stream 1 of the .spz has another size"),
        (
            head(version=4, last=5) + struct.pack("<I12x10Q", 32, *([10, 9] * 5)) + bytes(99),
            "stream 1 of the .spz is damaged",
        ),
        (head(version=3) + bytes(80), "version 3 of .spz in this container"),
    ],
    # gzip writes the time into its header, so names made of the content would differ between test processes.
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_hostile_files_get_one_clear_line(tmp_path, content, message):
    if "stream 1" in message:
        pytest.importorskip("zstandard")
    path = tmp_path / "scene.spz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_spz(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_bomb_takes_no_memory(tmp_path):
    """200 MB of zeros in 200 kB, with a header that fits them."""
    count = 10_000_000
    path = tmp_path / "scene.spz"
    path.write_bytes(gzip.compress(head(count=count) + bytes(20 * count), 1))
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match="refused as a bomb"):
        read_spz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000 and time.process_time() - start < 3


def test_a_stream_that_lies_about_its_size_takes_no_memory(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(bytes(300_000_000))
    table = struct.pack("<10Q", len(packed), 9, *([10, 1] + [10, 3] * 2 + [10, 4]))
    path = tmp_path / "scene.spz"
    path.write_bytes(head(version=4, last=5) + struct.pack("<I12x", 32) + table + packed + bytes(40))
    tracemalloc.start()
    with pytest.raises(ValueError, match="stream 2"):
        read_spz(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@settings(max_examples=60, deadline=None)
@given(data=st.data(), version=st.sampled_from([3, 4]))
def test_damage_never_does_worse_than_value_error(tmp_path_factory, data, version):
    pytest.importorskip("zstandard")
    content = bytearray((DATA / f"woven_v{version}.spz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("spz") / "scene.spz"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 40]))])
    try:
        gaussians = read_spz(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert gaussians.count <= 270 and np.isfinite(gaussians.means.numpy()).all()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="cannot be empty"):
        write_spz(tmp_path / "scene.spz", woven(3, 0).select(slice(0)))
    assert not list(tmp_path.iterdir())
