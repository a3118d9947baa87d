"""transforms.json: cameras and lenses as nerfstudio and Blender write them, bad frames, and writing scenes again."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from geometry.calibrated_photo import pinhole_of
from geometry.read_nerfstudio import read_nerfstudio
from geometry.scene import Scene, SparsePoints, open_scene, scene_from_tensors, views
from geometry.write_scene import write_scene
from tests.synthetic_photos import arc, dot, dot_position, pinhole

GL = np.diag([1.0, -1.0, -1.0, 1.0])
LENS = {"k1": -0.12, "k2": 0.02, "p1": 0.002, "p2": -0.001}


def save(path, image=None, size=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8) if image is None else image).save(path)
    return path


def transforms(folder, frames, **meta):
    path = folder / "transforms.json"
    path.write_text(json.dumps({**meta, "frames": frames}))
    return path


def frame(name="images/a.png", w2c=None, **more):
    c2w = np.linalg.inv(np.eye(4) if w2c is None else w2c) @ GL
    return {"file_path": name, "transform_matrix": c2w.tolist(), **more}


INTRINSICS = {"fl_x": 50, "fl_y": 51, "cx": 20, "cy": 15, "w": 40, "h": 30}


def test_written_scene_reads_back_the_same(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (30, 20), (24, 24)]
    photos = [rng.integers(0, 256, (*s, 3), dtype=np.uint8) for s in sizes]
    K = np.stack([pinhole(s, 33.0 + i) for i, s in enumerate(sizes)])
    points = SparsePoints(rng.normal(size=(7, 3)).astype(np.float32).astype(np.float64))
    names = ("a.jpg", "a.png", "sub/b.jpg")
    scene = Scene("s", tmp_path, names, tuple(sizes), lambda i: photos[i], arc(3), K, points)
    path = write_scene(scene, tmp_path / "out")
    again = open_scene(path)
    assert again.names == ("a.jpg.png", "a.png.png", "sub/b.png") and again.sizes == tuple(sizes)
    np.testing.assert_allclose(again.w2c, scene.w2c, atol=1e-12)
    np.testing.assert_allclose(again.K, K, atol=1e-12)
    np.testing.assert_array_equal(again.points.xyz, points.xyz)
    assert all(np.array_equal(again.load(i), photos[i]) for i in range(3))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["images", "sparse_pc.ply", "transforms.json"]
    bare = scene_from_tensors(torch.rand(2, 3, 8, 8))
    unposed = open_scene(write_scene(bare, tmp_path / "bare"))
    assert unposed.w2c is None and unposed.K is None and np.array_equal(unposed.load(1), bare.load(1))


def test_written_by_hand_camera(tmp_path):
    """A camera 2 m up the y axis of an OpenGL world that looks down -z is OpenCV's with flipped y and z."""
    save(tmp_path / "images/a.png")
    c2w = np.eye(4)
    c2w[1, 3] = 2
    transforms(tmp_path, [{"file_path": "images/a.png", "transform_matrix": c2w.tolist()}], **INTRINSICS)
    scene = open_scene(tmp_path)
    point = scene.w2c[0] @ np.array([0, 3, -5, 1])  # one up, five ahead
    np.testing.assert_allclose(point[:3], [0, -1, 5], atol=1e-12)
    np.testing.assert_allclose(scene.K[0], [[50, 0, 20], [0, 51, 15], [0, 0, 1]])


