"""Compare what is shown with the photo of the view or with another scene, and score every photo."""

from __future__ import annotations

from viewer.compare import error_table, view_error
from viewer.exhibit import Exhibit
from viewer.session import NOTHING, PHOTO, Session

HOW = ("wipe", "side by side", "difference")


def add_compare_panel(session: Session) -> None:
    """With what, how, and the table of errors."""
    gui, action = session.client.gui, session.scene_action
    against = gui.add_dropdown("compare with", (NOTHING,), initial_value=NOTHING)
    how = gui.add_dropdown("how", HOW, initial_value=HOW[0])
    split = gui.add_slider("wipe", 0.0, 1.0, 0.01, 0.5)
    hint = gui.add_markdown("")
    score = gui.add_button("Score all photos", hint="render every photo's view and compare")
    progress = gui.add_progress_bar(0.0, visible=False)
    table = gui.add_markdown("")

    def choices() -> tuple[str, ...]:
        e = session.exhibit
        photo = (PHOTO,) if e is not None and e.images is not None else ()
        others = tuple(name for name in session.app.exhibits if e is None or name != e.name)
        return (NOTHING, *photo, *others)

    def exhibits_changed() -> None:
        against.options = choices()
        if session.against not in against.options:
            session.against = against.value = NOTHING
        apply(None)

    def exhibit_changed(exhibit: Exhibit) -> None:
        score.disabled = exhibit.images is None
        table.content = ""
        exhibits_changed()

    def apply(_event) -> None:
        session.against = against.value if against.value in choices() else NOTHING
        session.how = how.value if how.value in HOW else HOW[0]
        session.split = float(split.value)
        how.disabled = session.against == NOTHING
        split.disabled = how.disabled or session.how != "wipe"
        camera_moved()
        session.redraw()

    def camera_moved() -> None:
        if session.against == NOTHING:
            line = ""
        elif session.against == PHOTO and session.view() is None:
            line = "Go to a photo (click its camera) to compare it with the rendering."
        elif session.how == "difference":
            line = "Dark where both agree, yellow where they differ by 0.3 of full brightness and more."
        elif session.against == PHOTO:
            line = f"Left: rendering. Right: photo {session.view() + 1}."
        else:
            line = "Left: this scene. Right: the other, from the same camera."
        if hint.content != line:
            hint.content = line

    def score_all(_event) -> None:
        e = session.exhibit
        if e.images is None:
            raise ValueError("no photos are known of this scene")
        progress.value, progress.visible, score.disabled = 0.0, True, True
        try:
            errors = []
            for i in range(len(e.names)):
                errors.append(session.app.worker.call(lambda i=i: view_error(e, session.look, i)))
                progress.value = 100 * (i + 1) / len(e.names)
        finally:
            progress.visible, score.disabled = False, False
        table.content = error_table(errors)

    for control in (against, how, split):
        control.on_update(action(apply))
    score.on_click(action(score_all))
    session.on_exhibit.append(exhibit_changed)
    session.on_exhibits.append(exhibits_changed)
    session.on_camera.append(camera_moved)
