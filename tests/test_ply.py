"""Gaussian PLY files: the exact layout, nothing lost on the way, and clear words about broken files."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData

from splat.gaussians import Gaussians
from splat.ply import read_ply, write_ply


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
        (b"binary_little_endian", b"ascii", "save it as binary"),
        (b"binary_little_endian", b"binary_big_endian", "save it as binary"),
        (b"vertex 5", b"vertex 6", "the header promises 6 Gaussians"),
        (b"vertex 5", b"vertex 999999999999999", "the header promises"),
        (b"vertex 5", b"vertex " + b"9" * 5000, "element vertex <count>"),
        (b"vertex 5", b"vertex -1", "element vertex <count>"),
        (b"vertex 5", b"face 5", "element vertex <count>"),
        (b"float opacity", b"float alpha", "lack 'opacity'"),
        (b"float scale_0", b"float scale_1", "appears twice"),
        (b"float f_rest_7", b"float f_other", "lack 'f_rest_7'"),
        (b"property float f_rest_8\n", b"", "8 f_rest properties"),
        (b"property float nx", b"property list uchar int nx", "cannot read the header line"),
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


def test_a_million_gaussians_are_written_quickly(tmp_path):
    gaussians = made_up(1_000_000, degree=0)
    start = time.process_time()
    write_ply(tmp_path / "scene.ply", gaussians)
    # Rows written one by one in Python take over three seconds.
    assert time.process_time() - start < 2.0
