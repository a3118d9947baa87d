"""The editor of a camera path: key frames, a preview in the page, the video, and the path as a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from geometry.cameras import Cameras, resize
from geometry.images import fit_size
from geometry.rotations import quats_from_matrices
from splat.video import write_mp4
from viewer.camera_keys import CameraPath, add_key, drop_last_key, frames, in_time, path_from_text, path_text
from viewer.exhibit import Exhibit
from viewer.session import Session

_LONGEST_VIDEO = 1920


def add_path_panel(session: Session) -> None:
    """Key frames and what is made of them."""
    gui, action, client = session.client.gui, session.scene_action, session.client
    state = {"path": CameraPath(), "busy": False, "stop": False}
    gui.add_markdown("Move the camera, add a key frame, and again; the path runs smoothly through them.")
    keys = gui.add_button_group("key frames", ("add", "remove last", "clear"))
    photos = gui.add_button("Take the photos' cameras", color="gray", hint="a path past all photos")
    count = gui.add_markdown("no key frames")
    seconds = gui.add_number("seconds a step", 2.0, min=0.1, max=60.0, step=0.1)
    fps = gui.add_number("frames a second", 30, min=1, max=120, step=1)
    loop = gui.add_checkbox("back to the start", False)
    preview = gui.add_button("Preview", color="gray")
    side = gui.add_number("video's long side", 960, min=16, max=_LONGEST_VIDEO, step=2)
    video = gui.add_button("Save as mp4")
    progress = gui.add_progress_bar(0.0, visible=False)
    stop = gui.add_button("Stop", visible=False)
    with gui.add_folder("Path as JSON", expand_by_default=False):
        text = gui.add_text("path", "", multiline=True, hint="paste a saved path (or a cameras.json) here, then load")
        files = gui.add_button_group("JSON", ("save", "load"))

    def update(path: CameraPath) -> None:
        state["path"] = path
        length = path.frames / path.fps
        count.content = (
            f"{path.count} key frame{'s' * (path.count != 1)}, {length:.1f} s" if path.count else "no key frames"
        )
        draw_path(session, path)

    def settings(_event=None) -> None:
        pace, rate = min(max(float(seconds.value), 0.1), 60.0), min(max(int(fps.value), 1), 120)
        update(replace(state["path"], seconds=pace, fps=rate, loop=bool(loop.value)))

    def edit_keys(_event) -> None:
        if keys.value == "clear":
            update(replace(state["path"], keys=None))
        elif keys.value == "add":
            update(add_key(state["path"], session.camera()))
        elif state["path"].count:
            update(drop_last_key(state["path"]))

    def take_photos(_event) -> None:
        update(replace(state["path"], keys=session.exhibit.cameras))

    def load_or_save(_event) -> None:
        if files.value == "save":
            text.value = path_text(state["path"])
            client.send_file_download("path.json", text.value.encode(), save_immediately=True)
            return
        path = path_from_text(text.value)
        state["path"] = path
        seconds.value, fps.value, loop.value = path.seconds, path.fps, path.loop
        settings()

    def play(_event) -> None:
        path = state["path"]
        cameras = frames(path)
        with _Busy(state, preview, video, stop):
            for i in in_time(path.frames, path.fps):
                if state["stop"] or client.client_id not in session.app.sessions:
                    return
                session.fly(cameras[i : i + 1], at_once=True)

    def save_video(_event) -> None:
        cameras = frames(state["path"])
        long_side = int(min(max(side.value, 16), _LONGEST_VIDEO))
        cameras = resize(cameras, tuple(max(2, s - s % 2) for s in fit_size([cameras.size], long_side)))
        with _Busy(state, preview, video, stop), TemporaryDirectory() as folder:
            progress.value, progress.visible = 0.0, True
            try:
                write_mp4(Path(folder) / "path.mp4", drawn(cameras), state["path"].fps)
            finally:
                progress.visible = False
            if not state["stop"]:
                content = (Path(folder) / "path.mp4").read_bytes()
                client.send_file_download("path.mp4", content, save_immediately=True)

    def drawn(cameras: Cameras) -> Iterator[np.ndarray]:
        total = len(cameras.w2c)
        for i in range(total):
            if i and (state["stop"] or client.client_id not in session.app.sessions):
                return
            yield session.still(cameras[i : i + 1])
            progress.value = 100 * (i + 1) / total

    def exhibit_changed(exhibit: Exhibit) -> None:
        update(replace(state["path"], keys=None))

    keys.on_click(action(edit_keys))
    photos.on_click(action(take_photos))
    files.on_click(action(load_or_save))
    for control in (seconds, fps, loop):
        control.on_update(action(settings))
    preview.on_click(action(play))
    video.on_click(action(save_video))
    stop.on_click(action(lambda _: state.update(stop=True)))
    session.on_exhibit.append(exhibit_changed)


class _Busy:
    """While a preview or a video is made, only its Stop button works. ValueError when one is made already."""

    def __init__(self, state: dict, preview, video, stop):
        self._state, self._starters, self._stop = state, (preview, video), stop

    def __enter__(self) -> None:
        if self._state["busy"]:
            raise ValueError("a preview or a video is being made already")
        self._state.update(busy=True, stop=False)
        self._show(True)

    def __exit__(self, *_) -> None:
        self._state["busy"] = False
        self._show(False)

    def _show(self, working: bool) -> None:
        self._stop.visible = working
        for button in self._starters:
            button.disabled = working


def draw_path(session: Session, path: CameraPath) -> None:
    """The path as a line and its keys as small frusta in the page."""
    scene, scale = session.client.scene, session.exhibit.browser_scale
    old = scene.get_handle_by_name("/path")
    if old is not None:
        old.remove()
    if path.keys is None:
        return
    scene.add_frame("/path", show_axes=False)
    for i, c2w in enumerate(path.keys.c2w.double()):
        scene.add_frame(
            f"/path/{i}",
            axes_length=0.12,
            axes_radius=0.004,
            wxyz=quats_from_matrices(c2w[:3, :3]).numpy(),
            position=(scale * c2w[:3, 3]).numpy(),
        )
    if path.count > 1:
        line = (scale * frames(replace(path, seconds=2.0, fps=10)).centers).numpy()
        segments = np.stack([line[:-1], line[1:]], 1)
        scene.add_line_segments("/path/line", segments, (230, 120, 30), thickness=2.0, thickness_units="screen")
