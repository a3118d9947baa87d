"""Camera paths: through their keys, smoothly, the short way round, as text, and played in time."""

import math

import pytest
import torch

from geometry.cameras import Cameras
from tests.viewer_scene import SIZE, ring
from viewer import camera_keys
from viewer.browser_camera import cameras_text
from viewer.camera_keys import CameraPath


@pytest.mark.parametrize("loop", [False, True])
def test_a_path_passes_through_its_keys_smoothly(loop):
    keys = ring(4)
    path = CameraPath(keys, seconds=1.0, fps=20, loop=loop)
    cameras = camera_keys.frames(path)
    assert len(cameras.w2c) == path.frames == (80 if loop else 60)
    if loop:
        assert torch.allclose(cameras.w2c[::20], keys.w2c, atol=1e-4)
    else:
        assert torch.allclose(cameras.w2c[[0, -1]], keys.w2c[[0, -1]], atol=1e-4)
    rotation = cameras.w2c[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5)
    steps = cameras.centers.diff(dim=0).norm(dim=-1)
    assert float(steps.diff().abs().max()) < 0.3 * float(steps.max())


def test_a_path_turns_the_short_way():
    w2c = torch.eye(4).repeat(3, 1, 1)
    for i, degrees in enumerate((150.0, 180.0, 210.0)):  # where the sign of the quaternion flips
        a = math.radians(degrees)
        w2c[i, :3, :3] = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    cameras = camera_keys.frames(CameraPath(Cameras(w2c, ring(3).K, SIZE), seconds=1.0, fps=30))
    turned = (cameras.w2c[1:, :3, :3] * cameras.w2c[:-1, :3, :3]).sum((-1, -2))
    assert float(torch.rad2deg(torch.arccos(((turned - 1) / 2).clamp(-1, 1))).max()) < 3


def test_a_path_as_text():
    path = CameraPath(ring(3), seconds=1.5, fps=24, loop=True)
    back = camera_keys.path_from_text(camera_keys.path_text(path))
    assert (back.seconds, back.fps, back.loop, back.count) == (1.5, 24, True, 3)
    assert torch.allclose(back.keys.w2c, path.keys.w2c)
    plain = camera_keys.path_from_text(cameras_text(ring(2), ["a", "b"]))
    assert plain.count == 2 and plain.seconds == 2.0
    with pytest.raises(ValueError, match="no key frames"):
        camera_keys.path_text(CameraPath())
    with pytest.raises(ValueError, match="fps"):
        camera_keys.path_from_text(camera_keys.path_text(path).replace('"fps": 24', '"fps": "many"'))


def test_keys_from_windows_of_different_sizes_make_one_path():
    path = camera_keys.add_key(CameraPath(), ring()[:1])
    big = Cameras(ring().w2c[1:2], 3 * ring().K[:1], (90, 200))
    big.K[:, 2, 2] = 1
    path = camera_keys.add_key(path, big)
    assert path.keys.size == SIZE and path.count == 2
    assert torch.allclose(path.keys.K[0, 1], path.keys.K[1, 1])
    assert camera_keys.drop_last_key(camera_keys.drop_last_key(path)).keys is None
    with pytest.raises(ValueError, match="two key frames"):
        camera_keys.frames(camera_keys.drop_last_key(path))
    with pytest.raises(ValueError, match="too many"):
        camera_keys.frames(CameraPath(ring(3), seconds=60, fps=120))


@pytest.mark.parametrize("drawing", [0.0, 0.02, 0.7, 30.0])
def test_a_preview_begins_and_ends_in_time_however_slowly_it_is_drawn(drawing):
    clock, shown = [100.0], []

    def sleep(seconds):
        clock[0] += seconds

    for frame in camera_keys.in_time(60, 30, lambda: clock[0], sleep):
        shown.append(frame)
        sleep(drawing)
    assert shown[0] == 0 and shown[-1] == 59 and shown == sorted(shown)
    assert (len(shown) > 55) == (drawing == 0) and len(shown) >= 2
    late = clock[0] - 100 - 2
    assert late < 2 * drawing + 0.1
