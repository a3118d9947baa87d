"""The command line: instant help, results where they were asked for, one clear line for what goes wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import raysplat
from geometry.cameras import Cameras
from raysplat.cli import COMMANDS, main
from splat.cameras_json import write_cameras
from splat.gaussians import Gaussians
from splat.model import GaussianModel
from splat.pipeline import choose_views, reconstruct
from splat.ply import read_ply, write_ply
from tests.tiny_networks import tiny_config, tiny_model


def python(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """Run a fresh interpreter that finds the project, whether it is installed or not."""
    environment = os.environ | {"PYTHONPATH": str(Path(raysplat.__file__).parents[1])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny network with random weights, in a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    GaussianModel(tiny_config("a")).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Three photos of noise with poses, as transforms.json."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    frames = []
    for i in range(3):
        Image.fromarray(generator.integers(0, 255, (48, 64, 3), np.uint8)).save(folder / f"p{i}.png")
        c2w = np.eye(4)
        c2w[0, 3] = 0.5 * i
        frames.append({"file_path": f"p{i}.png", "transform_matrix": c2w.tolist()})
    intrinsics = {"fl_x": 60, "fl_y": 60, "cx": 32, "cy": 24, "w": 64, "h": 48}
    (folder / "transforms.json").write_text(json.dumps(intrinsics | {"frames": frames}))
    return folder


@pytest.fixture
def few_frames(monkeypatch):
    import splat.outputs

    for name in ("_FRAMES_PER_VIEW", "_LEAST_FRAMES", "_MOST_FRAMES"):
        monkeypatch.setattr(splat.outputs, name, 4)


@pytest.fixture
def scene(tmp_path):
    """A .ply of a few Gaussians and cameras.json beside it."""
    g = torch.Generator().manual_seed(0)
    n = 200
    means = torch.rand(n, 3, generator=g) * 2 - 1 + torch.tensor([0.0, 0, 3])
    quats = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    gaussians = Gaussians(means, torch.full((n, 3), 0.1), quats, torch.full((n,), 0.9), torch.ones(n, 1, 3))
    folder = tmp_path / "scene"
    folder.mkdir()
    write_ply(folder / "scene.ply", gaussians)
    K = torch.tensor([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]).repeat(2, 1, 1)
    w2c = torch.eye(4).repeat(2, 1, 1)
    w2c[1, 0, 3] = 0.3
    write_cameras(folder / "cameras.json", Cameras(w2c, K, (32, 48)), ["left.jpg", "right.jpg"])
    return folder


def error_of(capsys) -> str:
    """The one line on stderr that a failed command ends with."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("raysplat: error: ")
    return lines[-1]


def test_help_is_instant_and_imports_no_torch():
    code = (
        "from raysplat.cli import main; main(['--help']); import sys; assert not {'torch', 'tyro'} & set(sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_imports_no_torch(command):
    code = f"""
import sys
from raysplat.cli import main
try:
    main(['{command}', '--help'])
except SystemExit as stop:
    assert stop.code == 0 and 'torch' not in sys.modules
    sys.exit(17)
"""
    done = python("-c", code)
    assert done.returncode == 17, done.stderr
    assert f"raysplat {command}" in done.stdout


def test_wrong_usage_is_exit_code_2(capsys):
    assert main([]) == 2
    assert main(["recontsruct"]) == 2 and "no command 'recontsruct'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--jsn"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["reconstruct", "photos"])
    assert stop.value.code == 2
    assert main(["--version"]) == 0 and raysplat.__version__ in capsys.readouterr().out


