"""Files in the .splat format: the exact bytes, the order that viewers expect, the picture, and broken files."""

import struct
import time

import numpy as np
import pytest
import torch

from splat.files import read_gaussians, write_gaussians
from splat.gaussians import Gaussians
from splat.metrics import psnr
from splat.sh import C0
from splat.splat_file import read_splat, write_splat
from tests.gaussian_samples import picture, woven


def test_the_bytes_of_one_gaussian(tmp_path):
    color = torch.tensor([0.2, 0.6, 1.4])
    gaussian = Gaussians(
        means=torch.tensor([[1.0, -2.0, 3.5]]),
        scales=torch.tensor([[0.1, 0.2, 0.3]]),
        quats=torch.tensor([[0.5, -0.5, 0.5, -0.5]]) * 7,
        opacities=torch.tensor([0.4]),
        sh=((color - 0.5) / C0)[None, None],
    )
    assert write_splat(tmp_path / "one.splat", gaussian) == 0
    want = struct.pack("<6f8B", 1, -2, 3.5, 0.1, 0.2, 0.3, 51, 153, 255, 102, 192, 64, 192, 64)
    assert (tmp_path / "one.splat").read_bytes() == want
    back = read_splat(tmp_path / "one.splat")
    torch.testing.assert_close(back.quats, torch.tensor([[0.5, -0.5, 0.5, -0.5]]))
    torch.testing.assert_close(back.opacities, torch.tensor([0.4]))
    torch.testing.assert_close(C0 * back.sh[0, 0] + 0.5, torch.tensor([0.2, 0.6, 1.0]))


def test_the_most_visible_come_first(tmp_path):
    gaussians = woven(500, 0)
    write_splat(tmp_path / "scene.splat", gaussians)
    rows = np.fromfile(tmp_path / "scene.splat", "<f4").reshape(-1, 8)
    place = {tuple(mean): i for i, mean in enumerate(gaussians.means.numpy())}
    order = [place[tuple(row[:3])] for row in rows]
    visible = (gaussians.scales.double().prod(-1) * gaussians.opacities)[order]
    assert sorted(order) == list(range(500)) and bool((visible.diff() <= 0).all())


def test_the_picture_is_kept(tmp_path):
    gaussians = woven(3000, 0)
    write_gaussians(gaussians, tmp_path / "scene.SPLAT")
    assert psnr(picture(read_gaussians(tmp_path / "scene.SPLAT")), picture(gaussians)) > 50


def test_only_the_first_band_is_kept(tmp_path):
    gaussians = woven(10, 3)
    write_splat(tmp_path / "scene.splat", gaussians)
    assert read_splat(tmp_path / "scene.splat").sh_degree == 0


def test_rows_that_are_not_finite_are_dropped_both_ways(tmp_path):
    gaussians = woven(10, 0)
    gaussians.means[3, 1] = float("nan")
    gaussians.scales[4, 0] = 0
    path = tmp_path / "scene.splat"
    assert write_splat(path, gaussians) == 2
    rows = np.fromfile(path, "<f4").reshape(-1, 8)
    rows[0, 0], rows[1, 3], rows[2, 4] = np.nan, -1, np.inf
    rows[3, 5] = 0  # a flat one: no scale at all across
    rows.tofile(path)
    with pytest.warns(UserWarning, match="dropped 3 of 8"):
        back = read_splat(path)
    assert back.count == 5 and 0 < float(back.scales[0, 2]) < 1e-10


def test_an_opacity_of_zero_or_one_and_a_quaternion_of_zero(tmp_path):
    (tmp_path / "a.splat").write_bytes(
        struct.pack("<6f8B", 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 255, 128, 128, 128)
        + struct.pack("<6f8B", 0, 0, 2, 1, 1, 1, 0, 0, 0, 255, 255, 128, 128, 128)
        + struct.pack("<6f8B", 0, 0, 3, 1, 1, 1, 0, 0, 0, 255, 128, 128, 128, 128)
    )
    with pytest.warns(UserWarning, match="dropped 1 of 3"):
        assert read_splat(tmp_path / "a.splat").opacities.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are not rows of 32"),
        (b"x" * 33, "33 bytes are not rows of 32"),
        (b"\xff" * 64, "none of its 2 Gaussians is finite"),
    ],
)
def test_broken_files_get_one_clear_line(tmp_path, content, message):
    path = tmp_path / "scene.splat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_splat(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="cannot be empty"):
        write_splat(tmp_path / "scene.splat", woven(3, 0).select(slice(0)))
    with pytest.raises(ValueError, match=r"means \[N, 3\]"):
        write_splat(tmp_path / "scene.splat", Gaussians(*(x[None] for x in vars(woven(3, 0)).values())))
    with pytest.raises(ValueError, match=".ply, .splat, .spz"):
        write_gaussians(woven(3, 0), tmp_path / "scene.obj")
    with pytest.raises(ValueError, match=".ply, .splat, .spz"):
        read_gaussians(tmp_path / "scene")
    with pytest.raises(FileNotFoundError):
        read_gaussians(tmp_path / "missing.splat")
    assert not list(tmp_path.iterdir())


def test_rows_are_not_written_or_read_one_by_one(tmp_path):
    gaussians = woven(200_000, 0)
    start = time.process_time()
    write_splat(tmp_path / "scene.splat", gaussians)
    assert read_splat(tmp_path / "scene.splat").count == 200_000
    ours = time.process_time() - start
    for row in torch.zeros(200_000, 14).numpy():
        struct.pack("<14f", *row)
    assert ours < time.process_time() - start - ours
