"""Scene packs: what goes in comes out, only what is asked for is read, and damage of any byte is one line."""

import dataclasses
import json
import struct
import zlib

import cv2
import numpy as np
import pytest

from geometry import scene_pack
from geometry.byte_ranges import read_range
from geometry.encoded_photo import decode_photo, encode_photo, photo_size
from geometry.scene import Scene, SparsePoints, open_scene
from geometry.scene_depth import parse_depth, sparse_depth
from geometry.scene_pack import PackSettings, open_pack, verify_pack, write_pack
from geometry.scene_roots import find_scenes, open_any
from geometry.write_scene import write_scene
from tests.synthetic_photos import arc, pinhole

SIZE = (48, 64)


def made_scene(tmp_path, count=5, suffix=".jpg", size=SIZE) -> Scene:
    """Blotches as photo files, with cameras and points."""
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    w2c, K = arc(count), np.stack([pinhole(size, 60.0)] * count)
    files, rng = [], np.random.default_rng(0)
    for i in range(count):
        files.append(folder / f"frame_{i:03d}{suffix}")
        cv2.imwrite(str(files[-1]), cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), size[::-1]))
    points = SparsePoints(
        rng.uniform(-1, 1, (30, 3)), tuple(np.sort(rng.choice(30, 4 + i, replace=False)) for i in range(count))
    )
    names = tuple(file.name for file in files)

    def load(i):
        picture = cv2.imread(str(files[i]))
        if picture is None:
            raise OSError(f"{files[i]}: damaged")
        return np.ascontiguousarray(picture[..., ::-1])

    notes = ("a note",)
    return Scene("blotches", tmp_path, names, (size,) * count, load, w2c, K, points, tuple(files), notes)


def test_a_pack_gives_the_scene_back(tmp_path):
    scene = made_scene(tmp_path)
    (tmp_path / "depth").mkdir()
    depth = np.random.default_rng(1).uniform(0.5, 2, (24, 32)).astype(np.float16)
    np.save(tmp_path / "depth" / "frame_001.npy", depth)
    assert write_pack(scene, tmp_path / "a.scene") == []
    packed = verify_pack(tmp_path / "a.scene", PackSettings())
    assert (packed.name, packed.names, packed.sizes, packed.notes) == (
        scene.name,
        scene.names,
        scene.sizes,
        scene.notes,
    )
    assert np.array_equal(packed.w2c, scene.w2c) and np.array_equal(packed.K, scene.K)
    assert np.array_equal(packed.points.xyz, scene.points.xyz)
    assert all(np.array_equal(a, b) for a, b in zip(packed.points.visible, scene.points.visible, strict=True))
    for i in range(len(scene)):
        assert np.array_equal(packed.load(i), scene.load(i))
    assert np.array_equal(packed.load.depth(1), depth.astype(np.float32)) and packed.load.depth(0) is None
    assert open_pack(tmp_path / "a.scene", points=False).points is None
    content = (tmp_path / "a.scene").read_bytes()
    assert all(file.read_bytes() in content for file in scene.files), "JPEGs are stored as they are"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.scene", "depth", "photos"]


def test_a_scene_without_cameras_can_be_packed(tmp_path):
    scene = dataclasses.replace(made_scene(tmp_path, 2), w2c=None, K=None, points=None)
    write_pack(scene, tmp_path / "a.scene")
    packed = open_pack(tmp_path / "a.scene")
    assert packed.w2c is None and packed.K is None and packed.points is None


def test_photos_that_the_reader_changed_are_encoded_anew(tmp_path):
    scene = made_scene(tmp_path, 2)
    original = scene.load
    flipped = dataclasses.replace(scene, load=lambda i: np.ascontiguousarray(original(i)[:, ::-1]))
    write_pack(flipped, tmp_path / "a.scene")
    write_pack(flipped, tmp_path / "b.scene", PackSettings(lossless=True))
    error = np.abs(open_pack(tmp_path / "a.scene").load(0).astype(int) - flipped.load(0))
    assert 0 < error.mean() < 2
    assert np.array_equal(open_pack(tmp_path / "b.scene").load(0), flipped.load(0))


def test_shrinking_moves_the_cameras(tmp_path):
    scene = made_scene(tmp_path, 2, size=(90, 120))
    write_pack(scene, tmp_path / "a.scene", PackSettings(size=(30, 50)))
    packed = open_pack(tmp_path / "a.scene")
    assert packed.sizes[0] == packed.load(0).shape[:2] == (38, 50)
    np.testing.assert_allclose(packed.K[0, 0] / scene.K[0, 0].clip(1e-9), [50 / 120, 0, 50 / 120], rtol=1e-12)
    np.testing.assert_allclose(packed.K[0, 1, 1:] / scene.K[0, 1, 1:], 38 / 90, rtol=1e-12)
    write_pack(scene, tmp_path / "b.scene", PackSettings(size=(300, 500)))
    assert open_pack(tmp_path / "b.scene").sizes[0] == (90, 120), "never enlarged"