def test_reconstruct_writes_the_results(photos, weights, tmp_path, few_frames, capsys):
    out = tmp_path / "out"
    assert main(["reconstruct", str(photos), "-o", str(out), "--weights", str(weights), "--size", "56"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out) and "3 views of 42x56 on" in told.err and "GB" in told.err
    written = ["cameras.json", "confidence", "contact.png", "depth", "images", "orbit.mp4", "scene.ply"]
    assert sorted(p.name for p in out.iterdir()) == written
    assert read_ply(out / "scene.ply").count == 3 * 42 * 56
    assert main(["reconstruct", str(photos), "-o", str(out), "--weights", str(weights)]) == 1
    assert "not empty" in error_of(capsys)


def test_reconstruct_refines_on_its_photos(photos, tmp_path, few_frames, capsys):
    arguments = ["reconstruct", str(photos), "--size", "56"]
    assert main([*arguments, "-o", str(tmp_path / "plain")]) == 0
    assert main([*arguments, "-o", str(tmp_path / "refined"), "--refine", "5"]) == 0
    told = re.search(
        r"refined by 5 steps: its pictures of the inputs had ([\d.]+) dB, now ([\d.]+)", capsys.readouterr().err
    )
    assert float(told[2]) > float(told[1]) + 0.1
    plain, refined = (read_ply(tmp_path / name / "scene.ply") for name in ("plain", "refined"))
    assert plain.count == refined.count and not torch.allclose(plain.sh, refined.sh)
    assert main([*arguments, "-o", str(tmp_path / "no"), "--refine", "-1"]) == 1
    assert "refine is a number of steps, 0 or more, got -1" in error_of(capsys)


def test_reconstruct_looks_as_often_as_asked(photos, weights, tmp_path, few_frames, capsys):
    arguments = ["reconstruct", str(photos), "--size", "56"]
    made = []
    for looks in ([], ["--looks", "1"], ["--looks", "3"]):
        out = tmp_path / "-".join(["looks", *looks])
        assert main([*arguments, "-o", str(out), *looks]) == 0
        made.append(read_ply(out / "scene.ply"))
    assert made[0].sh.equal(made[1].sh) and not torch.allclose(made[0].sh, made[2].sh, atol=1e-3)
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "no"), "--weights", str(weights), "--looks", "2"]) == 1
    assert "does not look at its own pictures, so looks=2 cannot be asked of it" in error_of(capsys)


def test_three_lines_of_python(photos, weights, tmp_path, few_frames):
    scene = raysplat.open_scene(photos)
    result = raysplat.reconstruct(scene, weights, size=56)
    result.save(tmp_path / "out")
    assert (tmp_path / "out" / "scene.ply").exists() and result.names == ("p0.png", "p1.png", "p2.png")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = raysplat.nothing
    assert "reconstruct" in dir(raysplat)


def test_views_are_chosen_by_number_or_by_index(photos, weights):
    scene = raysplat.open_scene(photos)
    assert choose_views(scene) == [0, 1, 2] and choose_views(scene, 2) == [0, 2]
    assert reconstruct(scene, weights, views=[2, 1], size=28).names == ("p1.png", "p2.png")
    for wrong in (0, 4, [], [3], [-1]):
        with pytest.raises(ValueError, match="views"):
            reconstruct(scene, weights, views=wrong, size=28)


def test_photos_without_poses_get_predicted_ones_and_that_is_said(photos, weights):
    (photos / "transforms.json").unlink()
    said = []
    result = reconstruct(photos, weights, size=28, report=said.append)
    torch.testing.assert_close(result.cameras.w2c[0], torch.eye(4), rtol=0, atol=1e-5)
    assert not any("structure from motion" in line for line in said)  # only a network that needs poses asks for them


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "no/such/folder", "-o", "out"], "no/such/folder"),
        (["reconstruct", "empty", "-o", "out"], "no photos here"),
        (["reconstruct", "photos", "-o", "photos"], "not empty"),
        (["reconstruct", "photos", "-o", "photos", "--overwrite"], "would be lost"),
        (["reconstruct", "photos", "-o", "photos/p0.png"], "is a file"),
        (["reconstruct", "photos", "-o", "out", "--weights", "no/such/weights.pt"], "weights.pt"),
        (["reconstruct", "photos", "-o", "out", "--device", "cuda:99"], "cuda:99"),
        (["reconstruct", "photos", "-o", "out", "--device", "nonsense"], "nonsense"),
        (["reconstruct", "photos", "-o", "out", "--size", "3"], "too small"),
        (["reconstruct", "photos", "-o", "out", "--views", "9"], "9 views are asked for"),
        (["render", "no.ply", "-o", "out"], "no.ply"),
        (["render", "photos/p0.png", "-o", "out"], "files of Gaussians end in"),
        (["render", "scene/scene.ply", "-o", "out", "--cameras", "none.json"], "none.json"),
        (["render", "scene/scene.ply", "-o", "scene"], "not empty"),
        (["render", "scene/scene.ply", "-o", "scene", "--overwrite"], "would be lost"),
        (["demo", "-o", "photos"], "would be lost"),
        (["render", "scene/scene.ply", "-o", "no/folder/v.mp4"], "no folder"),
        (["render", "scene/scene.ply", "-o", "out", "--size", "0"], "2 pixels or more"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(photos, scene, weights, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos.parent / "empty").mkdir()
    if arguments[0] == "reconstruct" and "--weights" not in arguments:
        arguments = [*arguments, "--weights", str(weights)]
    before = sorted(os.listdir())
    assert main(arguments) == 1
    assert message in error_of(capsys)
    assert sorted(os.listdir()) == before


def test_interrupt_is_130_and_leaves_nothing(photos, weights, tmp_path, monkeypatch, capsys):
    import splat.outputs

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)

    monkeypatch.setattr(splat.outputs, "write_mp4", interrupted)
    assert (
        main(["reconstruct", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights), "--size", "28"])
        == 130
    )
    assert "interrupted" in capsys.readouterr().err and os.listdir(tmp_path) == ["photos"]


