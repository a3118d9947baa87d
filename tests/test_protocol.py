"""Splits by hand values and laws, cameras that follow the pixels, index files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from eval_nvs.benches import open_bench
from eval_nvs.indices import indexed, read_indices
from eval_nvs.protocol import PROTOCOLS, Protocol, digest, evenly, load, split, variant
from geometry.cameras import project
from geometry.scene import Scene
from tests.datasets import HASH, write_dl3dv, write_nerfstudio
from tests.synthetic_photos import arc, dot, dot_position, look_at, pinhole
from tests.tiny_networks import SHARED

PAPER = PROTOCOLS["paper"]
# Of scene_of(40): a change of either changes every published figure.
FROZEN = [1, 3, 5, 7, 10, 12, 15, 20, 25, 29, 34, 39]
FROZEN_DIGEST = "f7eccbe48bfcd7fc"


def scene_of(count, w2c=None, names=None) -> Scene:
    names = names or tuple(f"{i:04d}.png" for i in range(count))
    K = np.stack([pinhole((10, 10), 9.0)] * count)
    w2c = arc(count) if w2c is None else w2c
    return Scene("s", "s", tuple(names), ((10, 10),) * count, lambda i: np.zeros((10, 10, 3), np.uint8), w2c, K)


def on_a_line(positions) -> np.ndarray:
    w2c = np.stack([np.eye(4)] * len(positions))
    w2c[:, 0, 3] = -np.asarray(positions, dtype=float)
    return w2c


# Splits


def test_one_in_eight_is_a_target_and_inputs_are_farthest_points():
    # Cameras on a line, one unit apart: farthest points by their definition, ties to the lower index.
    scene = scene_of(33, on_a_line(range(33)))
    found = split(scene, PAPER)
    assert found.targets == tuple(f"{i:04d}.png" for i in range(0, 33, 8))
    assert len(found.inputs) == 12 and list(found.inputs) == sorted(found.inputs)
    chosen, rest = [1], [i for i in range(33) if i % 8]
    while len(chosen) < 12:
        gaps = {i: min(abs(i - c) for c in chosen) for i in rest if i not in chosen}
        chosen.append(min(gaps, key=lambda i: (-gaps[i], i)))
    assert found.inputs == tuple(f"{i:04d}.png" for i in sorted(chosen))


def test_rotation_counts_beside_translation():
    # Five cameras at one place that look around, among thirty that hardly differ.
    w2c = on_a_line(np.linspace(0, 1e-3, 36))
    turned = (9, 13, 19, 27, 35)
    for k, i in enumerate(turned):
        w2c[i] = look_at((0, 0, 0), (np.sin(k + 1), 0.2, np.cos(k + 1)))
    names = {f"{i:04d}.png" for i in turned}
    assert names <= set(split(scene_of(36, w2c), PAPER).inputs)
    assert not names <= set(split(scene_of(36, w2c), variant(PAPER, rotation_weight=0.0)).inputs)


def test_order_is_that_of_names_whatever_the_order_in_the_scene():
    scene = scene_of(40)
    shuffled = scene.select(np.random.default_rng(0).permutation(40))
    assert split(scene, PAPER) == split(shuffled, PAPER)
    # By code point, as `sorted` does, not by the numbers in the names.
    loose = scene_of(24, names=[f"{i}.png" for i in range(24)])
    assert split(loose, replace(PAPER, inputs=3)).targets == ("0.png", "16.png", "23.png")


def test_splits_do_not_change_with_the_unit_or_the_frame_of_the_world():
    scene = scene_of(60)
    moved = scene.w2c @ np.linalg.inv(look_at((3, 1, -2), (0, 0.4, 0)))
    moved[:, :3, 3] *= 7.3
    assert split(replace(scene, w2c=moved), PAPER).inputs == split(scene, PAPER).inputs


def test_large_scenes_are_thinned_evenly():
    found = split(scene_of(1000), PAPER)
    assert len(found.targets) == 50
    gaps = np.diff([int(name[:4]) for name in found.targets])
    assert set(gaps) == {20}
    assert evenly(10, 3) == [1, 5, 8] and evenly(3, 5) == [0, 1, 2]


@pytest.mark.parametrize("name, inputs", [("window-50", 6), ("window-100", 12), ("window-150", 24)])
def test_windows(name, inputs):
    protocol = PROTOCOLS[name]
    found = split(scene_of(200), protocol)
    numbers = [int(n[:4]) for n in (*found.inputs, *found.targets)]
    assert (len(found.inputs), len(found.targets)) == (inputs, 8) and len(set(numbers)) == inputs + 8
    assert max(numbers) == protocol.window - 1 and min(numbers) == 0
    with pytest.raises(ValueError, match=f"{protocol.window}"):
        split(scene_of(protocol.window - 1), protocol)


def test_too_few_images_and_no_poses_are_one_line():
    with pytest.raises(ValueError, match="13 images.*needs 12 beside one target in 8"):
        split(scene_of(13), PAPER)
    assert len(split(scene_of(14), PAPER).targets) == 2
    with pytest.raises(ValueError, match="no camera poses"):
        split(replace(scene_of(20), w2c=None), PAPER)


def test_digests_tell_protocol_scene_and_views_apart():
    scene = scene_of(40)
    one = split(scene, PAPER)
    told = [asdict(PAPER), "s", list(one.inputs), list(one.targets)]
    assert one.digest == hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    others = [
        split(replace(scene, name="t"), PAPER),
        split(scene_of(41), PAPER),
        split(scene, variant(PAPER, near=0.1)),
    ]
    assert len({s.digest for s in (one, *others)}) == 4
    assert digest([one, others[0]]) == digest([others[0], one]) != digest([one])


def test_views_and_digest_of_a_known_scene_are_frozen():
    found = split(scene_of(40), PAPER)
    assert [int(n[:4]) for n in found.inputs] == FROZEN
    assert found.digest == FROZEN_DIGEST


def test_protocols_are_named_and_checked():
    assert {p.cameras for p in PROTOCOLS.values()} == {"given", "aligned", "optimized"}
    assert all(p.name == name for name, p in PROTOCOLS.items())
    assert all(side % 14 == 0 for p in PROTOCOLS.values() for side in p.network_size)
    assert PAPER.size == (270, 480) and PAPER.inputs == 12 and PAPER.hold == 8
    changed = variant(PAPER, inputs=4, size=(10, 20))
    assert changed.name == "paper, inputs=4, size=10x20" and changed.inputs == 4
    assert variant(PAPER, inputs=12) == PAPER
    assert Protocol(**{**json.loads(json.dumps(asdict(PAPER))), "size": (270, 480)}).name == "paper"
    for wrong in ({"inputs": 0}, {"offset": 8}, {"window": 10, "targets": 8}):
        with pytest.raises(ValueError, match="protocol wrong"):
            Protocol("wrong", **wrong)


# Pixels and cameras


def test_K_follows_the_pixels_for_mixed_sizes_and_cameras():
    # MegaDepth's case: landscape, portrait, tiny and large photos of one point, each with a camera of its own.
    sizes = [(400, 711), (640, 360), (90, 160), (540, 960), (300, 300)]
    w2c = np.stack([look_at((0.2 * i - 0.4, 0.05 * i, -4), (0, 0, 0)) for i in range(5)])
    K = np.stack([pinhole(s, 0.9 * min(s) + 7 * i) for i, s in enumerate(sizes)])
    K[:, 0, 2] += 2.7
    point = np.array([0.05, -0.1, 0.2])
    photos = []
    for w, k, size in zip(w2c, K, sizes):
        local = k @ (w[:3, :3] @ point + w[:3, 3])
        photos.append(dot(size, local[:2] / local[2], sigma=max(2.0, min(size) / 60)))
    scene = Scene("m", "m", tuple("abcde"), tuple(sizes), lambda i: photos[i], w2c, K)
    for size in (PAPER.size, PAPER.network_size):
        images, cameras = load(scene, ("c", "a", "b", "e", "d"), size)
        assert images.shape == (5, 3, *size) and cameras.size == size and cameras.K.dtype == torch.float32
        pixels, _ = project(torch.tensor(point).float().expand(5, 1, 3), cameras)
        for image, pixel in zip(images, pixels[:, 0]):
            np.testing.assert_allclose(dot_position((image.permute(1, 2, 0) * 255).numpy()), pixel, atol=0.25)
        assert torch.allclose(cameras.w2c[1], torch.tensor(w2c[0]).float())


def test_load_names_what_is_not_there(tmp_path):
    scene = open_bench("folder", write_nerfstudio(tmp_path / "a")).open("a")
    images, cameras = load(scene, ["f2.png"], (48, 64))
    assert torch.equal(cameras.K[0, :2, 2], torch.tensor([32.0, 24.0])) and images.max() <= 1
    with pytest.raises(ValueError, match="no image named x.png"):
        load(scene, ["x.png"], (48, 64))
    (tmp_path / "a" / "images" / "f2.png").write_bytes(b"\x89PNG")
    with pytest.raises(OSError, match="f2.png"):
        load(scene, ["f2.png"], (48, 64))


# Index files


@pytest.fixture
def bench(tmp_path):
    write_dl3dv(tmp_path / "root" / HASH, count=8)
    return open_bench("dl3dv", tmp_path / "root")


def write(path, table):
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("key", ["context", "input"])
@pytest.mark.parametrize("scene", [HASH, HASH[:16]])
def test_numbers_are_places_in_the_order_of_names(tmp_path, bench, key, scene):
    path = write(tmp_path / "i.json", {scene: {key: [5, 0], "target": [1, 0]}, "f" * 64: None})
    found = read_indices(path, bench, PAPER)[HASH]
    # The file's own order is kept, and targets may be inputs: both are the others' choice.
    assert found.inputs == ("frame_00006.png", "frame_00001.png")
    assert found.targets == ("frame_00002.png", "frame_00001.png")
    named = indexed(PAPER, path)
    assert "i.json" in named.name and hashlib.sha256(path.read_bytes()).hexdigest()[:16] in named.indices
    assert indexed(named, path) is named
    assert read_indices(path, bench, named, [HASH])[HASH] == found


def test_names_in_place_of_numbers(tmp_path, bench):
    path = write(tmp_path / "i.json", {HASH: {"context": ["frame_00004.png"], "target": ["frame_00001.png"]}})
    assert read_indices(path, bench, PAPER)[HASH].inputs == ("frame_00004.png",)


BAD = {
    "counted from 0": {HASH: {"context": [0, 8], "target": [1]}},
    "each once": {HASH: {"context": [0, 0], "target": [1]}},
    "'context' must be": {HASH: {"context": [], "target": [1]}},
    "expected lists": {HASH: {"views": [0], "target": [1]}},
    "no image of this scene": {HASH: {"context": ["a.png"], "target": [1]}},
    "none of the 1 scenes": {"0" * 64: {"context": [0], "target": [1]}},
    "expected an object": [1],
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_index_files_are_one_line(tmp_path, bench, reason):
    with pytest.raises(ValueError, match=reason) as error:
        read_indices(write(tmp_path / "i.json", BAD[reason]), bench, PAPER)
    assert "i.json" in str(error.value) and "\n" not in str(error.value)


def test_published_index_files_are_read(tmp_path):
    files = sorted((SHARED / "formats" / "dl3dv").glob("*.json"))
    if not files:
        pytest.skip("formats/dl3dv is not beside the repository (RAYSPLAT_SHARED)")
    for file in files:
        table = json.loads(file.read_text())
        scene = next(iter(table))
        count = 1 + max(n for numbers in table[scene].values() for n in numbers)
        bench = FakeBench(replace(scene_of(count), name=scene))
        found = read_indices(file, bench, PAPER)[scene]
        first = table[scene].get("context") or table[scene]["input"]
        assert [int(name[:4]) for name in found.inputs] == first
        assert [int(name[:4]) for name in found.targets] == table[scene]["target"]


class FakeBench:
    """One scene in memory."""

    def __init__(self, scene):
        self.scene, self.scenes = scene, (scene.name,)

    def open(self, name):
        return self.scene
