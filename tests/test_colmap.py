"""COLMAP models, text and binary: five lens models, smaller copies, tracks, and damaged or foreign files."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from geometry.colmap_records import MODELS as LENSES
from geometry.scene import open_scene
from tests.datasets import write_colmap
from tests.synthetic_photos import dot, dot_position, look_at

SIZE = (120, 160)
MODELS = {  # parameters, and the same lens as fx fy cx cy and OpenCV's k1 k2 p1 p2 k3
    "SIMPLE_PINHOLE": ((150, 82, 58), (150, 150, 82, 58), (0, 0, 0, 0, 0)),
    "PINHOLE": ((150, 155, 82, 58), (150, 155, 82, 58), (0, 0, 0, 0, 0)),
    "SIMPLE_RADIAL": ((150, 82, 58, -0.1), (150, 150, 82, 58), (-0.1, 0, 0, 0, 0)),
    "RADIAL": ((150, 82, 58, -0.1, 0.03), (150, 150, 82, 58), (-0.1, 0.03, 0, 0, 0)),
    "OPENCV": ((150, 155, 82, 58, 0.1, -0.03, 0.002, -0.001), (150, 155, 82, 58), (0.1, -0.03, 0.002, -0.001, 0)),
}
W2C = np.stack([look_at((-0.6, 0.2, -3), (0, 0, 0)), look_at((0.7, -0.1, -3), (0, 0, 0))])
POINTS = np.array([[0.3, -0.2, 0.1], [-0.2, 0.1, 0.2], [0.1, 0.4, -0.3]])


def wxyz(rotation: np.ndarray) -> np.ndarray:
    """Quaternion of a rotation matrix, by the eigenvector of its 4 x 4 form."""
    r = rotation
    form = np.array(
        [
            [np.trace(r), r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [0, r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [0, 0, r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [0, 0, 0, r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    return np.linalg.eigh(form, UPLO="U")[1][:, -1]


def write_model(root, model="PINHOLE", sparse="sparse/0", images="images", names=("b_10.png", "b_9.png"), copy=1):
    """A text model of two photos of the first point as a dot; the first photo sees points 0 and 2, the second all."""
    params, (fx, fy, cx, cy), lens = MODELS.get(model, MODELS["PINHOLE"])
    folder = root / sparse
    folder.mkdir(parents=True)
    line = " ".join(map(str, (1, model, SIZE[1], SIZE[0], *params)))
    (folder / "cameras.txt").write_text(f"# a comment\n{line}\n")
    K, small = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), tuple(s // copy for s in SIZE)
    text, seen = "", ((1, 3), (1, 2, 3))
    for i, name in enumerate(names):
        local = W2C[i, :3, :3] @ POINTS[0] + W2C[i, :3, 3]
        pixel = cv2.projectPoints(local[None], np.zeros(3), np.zeros(3), K, np.array(lens, float))[0][0, 0]
        (root / images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dot(small, pixel / copy, sigma=3.0)).save(root / images / name)
        text += " ".join(map(str, (i + 1, *wxyz(W2C[i, :3, :3]), *W2C[i, :3, 3], 1, name))) + "\n"
        text += " ".join(f"1.0 2.0 {k}" for k in seen[i]) + " 5.0 5.0 -1\n"
    (folder / "images.txt").write_text(text)
    tracks = ("1 0 2 0", "2 1", "1 1 2 2")
    rows = [f"{k + 1} {' '.join(map(str, POINTS[k]))} 9 9 9 0.5 {tracks[k]}" for k in range(3)]
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("copy", [1, 2])
def test_every_lens_model_points_where_the_photo_does(tmp_path, model, copy):
    scene = open_scene(write_model(tmp_path, model, copy=copy))
    assert scene.names == ("b_9.png", "b_10.png") and scene.sizes == (tuple(s // copy for s in SIZE),) * 2
    np.testing.assert_allclose(scene.w2c, W2C[::-1], atol=1e-9)
    for i in range(2):
        local = scene.K[i] @ (scene.w2c[i, :3, :3] @ POINTS[0] + scene.w2c[i, :3, 3])
        np.testing.assert_allclose(dot_position(scene.load(i)), local[:2] / local[2], atol=0.1)


def test_points_and_who_saw_them(tmp_path):
    points = open_scene(write_model(tmp_path)).points
    order = [int(np.flatnonzero((points.xyz == p).all(1))[0]) for p in POINTS]
    assert [sorted(order.index(k) for k in seen) for seen in points.visible] == [[0, 1, 2], [0, 2]]


def test_binary_is_the_same_as_text(tmp_path):
    """COLMAP itself writes the binary files, with the rigs and frames of its newer releases."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    text = open_scene(write_model(tmp_path / "scene"))
    model = pycolmap.Reconstruction(str(tmp_path / "scene/sparse/0"))
    binary_folder = tmp_path / "scene/sparse/0"
    for file in binary_folder.iterdir():
        file.unlink()
    model.write_binary(str(binary_folder))
    binary = open_scene(tmp_path / "scene")
    assert binary.names == text.names
    np.testing.assert_allclose(binary.w2c, text.w2c, atol=1e-12)
    np.testing.assert_allclose(binary.K, text.K)
    for one, other in zip(binary.points.visible, text.points.visible, strict=True):
        np.testing.assert_array_equal(np.sort(binary.points.xyz[one], 0), np.sort(text.points.xyz[other], 0))