def test_a_full_disk_is_one_line(photos, weights, tmp_path, monkeypatch, capsys):
    import splat.outputs

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(splat.outputs, "write_ply", full)
    assert (
        main(["reconstruct", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights), "--size", "28"]) == 1
    )
    assert "No space left on device" in error_of(capsys) and os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize("count", [0, 4])
def test_too_many_views_are_refused_before_poses_are_looked_for(photos, monkeypatch, count):
    (photos / "transforms.json").unlink()
    monkeypatch.setattr("splat.pipeline.reconstruct_poses", lambda *a, **k: pytest.fail("looked for poses"))
    with pytest.raises(ValueError, match=f"{count} views are asked for, but .* has 3"):
        reconstruct(photos, "nano", views=count)


def test_render_gives_pictures_or_a_video(scene, tmp_path, few_frames, capsys):
    assert main(["render", str(scene / "scene.ply"), "-o", str(tmp_path / "views"), "--size", "24"]) == 0
    assert sorted(os.listdir(tmp_path / "views")) == ["left.png", "right.png"]
    picture = np.asarray(Image.open(tmp_path / "views" / "left.png"))
    assert picture.shape == (16, 24, 3) and picture.max() > 150
    video = tmp_path / "v.mp4"
    assert main(["render", str(scene / "scene.ply"), "-o", str(video)]) == 0 and video.stat().st_size > 500
    assert main(["render", str(scene / "scene.ply"), "-o", str(video)]) == 1 and "exists" in error_of(capsys)
    path = tmp_path / "path.mp4"
    assert main(["render", str(scene / "scene.ply"), "-o", str(path), "--path", "original"]) == 0 and path.is_file()


def test_the_command_runs_from_anywhere_without_a_traceback(tmp_path):
    done = python("-m", "raysplat.cli", "render", "no.ply", "-o", "x", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("raysplat: error: ") and "Traceback" not in done.stderr


def test_a_photo_alone_gives_metres_by_its_focal_length(photos, tmp_path, capsys):
    """A monocular network asks for a focal length in one line, and takes it from where it is."""
    weights, out = tmp_path / "metric", tmp_path / "out"
    tiny_model("m").save_pretrained(weights)
    arguments = ["reconstruct", str(photos / "p0.png"), "-o", str(out), "--weights", str(weights), "--size", "56"]
    assert main(arguments) == 1 and "intrinsics" in error_of(capsys)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28  # focal length in 35 mm film
    photo = tmp_path / "photo.jpg"
    Image.open(photos / "p0.png").convert("RGB").save(photo, exif=exif)
    result = reconstruct(photo, weights, size=56)
    assert result.metres == 1 and result.confidence is None and result.gaussians.count == result.depth.numel()


def test_published_size_rules(photos, weights):
    result = reconstruct(photos, weights, size=56, size_rule="lower_bound_crop", mode="float32")
    assert min(result.depth.shape[-2:]) == 56
