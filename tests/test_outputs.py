"""What a reconstruction leaves on disk: everything, right, and whole, or nothing."""

import json
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import splat.outputs
import splat.video
from geometry.cameras import Cameras
from splat.atomic import whole_file, whole_folder
from splat.cameras_json import read_cameras, write_cameras
from splat.depth_splats import splats_from_depth
from splat.outputs import file_names, psnr, render_views, save, write_confidence
from splat.ply import read_ply
from splat.reconstruct import Reconstruction
from splat.video import color_depth, contact_sheet, depth_range, write_depths, write_mp4

SIZE = (30, 41)


def cameras(count: int = 2, unit: float = 1.0) -> Cameras:
    w2c = torch.eye(4).repeat(count, 1, 1)
    w2c[:, 0, 3] = -0.2 * unit * torch.arange(count)
    K = torch.tensor([[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(w2c, K, SIZE)


def made_up(unit: float = 1.0) -> Reconstruction:
    """Two views of a coloured wall at depth 2; the second stands 0.2 to the right, which is four pixels there."""
    wall = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    wall = torch.nn.functional.interpolate(wall, (SIZE[0], SIZE[1] + 4), mode="bilinear", align_corners=False)
    images = torch.cat([wall[..., :-4], wall[..., 4:]])
    depth = torch.full((2, *SIZE), 2.0 * unit)
    confidence = torch.full_like(depth, 2.0)
    gaussians = splats_from_depth(images, depth, confidence, cameras(2, unit))
    return Reconstruction(gaussians, cameras(2, unit), depth, confidence, images, ("a/x.jpg", "a/y.png"), "none")


@pytest.fixture
def few_frames(monkeypatch):
    for name in ("_FRAMES_PER_VIEW", "_LEAST_FRAMES", "_MOST_FRAMES"):
        monkeypatch.setattr(splat.outputs, name, 6)


def test_all_outputs_are_there_and_right(tmp_path, few_frames):
    scene = made_up()
    out = tmp_path / "some" / "out"
    assert save(scene, out) == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == [
        *("cameras.json", "confidence", "confidence/confidence.json", "confidence/x.png", "confidence/y.png"),
        *("contact.png", "depth", "depth/depth.json", "depth/x.png", "depth/y.png"),
        *("images", "images/x.png", "images/y.png", "orbit.mp4", "scene.ply"),
    ]
    torch.testing.assert_close(read_ply(out / "scene.ply").means, scene.gaussians.means)
    read, names = read_cameras(out / "cameras.json")
    torch.testing.assert_close(read.w2c, scene.cameras.w2c)
    assert names == ["a/x.jpg", "a/y.png"]
    depth = np.asarray(Image.open(out / "depth" / "x.png"), np.float64)
    scale = json.loads((out / "depth" / "depth.json").read_text())["scale"]
    np.testing.assert_allclose(depth * scale, 2.0, rtol=1e-3)
    photo = np.asarray(Image.open(out / "images" / "y.png"))
    np.testing.assert_array_equal(photo, (255 * scene.images[1].movedim(0, -1)).round().byte())
    assert Image.open(out / "contact.png").height > 3 * SIZE[0]
    video = cv2.VideoCapture(str(out / "orbit.mp4"))
    frames = [video.read()[1] for _ in range(6)]
    assert not video.read()[0] and frames[0].shape == (30, 40, 3)
    assert np.mean(frames[0]) > 60
    assert list(tmp_path.glob("some/.*")) == []


def test_reconstruction_saves_itself(tmp_path, few_frames):
    made_up().save(tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        made_up().save(tmp_path / "out")
    (tmp_path / "out" / "scene.ply").write_text("old")
    made_up().save(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "scene.ply").stat().st_size > 1000
    (tmp_path / "out" / "mine.jpg").write_text("a photo")
    with pytest.raises(FileExistsError, match="mine.jpg, which would be lost"):
        made_up().save(tmp_path / "out", overwrite=True)
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out" / "mine.jpg").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_stop_in_the_middle_leaves_things_as_they_were(tmp_path, monkeypatch, error, before):
    out = tmp_path / "out"
    if before:
        out.mkdir()
        (out / "scene.ply").write_text(before)

    def stop(*args):
        raise error

    monkeypatch.setattr(splat.outputs, "write_mp4", stop)
    with pytest.raises(type(error)):
        save(made_up(), out, overwrite=True)
    assert os.listdir(tmp_path) == (["out"] if before else [])
    assert not before or (out / "scene.ply").read_text() == before


def test_renders_repeat_the_inputs_in_any_unit_of_length():
    for unit in (1.0, 1e-4, 1e4):
        scene = made_up(unit)
        color, depth = render_views(scene.gaussians, scene.cameras)
        inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
        assert psnr(color[inside], scene.images[inside]) > 25
        torch.testing.assert_close(depth[inside[1:]] / unit, scene.depth[inside[1:]] / unit, rtol=1e-2, atol=0)


def test_folder_and_file_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as path:
        path.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "b") as path:
        (path / "half.txt").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"), whole_folder(tmp_path / "file", replaces=("file",)):
        pass
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as path:
        (path / "x").write_text("x")
    assert (tmp_path / "empty" / "x").read_text() == "x" and sorted(os.listdir(tmp_path)) == ["empty", "file"]


def test_cameras_json_of_another_program(tmp_path):
    """INRIA's keys alone: position and rotation are camera-to-world, and the principal point is in the middle."""
    path = tmp_path / "cameras.json"
    rotation = [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]
    row = {"id": 0, "img_name": "im", "width": 40, "height": 30, "position": [1, 2, 3], "rotation": rotation}
    path.write_text(json.dumps([row | {"fx": 50, "fy": 60}]))
    read, names = read_cameras(path)
    torch.testing.assert_close(read.centers, torch.tensor([[1.0, 2, 3]]))
    torch.testing.assert_close(read.c2w[0, :3, :3], torch.tensor(rotation))
    torch.testing.assert_close(read.K[0], torch.tensor([[50.0, 0, 20], [0, 60, 15], [0, 0, 1]]))
    assert names == ["im"] and read.size == (30, 40)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a list of cameras"),
        ("[1]", "expected a list of cameras"),
        ('[{"width": 4}]', "camera 0 lacks 'height'"),
        ('[{"width": 4, "height": 4, "fx": 1, "fy": 1, "position": [0, 0], "rotation": [[1]]}]', "wrong kind"),
        ('[{"width": 4, "height": 4, "w2c": [[NaN]], "K": 3}]', "wrong kind"),
    ],
)
def test_bad_cameras_json_gets_one_line(tmp_path, content, message):
    path = tmp_path / "cameras.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_cameras(path)
    assert str(path) in str(error.value)


def test_cameras_json_keeps_the_principal_point(tmp_path):
    before = cameras(3)
    before.K[1, 0, 2] = 11.5
    write_cameras(tmp_path / "cameras.json", before, ["a", "b", "c"])
    after, _ = read_cameras(tmp_path / "cameras.json")
    torch.testing.assert_close(after.K, before.K)
    with pytest.raises(ValueError, match="V names"):
        write_cameras(tmp_path / "cameras.json", before, ["a"])


def test_depth_colours_and_files_ignore_what_is_not_there(tmp_path):
    depth = torch.linspace(1, 4, 12).reshape(1, 3, 4)
    depth[0, 0, 0], depth[0, 0, 1], depth[0, 0, 2] = 0, float("nan"), float("inf")
    near, far = depth_range(depth)
    assert 1 < near < far < 4.1
    colors = color_depth(depth[0], near, far)
    assert (colors[0, :3] == 0).all() and (colors[1:] > 0).any(-1).all()
    assert colors[0, 3, 0] > colors[0, 3, 2] and colors[2, 3, 0] > colors[2, 3, 1]  # turbo: red at both ends, bluer far
    assert depth_range(torch.zeros(2, 2)) == (1.0, 2.0)
    write_depths(tmp_path, depth, ["v"])
    levels = np.asarray(Image.open(tmp_path / "v.png"), np.float64)
    scale = json.loads((tmp_path / "depth.json").read_text())["scale"]
    assert (levels[0, :3] == 0).all()
    np.testing.assert_allclose(levels[1:] * scale, depth[0, 1:], rtol=1e-3)


def test_confidence_is_kept_whatever_a_few_pixels_hold(tmp_path):
    confidence = torch.linspace(1, 3, 24).reshape(2, 3, 4)
    confidence[0, 0, :3] = torch.tensor([1e7, float("nan"), float("inf")])
    write_confidence(tmp_path, confidence, ["v", "w"])
    scale = json.loads((tmp_path / "confidence.json").read_text())["scale"]
    read = np.stack([np.asarray(Image.open(tmp_path / f"{name}.png"), np.float64) for name in "vw"]) * scale
    assert read[0, 0, 0] > 50 and (read[0, 0, 1:3] == 0).all()
    np.testing.assert_allclose(read.ravel()[3:], confidence.flatten()[3:], rtol=1e-3)
    write_confidence(tmp_path, torch.zeros(1, 2, 2), ["v"])
    assert not np.asarray(Image.open(tmp_path / "v.png")).any()


def test_a_network_without_confidence_writes_none(tmp_path, few_frames):
    save(replace(made_up(), confidence=None), tmp_path / "out")
    assert not (tmp_path / "out" / "confidence").exists() and (tmp_path / "out" / "images" / "x.png").exists()


def test_one_far_pixel_does_not_coarsen_all_depths(tmp_path):
    depth = torch.full((1, 4, 4), 2.0)
    depth[0, 0, 0] = 1e6
    write_depths(tmp_path, depth, ["v"])
    levels = np.asarray(Image.open(tmp_path / "v.png"), np.float64)
    scale = json.loads((tmp_path / "depth.json").read_text())["scale"]
    np.testing.assert_allclose(levels[1:] * scale, 2.0, rtol=1e-3)


def test_contact_sheet_has_a_column_for_each_view():
    picture = np.full((20, 30, 3), 200, np.uint8)
    sheet = contact_sheet({"input": [picture] * 3, "depth": [picture // 2] * 3}, ["a", "b" * 40, "c"])
    assert sheet.width >= 3 * 30 and sheet.height >= 2 * 20
    values = np.asarray(sheet)
    assert (values == 200).all(-1).sum() >= 3 * 600 and (values == 100).all(-1).sum() >= 3 * 600


def test_video_needs_frames_and_leaves_nothing_when_a_frame_fails(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_mp4(tmp_path / "v.mp4", [])

    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(tmp_path / "v.mp4", frames())
    assert os.listdir(tmp_path) == []


def test_a_failing_ffmpeg_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(splat.video, "_ffmpeg", lambda: "false")
    with pytest.raises(OSError, match="ffmpeg could not write .*v.mp4: no reason given"):
        write_mp4(tmp_path / "v.mp4", [np.zeros((200, 200, 3), np.uint8)] * 5)
    assert os.listdir(tmp_path) == []


def test_file_names_are_unique():
    assert file_names(["a/x.jpg", "b/y.jpg"]) == ["x", "y"]
    assert file_names(["a/x.jpg", "b/x.jpg"]) == ["0000_x", "0001_x"]
