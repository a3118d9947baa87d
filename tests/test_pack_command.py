"""`raysplat pack`: all scenes of a root, resumable, faults listed at the end."""

import cv2
import numpy as np
import pytest
import torch

from geometry.cameras import Cameras
from geometry.scene import scene_from_tensors
from geometry.scene_pack import open_pack, verify_pack
from geometry.write_scene import write_scene
from raysplat.cli import main
from tests.synthetic_photos import arc, pinhole
from tests.tiny_networks import SHARED


@pytest.fixture
def root(tmp_path):
    """Two scenes in DL3DV's folders, one beside them."""
    for name in ("1K/aaa", "2K/bbb", "ccc"):
        images = torch.rand(4, 3, 28, 42, generator=torch.Generator().manual_seed(0))
        w2c = torch.from_numpy(arc(4))
        cameras = Cameras(w2c, torch.from_numpy(np.stack([pinhole((28, 42), 30.0)] * 4)), (28, 42))
        write_scene(scene_from_tensors(images, cameras), tmp_path / "in" / name)
    return tmp_path / "in"


def test_every_scene_becomes_one_file(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["pack", str(root), str(out), "--size", "14", "21", "--workers", "2"]) == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["1K/aaa.scene", "2K/bbb.scene", "ccc.scene"]
    assert "3 packed, 0 kept, 0 failed of 3 scenes" in capsys.readouterr().out
    scene = verify_pack(out / "1K" / "aaa.scene")
    assert scene.sizes == ((14, 21),) * 4 and scene.load(0).shape == (14, 21, 3)


def test_a_broken_run_goes_on_where_it_ended(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["pack", str(root), str(out)]) == 0
    whole, cut = out / "1K" / "aaa.scene", out / "ccc.scene"
    before, whole_before = cut.read_bytes(), whole.stat().st_mtime_ns
    cut.write_bytes(before[:-40])
    capsys.readouterr()
    assert main(["pack", str(root), str(out)]) == 0
    assert "1 packed, 2 kept" in capsys.readouterr().out
    assert cut.read_bytes() == before and whole.stat().st_mtime_ns == whole_before
    assert main(["pack", str(root), str(out), "--quality", "80"]) == 0
    assert "3 packed, 0 kept" in capsys.readouterr().out, "other options, other packs"


def test_faults_are_listed_and_the_others_go_on(root, tmp_path, capsys):
    (root / "1K" / "aaa" / "transforms.json").write_text("{")
    photo = next((root / "ccc" / "images").iterdir())
    photo.write_bytes(photo.read_bytes()[:200])
    out = tmp_path / "out"
    assert main(["pack", str(root), str(out), "--max-bad", "0.5"]) == 1
    told = capsys.readouterr()
    assert "2 packed, 0 kept, 1 failed of 3 scenes" in told.out
    assert told.err.count("\n") == 2 and "not packed: 1K/aaa: " in told.err and "transforms.json" in told.err
    assert f"ccc: 1 photos left out, for example: {photo}" in told.err
    assert len(open_pack(out / "ccc.scene")) == 3
    assert not (out / "1K" / "aaa.scene").exists() and not list(out.rglob(".*"))
    assert main(["pack", str(root), str(tmp_path / "strict")]) == 1
    assert "not packed: ccc: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong, told",
    [
        (["--quality", "7"], "quality"),
        (["--size", "0", "5"], "size"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_senseless_options_are_one_line(root, tmp_path, capsys, wrong, told):
    assert main(["pack", str(root), str(tmp_path / "out"), *wrong]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_root_without_scenes_is_one_line(tmp_path, capsys):
    assert main(["pack", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no scene with cameras" in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1


def test_dl3dv_as_it_is_unpacked(tmp_path):
    release = SHARED / "formats" / "dl3dv" / "sample" / "DL3DV-ALL-480P"
    if not release.is_dir():
        pytest.skip("the sample in DL3DV's layout is not beside the repository (RAYSPLAT_SHARED)")
    assert main(["pack", str(release), str(tmp_path), "--photos", "images_8"]) == 0
    (path,) = tmp_path.rglob("*.scene")
    scene = verify_pack(path)
    assert scene.name == path.stem and len(scene) == 24 and scene.w2c is not None
    photo = next(release.rglob("images_8/*.png"))
    assert scene.load(0).shape == cv2.imread(str(photo)).shape == (270, 480, 3)
    assert path.stat().st_size < 0.4 * sum(file.stat().st_size for file in release.rglob("*.png"))
