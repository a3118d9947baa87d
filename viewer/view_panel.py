"""The controls of what is drawn: which scene, by whom, thresholds, colours, up and near; stills and downloads."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from geometry.cameras import resize
from geometry.images import fit_size
from splat.files import SUFFIXES, write_gaussians
from viewer.browser_camera import cameras_from_text, cameras_text
from viewer.exhibit import Exhibit
from viewer.look import shown
from viewer.session import MODES, SPLATS, Session

AXES = {
    "as the cameras": None,
    "-y": (0, -1, 0),
    "+y": (0, 1, 0),
    "+z": (0, 0, 1),
    "-z": (0, 0, -1),
    "+x": (1, 0, 0),
    "-x": (-1, 0, 0),
}
_LONGEST_STILL = 4096


def add_scene_panel(session: Session) -> None:
    """Which scene, and who draws it."""
    gui, action = session.client.gui, session.action
    names = tuple(session.app.exhibits) or ("nothing yet",)
    scene = gui.add_dropdown("scene", names, initial_value=names[0], hint="what is open on this server")
    mode = gui.add_dropdown(
        "draw",
        tuple(mode for mode in MODES if mode != SPLATS or session.app.most),
        initial_value=session.mode,
        hint="the browser draws splats in one colour each; the server renders exactly, view-dependent colours and all, "
        "and sends pictures",
    )
    note = gui.add_markdown("")

    def exhibits_changed() -> None:
        scene.options = tuple(session.app.exhibits)
        if session.exhibit is not None and session.exhibit.name in session.app.exhibits:
            scene.value = session.exhibit.name

    def exhibit_changed(exhibit: Exhibit) -> None:
        exhibits_changed()
        show_note(f"{exhibit.gaussians.count:,} Gaussians")

    def show_note(line: str) -> None:
        lines = [line, *(session.exhibit.notes if session.exhibit else ())]
        note.content = "  \n".join(_plain(line) for line in lines)

    def apply_mode(_event) -> None:
        if mode.value not in mode.options:
            raise ValueError("choose who draws from the list")
        session.mode = mode.value
        if session.sheet is not None and session.exhibit is not None:
            session.open(session.exhibit.name)
        session.redraw()

    def apply_scene(_event) -> None:
        if session.exhibit is not None and scene.value != session.exhibit.name:
            session.open(scene.value)

    mode.on_update(action(apply_mode))
    scene.on_update(action(apply_scene))
    session.drawn_note = show_note
    session.on_exhibit.append(exhibit_changed)
    session.on_exhibits.append(exhibits_changed)


def add_look_panel(session: Session) -> None:
    """Thresholds, colours, up and near."""
    gui, action = session.client.gui, session.scene_action
    with gui.add_folder("What is shown"):
        opacity = gui.add_slider("opacity from", 0.0, 1.0, 0.01, 0.0, hint="hide Gaussians more transparent than this")
        confidence = gui.add_slider(
            "confidence from", 0, 100, 1, 0, hint="hide this percentage of the Gaussians, those the network doubts most"
        )
        degree = gui.add_slider("SH degree", 0, 3, 1, 3, hint="0: one colour from all sides")
        near = gui.add_slider("near clip", 0.0, 1.0, 0.005, 0.01, hint="hide what is nearer, in typical distances")
        backdrop = gui.add_checkbox("backdrop", True, hint="the sphere in the photos' colours behind what they show")
        background = gui.add_rgb("background", (255, 255, 255))
        up = gui.add_dropdown("up", tuple(AXES), initial_value="as the cameras", hint="about what dragging turns")

    def exhibit_changed(exhibit: Exhibit) -> None:
        degree.max = max(1, exhibit.gaussians.sh_degree)
        degree.disabled = exhibit.gaussians.sh_degree == 0
        degree.value = exhibit.gaussians.sh_degree
        confidence.disabled = exhibit.splat_confidence is None
        backdrop.disabled = exhibit.backdrop == 0

    def apply(_event) -> None:
        session.look = replace(
            session.look,
            opacity=_within(opacity.value, 0.0, 1.0),
            confidence=_within(confidence.value / 100, 0.0, 0.99),
            degree=int(_within(degree.value, 0, 3)),
            near=_within(near.value, 0.001, 1.0),
            backdrop=bool(backdrop.value),
            background=tuple(_within(c / 255, 0.0, 1.0) for c in background.value),
        )
        session.redraw()

    def apply_up(_event) -> None:
        axis = AXES[up.value] or session.exhibit.up.tolist()
        session.client.camera.up_direction = np.array(axis, dtype=float)

    for control in (opacity, confidence, degree, near, backdrop, background):
        control.on_update(action(apply))
    up.on_update(action(apply_up))
    session.on_exhibit.append(exhibit_changed)


def add_save_panel(session: Session) -> None:
    """Stills, the camera as JSON, and the scene as a file."""
    gui, action, client = session.client.gui, session.scene_action, session.client
    with gui.add_folder("Save", expand_by_default=False):
        side = gui.add_number("picture's long side", 1280, min=16, max=_LONGEST_STILL, step=1)
        still = gui.add_button("Save this view as PNG")
        text = gui.add_text("camera", "", multiline=True, hint="the current camera as cameras.json; or paste one")
        copy = gui.add_button_group("camera as JSON", ("show", "download", "go there"))
        kind = gui.add_dropdown("format", SUFFIXES)
        only = gui.add_checkbox("only what is shown", False, hint="leave out what the thresholds hide")
        scene = gui.add_button("Download the scene")

    def save_still(_event) -> None:
        long_side = int(min(max(side.value, 16), _LONGEST_STILL))
        camera = session.camera(fit_size([session.canvas()], long_side))
        view = session.view()
        if view is not None:  # the photo's own intrinsics, so that the two can be laid over each other
            photo = session.exhibit.cameras[view : view + 1]
            camera = resize(photo, fit_size([photo.size], long_side))
        client.send_file_download("view.png", png_bytes(session.still(camera), camera), save_immediately=True)

    def camera_button(_event) -> None:
        if copy.value == "go there":
            session.fly(cameras_from_text(text.value)[:1])
            return
        text.value = cameras_text(session.camera(), ["view"])
        if copy.value == "download":
            client.send_file_download("camera.json", text.value.encode(), save_immediately=True)

    def save_scene(_event) -> None:
        if kind.value not in SUFFIXES:
            raise ValueError(f"formats are {', '.join(SUFFIXES)}")
        e = session.exhibit
        gaussians = shown(e, replace(session.look, degree=3)) if only.value else e.gaussians
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"scene{kind.value}"
            write_gaussians(gaussians.to("cpu"), path)
            client.send_file_download(path.name, path.read_bytes(), save_immediately=True)

    still.on_click(action(save_still))
    copy.on_click(action(camera_button))
    scene.on_click(action(save_scene))


def png_bytes(picture: np.ndarray, camera) -> bytes:
    """A PNG of uint8 [H, W, 3] whose text chunk `camera` holds its exact camera [1] as cameras.json."""
    about = PngInfo()
    about.add_text("camera", cameras_text(camera, ["view"]))
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", pnginfo=about)
    return file.getvalue()


def _within(value: float, low: float, high: float) -> float:
    """A slider's value, which a browser may send as anything."""
    return min(max(float(value), low), high) if math.isfinite(value) else low


def _plain(text: str) -> str:
    """Text without what Markdown would read as a sign."""
    return "".join("\\" + c if c in "\\`*_{}[]<>#|!~$" else c for c in text)
