"""Sources of training samples: pure functions of their seed, bad data skipped and counted, the benchmark refused."""

import dataclasses
import json
import time

import cv2
import numpy as np
import pytest
import torch

from geometry.alignment import rotation_error
from geometry.cameras import Cameras, project
from geometry.dl3dv import BENCHMARK
from geometry.scene import SparsePoints, scene_from_tensors
from geometry.scene_pack import PackSettings, write_pack
from geometry.write_scene import write_scene
from tests.synthetic_photos import arc, dot, dot_position, pinhole
from train.augment import Augmentation
from train.batch import Batch, Shape, sample_seed
from train.cache import Cache
from train.scene_sources import ENOUGH, SceneOptions, SceneSource
from train.sources import MixedSource, open_scene_sources
from train.synthetic_source import SyntheticSource

SIZE, FOCAL = (48, 64), 60.0
SHAPE = Shape(2, 3, 2, (28, 42))
PLAIN = SceneOptions(augmentation=Augmentation(mirror=0, gamma=1, gain=0), decoders=2)
HASH = BENCHMARK[17] + "ab" * 24


def dotted_scene(name: str, count: int = 7, shift: float = 0.0):
    """Each view shows one dot: the world point (0.1, 0.2, 0). The world may lie far from the origin."""
    w2c, K = arc(count), np.stack([pinhole(SIZE, FOCAL)] * count)
    point = np.array([0.1, 0.2, 0.0])
    pictures = []
    for i in range(count):
        local = w2c[i, :3, :3] @ point + w2c[i, :3, 3]
        pixel = (K[i] @ local)[:2] / local[2]
        pictures.append(dot(SIZE, pixel, 3.0))
    w2c[:, :3, 3] -= w2c[:, :3, :3] @ np.full(3, shift)
    scene = scene_from_tensors(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255, None, name)
    points = SparsePoints(point[None] + shift, (np.array([0]),) * count)
    return dataclasses.replace(scene, w2c=w2c, K=K, points=points)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "scenes"
    write_scene(dotted_scene("walk"), folder / "1K" / "walk")
    (folder / "2K").mkdir()
    write_pack(dotted_scene("arc", 9), folder / "2K" / "arc.scene")
    write_scene(dotted_scene("few", 4), folder / "few")
    return folder


def source(root, **options) -> SceneSource:
    return SceneSource(root, torch.device("cpu"), dataclasses.replace(PLAIN, **options))


def test_batches_are_pure_functions_of_seed_and_turn(root):
    first, second = source(root, augmentation=Augmentation(zoom=1.3)), source(root, augmentation=Augmentation(zoom=1.3))
    one = first.batch(5, SHAPE, 1)
    for seed in (7, 8):  # another history
        second.batch(seed, SHAPE)
    same = second.batch(5, SHAPE, 1)
    assert one.names == same.names and one.images.equal(same.images) and one.cameras.K.equal(same.cameras.K)
    assert one.images.shape == (2, 5, 3, 28, 42) and one.cameras.shape == (2, 5) and one.depth is None
    assert not one.images.equal(first.batch(5, SHAPE, 2).images) and not one.images.equal(
        first.batch(6, SHAPE, 1).images
    )
    drawn = {name.rsplit("/", 1)[0] for seed in range(20) for name in first.batch(seed, SHAPE).names}
    assert drawn == {"1K/walk", "2K/arc"}, "every scene is drawn, but for the one with too few views"
    assert first.bad_draws == 0