def test_jpegs_decode_at_a_fraction_of_their_size(tmp_path):
    scene = made_scene(tmp_path, 1, size=(240, 320))
    write_pack(scene, tmp_path / "a.scene")
    load = open_pack(tmp_path / "a.scene").load
    full = load(0)
    sizes = {(240, 320): (240, 320), (120, 160): (120, 160), (121, 160): (240, 320), (1, 1): (30, 40)}
    for least, size in sizes.items():
        small = load(0, least).astype(float)
        assert small.shape[:2] == size
        box = full.reshape(size[0], 240 // size[0], size[1], 320 // size[1], 3).mean((1, 3))
        assert 3 * np.abs(box - small).mean() < np.abs(box[1:, 1:] - small[:-1, :-1]).mean(), "not moved by a pixel"
    odd = encode_photo(full[:239], 95, False)
    assert decode_photo(odd, (239, 320), "", (50, 50)).shape[:2] == (239, 320), "half of 239 is no whole pixel"


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    write_pack(made_scene(tmp_path, 5, size=(240, 320)), tmp_path / "a.scene")
    monkeypatch.setattr(scene_pack, "FIRST_READ", 256)
    read = []
    monkeypatch.setattr(scene_pack, "read_range", lambda *a: (read.append(a[1:]), read_range(*a))[1])
    scene = open_pack(tmp_path / "a.scene")
    opened = sum(length for _, length in read)
    read.clear()
    scene.load(3)
    assert read == [(scene.load.photos[3].start, scene.load.photos[3].length)]
    assert opened + sum(b.length for b in scene.load.photos) == (tmp_path / "a.scene").stat().st_size


def test_packs_open_from_object_storage(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    scene = made_scene(tmp_path, 3)
    write_pack(scene, tmp_path / "a.scene")
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/1K/a.scene", (tmp_path / "a.scene").read_bytes())
    store.pipe_file("/bucket/1K/.b.scene.part", b"half")
    try:
        assert list(find_scenes("memory://bucket")) == ["1K/a"]
        packed = open_any(find_scenes("memory://bucket")["1K/a"])
        assert np.array_equal(packed.load(2), scene.load(2))
        with pytest.raises(FileNotFoundError):
            open_any("memory://bucket/nothing.scene")
        with pytest.raises(ValueError, match="no scene"):
            find_scenes("memory://elsewhere")
    finally:
        store.rm("/bucket", recursive=True)


def test_damage_of_any_byte_is_found_and_told_in_one_line(tmp_path):
    path = tmp_path / "a.scene"
    write_pack(made_scene(tmp_path, 2), path)
    whole = path.read_bytes()
    places = [*range(scene_pack.START.size + 40), *range(100, len(whole), 41), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="pack") as error:
            verify_pack(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    for length in [*range(60), *range(60, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="pack"):
            open_pack(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="should have"):
        open_pack(path)


def forge(whole: bytes, change) -> bytes:
    """A pack whose index was changed by someone who knows how to sum it."""
    _, length, _ = scene_pack.START.unpack_from(whole)
    start = scene_pack.START.size
    index = json.loads(whole[start : start + length])
    change(index)
    text = json.dumps(index, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length, "a forged index must not move the blobs"
    return scene_pack.START.pack(scene_pack.MAGIC, length, zlib.crc32(text)) + text + whole[start + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("views"),
        lambda index: index.update(views=7),
        lambda index: index.update(views=[]),
        lambda index: index["views"][0].update(photo=[0, 9, 0]),
        lambda index: index["views"][0].update(photo=[10**8, 9, 0]),
        lambda index: index["views"][0].update(photo=[99, -9, 0]),
        lambda index: index["views"][0].update(photo=[1.5, 9, 0]),
        lambda index: index["views"][0].update(photo=[9]),
        lambda index: index["views"][0].update(size=[]),
        lambda index: index["views"][0].update(name=index["views"][1]["name"]),
        lambda index: index["arrays"]["w2c"].update(dtype="|O"),
        lambda index: index["arrays"]["w2c"].update(shape=[9, 4, 4]),
        lambda index: index["arrays"]["K"].update(shape=[2, 9]),
        lambda index: index["arrays"].pop("K"),
        lambda index: index["arrays"]["points"].update(shape=[-1, 3]),
        lambda index: index.update(arrays=[]),
        lambda index: index.update(bytes=1),
    ],
)
def test_a_forged_index_is_refused(tmp_path, change):
    path = tmp_path / "a.scene"
    write_pack(made_scene(tmp_path, 2), path)
    path.write_bytes(forge(path.read_bytes(), change))
    with pytest.raises(ValueError, match=r"a\.scene"):
        open_pack(path)


def test_a_photo_that_claims_another_size_is_not_decoded(tmp_path):
    path = tmp_path / "a.scene"
    write_pack(made_scene(tmp_path, 2), path)
    path.write_bytes(forge(path.read_bytes(), lambda index: index["views"][0].update(size=[8, 4])))
    with pytest.raises(ValueError, match="not a JPEG or PNG of 4x8 pixels"):
        open_pack(path).load(0)
    bomb = bytearray(encode_photo(np.zeros((8, 8, 3), np.uint8), 95, True))
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    with pytest.raises(ValueError, match="view 0"):
        decode_photo(bytes(bomb), (8, 8), "view 0")


def test_other_versions_and_files_are_named(tmp_path):
    path = tmp_path / "a.scene"
    path.write_bytes(b"RSPACK\x00\x09" + bytes(100))
    with pytest.raises(ValueError, match="version 9"):
        open_pack(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a scene pack"):
        open_pack(path)
    with pytest.raises(FileNotFoundError):
        open_pack(tmp_path / "nothing.scene")


def test_damaged_photos_are_left_out_and_named_up_to_a_share(tmp_path):
    scene = made_scene(tmp_path, 12)
    scene.files[4].write_bytes(b"")
    (line,) = write_pack(scene, tmp_path / "a.scene")
    assert "frame_004.jpg" in line
    packed = verify_pack(tmp_path / "a.scene")
    assert len(packed) == 11 and "frame_004.jpg" not in packed.names and "frame_004" in packed.notes[-1]
    assert np.array_equal(packed.w2c, np.delete(scene.w2c, 4, 0))
    assert np.array_equal(packed.load(4), scene.load(5))
    scene.files[7].write_bytes(b"")
    with pytest.raises(ValueError, match="2 of the first 8 photos"):
        write_pack(scene, tmp_path / "b.scene")
    assert not (tmp_path / "b.scene").exists()


def test_a_failed_write_leaves_the_pack_before(tmp_path, monkeypatch):
    scene = made_scene(tmp_path, 2)
    write_pack(scene, tmp_path / "a.scene")
    before = (tmp_path / "a.scene").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scene_pack.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        write_pack(scene.select([0]), tmp_path / "a.scene")
    assert (tmp_path / "a.scene").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_headers_tell_sizes():
    picture = np.random.default_rng(0).integers(0, 255, (37, 51, 3), dtype=np.uint8)
    jpeg, png = encode_photo(picture, 90, False), encode_photo(picture, 90, True)
    progressive = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert {photo_size(content) for content in (jpeg, png, progressive)} == {(37, 51)}
    for content in (jpeg, png):
        for length in (0, 3, 10, 20):
            photo_size(content[:length])
    assert photo_size(b"GIF89a") is None and photo_size(jpeg[:20]) is None


def test_scenes_are_found_at_any_depth(tmp_path):
    scene = made_scene(tmp_path / "x" if (tmp_path / "x").mkdir() is None else tmp_path, 2)
    root = tmp_path / "root"
    write_scene(scene, root / "1K" / "aaa")
    write_scene(scene, root / "1K" / "bbb" / "nerfstudio")
    write_scene(scene, root / "ccc")
    (root / "2K").mkdir()
    write_pack(scene, root / "2K" / "ddd.scene")
    (root / ".hidden").mkdir()
    (root / "photos").mkdir()
    assert list(find_scenes(root)) == ["1K/aaa", "1K/bbb", "2K/ddd", "ccc"]
    assert list(find_scenes(root / "ccc")) == ["ccc"]
    assert list(find_scenes(root / "2K" / "ddd.scene")) == ["ddd"]
    assert all(len(open_any(path)) == 2 for path in find_scenes(root).values())
    assert np.array_equal(open_any(root / "2K" / "ddd.scene").w2c, scene.w2c)
    assert len(open_scene(root / "ccc")) == 2
    with pytest.raises(ValueError, match="no scene with cameras"):
        find_scenes(root / "photos")
    with pytest.raises(FileNotFoundError):
        find_scenes(root / "nothing")


def test_sparse_depth_puts_the_nearest_point_into_its_pixel():
    K, size = pinhole((40, 60), 50.0), (40, 60)
    pixels = np.array([[10.5, 20.5], [10.9, 20.1], [59.99, 39.99], [60.01, 10], [-0.5, 5.0], [30.5, 3.5]])
    z = np.array([3.0, 2.0, 4.0, 1.0, 1.0, -2.0])
    points = np.column_stack([(pixels - K[:2, 2]) / 50.0 * z[:, None], z])
    w2c = arc(3)[1]
    world = (points - w2c[:3, 3]) @ w2c[:3, :3]
    depth = sparse_depth(world, w2c, K, size)
    assert depth[20, 10] == pytest.approx(2.0) and depth[39, 59] == pytest.approx(4.0)
    assert (depth > 0).sum() == 2


def test_depth_files_are_floats_without_pickle(tmp_path):
    good = tmp_path / "a.npy"
    np.save(good, np.array([[1.0, np.nan], [-1.0, np.inf]]))
    assert parse_depth(good.read_bytes(), "a").tolist() == [[1.0, 0.0], [0.0, 0.0]]
    for bad in (np.ones((2, 2), int), np.ones(4), np.array([[object()]])):
        np.save(good, bad, allow_pickle=True)
        with pytest.raises(ValueError, match=r"^a: "):
            parse_depth(good.read_bytes(), "a")
    np.save(good, np.ones((20, 20)))
    for content in (good.read_bytes()[:-1], good.read_bytes()[:20], b"", b"\x93NUMPY\x01\x00\xff\xff{" + b" " * 70000):
        with pytest.raises(ValueError, match=r"^a: "):
            parse_depth(content, "a")
