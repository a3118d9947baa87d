"""Gaussian PLY files: the exact layout, nothing lost on the way, and clear words about broken files."""

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from splat.gaussians import Gaussians
from splat.metrics import psnr
from splat.ply import read_ply, write_ply
from tests.gaussian_samples import picture, woven

DATA = Path(__file__).parent / "data"


def made_up(count: int, degree: int = 2, seed: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1)
    return Gaussians(
        means=torch.randn(count, 3, generator=g) * 5,
        scales=torch.rand(count, 3, generator=g) * 0.1 + 1e-4,
        quats=quats,
        opacities=torch.rand(count, generator=g) * 0.98 + 0.01,
        sh=torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


def assert_same(a: Gaussians, b: Gaussians):
    for name in ("means", "scales", "quats", "opacities", "sh"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip(tmp_path, degree):
    gaussians = made_up(50, degree)
    assert write_ply(tmp_path / "scene.ply", gaussians) == 0
    assert_same(read_ply(tmp_path / "scene.ply"), gaussians)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.ply"]


def test_layout_is_the_original_one(tmp_path):
    """Read back by plyfile, an independent reader, with the meaning that 3DGS viewers give to each property."""
    gaussians = made_up(7, degree=1)
    write_ply(tmp_path / "scene.ply", gaussians, comments=["made by a test"])
    ply = PlyData.read(tmp_path / "scene.ply")
    vertex = ply["vertex"]
    rest = [f"f_rest_{i}" for i in range(9)]
    assert ply.comments == ["made by a test"] and ply.byte_order == "<" and not ply.text
    assert [p.name for p in vertex.properties] == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"),
        *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    assert all(p.val_dtype == "f4" for p in vertex.properties)
    np.testing.assert_array_equal(vertex["y"], gaussians.means[:, 1])
    np.testing.assert_array_equal(vertex["nz"], 0)
    np.testing.assert_array_equal(vertex["f_dc_2"], gaussians.sh[:, 0, 2])
    # Channel-major: first the three coefficients of red, then green, then blue.
    np.testing.assert_array_equal(vertex["f_rest_1"], gaussians.sh[:, 2, 0])
    np.testing.assert_array_equal(vertex["f_rest_3"], gaussians.sh[:, 1, 1])
    np.testing.assert_array_equal(vertex["f_rest_8"], gaussians.sh[:, 3, 2])
    np.testing.assert_allclose(vertex["opacity"], torch.logit(gaussians.opacities), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vertex["scale_1"], gaussians.scales[:, 1].log(), rtol=1e-6)
    np.testing.assert_allclose(vertex["rot_0"], gaussians.quats[:, 0], rtol=1e-5)


def test_header_bytes_are_fixed(tmp_path):
    write_ply(tmp_path / "scene.ply", made_up(3, degree=0))
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    content = (tmp_path / "scene.ply").read_bytes()
    assert content.startswith(header.encode()) and len(content) == len(header) + 3 * 17 * 4


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 12), degree=st.integers(0, 3), seed=st.integers(0, 999), double=st.booleans())
def test_any_order_and_type_of_properties_is_read(tmp_path_factory, count, degree, seed, double):
    gaussians = made_up(count, degree, seed)
    path = tmp_path_factory.mktemp("ply") / "scene.ply"
    write_ply(path, gaussians)
    rows = PlyData.read(path)["vertex"].data
    order = np.random.default_rng(seed).permutation(len(rows.dtype.names))
    names = [rows.dtype.names[i] for i in order]
    shuffled = np.empty(count, [(name, "<f8" if double else "<f4") for name in [*names, "extra"]])
    for name in names:
        shuffled[name] = rows[name]
    kind = "double" if double else "float"
    header = f"ply\r\nformat binary_little_endian 1.0\r\ncomment x\r\nelement vertex {count}\r\n"
    header += "".join(f"property {kind} {name}\r\n" for name in [*names, "extra"])
    header += "element face 0\r\nproperty list uchar int vertex_indices\r\nend_header\r\n"
    path.write_bytes(header.encode() + shuffled.tobytes())
    assert_same(read_ply(path), gaussians)


@pytest.mark.parametrize(("text", "order"), [(True, "="), (False, ">"), (False, "<")])
@pytest.mark.parametrize("degree", [0, 3])
def test_ascii_and_either_byte_order_are_read(tmp_path, text, order, degree):
    """As plyfile writes them, without normals, behind another element."""
    gaussians = made_up(30, degree)
    write_ply(tmp_path / "scene.ply", gaussians)
    rows = PlyData.read(tmp_path / "scene.ply")["vertex"].data
    kept = [name for name in rows.dtype.names if name not in ("nx", "ny", "nz")]
    bare = np.empty(30, [(name, "f4") for name in kept])
    for name in kept:
        bare[name] = rows[name]
    other = np.array([(1, 2.5), (3, 4.5)], [("id", "u1"), ("weight", "f8")])
    elements = [PlyElement.describe(other, "camera"), PlyElement.describe(bare, "vertex")]
    PlyData(elements, text=text, byte_order=order).write(tmp_path / "other.ply")
    assert_same(read_ply(tmp_path / "other.ply"), gaussians)


