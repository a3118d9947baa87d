"""The photos' cameras as frusta to click on, and depth and confidence as a cloud of points."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from geometry.cameras import unproject
from geometry.images import to_uint8
from geometry.rotations import quats_from_matrices
from splat.video import color_depth, depth_range
from viewer.exhibit import BROWSER_DISTANCE, Exhibit
from viewer.session import Session

POINTS = ("none", "in the photos' colours", "coloured by depth", "coloured by confidence")
MOST_POINTS = 300_000
MOST_FRUSTA = 200
_THUMBNAIL = 160
_COLOR = (60, 110, 200)
# Frusta nearer to the eye than this many of their lengths are hidden.
_CLEAR = 5.0


def add_cameras_panel(session: Session) -> None:
    """Frusta, flights from photo to photo, points."""
    gui, action, scene = session.client.gui, session.scene_action, session.client.scene
    frusta: list = []
    drawn: dict[str, object] = {}
    with gui.add_folder("Photos"):
        view = gui.add_dropdown("go to", ("-",), initial_value="-", hint="fly into the camera of a photo")
        step = gui.add_button_group("photo", ("previous", "next"))
        visible = gui.add_checkbox("show cameras", True)
        size = gui.add_slider("camera size", 0.2, 4.0, 0.1, 1.0)
        points = gui.add_dropdown("points", POINTS, initial_value=POINTS[0], hint="depth of each pixel as a point")
        sure = gui.add_slider("points from confidence", 0, 100, 1, 0, hint="hide the least sure, in percent")

    def exhibit_changed(exhibit: Exhibit) -> None:
        view.options = ("-", *_labels(exhibit))
        view.value = "-"
        points.disabled = exhibit.depth is None
        sure.disabled = exhibit.confidence is None
        for frustum in frusta:
            frustum.remove()
        frusta.clear()
        if not exhibit.guessed:
            frusta.extend(_add_frustum(session, i) for i in range(min(len(exhibit.names), MOST_FRUSTA)))
        resize(None)
        draw_points(None)

    def camera_moved() -> None:
        """Hide frusta that stand before one's eyes: their photos would cover the view."""
        eye, reach = np.array(session.client.camera.position), _CLEAR * frustum_scale(session.exhibit) * size.value
        for frustum in frusta:
            show = bool(visible.value and np.linalg.norm(np.array(frustum.position) - eye) > reach)
            if frustum.visible != show:
                frustum.visible = show

    def resize(_event) -> None:
        for frustum in frusta:
            frustum.scale = frustum_scale(session.exhibit) * float(size.value)
        camera_moved()

    def go(_event) -> None:
        labels = _labels(session.exhibit)
        if view.value in labels:
            i = labels.index(view.value)
            session.fly(session.exhibit.cameras[i : i + 1])

    def go_on(_event) -> None:
        labels = _labels(session.exhibit)
        now = session.view()
        if now is None:
            now = labels.index(view.value) if view.value in labels else -1 if step.value == "next" else 0
        i = (now + (1 if step.value == "next" else -1)) % len(labels)
        if view.value == labels[i]:
            session.fly(session.exhibit.cameras[i : i + 1])
        view.value = labels[i]  # which flies there

    def draw_points(_event) -> None:
        cloud = drawn.pop("points", None)
        if cloud is not None:
            cloud.remove()
        exhibit = session.exhibit
        if points.value == POINTS[0] or exhibit.depth is None:
            return
        xyz, rgb, width = point_cloud(exhibit, points.value, float(sure.value) / 100)
        drawn["points"] = scene.add_point_cloud(
            "/points", exhibit.browser_scale * xyz, rgb, point_size=exhibit.browser_scale * width, point_shading="flat"
        )

    view.on_update(action(go))
    step.on_click(action(go_on))
    visible.on_update(action(lambda _: camera_moved()))
    size.on_update(action(resize))
    points.on_update(action(draw_points))
    sure.on_update(action(draw_points))
    session.on_exhibit.append(exhibit_changed)
    session.on_camera.append(camera_moved)