def test_lenses_are_numbered_as_in_colmap():
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    theirs = {model.value: name for name, model in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
    sizes = {name: len(pycolmap.Camera.create_from_model_name(1, name, 9, 9, 9).params) for name in theirs.values()}
    assert {number: (name, sizes[name]) for number, name in theirs.items() if number in LENSES} == LENSES


def test_a_camera_of_a_rig_has_its_own_pose(tmp_path):
    """Newer COLMAP models hold poses of rigs; images still tell where each camera stands."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    write_model(tmp_path)
    sparse = tmp_path / "sparse/0"
    model = pycolmap.Reconstruction(str(sparse))
    scale, turn = 1.0, pycolmap.Rotation3d(np.array([0.0, 0.0, 1.0, 0.0]))
    model.transform(pycolmap.Sim3d(scale, turn, np.array([1.0, 2.0, 3.0])))
    want = {image.name: image.cam_from_world().matrix() for image in model.images.values()}
    model.write_text(str(sparse))
    assert (sparse / "rigs.txt").is_file()
    scene = open_scene(tmp_path)
    np.testing.assert_allclose(scene.w2c[:, :3], [want[name] for name in scene.names], atol=1e-12)


def test_names_may_hold_spaces(tmp_path):
    """COLMAP's own reader ends the names of a text model at their first space."""
    names = ("my photo 10.png", "sub folder/my photo 9.png")
    assert open_scene(write_model(tmp_path, names=names)).names == names


@pytest.mark.parametrize("sparse", ["", "sparse", "sparse-txt", "sparse/manhattan/0", "colmap/sparse/0"])
def test_where_models_lie(tmp_path, sparse):
    write_model(tmp_path / "0015", sparse=sparse)
    assert len(open_scene(tmp_path / "0015")) == 2
    scene = open_scene(tmp_path / "0015" / sparse)
    assert len(scene) == 2 and scene.name == "0015"


@pytest.mark.parametrize("folder", ["images_4", "imgs", "mine"])
def test_where_photos_lie(tmp_path, folder):
    write_model(tmp_path, images=folder, names=("a/x.png", "a/y.png"))
    scene = open_scene(tmp_path, image_folder="mine" if folder == "mine" else None)
    assert scene.names == ("a/x.png", "a/y.png") and scene.files[0] == tmp_path / folder / "a/x.png"


def test_photos_without_a_pose_are_counted_and_transforms_yield(tmp_path):
    write_model(tmp_path)
    Image.new("RGB", (160, 120)).save(tmp_path / "images" / "c.png")
    (tmp_path / "transforms.json").write_text("{}")
    notes = open_scene(tmp_path).notes
    assert notes[0] == "1 photo(s) in images have no pose in the model and were left out"
    assert "not transforms.json" in notes[1] and len(notes) == 2


def test_empty_observation_lines(tmp_path):
    write_model(tmp_path)
    lines = (tmp_path / "sparse/0/images.txt").read_text().splitlines()
    (tmp_path / "sparse/0/images.txt").write_text(f"{lines[0]}\n\n{lines[2]}\n\n")
    (tmp_path / "sparse/0/points3D.txt").write_text("")
    scene = open_scene(tmp_path)
    assert len(scene) == 2 and scene.points.xyz.shape == (0, 3) and scene.points.visible[0].shape == (0,)


def test_points_that_were_removed_do_not_hurt(tmp_path):
    """Some tools thin points3D and leave the observations in images."""
    write_model(tmp_path)
    (tmp_path / "sparse/0/points3D.txt").write_text("")
    assert [len(seen) for seen in open_scene(tmp_path).points.visible] == [0, 0]


def test_points_that_are_not_finite_are_left_out_with_their_tracks(tmp_path):
    path = write_model(tmp_path) / "sparse/0/points3D.txt"
    path.write_text(path.read_text().replace("1 0.3", "1 nan"))
    points = open_scene(tmp_path).points
    np.testing.assert_allclose(points.xyz, POINTS[1:])
    assert [seen.tolist() for seen in points.visible] == [[0, 1], [1]]


def _bad(what: str, root):
    model = "FULL_OPENCV" if what == "foreign lens" else "OPENCV"
    write_model(
        root, model if what.endswith("lens") else "PINHOLE", names=("a.png", "a.png" if what == "twice" else "b.png")
    )
    sparse = root / "sparse/0"
    if what == "foreign lens":
        (sparse / "cameras.txt").write_text("1 FULL_OPENCV 160 120 150 150 80 60 0.1 0 0 0 0 0 0 0\n")
    elif what == "unknown lens":
        (sparse / "cameras.txt").write_text("1 MAGIC 160 120 150 80 60\n")
    elif what == "cut":
        (sparse / "cameras.txt").write_text("1 PINHOLE 160 120 150\n")
    elif what == "no poses":
        (sparse / "images.txt").write_text("")
        (sparse / "points3D.txt").write_text("")
    elif what == "gone":
        (root / "images" / "b.png").unlink()
    elif what == "no photos":
        (root / "images").rename(root / "elsewhere")
    elif what == "aspect":
        Image.new("RGB", (50, 120)).save(root / "images" / "b.png")
    elif what == "nan":
        first, *others = (sparse / "images.txt").read_text().split("\n")
        fields = first.split()
        fields[5] = "nan"
        (sparse / "images.txt").write_text("\n".join([" ".join(fields), *others]))


@pytest.mark.parametrize(
    "what, message",
    [
        ("foreign lens", "a.png: camera model FULL_OPENCV is not supported"),
        ("unknown lens", "a.png: camera model MAGIC is not supported"),
        ("cut", "cameras.txt: line 1: PINHOLE has 4 parameters, not 1"),
        ("no poses", "has no registered image"),
        ("twice", "1 image.* listed twice, for example a.png"),
        ("gone", "1 of 2 frames cannot be used, for example: .*b.png: no such image"),
        ("no photos", r"no folder with its photos \(a.png\)"),
        ("aspect", "b.png: the photo is 50x120 but its camera 160x120"),
        ("nan", "a.png: its pose holds NaN"),
    ],
)
def test_bad_models_are_told_in_one_line(tmp_path, what, message):
    _bad(what, tmp_path)
    with pytest.raises((OSError, ValueError), match=message) as error:
        open_scene(tmp_path)
    assert "\n" not in str(error.value)


def test_a_few_bad_images_are_left_out_with_their_tracks(tmp_path):
    """Twelve images, the first without its photo: the rest keep their poses and the points that they saw."""
    write_model(tmp_path)
    sparse = tmp_path / "sparse/0"
    pose, track = (sparse / "images.txt").read_text().splitlines()[:2]
    fields, lines = pose.split(), []
    for i in range(12):
        name = f"p{i:02d}.png"
        (tmp_path / "images" / name).write_bytes((tmp_path / "images" / "b_9.png").read_bytes())
        lines += [" ".join([str(i + 1), *fields[1:5], str(i), *fields[6:9], name]), track if i % 2 == 0 else ""]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    (sparse / "points3D.txt").write_text(
        "".join(f"{k} 0 0 1 9 9 9 0.5 " + " ".join(f"{i} {k // 2}" for i in range(1, 12, 2)) + "\n" for k in (1, 3))
    )
    whole = open_scene(tmp_path)
    assert len(whole) == 12
    (tmp_path / "images" / "p00.png").unlink()
    scene = open_scene(tmp_path)
    assert scene.names == whole.names[1:] and np.array_equal(scene.w2c, whole.w2c[1:])
    assert [len(seen) for seen in scene.points.visible] == [0, 2] * 5 + [0]
    assert scene.notes[0].startswith("1 of 12 frames cannot be used and were left out, for example: ")
    (tmp_path / "images" / "p05.png").write_bytes(b"no png")
    with pytest.raises(OSError, match="2 of 12 frames cannot be used"):
        open_scene(tmp_path)


def test_models_are_read_without_pycolmap(tmp_path, monkeypatch):
    write_model(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    assert len(open_scene(tmp_path)) == 2


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_binary_file_that_was_cut_off_anywhere_is_told(tmp_path, name):
    """COLMAP's own reader takes what is missing for zeros, or never returns."""
    path = write_colmap(tmp_path, binary=True) / f"sparse/0/{name}.bin"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name}.bin: cut off: {length} bytes"):
            open_scene(tmp_path)
    path.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match=rf"{name}.bin: 4 bytes too many"):
        open_scene(tmp_path)


