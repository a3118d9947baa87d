"""`raysplat convert`: files in, files out, less of them where asked, and one clear line for wrong wishes."""

import pytest
import torch

from raysplat.cli import main
from splat.files import SUFFIXES, read_gaussians, write_gaussians
from splat.metrics import psnr
from tests.gaussian_samples import picture, woven


@pytest.fixture
def scene(tmp_path):
    path = tmp_path / "scene.ply"
    write_gaussians(woven(300, 2), path)
    return path


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_any_format_to_any(tmp_path, capsys, source, target):
    gaussians = woven(1000, 0)
    write_gaussians(gaussians, tmp_path / f"in{source}")
    assert main(["convert", str(tmp_path / f"in{source}"), str(tmp_path / f"out{target}")]) == 0
    back = read_gaussians(tmp_path / f"out{target}")
    assert back.count == 1000 and psnr(picture(back), picture(gaussians)) > 42
    assert "1000 Gaussians, 0." in capsys.readouterr().out


def test_only_what_was_asked_for_is_kept(tmp_path, scene, capsys):
    out, gaussians = tmp_path / "out.ply", woven(300, 2)
    box = ["-1", "-1", "2", "1", "1", "3"]
    wishes = ["--sh-degree", "1", "--min-opacity", "0.5", "--box", *box]
    assert main(["convert", str(scene), str(out), *wishes]) == 0
    low, high = torch.tensor([float(x) for x in box]).reshape(2, 3)
    keep = (gaussians.opacities >= 0.5) & ((gaussians.means >= low) & (gaussians.means <= high)).all(-1)
    back = read_gaussians(out)
    assert 0 < back.count == int(keep.sum()) < 300 and back.sh_degree == 1
    torch.testing.assert_close(back.sh, gaussians.sh[keep, :4])
    assert f"({300 - back.count} left out)" in capsys.readouterr().out


def test_an_earlier_file_is_replaced_only_when_asked(tmp_path, scene, capsys):
    out = tmp_path / "out.spz"
    out.write_bytes(b"precious")
    assert main(["convert", str(scene), str(out)]) == 1
    assert out.read_bytes() == b"precious" and "--overwrite" in capsys.readouterr().err
    assert main(["convert", str(scene), str(out), "--overwrite"]) == 0
    assert read_gaussians(out).count == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.ply", "out.spz"], "missing.ply"),
        (["scene.ply", "out.obj"], "end in .ply, .splat, .spz"),
        (["scene.ply", "missing/out.spz"], "there is no folder"),
        (["scene.ply", "out.spz", "--sh-degree", "4"], "--sh-degree must be 0 to 3"),
        (["scene.ply", "out.spz", "--min-opacity", "nan"], "--min-opacity must be 0 to 1"),
        (["scene.ply", "out.spz", "--box", "0", "0", "0", "1", "1", "0"], "--box must be"),
        (["scene.ply", "out.spz", "--box", "9", "9", "9", "10", "10", "10"], "leave none of the 300"),
    ],
)
def test_wrong_wishes_get_one_line(tmp_path, scene, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["scene.ply"]