@pytest.mark.parametrize("sampling", ["window", "farthest"])
def test_pictures_cameras_and_depth_agree(root, sampling):
    """The dot of each view is where its camera sees the world point, whatever was cut, scaled and mirrored."""
    options = {
        "sampling": sampling,
        "depth": "sparse",
        "augmentation": Augmentation(gamma=1, gain=0, zoom=1.2, shift=0.2),
    }
    drawn = source(root, **options)
    for seed in range(4):
        batch = drawn.batch(seed, SHAPE)
        for b in range(2):
            for v in range(5):
                picture = batch.images[b, v].permute(1, 2, 0).numpy()
                known = batch.depth[b, v].nonzero()
                if not batch.names[b].startswith("2K"):
                    assert len(known) == 0, "a folder of transforms.json does not say who saw which point"
                    continue
                assert len(known) == 1 and batch.valid[b, v].sum() == 1
                row, column = known[0].tolist()
                z = batch.depth[b, v, row, column]
                camera = batch.cameras[b, v]
                # Only the first view of the scene and this one agree on the point if both cameras are right.
                inverse = torch.linalg.inv(camera.K.double())
                x, y = dot_position(picture)
                local = inverse @ torch.tensor([x, y, 1.0], dtype=torch.float64) * z
                world = camera.c2w.double() @ torch.cat([local, torch.ones(1, dtype=torch.float64)])
                others = project(world[None, None, :3].float(), batch.cameras[b])[0][:, 0]
                for other, pixel in zip(batch.images[b], others):
                    seen = dot_position(other.permute(1, 2, 0).numpy())
                    np.testing.assert_allclose(pixel.numpy(), seen, atol=0.35)
                assert abs(column + 0.5 - x) < 0.8 and abs(row + 0.5 - y) < 0.8


def test_map_coordinates_survive_single_precision(tmp_path):
    write_scene(dotted_scene("near"), tmp_path / "a" / "scene")
    write_scene(dotted_scene("near", shift=4e6), tmp_path / "b" / "scene")
    near, far = (source(tmp_path / name).batch(3, SHAPE) for name in "ab")
    assert near.names == far.names
    torch.testing.assert_close(near.cameras.w2c, far.cameras.w2c, atol=1e-5, rtol=0)


def test_packs_and_folders_give_the_same_samples(tmp_path):
    write_scene(dotted_scene("s"), tmp_path / "folders" / "s")
    (tmp_path / "packs").mkdir()
    write_pack(dotted_scene("s"), tmp_path / "packs" / "s.scene", PackSettings(lossless=True))
    a, b = (source(tmp_path / kind).batch(1, SHAPE) for kind in ("folders", "packs"))
    assert a.names == b.names and a.images.equal(b.images)
    torch.testing.assert_close(a.cameras.K, b.cameras.K)
    torch.testing.assert_close(a.cameras.w2c, b.cameras.w2c)


def test_only_the_drawn_photos_are_decoded_and_the_cache_is_bounded(tmp_path):
    (tmp_path / "packs").mkdir()
    write_pack(dotted_scene("s", 40), tmp_path / "packs" / "s.scene")
    drawn = source(tmp_path / "packs", cache_mb=1)
    drawn.batch(0, Shape(1, 3, 2, (28, 42)))
    assert len(drawn._photos._kept) == 5
    cache, made = Cache(10), []
    for key in "aab":
        cache.get(key, lambda key=key: made.append(key) or key, lambda value: 6)
    assert made == ["a", "b"] and cache.total == 6
    cache.get("large", lambda: "large", lambda value: 11)
    assert cache.total == 6


def test_stored_depth_follows_the_photo(tmp_path):
    write_scene(dotted_scene("s"), tmp_path / "scenes" / "s")
    (tmp_path / "scenes" / "s" / "depth").mkdir()
    for i in range(7):
        marked = (dot(SIZE, (20.5 + i, 30.5), 3.0)[..., 0] / 255).astype(np.float32)
        np.save(tmp_path / "scenes" / "s" / "depth" / f"{i:04d}.npy", marked)
    options = {"depth": "stored", "augmentation": Augmentation(mirror=1, gamma=1, gain=0)}
    batch = source(tmp_path / "scenes", **options).batch(0, Shape(1, 3, 2, SIZE))
    assert not batch.metric and source(tmp_path / "scenes", depth="sparse").batch(0, SHAPE).metric
    views = list(map(int, batch.names[0].split("/")[1].split(",")))
    for v, i in enumerate(views):
        place = divmod(int(batch.depth[0, v].argmax()), SIZE[1])
        assert place == (30, 63 - (20 + i))


def spoil_photo(folder):
    photo = sorted((folder / "images").iterdir())[2]
    photo.write_bytes(photo.read_bytes()[:120])


def spoil_size(folder):
    cv2.imwrite(str(sorted((folder / "images").iterdir())[2]), np.zeros((64, 40, 3), np.uint8))


