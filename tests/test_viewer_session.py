"""A tab without its browser: which pictures are sent, how large, and what is said when there are none."""

import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from splat.metrics import psnr
from tests import viewer_scene
from viewer import app as app_module
from viewer import session as session_module
from viewer.app import App, render_device
from viewer.browser_camera import to_pose
from viewer.compare import view_error
from viewer.session import RENDERED, SPLATS, Session

GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


class Camera:
    """The part of viser's camera that a session reads and sets."""

    wxyz, position, fov = np.array([1.0, 0, 0, 0]), np.zeros(3), 1.0
    image_height, image_width = 60, 90

    def __setattr__(self, name, value):
        super().__setattr__(name, np.array(value) if isinstance(value, tuple) else value)

    def on_update(self, callback):
        self.moved = lambda: callback(None)


class Client:
    """Stands in for viser's client: keeps what it is sent."""

    client_id = 7

    def __init__(self):
        self.camera, self.scene = Camera(), self
        self.frames, self.splats, self.notices, self.fails, self.removed = [], [], [], None, 0

    def set_background_image(self, image, format, jpeg_quality):
        if self.fails:
            raise self.fails
        self.frames.append(image)

    def add_gaussian_splats(self, name, *buffers):
        self.splats.append(buffers)
        return self

    def remove(self):
        self.removed += 1

    def set_global_visibility(self, visible):
        self.visible = visible

    def add_notification(self, title, body, **_):
        self.notices.append(body)

    def atomic(self):
        return nullcontext()


@pytest.fixture(params=DEVICES)
def tab(request):
    """A session that shows the wall from its first photo, drawn by the browser."""
    app = App(1000, request.param)
    app.show(viewer_scene.exhibit())
    session = Session(app, Client())
    session.open("wall")
    yield session
    app.close()


def until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def done(session: Session) -> None:
    """Wait until what was to be drawn is drawn."""
    until(lambda: not session.app.worker._waiting)
    session.app.worker.call(lambda: None)


def test_frames_are_what_the_cpu_renders(tab):
    e = viewer_scene.exhibit()
    tab.mode = RENDERED
    for kind, mode in (("color", RENDERED), ("depth", "depth"), ("alpha", "opacity (alpha)")):
        tab.mode = mode
        tab.redraw()
        done(tab)
        expected = session_module.picture(e, e.gaussians, tab.camera(), replace(tab.look, kind=kind))
        sent, expected = (torch.from_numpy(x / 255) for x in (tab.client.frames[-1], expected))
        assert expected.std() > 0.02 and psnr(sent, expected) > 45
    tab.look = replace(tab.look, background=(0, 0, 0))
    still = tab.still(e.cameras[1:2])
    assert psnr(torch.from_numpy(still / 255), e.images[1].movedim(0, -1)) > 45


def test_frames_are_small_while_the_camera_moves_and_whole_when_it_rests(tab):
    tab.mode = RENDERED
    tab._pace = 200.0  # seconds a megapixel: a very slow machine
    for x in np.linspace(0, 0.1, 5):
        tab.client.camera.position = np.array([x, 0, 0])
        tab.client.camera.moved()
    done(tab)
    *drafts, last = (frame.shape[:2] for frame in tab.client.frames)
    assert last == (60, 90) and drafts and all(shape < (60, 90) for shape in drafts)
    assert tab._pace < 200


def test_gaussians_are_chosen_once_and_stay_where_they_are_rendered(tab, monkeypatch):
    calls = []
    monkeypatch.setattr(session_module, "shown", lambda e, look: calls.append(e.name) or e.gaussians)
    tab.mode, tab._pace = RENDERED, 1e-6
    for _ in range(4):
        tab.client.camera.moved()
        done(tab)
    assert calls == ["wall"] and tab.gaussians().means.device.type == tab.app.device
    tab.look = replace(tab.look, opacity=0.5)
    tab.redraw()
    done(tab)
    assert calls == ["wall", "wall"]


def test_the_browser_gets_few_enough_splats(tab):
    done(tab)
    centers, covariances, rgbs, opacities = tab.client.splats[-1]
    assert 900 < len(centers) <= 1000 and all(isinstance(part, np.ndarray) for part in (covariances, rgbs, opacities))
    tab.redraw()
    done(tab)
    assert len(tab.client.splats) == 1 and tab.mode == SPLATS  # nothing changed, so nothing is sent anew


def test_a_browser_that_draws_no_splats_gets_pictures():
    app = App(0, "cpu")
    app.show(viewer_scene.exhibit())
    session = Session(app, Client())
    session.open("wall")
    done(session)
    assert session.client.frames and not session.client.splats
    app.close()


def test_splats_leave_the_browser_while_the_server_renders(tab):
    done(tab)
    page = np.zeros((60, 90, 3), np.uint8)
    for step, away in enumerate((lambda: setattr(tab, "mode", RENDERED), lambda: tab.show_sheet(lambda size: page))):
        away()
        tab.redraw()
        done(tab)
        assert tab.client.removed == step + 1
        tab.mode = SPLATS
        tab.open("wall")
        done(tab)
        assert len(tab.client.splats) == step + 2


def test_what_a_user_does_to_the_scene_brings_it_back_to_sight(tab):
    page, done_to = np.zeros((60, 90, 3), np.uint8), []
    act = tab.scene_action(lambda event: done_to.append(tab.sheet is None))
    tab.show_sheet(lambda size: page)
    act(SimpleNamespace(client=None))  # a value that the server set
    act(SimpleNamespace(client=tab.client))
    assert done_to == [False, True] and tab.client.visible
    tab.exhibit = None
    act(SimpleNamespace(client=tab.client))
    assert tab.client.notices == ["no scene is open yet"] and len(done_to) == 2


def test_photos_are_scored_alike(tab):
    e = viewer_scene.exhibit()
    ours, exact = (view_error(x, tab.look, 1).psnr for x in (tab.exhibit, e))
    assert ours == pytest.approx(exact, abs=0.5) or min(ours, exact) > 45


def test_what_cannot_be_drawn_is_told_once(tab):
    tab.mode, tab._pace = RENDERED, 1e-6
    done(tab)
    tab.client.fails = RuntimeError("CUDA out of memory.\nTried to allocate")
    for _ in range(3):
        tab.client.camera.moved()
        done(tab)
    assert tab.client.notices == ["CUDA out of memory. Tried to allocate"]
    tab.client.fails = None
    tab.client.camera.moved()
    done(tab)
    assert tab.client.frames and len(tab.client.notices) == 1


def test_a_closed_tab_gets_nothing_more(tab):
    tab.mode, gate = RENDERED, threading.Event()
    done(tab)
    tab.app.worker.post("other", gate.wait)
    tab.redraw()
    tab.close()
    gate.set()
    done(tab)
    assert tab.client.frames == []


def test_a_view_is_known_on_either_device(tab):
    pose = to_pose(tab.exhibit.cameras[1:2], tab.canvas(), tab.exhibit.browser_scale)
    camera = tab.client.camera
    camera.wxyz, camera.position, camera.fov = np.array(pose.wxyz), np.array(pose.position), pose.fov
    assert tab.view() == 1


def test_without_gsplat_the_cpu_renders(monkeypatch):
    monkeypatch.setattr(app_module, "find_spec", lambda name: None)
    assert [render_device(name) for name in ("auto", "cpu", "cuda", "cuda:1", "mps")] == ["cpu"] * 5
    monkeypatch.setattr(app_module, "find_spec", lambda name: object())
    assert [render_device(name) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda:1", "cpu"]
