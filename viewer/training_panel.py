"""A run in training: its curves, its validation pictures, and a scene from each new checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from geometry.images import read_image, resize_array
from viewer.jobs import Job
from viewer.session import Session

# Of these metrics the first that a run has is shown first.
FIRST = ("loss", "unposed/loss", "val/psnr", "scenes_psnr")
_PICTURE_SIDE = 900
_CURVE_COLOR = "#2b6cb0"


def add_training_panel(session: Session) -> None:
    """Curve, pictures, and the newest network's scene."""
    gui, action, app = session.client.gui, session.action, session.app
    run = app.run
    title = gui.add_markdown("")
    metric = gui.add_dropdown("metric", ("loss",), initial_value="loss")
    curve = gui.add_uplot(
        (np.zeros(1), np.zeros(1)),
        ({"label": "step"}, {"label": "value", "stroke": _CURVE_COLOR, "width": 2}),
        scales={"x": {"time": False}},
        height=180,
    )
    drawing = gui.add_dropdown("validation", ("none yet",), initial_value="none yet")
    picture = gui.add_image(np.full((8, 8, 3), 255, np.uint8), format="jpeg", jpeg_quality=85)
    follow = gui.add_checkbox("show new checkpoints", app.follow, hint="reconstruct a validation scene with each")
    now = gui.add_button("Show the newest now")
    status = gui.add_markdown("")
    shown = {"drawing": ""}

    def refresh() -> None:
        newest = run.checkpoint()
        title.content = f"**{_safe(run.name)}**: step {run.step:,}, checkpoint {newest.name if newest else 'none yet'}"
        names = tuple(sorted(run.series, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)))
        if names and metric.options != names:
            keep = metric.value
            metric.options = names
            metric.value = keep if keep in names else names[0]
        draw_curve(None)
        labels = tuple(f"{p.parent.name} {p.stem}" for p in run.drawings())
        if labels and labels != drawing.options:
            newest_shown = drawing.value == drawing.options[0]
            keep = drawing.value
            drawing.options = labels
            drawing.value = labels[0] if newest_shown or keep not in labels else keep
        draw_picture(None)

    def draw_curve(_event) -> None:
        steps, values = run.curve(metric.value)
        if len(steps):
            curve.data = (steps, values)
            curve.series = ({"label": "step"}, {"label": metric.value, "stroke": _CURVE_COLOR, "width": 2})

    def draw_picture(_event) -> None:
        chosen = next((p for p in run.drawings() if f"{p.parent.name} {p.stem}" == drawing.value), None)
        if chosen is None or shown["drawing"] == drawing.value:
            return
        image = read_image(chosen)
        zoom = min(1.0, _PICTURE_SIDE / max(image.shape[:2]))
        picture.image = resize_array(image, (round(zoom * image.shape[0]), round(zoom * image.shape[1])))
        shown["drawing"] = drawing.value

    def job_changed(job: Job) -> None:
        if job.request.name.startswith(run.name):
            status.content = _safe(f"{job.request.name} - {job.status.replace(':', ' -')}")

    def set_follow(_event) -> None:
        app.follow = bool(follow.value)

    metric.on_update(action(draw_curve))
    drawing.on_update(action(draw_picture))
    follow.on_update(action(set_follow))
    now.on_click(action(lambda _: app.show_checkpoint()))
    session.on_job.append(job_changed)
    session.on_run.append(_patient(refresh))
    session.on_run[-1]()
    if app.current is not None:
        job_changed(app.current)


def _patient(refresh: Callable[[], None]) -> Callable[[], None]:
    """`refresh` for the thread that watches the run: a picture that is just being written is read the next time."""

    def run() -> None:
        with suppress(OSError):
            refresh()

    return run


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in " .-" else " " for c in text)
