"""Cameras from the world to the page and back, as text, and in pictures."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from geometry.cameras import Cameras, invert_rigid
from splat.cameras_json import write_cameras
from tests import viewer_scene
from tests.viewer_scene import SIZE, ring
from viewer.browser_camera import cameras_from_text, cameras_text, nearest_view, on_canvas, to_cameras, to_pose
from viewer.look import Look, picture
from viewer.view_panel import png_bytes


@pytest.fixture(scope="module")
def exhibit():
    return viewer_scene.exhibit()


def test_cameras_go_to_the_page_and_back():
    cameras = ring()
    K = torch.tensor([[35.0, 0, 20], [0, 35, 15], [0, 0, 1]])
    centred = Cameras(cameras.w2c[1:2], K[None], SIZE)
    back = to_cameras(to_pose(centred, (300, 400), 3.7), SIZE, 3.7)
    assert torch.allclose(back.w2c, centred.w2c, atol=1e-5) and torch.allclose(back.K, centred.K, atol=1e-4)


def test_a_wide_canvas_shows_the_whole_photo(exhibit):
    camera = exhibit.cameras[:1]
    for canvas in ((90, 400), (400, 90), (61, 81)):
        widened, (top, left, height, width) = on_canvas(camera, canvas)
        assert top >= 0 and top + height <= canvas[0] and left >= 0 and left + width <= canvas[1]
        seen = picture(exhibit, exhibit.gaussians, widened, Look(background=(0, 0, 0)))
        part = np.asarray(Image.fromarray(seen[top : top + height, left : left + width]).resize(SIZE[::-1], 4))
        photo = np.round(255 * exhibit.images[0].permute(1, 2, 0).numpy())
        in_place, *aside = (np.corrcoef(np.roll(part, n, 1).ravel(), photo.ravel())[0, 1] for n in (0, 1, -1))
        assert in_place > max(0.92, *[x + 0.02 for x in aside])


def test_the_view_one_stands_in_is_known(exhibit):
    scale = exhibit.browser_scale
    pose = to_pose(exhibit.cameras[1:2], (50, 80), scale)
    assert nearest_view(pose, exhibit.cameras, scale, exhibit.distance) == 1
    aside = to_pose(Cameras(ring(4).w2c[3:], exhibit.cameras.K[:1], SIZE), (50, 80), scale)
    assert nearest_view(aside, exhibit.cameras, scale, exhibit.distance) is None


def test_a_camera_as_text():
    cameras = ring()
    text = cameras_text(cameras, ["a", "b", "c"])
    assert torch.allclose(cameras_from_text(text).w2c, cameras.w2c)
    one = json.dumps(json.loads(text)[1])
    assert torch.allclose(cameras_from_text(one).w2c, cameras.w2c[1:2])
    for bad in ("", "{", "[]", '[{"width": 3}]', "7"):
        with pytest.raises(ValueError, match="the cameras' JSON") as error:
            cameras_from_text(bad)
        assert "tmp" not in str(error.value)


def test_a_still_tells_its_camera():
    camera = ring()[:1]
    image = Image.open(io.BytesIO(png_bytes(np.zeros((*SIZE, 3), np.uint8), camera)))
    assert image.size == SIZE[::-1]
    assert torch.allclose(cameras_from_text(image.text["camera"]).K, camera.K)


def test_the_cameras_text_is_what_render_reads(tmp_path, exhibit):
    write_cameras(tmp_path / "a.json", exhibit.cameras, list(exhibit.names))
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(cameras_text(exhibit.cameras, [*exhibit.names]))
    assert torch.allclose(invert_rigid(exhibit.cameras.w2c), exhibit.cameras.c2w)
