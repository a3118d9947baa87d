"""Camera poses from photos alone, on a rendered corner whose cameras are known."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geometry.scene import Scene, open_scene, views
from geometry.sfm import PosesNotFound, reconstruct_poses
from tests.synthetic_photos import arc, pinhole, render_corner, similarity_errors

needs_pycolmap = pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="pycolmap is not installed")
SIZE, FOCAL = (240, 320), 300.0


@pytest.fixture(scope="module")
def scene() -> Scene:
    K = pinhole(SIZE, FOCAL)
    w2c = arc(6, degrees=36)
    photos = [render_corner(w, K, SIZE) for w in w2c]
    names = tuple(f"{i}.png" for i in range(6))
    return Scene("corner", Path("corner"), names, (SIZE,) * 6, lambda i: photos[i], w2c, np.stack([K] * 6))


@pytest.fixture
def own_temp(tmp_path, monkeypatch) -> Path:
    """Temporary folders are made below this one, so that what stays behind is seen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@needs_pycolmap
def test_known_cameras_are_found_again(scene, own_temp, capfd):
    posed = reconstruct_poses(replace(scene, w2c=None, K=None))
    center_error, degrees = similarity_errors(posed.w2c, scene.w2c)
    assert center_error < 0.01 and degrees < 0.5
    assert abs(posed.K[0, 0, 0] / FOCAL - 1) < 0.03 and np.ptp(posed.K, axis=0).max() == 0
    assert posed.names == scene.names and len(posed.points.xyz) > 100 and len(posed.points.visible) == 6
    assert "6 of 6 photos" in posed.notes[-1]
    images, cameras = views(posed, size=70, multiple=14)
    assert images.shape == (6, 3, 56, 70) and cameras.shape == (6,)
    assert not list(own_temp.iterdir())
    printed = capfd.readouterr()
    assert printed.out == "" and "100%" in printed.err


@needs_pycolmap
def test_two_photos_of_two_sizes_with_a_known_focal_length(scene, own_temp, capfd):
    """The second photo is turned by 90 degrees, as phones do; K is known, so the pair alone suffices."""
    photos = [scene.load(1), np.ascontiguousarray(np.rot90(scene.load(3), -1))]
    K = np.stack([pinhole(photo.shape[:2], FOCAL) for photo in photos])
    sizes = tuple(photo.shape[:2] for photo in photos)
    pair = Scene("pair", Path("pair"), ("a", "b"), sizes, lambda i: photos[i], None, K)
    posed = reconstruct_poses(pair, progress=False)
    turn = np.eye(4)
    turn[:2, :2] = [[0, -1], [1, 0]]  # camera axes of the photo turned clockwise
    want = turn @ scene.w2c[3] @ np.linalg.inv(scene.w2c[1])
    found = posed.w2c[1] @ np.linalg.inv(posed.w2c[0])
    angle = np.degrees(np.arccos(np.clip((np.trace(found[:3, :3] @ want[:3, :3].T) - 1) / 2, -1, 1)))
    along = found[:3, 3] @ want[:3, 3] / np.linalg.norm(found[:3, 3]) / np.linalg.norm(want[:3, 3])
    assert angle < 1 and along > 0.995
    assert capfd.readouterr().err == ""


@needs_pycolmap
def test_a_foreign_photo_is_left_out_with_a_note(scene, capfd):
    noise = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    chosen = scene.select([1, 0, 2, 3])
    mixed = replace(chosen, load=lambda i: noise if i == 1 else chosen.load(i), w2c=None, K=None)
    posed = reconstruct_poses(mixed, progress=False)
    assert posed.names == ("1.png", "2.png", "3.png")
    assert "3 of 4 photos; 1 could not be placed" in posed.notes[-1]


@needs_pycolmap
def test_one_photo_and_blank_photos_have_no_poses(scene, own_temp, capfd):
    with pytest.raises(PosesNotFound, match="at least 2 photos"):
        reconstruct_poses(scene.select([0]))
    blank = replace(scene, load=lambda i: np.full((*SIZE, 3), 128, np.uint8), w2c=None, K=None)
    with pytest.raises(PosesNotFound, match="corner: no camera poses found for 6 photos") as error:
        reconstruct_poses(blank, progress=False)
    assert "\n" not in str(error.value) and not list(own_temp.iterdir())


@needs_pycolmap
def test_a_broken_photo_is_named_and_nothing_stays_behind(scene, tmp_path, own_temp):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(scene.load(i)).save(photos / f"{i}.jpg")
    broken = open_scene(photos)
    (photos / "2.jpg").write_bytes((photos / "2.jpg").read_bytes()[:2000])
    with pytest.raises(OSError, match=r"2\.jpg: the image is damaged"):
        reconstruct_poses(broken, progress=False)
    assert [p.name for p in own_temp.iterdir()] == ["photos"]


def test_without_pycolmap_the_install_line_is_told(scene, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(ImportError, match=r"pip install raysplat\[colmap\]"):
        reconstruct_poses(scene)
