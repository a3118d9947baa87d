"""One tab of the browser: which scene it shows, from where and how. Nothing here is shared with other tabs."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from viewer.browser_camera import Pose, between, nearest_view, on_canvas, to_cameras, to_pose
from viewer.compare import How, combine, paste
from viewer.exhibit import BROWSER_DISTANCE, Exhibit
from viewer.look import Look, browser_splats, drawn_line, picture, shown, thin

if TYPE_CHECKING:
    import viser

    from viewer.app import App
    from viewer.jobs import Job
    from viewer.uploads import Inbox

SPLATS, RENDERED = "splats, drawn by the browser", "rendered by the server"
MODES = {SPLATS: "color", RENDERED: "color", "depth": "depth", "opacity (alpha)": "alpha"}
# A frame while the camera moves should take no longer; a still one comes when it has rested.
_FRAME_SECONDS, _REST_SECONDS = 0.1, 0.35
_LONGEST_SIDE = {"cpu": 1280, "cuda": 1920}
_FLIGHT_SECONDS, _FLIGHT_STEPS = 0.4, 12
# What may go wrong without being the viewer's fault; a GPU out of memory is a RuntimeError.
_ERRORS = (ValueError, OSError, ImportError, MemoryError, RuntimeError)
PHOTO, NOTHING = "the photo of this view", "nothing"


class Session:
    """State of a tab and what it draws. Panels change the fields and call `redraw`; they are told by callbacks.

    `on_exhibit`, `on_exhibits`, `on_camera`, `on_job` and `on_run` are lists of functions that panels add to.
    """

    def __init__(self, app: App, client: viser.ClientHandle):
        self.app, self.client = app, client
        self.exhibit: Exhibit | None = None
        self.look = Look()
        self.mode = SPLATS if app.most else RENDERED
        self.against, self.how, self.split = NOTHING, "wipe", 0.5
        self.sheet: Callable[[tuple[int, int]], np.ndarray] | None = None  # shown in place of the scene
        self.requested: set[str] = set()  # names of scenes that this tab asked for and waits for
        self.on_exhibit: list[Callable[[Exhibit], None]] = []
        self.on_exhibits: list[Callable[[], None]] = []
        self.on_camera: list[Callable[[], None]] = []
        self.on_job: list[Callable[[Job], None]] = []
        self.on_run: list[Callable[[], None]] = []
        self.drawn_note: Callable[[str], None] = lambda text: None
        self.inbox: Inbox | None = None
        self._splats: viser.GaussianSplatHandle | None = None
        self._sent: tuple | None = None
        self._shown: dict[str, tuple[Exhibit, tuple, Gaussians]] = {}
        self._sheet_size = (0, 0)
        self._flight = 0
        self._closed = False
        self._told = ""
        self._lock = threading.Lock()
        # Seconds a megapixel of the last frames; a first guess for a laptop.
        self._pace = 0.5
        client.camera.on_update(lambda _: self._camera_moved())

    # --- what panels ask for -------------------------------------------------------------------------------------

    def open(self, name: str) -> None:
        """Show another scene and go to its first camera."""
        exhibit = self.app.exhibits.get(name)
        if exhibit is None:
            raise ValueError(f"{name} is no longer open")
        before, self.exhibit = self.exhibit, exhibit
        if self.sheet is not None:
            self.sheet = None
            self.client.scene.set_global_visibility(True)
        for tell in self.on_exhibit:
            tell(exhibit)
        # A better version of the same place is looked at from where one stands.
        if before is None or not _same_place(before, exhibit):
            self.fly(exhibit.cameras[:1], at_once=True)
        self.redraw()

    def camera(self, size: tuple[int, int] | None = None) -> Cameras:
        """The tab's camera [1] in the scene's world, at the canvas' size unless another (H, W) is given."""
        return to_cameras(self.pose(), size or self.canvas(), self.exhibit.browser_scale)

    def pose(self) -> Pose:
        camera = self.client.camera
        return Pose(tuple(camera.wxyz.tolist()), tuple(camera.position.tolist()), float(camera.fov))

    def canvas(self) -> tuple[int, int]:
        """(H, W) of the page's canvas in pixels, within what makes sense."""
        camera = self.client.camera
        return min(max(camera.image_height, 16), 8192), min(max(camera.image_width, 16), 8192)

    def view(self) -> int | None:
        """The index of the photo's camera that the tab looks through, None when it is elsewhere."""
        e = self.exhibit
        return None if e.guessed else nearest_view(self.pose(), e.cameras, e.browser_scale, e.distance)

    def fly(self, camera: Cameras, at_once: bool = False) -> None:
        """Move the tab's camera to camera [1], in a short flight."""
        self._flight += 1
        flight, e = self._flight, self.exhibit
        goal = to_pose(camera, self.canvas(), e.browser_scale)
        if not at_once:
            start = self.pose()
            for step in range(1, _FLIGHT_STEPS):
                if flight != self._flight:
                    return
                t = step / _FLIGHT_STEPS
                self._set_camera(between(start, goal, t * t * (3 - 2 * t)))
                time.sleep(_FLIGHT_SECONDS / _FLIGHT_STEPS)
        self._set_camera(goal)
        self._camera_moved()

    def show_sheet(self, draw: Callable[[tuple[int, int]], np.ndarray]) -> None:
        """Fill the page with a picture, uint8 [H, W, 3] as `draw` makes it for a size (H, W), until `open`."""
        self.sheet = draw
        self.client.scene.set_global_visibility(False)
        self.redraw()

    def redraw(self) -> None:
        """Draw what the state asks for, soon; many calls in a row cost one drawing."""
        if self.sheet is not None:
            self._post("hide", self._remove_splats)
            self._post("frame", self._draw_sheet)
            return
        if self.exhibit is None:
            return
        self.client.camera.near = max(self.look.near, 1e-3) * BROWSER_DISTANCE
        if self.in_browser:
            self._post("splats", self._draw_splats, 0.05)
        else:
            self._post("hide", self._remove_splats)
            self._post_frames()

    @property
    def in_browser(self) -> bool:
        """Whether the browser draws the splats itself."""
        return self.mode == SPLATS and self.against == NOTHING and self.sheet is None

    def still(self, camera: Cameras) -> np.ndarray:
        """What camera [1] sees with the tab's look, uint8 [H, W, 3]; waits for the render thread."""
        return self.app.worker.call(lambda: picture(self.exhibit, self.gaussians(), camera, self.look))

    def gaussians(self, exhibit: Exhibit | None = None) -> Gaussians:
        """The Gaussians that the look leaves, of this scene or another, kept from frame to frame; on the render thread.

        To choose them anew would make a GPU wait for the CPU in every frame.
        """
        exhibit = exhibit or self.exhibit
        key = self.look.choice
        kept = self._shown.get(exhibit.name)
        if kept is None or kept[0] is not exhibit or kept[1] != key:
            # The scene shown and the one it is compared with, no more: they may be large.
            others = {k: v for k, v in self._shown.items() if k in (self.exhibit.name, self.against)}
            kept = exhibit, key, shown(exhibit, self.look)
            self._shown = others | {exhibit.name: kept}
        return kept[2]

    def action(self, handler: Callable) -> Callable:
        """A callback for viser that turns errors of use into a notice in the tab."""

        @functools.wraps(handler)
        def run(event) -> None:
            try:
                handler(event)
            except _ERRORS as error:
                self.complain(_line(error))

        return run

    def scene_action(self, handler: Callable) -> Callable:
        """`action` for what needs a scene: refused while none is open; what a user asks for brings it back to sight."""

        def run(event) -> None:
            if self.exhibit is None:
                raise ValueError("no scene is open yet")
            if self.sheet is not None and event.client is not None:
                self.open(self.exhibit.name)
            handler(event)

        return self.action(run)

    def say(self, title: str, body: str = "") -> None:
        self.client.add_notification(title, body, auto_close_seconds=4.0)

    def complain(self, reason: str) -> None:
        self.client.add_notification("That did not work", reason, color="red", auto_close_seconds=12.0)

    # --- what the app tells --------------------------------------------------------------------------------------

    def exhibits_changed(self, newest: str) -> None:
        """A scene was added or replaced: show it if it is the first, replaces this one, or was asked for here."""
        for tell in self.on_exhibits:
            tell()
        followed = self.app.run is not None and self.app.follow
        if self.exhibit is None or self.exhibit.name == newest or newest in self.requested or followed:
            self.open(newest)

    def job_changed(self, job: Job) -> None:
        for tell in self.on_job:
            tell(job)

    def run_changed(self) -> None:
        for tell in self.on_run:
            tell()

    def close(self) -> None:
        """Forget what waits to be drawn, and the uploads that no job took."""
        self._flight += 1
        self._closed = True
        if self.inbox is not None:
            self.inbox.close()
        for kind in ("splats", "hide", "draft", "frame"):
            self.app.worker.drop((self.client.client_id, kind))

    # --- drawing, on the render thread ---------------------------------------------------------------------------

    def _post(self, kind: str, draw: Callable[[], None], delay: float = 0.0) -> None:
        """Have something drawn; why it cannot be is told in the tab, once for the same reason."""

        def run() -> None:
            try:
                draw()
            except _ERRORS as error:
                if _line(error) != self._told:
                    self._told = _line(error)
                    self.complain(self._told)
            else:
                self._told = ""

        self.app.worker.post((self.client.client_id, kind), run, delay)

    def _draw_splats(self) -> None:
        if self._closed or not self.in_browser:
            return
        e, look = self.exhibit, self.look
        key = id(e), look.choice
        self._set_background(np.full((1, 1, 3), np.round(255 * np.array(look.background)), np.uint8))
        if self._sent == key and self._splats is not None:
            return
        gaussians = self.gaussians()
        drawn = thin(gaussians, self.app.most)
        buffers = browser_splats(drawn, e.cameras.centers.mean(0), e.browser_scale)
        old, self._splats = self._splats, None
        if old is not None:
            old.remove()
        self._splats, self._sent = self.client.scene.add_gaussian_splats("/splats", *buffers), key
        self.drawn_note(drawn_line(e.gaussians.count, gaussians.count, drawn.count))

    def _remove_splats(self) -> None:
        """Take the splats out: a browser draws those that are only hidden as well, behind the server's pictures."""
        if self._splats is not None and not self.in_browser:
            self._splats.remove()
            self._splats = None

    def _draw_sheet(self) -> None:
        draw, size = self.sheet, self._frame_size()
        if draw is not None and not self._closed:
            self._sheet_size = size
            self._set_background(draw(size))

    def _camera_moved(self) -> None:
        if self.sheet is not None and self._frame_size() != self._sheet_size:
            self.redraw()
        if self.exhibit is None or self.sheet is not None:
            return
        for tell in self.on_camera:
            tell()
        if not self.in_browser:
            self._post_frames()

    def _post_frames(self) -> None:
        """A quick frame now, and one at full size once the camera rests."""
        height, width = self._frame_size()
        zoom = min(1.0, (_FRAME_SECONDS / self._pace / (height * width / 1e6)) ** 0.5)
        if zoom < 0.95:
            draft = (max(16, round(height * max(zoom, 0.15))), max(16, round(width * max(zoom, 0.15))))
            self._post("draft", lambda: self._draw_frame(draft, 75))
        rest = _REST_SECONDS if zoom < 0.95 else 0.0
        self._post("frame", lambda: self._draw_frame((height, width), 92), rest)

    def _frame_size(self) -> tuple[int, int]:
        height, width = self.canvas()
        zoom = min(1.0, _LONGEST_SIDE[self.app.device.split(":")[0]] / max(height, width))
        return max(16, round(zoom * height)), max(16, round(zoom * width))

    def _draw_frame(self, size: tuple[int, int], quality: int) -> None:
        if self._closed or self.in_browser:
            return
        start = time.perf_counter()
        self._set_background(self._frame(size), quality)
        took = time.perf_counter() - start
        self._pace = 0.7 * self._pace + 0.3 * took / (size[0] * size[1] / 1e6)

    def _frame(self, size: tuple[int, int]) -> np.ndarray:
        """The picture of this moment, compared with another where that is asked for."""
        look = replace(self.look, kind=MODES[self.mode])
        if self.against == PHOTO and self.exhibit.images is not None and (index := self.view()) is not None:
            camera, place = on_canvas(self.exhibit.cameras[index : index + 1], size)
            ours = picture(self.exhibit, self.gaussians(), camera, look)
            return self._combine(ours, paste(ours, self.exhibit.images[index], place))
        camera = self.camera(size)
        ours = picture(self.exhibit, self.gaussians(), camera, look)
        other = self.app.exhibits.get(self.against)
        if other is None:
            return ours
        return self._combine(ours, picture(other, self.gaussians(other), camera, look))

    def _combine(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        how: How = self.how
        return combine(a, b, how, self.split)

    def _set_background(self, image: np.ndarray, quality: int = 92) -> None:
        if not self._closed:
            self.client.scene.set_background_image(image, "jpeg", jpeg_quality=quality)

    def _set_camera(self, pose: Pose) -> None:
        """Put the page's camera there; it turns about a point at the typical distance in front of it."""
        camera = self.client.camera
        with self._lock, self.client.atomic():
            camera.position, camera.wxyz, camera.fov = pose.position, pose.wxyz, pose.fov
            forward = to_cameras(pose, (2, 2), 1.0).w2c[0, 2, :3].numpy()
            camera.look_at = np.array(pose.position) + BROWSER_DISTANCE * forward


def _line(error: BaseException) -> str:
    """What an error says, in one line that is not too long for a notice."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _same_place(a: Exhibit, b: Exhibit) -> bool:
    same_shape = a.cameras.w2c.shape == b.cameras.w2c.shape
    return same_shape and bool(torch.allclose(a.cameras.w2c, b.cameras.w2c, atol=1e-3 * a.distance))
