"""The pictures of an evaluation with their scores, the worst first: target, render and error map beside each other."""

from __future__ import annotations

from geometry.images import read_image
from viewer.evaluation import Scored, scores_table
from viewer.session import Session
from viewer.sheet import sheet

# A list of more is no longer one to choose from.
_MOST_LISTED = 500


def add_evaluation_panel(session: Session) -> None:
    """A list by rising PSNR; the picture chosen fills the page."""
    gui, action, evaluation = session.client.gui, session.action, session.app.evaluation
    pictures = evaluation.pictures[:_MOST_LISTED]
    labels = tuple(f"{i + 1}  {picture.label}" for i, picture in enumerate(pictures))
    gui.add_markdown(f"`{evaluation.title}`: {len(evaluation.pictures)} pictures, worst first")
    chosen = gui.add_dropdown("picture", labels, initial_value=labels[0])
    step = gui.add_button_group("go", ("worse", "better"))
    scores = gui.add_markdown("")
    back = gui.add_button("Show the scene", color="gray", visible=bool(session.app.exhibits))

    def show(_event) -> None:
        picture = pictures[labels.index(chosen.value) if chosen.value in labels else 0]
        scores.content = scores_table(evaluation, picture)
        shown = read_parts(picture)
        session.show_sheet(lambda size: sheet(shown, size))

    def go(_event) -> None:
        index = labels.index(chosen.value) + (1 if step.value == "better" else -1)
        wanted = labels[min(max(index, 0), len(labels) - 1)]
        if wanted == chosen.value:  # at an end, and perhaps hidden by a scene
            show(None)
        chosen.value = wanted

    def show_scene(_event) -> None:
        session.open(session.exhibit.name if session.exhibit else next(iter(session.app.exhibits)))

    def exhibits_changed() -> None:
        back.visible = True

    chosen.on_update(action(show))
    step.on_click(action(go))
    back.on_click(action(show_scene))
    session.on_exhibits.append(exhibits_changed)
    action(show)(None)


def read_parts(picture: Scored) -> dict:
    """What there is to see of a picture, uint8 [H, W, 3] by name. Raises OSError when a file is damaged."""
    paths = {"target": picture.photo, "render": picture.render, "error": picture.error}
    return {name: read_image(path) for name, path in paths.items() if path is not None}