def test_frame_intrinsics_win_and_scale_to_the_file(tmp_path):
    """DL3DV: intrinsics of the 4K frame, images_4 in place of images, gaps in the numbers, order by number."""
    for number in (60, 9):
        save(tmp_path / f"images_4/frame_{number}.png", size=(30, 40))
    frames = [frame("images/frame_60.png", fl_x=400), frame("images/frame_9.png")]
    transforms(tmp_path, frames, fl_x=200, fl_y=204, cx=82, cy=59, w=160, h=120, applied_transform=[[0, 1, 0, 0]])
    scene = open_scene(tmp_path)
    assert scene.names == ("frame_9.png", "frame_60.png")
    np.testing.assert_allclose(scene.K[0], [[50, 0, 20.5], [0, 51, 14.75], [0, 0, 1]])
    assert scene.K[1, 0, 0] == 100 and "applied_transform" in scene.notes[0]
    save(tmp_path / "images_2/frame_60.png", size=(60, 80))
    save(tmp_path / "images_2/frame_9.png", size=(60, 80))
    assert open_scene(tmp_path).sizes[0] == (60, 80)
    assert open_scene(tmp_path, "images_4").sizes[0] == (30, 40)


def test_blender_field_of_view_and_missing_suffix(tmp_path):
    save(tmp_path / "train/r_0.png", size=(40, 40))
    transforms(tmp_path, [frame("./train/r_0")], camera_angle_x=np.pi / 2)
    scene = open_scene(tmp_path)
    np.testing.assert_allclose(scene.K[0], [[20, 0, 20], [0, 20, 20], [0, 0, 1]])


@pytest.mark.parametrize("sign", [1, -1])
def test_distorted_lens_is_undone_and_K_is_of_the_result(tmp_path, sign):
    size, K = (120, 160), pinhole((120, 160), 150.0) + [[0, 0, 3], [0, 0, -2], [0, 0, 0]]
    lens = {key: sign * value for key, value in LENS.items()}
    coefficients = np.array([*lens.values(), 0.0])
    points = np.array([[0.2, -0.15, 1.0], [-0.3, 0.2, 1.0], [0.02, 0.01, 1.0]])
    # Pixel centres: ours at .5, OpenCV's at whole numbers, so both agree when K and pixel are read alike.
    pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, coefficients)[0][:, 0]
    for i, pixel in enumerate(pixels):
        save(tmp_path / f"images/{i}.png", dot(size, pixel, sigma=3.0))
    meta = {
        "fl_x": K[0, 0],
        "fl_y": K[1, 1],
        "cx": K[0, 2],
        "cy": K[1, 2],
        "w": 160,
        "h": 120,
        "camera_model": "OPENCV",
    }
    transforms(tmp_path, [frame(f"images/{i}.png") for i in range(3)], **meta, **lens)
    scene = open_scene(tmp_path)
    assert scene.sizes[0] == size and scene.K[0, 0, 2] == K[0, 2]
    for i, point in enumerate(points):
        want = (scene.K[i] @ point)[:2]
        assert np.linalg.norm(want - (K @ point)[:2]) < 12
        np.testing.assert_allclose(dot_position(scene.load(i)), want, atol=0.1)


@pytest.mark.parametrize("k1", [-0.25, -0.05, 0.09, 0.3])
def test_undistorted_picture_is_the_widest_without_blanks(k1):
    size, K, lens = (90, 160), pinhole((90, 160), 120.0), np.array([k1, 0.01, 0.001, -0.002, 0.0])
    found = pinhole_of(K, lens, size, "x")
    u, v = np.meshgrid(np.linspace(0.5, 159.5, 40), np.linspace(0.5, 89.5, 40))

    def outside(zoom):
        rays = (
            np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)
            @ np.linalg.inv(found * [[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]]).T
        )
        pixels = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), K, lens)[0][:, 0]
        return ((pixels < -0.01) | (pixels > np.array([160.01, 90.01]))).any()

    assert not outside(1.0) and outside(0.97)
    assert (found[0, 0] > K[0, 0]) == (k1 > 0)


def test_frames_without_a_pose_are_left_out_and_counted(tmp_path):
    for name in "abc":
        save(tmp_path / f"images/{name}.png")
    frames = [
        frame("images/a.png"),
        {"file_path": "images/b.png"},
        {"file_path": "images/c.png", "transform_matrix": None},
    ]
    transforms(tmp_path, frames, **INTRINSICS)
    scene = open_scene(tmp_path)
    assert scene.names == ("a.png",) and scene.notes == ("2 of 3 frames have no pose and were left out",)
    transforms(tmp_path, frames[1:], **INTRINSICS)
    scene = open_scene(tmp_path)
    assert scene.w2c is None and scene.K.shape == (2, 3, 3) and views(scene, size=8)[1] is None