def spoil_pose(folder, value=float("nan")):
    meta = json.loads((folder / "transforms.json").read_text())
    meta["frames"][1]["transform_matrix"][0][0] = value
    (folder / "transforms.json").write_text(json.dumps(meta))


def spoil_rotation(folder):
    spoil_pose(folder, 7.0)


def remove_photo(folder):
    sorted((folder / "images").iterdir())[2].unlink()


def empty_photo(folder):
    sorted((folder / "images").iterdir())[2].write_bytes(b"")


@pytest.mark.parametrize("spoil", [spoil_photo, spoil_size, spoil_pose, spoil_rotation, remove_photo, empty_photo])
def test_bad_data_is_skipped_counted_and_named_once(root, capsys, spoil):
    spoil(root / "1K" / "walk")
    shape = Shape(4, 6, 1, (28, 42))  # all views of the scene, so that the bad one is met
    drawn, again = source(root, max_bad=1.0), source(root, max_bad=1.0)
    batches = [drawn.batch(seed, shape) for seed in range(3)]
    assert {name.rsplit("/", 1)[0] for batch in batches for name in batch.names} == {"2K/arc"}
    assert drawn.bad_draws >= 1 and drawn.draws == drawn.bad_draws + 12
    assert list(drawn.faults) == ["1K/walk"]
    assert capsys.readouterr().err.count("skipped:") == 1
    assert again.batch(2, shape).names == batches[2].names, "what was bad before does not steer what is drawn"


def test_a_bad_sample_writes_nothing_into_the_one_that_takes_its_place(root, monkeypatch):
    """One photo breaks at once while the others of its scene are still being decoded."""
    slow = source(root, max_bad=1.0)
    photo = slow._photo

    def read(scene, i, placed):
        if scene.name != "walk":
            return photo(scene, i, placed)
        if i % 2:
            raise OSError("cut off")
        time.sleep(0.05)
        return np.zeros_like(photo(scene, i, placed))

    monkeypatch.setattr(slow, "_photo", read)
    made = [slow.batch(seed, SHAPE) for seed in range(4)]
    assert slow.bad_draws > 0
    time.sleep(0.2)
    remove_photo(root / "1K" / "walk")
    (root / "1K" / "walk" / "transforms.json").write_text("{")
    same = [source(root, max_bad=1.0).batch(seed, SHAPE) for seed in range(4)]
    assert all(a.names == b.names and a.images.equal(b.images) for a, b in zip(made, same))


def test_a_frame_that_the_reader_left_out_is_told_once_and_the_rest_trains(tmp_path, capsys):
    write_scene(dotted_scene("long", 12), tmp_path / "scenes" / "long")
    remove_photo(tmp_path / "scenes" / "long")
    drawn = source(tmp_path / "scenes")
    batches = [drawn.batch(seed, Shape(2, 8, 3, (28, 42))) for seed in range(3)]
    assert all(len(batch.names) == 2 for batch in batches) and drawn.bad_draws == 0
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "0002" in line]
    assert "1 of 12 frames cannot be used and were left out" in told and list(drawn.faults) == ["long"]


def test_too_much_bad_data_stops_the_run(root):
    spoil_photo(root / "1K" / "walk")
    drawn = source(root, max_bad=0.05)
    with pytest.raises(ValueError, match=r"draws met bad data"):
        for seed in range(2 * ENOUGH):
            drawn.batch(seed, Shape(1, 6, 1, (28, 42)))
    assert drawn.draws >= ENOUGH
    with pytest.raises(ValueError, match="20 scenes in a row could not be used.*few has 4 views, 6 \\+ 4"):
        source(root / "few").batch(0, Shape(1, 6, 4, (28, 42)))


def test_scenes_of_the_benchmark_are_refused(root, tmp_path):
    source(root)
    write_scene(dotted_scene("x"), root / "1K" / ("cd" * 32))
    source(root)
    write_pack(dotted_scene(HASH), tmp_path / "renamed.scene")
    write_scene(dotted_scene("x"), root / HASH / "nerfstudio")
    with pytest.raises(ValueError, match=f"{HASH} is one of the 140"):
        source(root)
    assert source(root, allow_benchmark=True).batch(0, SHAPE).images.shape[0] == 2
    with pytest.raises(ValueError, match=f"{HASH} is one of the 140"):
        source(tmp_path / "renamed.scene").batch(0, SHAPE)