def frustum_scale(exhibit: Exhibit) -> float:
    """Length of a frustum in the page's unit: a part of the way to the nearest other camera, within limits."""
    apart = torch.cdist(exhibit.cameras.centers, exhibit.cameras.centers)
    apart.fill_diagonal_(float("inf"))
    nearest = float(apart.min(1).values.median()) * exhibit.browser_scale if len(apart) > 1 else 1.0
    return min(max(0.3 * nearest, 0.01 * BROWSER_DISTANCE), 0.08 * BROWSER_DISTANCE)


def point_cloud(exhibit: Exhibit, colors: str, confidence: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Points [P, 3] in the world, uint8 RGB [P, 3], and the width of a point, from depth, at most 300,000.

    `confidence` is the share of the pixels to leave out, the least sure first.
    """
    depth = exhibit.depth
    keep = torch.isfinite(depth) & (depth > 0)
    if exhibit.confidence is not None and confidence > 0 and bool(keep.any()):
        known = exhibit.confidence[keep].sort().values
        keep &= exhibit.confidence >= known[min(int(confidence * len(known)), len(known) - 1)]
    if colors == "coloured by depth" or exhibit.images is None:
        near, far = depth_range(depth)
        rgb = torch.from_numpy(np.stack([color_depth(d, near, far) for d in depth]))
    elif colors == "coloured by confidence" and exhibit.confidence is not None:
        rgb = torch.from_numpy(_color_ranks(exhibit.confidence.numpy()))
    else:
        rgb = torch.from_numpy(to_uint8(exhibit.images))
    chosen = keep.flatten().nonzero()[:, 0]
    thinned = max(1, -(-len(chosen) // MOST_POINTS))
    chosen = chosen[::thinned]
    xyz = unproject(depth, exhibit.cameras).reshape(-1, 3)[chosen]
    median = float(depth[keep].median()) if bool(keep.any()) else 1.0
    width = median / float(exhibit.cameras.K[0, 0, 0]) * thinned**0.5
    return xyz.numpy(), rgb.reshape(-1, 3)[chosen].numpy(), width


def _color_ranks(values: np.ndarray) -> np.ndarray:
    """uint8 RGB [..., 3] by rank, purple for the lowest and yellow for the highest."""
    order = values.reshape(-1).argsort(kind="stable")
    ranks = np.empty(order.size, np.uint8)
    ranks[order] = np.linspace(0, 255, order.size).astype(np.uint8)
    colors = cv2.applyColorMap(ranks.reshape(-1, 1), cv2.COLORMAP_VIRIDIS)
    return cv2.cvtColor(colors, cv2.COLOR_BGR2RGB).reshape(*values.shape, 3)


def _labels(exhibit: Exhibit) -> tuple[str, ...]:
    """What the list of photos calls them; numbers keep equal names apart."""
    return tuple(f"{i + 1}  {name[-40:]}" for i, name in enumerate(exhibit.names))


def _add_frustum(session: Session, index: int):
    exhibit = session.exhibit
    c2w, K = exhibit.cameras.c2w[index].double(), exhibit.cameras.K[index]
    height, width = exhibit.cameras.size
    image = None
    if exhibit.images is not None:
        zoom = _THUMBNAIL / max(height, width)
        image = cv2.resize(to_uint8(exhibit.images[index]), (round(zoom * width), round(zoom * height)))
    frustum = session.client.scene.add_camera_frustum(
        f"/cameras/{index}",
        fov=float(2 * torch.atan(height / 2 / K[1, 1])),
        aspect=width / height,
        color=_COLOR,
        image=image,
        thickness=1.5,
        thickness_units="screen",
        wxyz=quats_from_matrices(c2w[:3, :3]).numpy(),
        position=(exhibit.browser_scale * c2w[:3, 3]).numpy(),
        cast_shadow=False,
        receive_shadow=False,
    )
    frustum.on_click(session.action(lambda _: session.fly(session.exhibit.cameras[index : index + 1])))
    return frustum