@pytest.mark.parametrize("name", ["images", "points3D"])
def test_a_missing_file_is_told(tmp_path, name):
    (write_colmap(tmp_path, binary=True) / f"sparse/0/{name}.bin").unlink()
    with pytest.raises(ValueError, match=rf"{name}.bin: the file is missing"):
        open_scene(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_absurd_counts_end_at_once(tmp_path, name):
    path = write_colmap(tmp_path, binary=True) / f"sparse/0/{name}.bin"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=f"{name}.bin: cut off: .* of 18446744073709551615 records are whole"):
        open_scene(tmp_path)


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        ("cameras", "PINHOLE 160", "PINHOLE many", "cameras.txt: line 2 is no camera"),
        ("cameras", "PINHOLE 160 120", "PINHOLE 0 0", "the photo is 160x120 but its camera 0x0"),
        ("cameras", "1 PINHOLE", "7 PINHOLE", "its camera 1 is not in"),
        ("images", "1.0 2.0 1 1.0 2.0 3 5.0", "1.0 2.0 1 1.0 2.0 3", "images.txt: line 2: the points of b_10.png"),
        ("images", "1.0 2.0 1 1.0", "1.0 2.0 99999999999999999999 1.0", "images.txt: line 2: the points of b_10.png"),
        ("images", "b_10.png", "", "images.txt: line 1 is no image"),
        ("images", "b_10.png", "../../b_10.png", "no folder with its photos"),
        ("images", "b_10.png", "b_10\0.png", "no such image|null"),
        ("points3D", "9 9 0.5", "", "points3D.txt: line 1: the point is cut off"),
        ("points3D", "1 0.3 ", "1 left ", "points3D.txt: line 1: the point is cut off"),
    ],
)
def test_damaged_text_is_told_with_its_line(tmp_path, name, old, new, message):
    path = write_model(tmp_path) / f"sparse/0/{name}.txt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises((ValueError, OSError), match=message) as error:
        open_scene(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_no_text_is_told(tmp_path):
    path = write_model(tmp_path) / "sparse/0/images.txt"
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    with pytest.raises(ValueError, match="images.txt: .*can't decode byte 0xff"):
        open_scene(tmp_path)