def test_a_root_without_scenes_is_one_line(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no scene with cameras"):
        source(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such"):
        source(tmp_path / "elsewhere")


class Named:
    def __init__(self, name):
        self.name = name

    def batch(self, seed, shape, turn=0):
        return Batch(None, None, None, None, 1, (f"{self.name}/{seed}/{turn}",))


def test_sources_mix_by_weight():
    mixed = MixedSource({Named("a"): 3.0, Named("b"): 1.0})
    names = [mixed.batch(seed, SHAPE, turn).names[0] for seed in range(400) for turn in range(2)]
    assert names == [mixed.batch(seed, SHAPE, turn).names[0] for seed in range(400) for turn in range(2)]
    share = sum(name.startswith("a/") for name in names) / len(names)
    assert 0.7 < share < 0.8 and names[1].endswith("/0/1")
    for wrong in ({}, {Named("a"): 0.0}):
        with pytest.raises(ValueError, match="weights above 0"):
            MixedSource(wrong)


def test_roots_with_weights(root):
    device = torch.device("cpu")
    assert isinstance(open_scene_sources([root], device), SceneSource)
    mixed = open_scene_sources([f"{root / '1K'}=3", str(root / "2K"), f"{root / 'few'}=0.5"], device)
    assert mixed.weights == [3.0, 1.0, 0.5] and len(mixed.sources[1].names) == 1


def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes(root):
    def samples(processes):
        made = {}
        for rank in range(processes):
            drawn = source(root)
            for step in range(2):
                for index in range(rank, 4, processes):
                    made[step, index] = drawn.batch(sample_seed(0, step, index), SHAPE).names
        return made

    assert samples(1) == samples(2) == samples(4)


def test_a_draw_is_made_once_for_all_that_take_turns_on_it(monkeypatch):
    """Two batches a step, three steps a draw: two draws in all, whatever the order."""
    source = SyntheticSource(torch.device("cpu"), textures=4, draws=2)
    made = []

    def draw(seed: int, shape: Shape):
        made.append(seed)
        return Batch(
            torch.full((2, 3, 3, 14, 14), float(seed)),
            Cameras(torch.eye(4).repeat(2, 3, 1, 1), torch.eye(3).repeat(2, 3, 1, 1), (14, 14)),
            torch.ones(2, 3, 14, 14),
            torch.ones(2, 3, 14, 14, dtype=torch.bool),
            2,
            ("a", "b"),
        )

    monkeypatch.setattr(source, "draw", draw)
    shape = Shape(1, 2, 1, (14, 14))
    seen = [float(source.batch(seed, shape, turn).images.mean()) for turn in range(3) for seed in (5, 6)]
    assert seen == [5, 6] * 3 and made == [5, 6]
    source.batch(7, shape)
    source.batch(5, shape)
    assert made == [5, 6, 7, 5], "the oldest goes when there are too many"


def test_views_of_a_wide_draw_turn_farther():
    source = SyntheticSource(torch.device("cpu"), textures=4)
    turned = {}
    for wide in (False, True):
        shape = Shape(4, 4, 0, (28, 28), wide)
        batches = [source.draw(seed, shape).cameras for seed in range(2)]
        scenes = [cameras[i] for cameras in batches for i in range(len(cameras.w2c))]
        unturned = [dataclasses.replace(scene, w2c=torch.eye(4).expand(4, 4, 4)) for scene in scenes]
        turned[wide] = np.median([float(rotation_error(*pair)) for pair in zip(unturned, scenes, strict=True)])
    assert turned[True] > 1.5 * turned[False]


def test_views_of_a_draw_of_lenses_zoom():
    source = SyntheticSource(torch.device("cpu"), textures=4)
    zoom = {}
    for lenses in (False, True):
        focal = source.draw(1, Shape(6, 4, 0, (28, 28), lenses=lenses)).cameras.K[..., 0, 0]
        zoom[lenses] = float((focal.amax(1) / focal.amin(1)).median())
    assert zoom[False] < 1.1 and zoom[True] > 1.4