def test_camera_made_for_the_stored_raster_ignores_exif(tmp_path):
    photo = Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3))
    exif = photo.getexif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    photo.save(tmp_path / "images/a.png", exif=exif)
    transforms(tmp_path, [frame()], **INTRINSICS)
    scene = open_scene(tmp_path)
    assert scene.sizes == ((30, 40),) and np.array_equal(scene.load(0), np.asarray(photo))
    transforms(tmp_path, [frame()], **{**INTRINSICS, "w": 30, "h": 40})
    assert open_scene(tmp_path).sizes == ((40, 30),)
    assert open_scene(tmp_path / "images").sizes == ((40, 30),)


def _bad(what: str, folder):
    good, c2w = frame(), np.eye(4)
    if what == "nan":
        c2w[0, 3] = np.nan
    elif what == "scaled":
        c2w[:3, :3] *= 2
    elif what == "mirrored":
        c2w[0, 0] = -1
    frames, meta = {
        "json": ([], {}),
        "no frames": ([], INTRINSICS),
        "twice": ([good, {**good, "file_path": "./images/a.png"}], INTRINSICS),
        "gone": ([good, frame("images/gone.png")], INTRINSICS),
        "no focal": ([good], {"w": 40, "h": 30}),
        "zero focal": ([good], {**INTRINSICS, "fl_x": 0}),
        "zero focal, distorted": ([good], {**INTRINSICS, "fl_x": 0, "k1": 0.1}),
        "nan focal": ([good], {**INTRINSICS, "fl_x": float("nan")}),
        "huge width": ([good], {**INTRINSICS, "w": 10**400}),
        "infinite height": ([good], {**INTRINSICS, "h": float("inf")}),
        "text focal": ([good], {**INTRINSICS, "fl_x": "50"}),
        "fisheye": ([good], {**INTRINSICS, "camera_model": "OPENCV_FISHEYE"}),
        "folded": ([good], {**INTRINSICS, "k1": -9.0}),
        "aspect": ([good], {**INTRINSICS, "w": 80}),
        "3x3": ([{**good, "transform_matrix": np.eye(3).tolist()}], INTRINSICS),
        "words": ([{**good, "transform_matrix": "none"}], INTRINSICS),
        "ply": ([good], {**INTRINSICS, "ply_file_path": "bad.ply"}),
    }.get(what, ([{**good, "transform_matrix": c2w.tolist()}], INTRINSICS))
    save(folder / "images/a.png")
    (folder / "bad.ply").write_text("no ply")
    path = transforms(folder, frames, **meta)
    if what == "json":
        path.write_text('{"frames": [')
    elif what == "nested":
        path.write_text("[" * 100_000)


@pytest.mark.parametrize(
    "what, message",
    [
        ("json", "transforms.json: not valid JSON"),
        ("no frames", "'frames' must be a list"),
        ("twice", "1 image.* listed twice, for example a.png"),
        ("gone", "1 of 2 frames cannot be used, for example: .*gone.png: no such image"),
        ("no focal", "poses without intrinsics"),
        ("zero focal", "a.png: focal length 0"),
        ("zero focal, distorted", "a.png: focal length 0"),
        ("nan focal", "fl_x of images/a.png is NaN"),
        ("huge width", "w of images/a.png is NaN, infinite or absurdly large"),
        ("infinite height", "h of images/a.png is NaN, infinite or absurdly large"),
        ("nested", "transforms.json: not valid JSON"),
        ("text focal", "fl_x of images/a.png must be a number, got '50'"),
        ("fisheye", "camera model OPENCV_FISHEYE of a.png is not supported"),
        ("folded", "a.png: the lens distortion .* is too strong"),
        ("aspect", "a.png: the photo is 40x30 but its camera 80x30"),
        ("nan", "a.png: its pose holds NaN"),
        ("scaled", "a.png: .* not a rotation"),
        ("mirrored", "a.png: .* not a rotation"),
        ("3x3", "transform_matrix of images/a.png must be 4x4"),
        ("words", "transform_matrix of images/a.png is not made of numbers"),
        ("ply", "bad.ply: cannot be read as a point cloud"),
    ],
)
def test_bad_transforms_are_told_in_one_line(tmp_path, what, message):
    _bad(what, tmp_path)
    with pytest.raises((OSError, ValueError), match=message) as error:
        open_scene(tmp_path)
    assert "\n" not in str(error.value)


