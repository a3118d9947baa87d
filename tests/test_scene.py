"""Opening scenes: folders and one photo; the views made from them."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from geometry.cameras import Cameras, project
from geometry.scene import Scene, SparsePoints, open_scene, scene_from_tensors, scene_name, views
from tests.synthetic_photos import arc, dot, dot_position, look_at, pinhole


def save(path, image=None, size=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8) if image is None else image).save(path)
    return path


# Folders of photos


def test_folder_is_read_in_natural_order(tmp_path):
    for name in ("f10.png", "f9.jpg", "f9.png", ".hidden.png", "._f9.jpg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    scene = open_scene(tmp_path)
    assert scene.names == ("f9.jpg", "f9.png", "f10.png")
    assert scene.notes == ("1 file(s) that are no photos were ignored",)
    assert scene.w2c is None and scene.K is None and scene.sizes == ((30, 40),) * 3
    assert scene.load(0).shape == (30, 40, 3)


def test_one_photo_is_a_scene(tmp_path):
    save(tmp_path / "scene" / "only.png")
    for path in (tmp_path / "scene", tmp_path / "scene" / "only.png"):
        images, cameras = views(open_scene(path), size=28, multiple=14)
        assert images.shape == (1, 3, 28, 28) and cameras is None


def test_images_folder_below_is_found(tmp_path):
    save(tmp_path / "trip" / "images" / "a.png")
    save(tmp_path / "trip" / "._a.png")
    scene = open_scene(tmp_path / "trip")
    assert scene.names == ("a.png",) and scene.name == "trip"
    assert scene_name(tmp_path / "07d9" / "nerfstudio") == "07d9"


@pytest.mark.parametrize("what", ["missing", "empty", "text", "zero"])
def test_folders_that_are_no_scene(tmp_path, what):
    path = tmp_path / what
    if what == "text":
        path.write_text("x")
    elif what != "missing":
        path.mkdir()
    if what == "zero":
        (path / "zero.jpg").write_bytes(b"")
    with pytest.raises((OSError, ValueError), match=what) as error:
        open_scene(path)
    assert "\n" not in str(error.value)


# Views


def scene_of_a_dot(point, w2c, K, sizes) -> Scene:
    """In memory; every photo shows one world point as a dot."""
    pixels = []
    for w, k in zip(w2c, K):
        local = k @ (w[:3, :3] @ point + w[:3, 3])
        pixels.append(local[:2] / local[2])
    photos = [dot(size, pixel) for size, pixel in zip(sizes, pixels)]
    names = tuple(f"{i}" for i in range(len(sizes)))
    return Scene("dots", os.curdir, names, tuple(sizes), lambda i: photos[i], w2c, K)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size, multiple", [(56, 14), ((50, 91), 1), (420, 14), ((140, 98), 14)])
def test_K_follows_resize_and_crop(fit, size, multiple):
    sizes = [(120, 161), (161, 120), (90, 170), (120, 160)]
    w2c = np.stack([look_at((0.4 * i - 0.5, 0.1 * i, -4), (0, 0, 0)) for i in range(4)])
    K = np.stack([pinhole(s, 110.0 + i) for i, s in enumerate(sizes)])
    K[:, 0, 2] += 3.3
    point = np.array([0.05, -0.1, 0.2])
    scene = scene_of_a_dot(point, w2c, K, sizes)
    images, cameras = views(scene, size=size, multiple=multiple, fit=fit)
    assert images.shape == (4, 3, *cameras.size) and images.dtype == torch.float32
    assert cameras.size[0] % multiple == 0 and cameras.size[1] % multiple == 0
    pixels, _ = project(torch.tensor(point).float().expand(4, 1, 3), cameras)
    for image, pixel in zip(images, pixels[:, 0]):
        found = dot_position((image.permute(1, 2, 0) * 255).numpy())
        np.testing.assert_allclose(found, pixel, atol=0.12)


def test_size_must_be_a_multiple():
    scene = scene_from_tensors(torch.rand(1, 3, 270, 480))
    with pytest.raises(ValueError, match="270x480 is no multiple of 14; the nearest is 266x476"):
        views(scene, size=(270, 480), multiple=14)
    assert views(scene, size=(270, 480))[0].shape == (1, 3, 270, 480)


def test_chosen_views_keep_their_order_and_cameras():
    images, w2c = torch.rand(5, 3, 8, 8), torch.tensor(arc(5))
    cameras = Cameras(w2c, torch.tensor(np.stack([pinhole((8, 8), 9.0)] * 5)), (8, 8))
    scene = scene_from_tensors(images, cameras)
    got, cut = views(scene, [3, 1], (8, 8))
    assert (got - images[[3, 1]]).abs().max() < 0.5 / 255 + 1e-6
    torch.testing.assert_close(cut.w2c, w2c[[3, 1]].float())
    again = scene.select([4, 3, 1]).select([2, 0])
    assert again.names == ("0001", "0004") and np.array_equal(again.load(0), scene.load(1))


def test_select_carries_the_tracks_along():
    scene = scene_from_tensors(torch.rand(3, 3, 8, 8))
    points = SparsePoints(np.zeros((4, 3)), (np.array([0]), np.array([1, 2]), np.array([3])))
    chosen = replace(scene, points=points).select([2, 1])
    assert [seen.tolist() for seen in chosen.points.visible] == [[3], [1, 2]]


def test_map_coordinates_are_refused_before_float32_blurs_them():
    w2c = arc(3)
    w2c[:, :3, 3] -= np.einsum("vij,j->vi", w2c[:, :3, :3], np.array([5e5, 4e6, 100.0]))
    K = np.stack([pinhole((8, 8), 9.0)] * 3)
    scene = Scene("utm", os.curdir, ("a", "b", "c"), ((8, 8),) * 3, lambda i: np.zeros((8, 8, 3), np.uint8), w2c, K)
    with pytest.raises(ValueError, match="subtract that position"):
        views(scene, size=8)