def test_the_compressed_layout_of_supersplat_is_read():
    """woven_packed.ply is `woven(270, 1)` as splat-transform 2.7.1 compressed our .ply: two chunks, another order."""
    gaussians, want = read_ply(DATA / "woven_packed.ply"), woven(270, 1)
    nearest = torch.cdist(want.means.double(), gaussians.means.double()).argmin(1)
    assert sorted(nearest.tolist()) == list(range(270))
    gaussians = gaussians.select(nearest)
    torch.testing.assert_close(gaussians.means, want.means, rtol=0, atol=0.003)
    torch.testing.assert_close(gaussians.scales, want.scales, rtol=0.005, atol=0)
    torch.testing.assert_close(gaussians.opacities, want.opacities, rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(gaussians.sh[:, 0], want.sh[:, 0], rtol=0, atol=0.01)
    torch.testing.assert_close(gaussians.sh[:, 1:], want.sh[:, 1:], rtol=0, atol=0.5 / 32 + 1e-6)
    assert float((gaussians.quats * want.quats).sum(-1).abs().min()) > 1 - 1e-5
    assert psnr(picture(gaussians), picture(want)) > 40


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"element chunk 2", b"element chunk 3", "3 chunks of 256 do not make 270 Gaussians"),
        (b"element chunk 2", b"element other 2", "without its table 'chunk'"),
        (b"float max_scale_z", b"float max_scale", "lacks 'max_scale_z'"),
        (b"uint packed_color", b"uint packed_colour", "lacks 'packed_color'"),
        (b"element sh 270", b"element sh 271", "must have 270 rows"),
        (b"uchar f_rest_8", b"uchar f_rest_9", "must have 270 rows"),
        (b"element vertex 270", b"element vertex 512", "the header promises|must have 512 rows"),
    ],
)
def test_broken_compressed_files_get_one_clear_line(tmp_path, old, new, message):
    path = tmp_path / "scene.ply"
    content = (DATA / "woven_packed.ply").read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_ply(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("degree", [0, 3])
def test_the_picture_is_kept(tmp_path, degree):
    gaussians = woven(1000, degree)
    write_ply(tmp_path / "scene.ply", gaussians)
    assert psnr(picture(read_ply(tmp_path / "scene.ply")), picture(gaussians)) > 99


def plain_ply(names: str, rows: int = 2, more: str = "") -> bytes:
    properties = "".join(f"property float {name}\n" for name in names.split())
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {rows}\n{properties}{more}end_header\n"
    return header.encode() + bytes(4 * rows * len(names.split()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (plain_ply("x y z red green blue"), "a point cloud: its vertices lack 'f_dc_0'"),
        (plain_ply("x y z", more="element face 0\nproperty list uchar int vertex_indices\n"), "but a mesh"),
        (plain_ply("x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 rot_0 rot_1 rot_2 rot_3"), "lack 'scale_2'"),
    ],
)
def test_other_things_in_a_ply_are_named(tmp_path, content, message):
    (tmp_path / "scene.ply").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_ply(tmp_path / "scene.ply")


def test_flat_splats_and_full_opacity_of_other_writers_are_kept(tmp_path):
    """A logarithm of 0 is -inf, a logit of 1 is inf."""
    path = tmp_path / "scene.ply"
    write_ply(path, made_up(3, degree=0))
    ply = PlyData.read(path, mmap=False)
    ply["vertex"].data["scale_2"] = -np.inf
    ply["vertex"].data["opacity"] = np.inf
    ply.write(path)
    gaussians = read_ply(path)
    assert gaussians.count == 3 and gaussians.opacities.tolist() == [1, 1, 1]
    assert bool((gaussians.scales[:, 2] > 0).all()) and float(gaussians.scales[:, 2].max()) < 1e-10


def test_lying_headers_take_neither_time_nor_memory(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, made_up(5, degree=3))
    content = path.read_bytes()
    many = b"".join(b"element e%d 999999999999999\nproperty double a\n" % i for i in range(1000))
    bombs = [
        content.replace(b"vertex 5", b"vertex 900000000000000"),
        content.replace(b"binary_little_endian", b"ascii").replace(b"vertex 5", b"vertex 900000000000000"),
        content.replace(b"element vertex", many + b"element vertex"),
        content.replace(b"element vertex", b"element x 900000000000000\nproperty char a\nelement vertex"),
        b"ply\n" + b"comment x\n" * 3_000_000,
        content.replace(b"binary_little_endian", b"ascii") + b"1 " * 1_000_000,
    ]
    for bomb in bombs:
        path.write_bytes(bomb)
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(ValueError, match="scene.ply"):
            read_ply(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000 and time.process_time() - start < 3


def test_ascii_rows_of_uneven_length_get_one_line(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, made_up(5, degree=0))
    ply = PlyData.read(path, mmap=False)
    ply.text = True
    ply.write(path)
    good = path.read_bytes()
    lines = good.split(b"\n")
    for bad in (
        good + b"1 2 3\n",  # further lines do no harm
        b"\n".join([*lines[:-3], lines[-3] + b" 1", *lines[-2:]]),
        b"\n".join([*lines[:-3], b"one two", *lines[-2:]]),
        b"\n".join([*lines[:-3], *lines[-2:]]) + b" " * 500,
    ):
        path.write_bytes(bad)
        if bad.endswith(b"1 2 3\n"):
            assert read_ply(path).count == 5
            continue
        with pytest.raises(ValueError, match="scene.ply") as error:
            read_ply(path)
        assert "\n" not in str(error.value)


def test_rows_without_a_finite_gaussian_are_dropped_and_counted(tmp_path):
    gaussians = made_up(10)
    gaussians.means[0, 1] = float("nan")
    gaussians.scales[1, 2] = 0.0
    gaussians.scales[2, 0] = -1.0
    gaussians.scales[3, 0] = float("inf")
    gaussians.quats[4] = 0.0
    gaussians.opacities[5] = float("nan")
    gaussians.sh[6, 8, 2] = float("-inf")
    assert write_ply(tmp_path / "scene.ply", gaussians) == 7
    assert_same(read_ply(tmp_path / "scene.ply"), gaussians.select(slice(7, None)))


def test_opacity_zero_and_one_stay_finite(tmp_path):
    gaussians = made_up(4, degree=0)
    gaussians.opacities[:] = torch.tensor([0.0, 1.0, 1e-9, 1 - 1e-9])
    assert write_ply(tmp_path / "scene.ply", gaussians) == 0
    back = read_ply(tmp_path / "scene.ply").opacities
    torch.testing.assert_close(back, gaussians.opacities, rtol=0, atol=1e-6)


def test_bad_rows_of_other_writers_are_dropped_with_a_warning(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, made_up(3, degree=0))
    content = bytearray(path.read_bytes())
    content[-4 * 17 : -4 * 16] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="dropped 1 of 3"):
        assert read_ply(path).count == 2


def header(path) -> bytes:
    content = path.read_bytes()
    return content[: content.index(b"end_header\n") + 11]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ply\n", b"PK\x03\x04", "not a PLY file"),
        (b"end_header\n", b"", "not a PLY file"),
        (b"binary_little_endian", b"ascii", "ASCII numbers cannot be read"),
        (b"binary_little_endian", b"binary", "does not begin with 'format'"),
        (b"element vertex 5\n", b"", "no 'element' after the format"),
        (b"vertex 5", b"vertex 6", "the header promises 6 rows"),
        (b"vertex 5", b"vertex 999999999999999", "the header promises"),
        (b"vertex 5", b"vertex " + b"9" * 5000, "want 'element NAME COUNT'"),
        (b"vertex 5", b"vertex -1", "want 'element NAME COUNT'"),
        (b"vertex 5", b"face 5", "no element 'vertex'"),
        (b"element vertex", b"element list 1\nproperty list uchar int x\nelement vertex", "lists in or before"),
        (b"float opacity", b"float alpha", "lack 'opacity'"),
        (b"float scale_0", b"float scale_1", "appears twice"),
        (b"float f_rest_7", b"float f_other", "lack 'f_rest_7'"),
        (b"property float f_rest_8\n", b"", "8 f_rest properties"),
        (b"property float nx", b"property list uchar int nx", "no element 'vertex' of plain numbers"),
        (b"property float nx", b"property object nx", "cannot read the header line"),
    ],
)
def test_hostile_headers_get_one_clear_line(tmp_path, old, new, message):
    path = tmp_path / "scene.ply"
    write_ply(path, made_up(5, degree=1))
    assert old in header(path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        read_ply(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_headers_never_do_worse_than_value_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ply") / "scene.ply"
    write_ply(path, made_up(2, degree=0))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 137))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert read_ply(path).count <= 2
    except ValueError as error:
        assert str(path) in str(error)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "scene.ply"
    write_ply(path, made_up(3))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="one line of ASCII"):
        write_ply(path, made_up(4), comments=["two\nlines"])
    with pytest.raises(ValueError, match=r"means \[N, 3\]"):
        write_ply(path, Gaussians(*(x[None] for x in vars(made_up(4)).values())))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_ply(tmp_path / "missing" / "scene.ply", made_up(3))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_rows_are_not_written_one_by_one(tmp_path):
    gaussians = made_up(200_000, degree=0)
    start = time.process_time()
    write_ply(tmp_path / "scene.ply", gaussians)
    ours = time.process_time() - start
    for row in torch.zeros(200_000, 17).numpy():
        struct.pack("<17f", *row)
    assert 2 * ours < time.process_time() - start - ours