def _twenty(folder, bad):
    """Twenty frames; `bad` says what is wrong with the photo or pose of some."""
    frames = []
    for i in range(20):
        c2w = np.eye(4)
        c2w[0, 3] = float("nan") if bad.get(i) == "pose" else i
        frames.append({"file_path": f"images/{i:02d}.png", "transform_matrix": c2w.tolist()})
        photo = save(folder / f"images/{i:02d}.png", size=(40, 30) if bad.get(i) == "shape" else (30, 40))
        if bad.get(i) == "gone":
            photo.unlink()
        elif bad.get(i) == "empty":
            photo.write_bytes(b"")
    transforms(folder, frames, **INTRINSICS, k1=1e-3)
    return folder


@pytest.mark.parametrize("bad", [{0: "gone", 7: "empty"}, {3: "shape", 19: "pose"}, {5: "gone"}])
def test_a_few_bad_frames_are_left_out_and_counted(tmp_path, bad):
    """The others keep their names and cameras, even when the first photo is among the missing."""
    scene = open_scene(_twenty(tmp_path, bad))
    good = [i for i in range(20) if i not in bad]
    assert scene.names == tuple(f"{i:02d}.png" for i in good)
    assert [-w2c[0, 3] for w2c in scene.w2c] == good and len(scene.K) == len(scene.sizes) == len(scene.files)
    (note,) = scene.notes
    assert note.startswith(f"{len(bad)} of 20 frames cannot be used and were left out, for example: ")
    assert f"{min(bad):02d}.png" in note


def test_more_than_a_tenth_of_bad_frames_refuses_the_scene(tmp_path):
    with pytest.raises(OSError, match="3 of 20 frames cannot be used, for example: .*02.png: ") as error:
        open_scene(_twenty(tmp_path, {2: "gone", 7: "empty", 9: "pose"}))
    assert "\n" not in str(error.value)
    assert len(read_nerfstudio(tmp_path / "transforms.json", bad_share=0.15)) == 17
    _twenty(tmp_path / "strict", {4: "pose"})
    with pytest.raises(ValueError, match="1 of 20 frames cannot be used, for example: .*its pose holds NaN"):
        read_nerfstudio(tmp_path / "strict" / "transforms.json", bad_share=0)


def test_a_point_cloud_that_is_no_name_is_passed_over(tmp_path):
    save(tmp_path / "images/a.png")
    assert open_scene(transforms(tmp_path, [frame()], **INTRINSICS, ply_file_path=5)).points is None


def test_missing_point_cloud_is_only_a_note(tmp_path):
    save(tmp_path / "images/a.png")
    transforms(tmp_path, [frame()], **INTRINSICS, ply_file_path="gone.ply")
    scene = open_scene(tmp_path)
    assert scene.points is None and scene.notes == ("the sparse points gone.ply are not there",)


def test_interrupted_writing_leaves_no_scene(tmp_path):
    scene = scene_from_tensors(torch.rand(2, 3, 8, 8))

    def load(i):
        if i == 1:
            raise OSError("disk full")
        return scene.load(i)

    broken = Scene("s", tmp_path, scene.names, scene.sizes, load)
    with pytest.raises(OSError, match="disk full"):
        write_scene(broken, tmp_path / "out")
    assert not (tmp_path / "out" / "transforms.json").exists()
