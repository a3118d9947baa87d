"""`raysplat check-data`: one data set per fault, several faults at once, and clean data in every layout."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from PIL import Image

from geometry.colmap_records import read_records
from geometry.scene_faults import photo_fault
from raysplat.check_data import check_data
from raysplat.cli import main
from tests.datasets import HASH, SIZE, write_colmap, write_dl3dv, write_log, write_nerfstudio, write_photos
from tests.tiny_networks import SHARED


def reasons(root, layout):
    report = check_data(root, layout, workers=2, progress=False)
    return [(fault.path.split("/")[-1], fault.reason) for fault in report.faults]


def edit_transforms(path, change):
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


@pytest.fixture
def nerfstudio(tmp_path):
    return write_nerfstudio(tmp_path / "scene", count=5)


# Clean data


def test_clean_data_in_every_layout(tmp_path):
    write_dl3dv(tmp_path / "dl3dv" / HASH)
    write_colmap(tmp_path / "tnt" / "Barn", binary=True)
    write_log(tmp_path / "tnt" / "Truck")
    write_colmap(tmp_path / "megadepth" / "MegaDepth_v1_SfM" / "5000", model="sparse/manhattan/0")
    write_nerfstudio(tmp_path / "nerfstudio" / "a")
    for layout, scenes in (("dl3dv", 1), ("tnt", 2), ("megadepth", 1), ("nerfstudio", 1)):
        report = check_data(tmp_path / layout, layout, workers=2, progress=False)
        assert (report.faults, report.scenes) == ((), scenes)
        assert report.photos >= 4
    assert check_data(tmp_path / "tnt", "colmap", workers=1, progress=False).faults == ()


def test_samples_of_the_real_layouts_are_clean():
    formats = SHARED / "formats"
    if not formats.is_dir():
        pytest.skip("formats is not beside the repository (RAYSPLAT_SHARED)")
    for folder, layout in (("dl3dv/sample", "dl3dv"), ("tandt", "tnt"), ("megadepth", "megadepth")):
        report = check_data(formats / folder, layout, workers=2, progress=False)
        assert report.faults == () and report.photos >= 20


# Photos


def test_truncated_empty_foreign_missing_and_repeated_photos_are_all_listed(nerfstudio):
    images = nerfstudio / "images"
    whole = (images / "f0.png").read_bytes()
    (images / "f0.png").write_bytes(whole[: len(whole) // 2])
    (images / "f1.png").write_bytes(b"")
    (images / "f2.png").write_text("no picture")
    (images / "f3.png").unlink()
    (images / "f5.png").write_bytes((images / "f4.png").read_bytes())
    edit_transforms(
        nerfstudio / "transforms.json",
        lambda meta: meta["frames"].append({**meta["frames"][0], "file_path": "images/f5.png"}),
    )
    found = reasons(nerfstudio, "nerfstudio")
    assert {name for name, _ in found} == {f"f{i}.png" for i in (0, 1, 2, 3, 5)}
    text = dict(found)
    assert "truncated" in text["f0.png"] and "missing" in text["f3.png"] and "same picture" in text["f5.png"]


def test_a_cut_off_jpeg_is_found(tmp_path):
    scene = write_colmap(tmp_path / "a")
    photo = next((scene / "images").iterdir()).with_suffix(".jpg")
    Image.effect_noise((200, 100), 60).convert("RGB").save(photo)
    photo.with_suffix(".png").unlink()
    photo.write_bytes(photo.read_bytes()[:-2000])
    (found,) = [reason for name, reason in reasons(tmp_path, "colmap") if "truncated" in reason]
    assert "truncated" in found


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_lost_end_that_decoders_forgive_is_found(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    Image.effect_noise((64, 48), 60).convert("RGB").save(file)
    assert photo_fault(file)[1] is None
    file.write_bytes(file.read_bytes()[:-2])
    assert "truncated" in photo_fault(file)[1]


# Poses and intrinsics


FRAME_FAULTS = {
    "NaN": lambda f: f["transform_matrix"][0].__setitem__(3, float("nan")),
    "not a rotation": lambda f: f.update(transform_matrix=(2 * np.array(f["transform_matrix"])).tolist()),
    "must be 4x4": lambda f: f.update(transform_matrix=[[1, 0], [0, 1]]),
    "not made of numbers": lambda f: f.update(transform_matrix="none"),
    "no transform_matrix": lambda f: f.pop("transform_matrix"),
    "must be above 0": lambda f: f.update(fl_x=-40.0),
    "must be a number": lambda f: f.update(fl_x="wide"),
    "aspect ratios differ": lambda f: f.update(w=SIZE[1], h=2 * SIZE[0]),
    "camera model": lambda f: f.update(camera_model="OPENCV_FISHEYE"),
}


@pytest.mark.parametrize("reason", FRAME_FAULTS)
def test_each_fault_of_a_frame(nerfstudio, reason):
    edit_transforms(nerfstudio / "transforms.json", lambda meta: FRAME_FAULTS[reason](meta["frames"][2]))
    ((name, told),) = reasons(nerfstudio, "nerfstudio")
    assert name == "f2.png" and reason in told


def test_faults_of_several_frames_are_all_told(nerfstudio):
    def change(meta):
        for i, reason in ((0, "NaN"), (1, "not a rotation"), (3, "must be above 0")):
            FRAME_FAULTS[reason](meta["frames"][i])

    edit_transforms(nerfstudio / "transforms.json", change)
    assert [name for name, _ in reasons(nerfstudio, "nerfstudio")] == ["f0.png", "f1.png", "f3.png"]


@pytest.mark.parametrize("content", ["{", "[]", '{"frames": []}', '{"frames": [{}]}'])
def test_transforms_that_are_none(nerfstudio, content):
    (nerfstudio / "transforms.json").write_text(content)
    assert reasons(nerfstudio, "nerfstudio")[0][0] == "transforms.json"


def test_a_small_copy_of_the_wrong_size_and_a_missing_frame_in_one_copy(tmp_path):
    scene = write_dl3dv(tmp_path / HASH, copies=("images_4", "images_8"))
    write_photos(scene / "nerfstudio" / "images_8", 4, (SIZE[0] // 16, SIZE[1] // 16))
    (scene / "nerfstudio" / "images_4" / "frame_00003.png").unlink()
    found = dict(reasons(tmp_path, "dl3dv"))
    assert set(found) == {"images_8", "frame_00003.png"} and "1/8 of the camera's" in found["images_8"]


# COLMAP


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("cut", [1, 20])
def test_binary_models_that_are_cut_off_or_too_long(tmp_path, file, cut):
    path = write_colmap(tmp_path / "a", binary=True) / "sparse" / "0" / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert (file, True) in [(name, "cut off" in reason) for name, reason in reasons(tmp_path, "colmap")]
    path.write_bytes(whole + b"\0" * cut)
    assert (file, f"{cut} bytes too many") in [(name, reason[: len(f"{cut} bytes too many")]) for name, reason in
                                               reasons(tmp_path, "colmap")]  # fmt: skip


def test_what_is_before_the_cut_is_still_checked(tmp_path):
    scene = write_colmap(tmp_path / "a", binary=True, count=4)
    path = scene / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes()[:-10])
    (scene / "images" / "0.png").unlink()
    assert {name for name, _ in reasons(tmp_path, "colmap")} == {"images.bin", "0.png"}


def test_faults_of_colmap_cameras_and_images(tmp_path):
    scene = write_colmap(tmp_path / "a", count=6)
    model = scene / "sparse" / "0"
    lines = (model / "images.txt").read_text().split("\n")
    fields = [lines[2 * i].split() for i in range(6)]
    fields[0][1] = "nan"
    fields[1][1:5] = ["2", "0", "0", "0"]
    fields[2][8] = "77"
    for i in range(6):
        lines[2 * i] = " ".join(fields[i])
    lines[6] = "4 what"
    (model / "images.txt").write_text("\n".join(lines))
    found = dict(reasons(tmp_path, "colmap"))
    assert "NaN" in found["0.png"] and "length 2" in found["1.png"] and "camera 77" in found["2.png"]
    assert "line 7" in found["images.txt"] and len(found) == 4

    write_colmap(tmp_path / "b", params="-30 16 12")
    assert all("must be above 0" in reason for _, reason in reasons(tmp_path / "b", "colmap"))
    write_colmap(tmp_path / "c", model_name="FOV", params="30 30 16 12 0.5")
    assert ["FOV is not supported" in reason for _, reason in reasons(tmp_path / "c", "colmap")] == [True] * 4


def test_both_forms_of_a_model_give_the_same_records(tmp_path):
    text, binary = (
        read_records(write_colmap(tmp_path / kind, binary=kind == "b") / "sparse" / "0") for kind in ("t", "b")
    )
    assert text.faults == binary.faults == [] and len(text.images) == len(binary.images) == 4
    for a, b in zip(text.images, binary.images):
        assert (a.name, a.camera) == (b.name, b.camera)
        np.testing.assert_allclose(a.quaternion, b.quaternion, atol=1e-12)
        np.testing.assert_allclose(a.translation, b.translation)
        np.testing.assert_array_equal(a.seen, b.seen)
    assert text.points == binary.points


def test_a_count_that_no_file_could_hold_does_not_hang(tmp_path):
    path = write_colmap(tmp_path / "a", binary=True) / "sparse" / "0" / "images.bin"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    assert "cut off" in dict(reasons(tmp_path, "colmap"))["images.bin"]


# Trajectories, and the other layouts


def test_faults_of_a_trajectory(tmp_path):
    log = write_log(tmp_path / "Truck", count=3)
    lines = log.read_text().split("\n")
    log.write_text("\n".join([*lines[:15], "9 9 0", *lines[1:5]]))
    assert ["photo 9" in reason for _, reason in reasons(tmp_path, "tnt")] == [True]
    log.write_text("\n".join(lines[:12]))
    assert ["cut off" in reason for _, reason in reasons(tmp_path, "tnt")] == [True]
    log.write_text("\n".join(lines[:10]))  # cut off between two entries
    assert ["1 of 3 photos have no pose, for example 000003.png" in r for _, r in reasons(tmp_path, "tnt")] == [True]
    lines[1] = "9 0 0 0"
    log.write_text("\n".join(lines))
    assert ["not a rotation" in reason for _, reason in reasons(tmp_path, "tnt")] == [True]


def test_scenes_without_cameras_are_faults(tmp_path):
    (tmp_path / "d" / HASH / "images_8").mkdir(parents=True)
    (tmp_path / "m" / "5003" / "images").mkdir(parents=True)
    assert "neither transforms.json" in reasons(tmp_path / "d", "dl3dv")[0][1]
    assert "no COLMAP model" in reasons(tmp_path / "m", "megadepth")[0][1]
    assert "no scene" in reasons(tmp_path / "m", "nerfstudio")[0][1]


# The command


def test_exit_codes_text_and_json(tmp_path, nerfstudio, capsys):
    argv = ["check-data", str(nerfstudio), "--layout", "nerfstudio", "--json", str(tmp_path / "r.json")]
    assert main(argv) == 0
    (nerfstudio / "images" / "f1.png").write_bytes(b"")
    assert main(argv) == 1
    assert str(nerfstudio / "images" / "f1.png") + ": " in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["photos"] == 5 and [fault["path"][-6:] for fault in report["faults"]] == ["f1.png"]
    assert main(["check-data", str(tmp_path / "nothing"), "--layout", "tnt"]) == 2
    with pytest.raises(SystemExit) as error:
        main(["check-data", str(tmp_path), "--layout", "unheard"])
    assert error.value.code == 2
