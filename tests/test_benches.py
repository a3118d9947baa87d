"""Benchmarks in the layouts of their releases: lists, forms, missing scenes, and what is said where data lacks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import eval_nvs.sample as sample
from eval_nvs.benches import BENCHES, open_bench
from eval_nvs.protocol import PROTOCOLS, load, split, variant
from geometry.dl3dv import BENCHMARK, find_dl3dv, is_benchmark_scene, open_dl3dv
from geometry.megadepth import open_megadepth
from geometry.tanks_and_temples import FOCAL, open_tanks, read_log
from geometry.write_scene import write_scene
from tests.datasets import HASH, SIZE, write_colmap, write_dl3dv, write_log, write_nerfstudio
from tests.synthetic_photos import arc, pinhole, render_corner
from tests.test_protocol import scene_of
from tests.tiny_networks import SHARED

LISTED = BENCHMARK[4] + "0" * 48  # a hash as the benchmark has it
KNOWN_BAD = "07d9f9724ca854fae07cb4c57d7ea22bf667d5decd4058f547728922f909956b"


# DL3DV


def test_the_list_has_140_scenes_and_tells_them_from_others():
    assert len(set(BENCHMARK)) == 140 and all(len(h) == 16 for h in BENCHMARK)
    for name in (KNOWN_BAD, KNOWN_BAD[:16], f"1K/{KNOWN_BAD}/nerfstudio", KNOWN_BAD.upper()):
        assert is_benchmark_scene(name)
    for name in (HASH, "07d9f972", "truck", ""):
        assert not is_benchmark_scene(name)


def test_the_list_is_the_published_one():
    path = SHARED / "formats" / "dl3dv" / "benchmark_140_hashes.txt"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the repository (RAYSPLAT_SHARED)")
    assert tuple(line[:16] for line in path.read_text().split()) == BENCHMARK


def test_all_forms_of_dl3dv_are_found(tmp_path):
    write_dl3dv(tmp_path / "bench" / LISTED)
    write_dl3dv(tmp_path / "train" / "1K" / HASH, benchmark=False)
    write_colmap(tmp_path / "gs" / HASH / "gaussian_splat", images="images_8", copy=8)
    write_dl3dv(tmp_path / "evaluation" / "images" / HASH / HASH)
    for root, name in (("bench", LISTED), ("train", HASH), ("gs", HASH)):
        bench = open_bench("dl3dv", tmp_path / root)
        scene = bench.open(name)
        assert (scene.name, len(scene)) == (name, 4) and scene.sizes[0] == (SIZE[0] // 8, SIZE[1] // 8)
        np.testing.assert_allclose(scene.w2c[:, :3, :3], arc(4)[:, :3, :3], atol=1e-6)
        np.testing.assert_allclose(scene.K[0, 0, 0], 100 / 8)
    assert len(open_bench("dl3dv", tmp_path / "train" / "1K" / HASH).scenes) == 1


def test_published_scenes_in_order_missing_ones_named_and_others_left_out(tmp_path):
    names = [BENCHMARK[9] + "0" * 48, LISTED]
    for name in (*names, HASH):
        write_dl3dv(tmp_path / name)
    bench = open_bench("dl3dv", tmp_path)
    assert bench.scenes == (LISTED, names[0]) and bench.others == (HASH,) and len(bench.missing) == 138
    assert "1 scene(s) here are not of the published list" in bench.notes[0] and bench.open(HASH).name == HASH
    with pytest.raises(ValueError, match="no scene nowhere"):
        bench.open("nowhere")


def test_scenes_of_another_list_stand_in_where_no_published_one_is(tmp_path):
    write_dl3dv(tmp_path / HASH)
    bench = open_bench("dl3dv", tmp_path)
    assert bench.scenes == (HASH,) and len(bench.missing) == 140 and "not the benchmark's figures" in bench.notes[0]


def test_the_smallest_copy_that_covers_is_read_and_the_bad_scene_is_told(tmp_path):
    folder = write_dl3dv(tmp_path / KNOWN_BAD, copies=("images_2", "images_4", "images_8"))
    for least, copy in (((12, 16), "images_8"), ((13, 16), "images_4"), ((24, 32), "images_4"), ((40, 40), "images_2")):
        scene = open_dl3dv(folder, least)
        assert scene.sizes[0] == tuple(s // int(copy[-1]) for s in SIZE) and f"nerfstudio/{copy}" in scene.notes[0]
    assert "images_8 has only 16x12" in open_dl3dv(folder, (24, 32)).notes[1]
    small = open_dl3dv(folder).notes
    assert "the largest photos here, images_2, are 64x48: smaller than 480x270" in small[1]


def test_distortion_is_undone_and_intrinsics_of_4k_fit_the_copy(tmp_path):
    straight, bent = (open_dl3dv(write_dl3dv(tmp_path / str(k) / HASH, lens=k)) for k in (0.0, -0.1))
    assert np.abs(straight.load(0).astype(int) - bent.load(0)).max() > 0
    assert bent.K[0, 0, 0] < straight.K[0, 0, 0] == 12.5  # a barrel lens sees more
    assert straight.names == bent.names == tuple(f"frame_{i:05d}.png" for i in range(1, 5))


def test_half_a_dl3dv_scene_is_one_line(tmp_path):
    (tmp_path / HASH / "nerfstudio" / "images_8").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="neither nerfstudio/transforms.json"):
        open_bench("dl3dv", tmp_path).open(HASH)
    assert list(find_dl3dv(tmp_path)) == [HASH]


# Tanks and Temples


def test_tanks_in_both_forms_whatever_the_case(tmp_path):
    write_colmap(tmp_path / "truck", binary=True)
    write_log(tmp_path / "Barn")
    write_log(tmp_path / "Church", beside=True)
    write_colmap(tmp_path / "Courthouse")
    bench = open_bench("tnt", tmp_path)
    assert bench.scenes == ("Barn", "Church", "truck") and bench.others == ("Courthouse",)
    assert bench.missing == ("Caterpillar", "Ignatius", "Meetingroom")
    for scene in bench.scenes:
        opened = bench.open(scene)
        np.testing.assert_allclose(opened.w2c, arc(4), atol=1e-9)
        assert opened.sizes == (SIZE,) * 4


def test_official_scenes_assume_the_focal_length_and_say_so(tmp_path):
    log = write_log(tmp_path / "Barn", count=5)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[5:]))  # photo 0 has no pose
    scene = open_tanks(tmp_path / "Barn")
    assert scene.names == tuple(f"{i:06d}.png" for i in range(2, 6))
    np.testing.assert_allclose(scene.K[0], [[FOCAL * 128, 0, 64], [0, FOCAL * 128, 48], [0, 0, 1]])
    assert "0.7 x width is assumed" in scene.notes[0] and "1 of 5 photos have no pose" in scene.notes[1]
    np.testing.assert_allclose(scene.w2c, arc(5)[1:], atol=1e-9)
    (tmp_path / "Barn" / "000005.png").unlink()
    with pytest.raises(ValueError, match="a pose for photo 4"):
        open_tanks(tmp_path / "Barn")


def test_the_focal_length_that_the_release_does_not_tell_is_found_from_photos_and_poses(tmp_path):
    size, focal, folder = (240, 400), 0.93, tmp_path / "Ignatius"
    w2c = arc(8, degrees=30)
    write_log(folder, count=8, w2c=w2c)
    for i, matrix in enumerate(w2c):
        picture = render_corner(matrix, pinhole(size, focal * size[1]), size)
        Image.fromarray(picture).save(folder / f"{i + 1:06d}.png")
    scene = open_tanks(folder)
    np.testing.assert_allclose(scene.K[0], pinhole(size, focal * size[1]), rtol=0.01)
    assert "was found from photos and poses" in scene.notes[0]


@pytest.mark.parametrize(
    "text, told", [("", "empty"), ("0 0 0\n1 0 0 0\n", "cut off"), ("x 0 0\n" + "1 0 0 0\n" * 4, "entry 0"),
                   ("0 0 0\n" + "1 0 0\n" * 4, "4x4"), (("0 0 0\n" + "1 0 0 0\n" * 4) * 2, "two poses")]
)  # fmt: skip
def test_trajectories_that_are_none(tmp_path, text, told):
    path = tmp_path / "a.log"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_log(path)


def test_the_log_of_a_real_scene_is_its_colmap_model():
    folder = SHARED / "formats" / "tandt" / "Colosseum"
    if not folder.is_dir():
        pytest.skip("formats/tandt is not beside the repository (RAYSPLAT_SHARED)")
    c2w = read_log(folder / "Colosseum_COLMAP_SfM.log")
    scene = open_tanks(folder)
    np.testing.assert_allclose(np.linalg.inv(scene.w2c), [c2w[i] for i in range(40)], atol=1e-6)


# MegaDepth


def test_megadepth_mixed_cameras_sub_models_and_the_undistorted_form(tmp_path):
    sizes = (SIZE, (128, 96), (60, 100))
    lens = {"model_name": "SIMPLE_RADIAL", "params": "100 64 48 -0.05"}
    sfm = tmp_path / "phoenix" / "S6" / "zl548" / "MegaDepth_v1_SfM" / "5007"
    plain = tmp_path / "Undistorted_SfM" / "5007"
    write_colmap(sfm, count=6, model="sparse/manhattan/1", names="{}_ab.png", **lens)
    write_colmap(sfm / "x", count=3, model="sparse/manhattan/2", names="{}_cd.png", **lens)
    (sfm / "x" / "sparse" / "manhattan" / "2").rename(sfm / "sparse" / "manhattan" / "2")
    scene = open_bench("megadepth", tmp_path).open("5007")
    assert len(scene) == 6 and "model sparse/manhattan/1" in scene.notes[0] and "1 other sub-model" in scene.notes[1]
    assert scene.K[0, 0, 0] != 100  # the lens was undone

    write_colmap(plain, count=6, model="sparse", sizes=sizes, binary=True)
    bench = open_bench("megadepth", tmp_path)
    scene = bench.open("5007")
    assert bench.scenes == ("5007",) and len(bench.missing) == 18 and scene.sizes == sizes * 2
    images, cameras = load(scene, scene.names, (27, 48))
    assert images.shape == (6, 3, 27, 48) and len({float(K[0, 0]) for K in cameras.K}) == 3
    assert torch.allclose(cameras.K[:, :2, 2], torch.tensor([24.0, 13.5]), atol=0.51)


def test_megadepth_without_cameras_is_one_line(tmp_path):
    (tmp_path / "5003" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no COLMAP model"):
        open_megadepth(tmp_path / "5003")
    with pytest.raises(FileNotFoundError, match="no scene in this folder.*MegaDepth_v1_SfM"):
        open_bench("megadepth", tmp_path)


def test_real_samples_are_opened_and_split():
    formats = SHARED / "formats"
    if not formats.is_dir():
        pytest.skip("formats is not beside the repository (RAYSPLAT_SHARED)")
    for name, root, inputs in (("dl3dv", "dl3dv/sample", 12), ("tnt", "tandt", 12), ("megadepth", "megadepth", 4)):
        bench = open_bench(name, formats / root)
        scene = bench.open(bench.scenes[0])
        found = split(scene, variant(PROTOCOLS["paper"], inputs=inputs))
        images, cameras = load(scene, found.inputs[:2], (270, 480))
        assert images.shape == (2, 3, 270, 480) and cameras.size == (270, 480)


# The others, and what is not there


def test_a_folder_of_scenes_and_one_scene(tmp_path):
    write_nerfstudio(tmp_path / "all" / "a")
    write_colmap(tmp_path / "all" / "b")
    assert open_bench("folder", tmp_path / "all").scenes == ("a", "b")
    assert open_bench("folder", tmp_path / "all" / "a").open("a").name == "a"
    with pytest.raises(ValueError, match="--root"):
        open_bench("folder")


@pytest.mark.parametrize("name", ["tnt", "folder"])
def test_a_damaged_model_is_one_line(tmp_path, name):
    path = write_colmap(tmp_path / "Barn", binary=True) / "sparse" / "0" / "images.bin"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="images.bin: cut off.*3 of 4 records are whole"):
        open_bench(name, tmp_path).open("Barn")


@pytest.mark.parametrize("name", ["dl3dv", "tnt", "megadepth"])
def test_missing_data_tells_what_was_looked_for_where_and_how_to_get_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for root in (None, tmp_path / "nothing"):
        with pytest.raises(OSError, match="no such folder.*looked for as.*To obtain it.*--root") as error:
            open_bench(name, root)
        assert "\n" not in str(error.value) and str(root or "data/") in str(error.value)
    with pytest.raises(ValueError, match="no benchmark"):
        open_bench("mipnerf")
    assert {"dl3dv", "tnt", "megadepth", "sample", "folder"} == set(BENCHES)


def test_samples_are_made_once_by_whoever_is_first(tmp_path, monkeypatch):
    made = []

    def make(name):
        made.append(name)
        return replace(scene_of(16), name=name)

    monkeypatch.setattr(sample, "make_scene", make)
    with ThreadPoolExecutor(3) as pool:
        benches = list(pool.map(lambda _: open_bench("sample", tmp_path), range(3)))
    assert all(len(bench.open(scene)) == 16 for bench in benches for scene in bench.scenes)
    count = len(made)
    assert open_bench("sample", tmp_path).scenes == ("shelf", "tabletop") and len(made) == count
    assert not [p for p in (tmp_path / sample.EDITION).iterdir() if p.name.startswith(".")]


def test_a_sample_scene_has_enough_views_for_the_protocol(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "SIZE", (27, 48))
    scene = sample.make_scene("tabletop")
    found = split(scene, PROTOCOLS["paper"])
    assert (len(found.inputs), len(found.targets)) == (12, 2)
    pixels = np.stack([scene.load(i) for i in range(len(scene))]).astype(float)
    assert pixels.std() > 10 and np.abs(pixels[0] - pixels[8]).mean() > 3
    write_scene(scene, tmp_path)
    assert Image.open(tmp_path / "images" / "00.png").size == sample.SIZE[::-1]
