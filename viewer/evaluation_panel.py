"""The pictures of an evaluation with their scores, the worst first."""

from __future__ import annotations

import numpy as np

from geometry.images import read_image
from viewer.session import Session

# A list of more is no longer one to choose from.
_MOST_LISTED = 500


def add_evaluation_panel(session: Session) -> None:
    """A list by rising PSNR, and the picture chosen."""
    gui, action = session.client.gui, session.action
    pictures = session.app.evaluation.pictures[:_MOST_LISTED]
    labels = tuple(f"{i + 1}  {picture.label}" for i, picture in enumerate(pictures))
    gui.add_markdown(f"`{session.app.evaluation.title}`: {len(session.app.evaluation.pictures)} pictures, worst first")
    chosen = gui.add_dropdown("picture", labels, initial_value=labels[0])
    step = gui.add_button_group("go", ("worse", "better"))
    image = gui.add_image(np.full((8, 8, 3), 255, np.uint8), format="png")
    scores = gui.add_markdown("")

    def show(_event) -> None:
        picture = pictures[labels.index(chosen.value) if chosen.value in labels else 0]
        image.image = read_image(picture.path)
        scores.content = "  \n".join(f"`{name}` {value:.4g}" for name, value in picture.scores.items())

    def go(_event) -> None:
        index = labels.index(chosen.value) + (1 if step.value == "better" else -1)
        chosen.value = labels[min(max(index, 0), len(labels) - 1)]

    chosen.on_update(action(show))
    step.on_click(action(go))
    action(show)(None)
