"""The page in a real browser: what it draws, every control of the view, files, comparisons, paths."""

import numpy as np
import pytest
import torch
from PIL import Image

from splat.files import SUFFIXES, read_gaussians
from tests.browser import alike, canvas, choose, desk, download, fill, needs_browser, press, rendering, shows, until
from viewer.browser_camera import cameras_text
from viewer.camera_keys import path_from_text
from viewer.session import RENDERED

pytestmark = needs_browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """One page for all tests: to open one takes a software renderer seconds."""
    with desk(tmp_path_factory.mktemp("page")) as made:
        yield made


def test_the_page_draws_what_the_server_renders(opened):
    page, session = opened.go_home()
    shows(page, session)
    color, depth, alpha = (rendering(page, session, kind) for kind in ("color", "depth", "alpha"))
    assert color.std() > 0.05 and alike(color, depth) < 15 and alike(color, alpha) < 15
    for mode in ("depth", "opacity (alpha)", RENDERED):
        choose(page, "draw", mode)
        until(lambda mode=mode: session.mode == mode)
        shows(page, session)

    # Dragging turns the camera; the photo's name takes it back.
    box = page.locator("canvas[data-engine]").bounding_box()
    page.mouse.move(200, 300)
    page.mouse.down()
    page.mouse.move(min(320, box["width"] - 20), 330, steps=4)
    page.mouse.up()
    until(lambda: session.view() is None)
    shows(page, session)
    choose(page, "go to", "2  b.png")
    until(lambda: session.view() == 1)
    press(page, "previous")
    until(lambda: session.view() == 0)
    shows(page, session)


def test_every_control_of_the_view(opened):
    page, session = opened.go_home()
    whole, behind = session.exhibit.gaussians.count, session.exhibit.backdrop
    front = whole - behind
    for label, value, reset, reached in (
        ("opacity from", "0.9", "0", lambda: session.gaussians().count < whole),
        ("confidence from", "60", "0", lambda: 0.3 * front < session.gaussians().count - behind < 0.5 * front),
        ("SH degree", "0", "1", lambda: session.gaussians().sh_degree == 0),
        ("near clip", "0.9", "0.01", lambda: session.look.near == 0.9),
    ):
        fill(page, label, value)
        until(reached)
        fill(page, label, reset)
        until(lambda reached=reached: not reached())
    backdrop = page.get_by_label("backdrop")
    backdrop.click()
    until(lambda: session.gaussians().count == front < whole)
    backdrop.click()
    until(lambda: session.gaussians().count == whole)
    page.get_by_text("above the thresholds").wait_for(state="detached")

    field = page.locator("input[value^='rgb(']").first
    field.fill("rgb(200, 0, 0)")
    field.press("Enter")
    field.blur()
    until(lambda: session.look.background == (200 / 255, 0, 0))
    fill(page, "opacity from", "1")
    until(lambda: np.abs(canvas(page).mean((0, 1)) - (200 / 255, 0, 0)).max() < 0.05)  # nothing but background
    fill(page, "opacity from", "0")

    for up, axis in (("+x", (1, 0, 0)), ("as the cameras", session.exhibit.up.numpy())):
        choose(page, "up", up)
        until(lambda axis=axis: np.allclose(session.client.camera.up_direction, axis, atol=1e-2))

    clear = page.get_by_label("show cameras")
    clear.click()
    for points in ("in the photos' colours", "coloured by depth", "coloured by confidence", "none"):
        choose(page, "points", points)
        until(lambda p=points: (session.client.scene.get_handle_by_name("/points") is None) == (p == "none"))
    clear.click()


def test_files_and_cameras_leave_and_come_back(opened, tmp_path):
    page, session = opened.go_home()
    page.get_by_text("Save", exact=True).click()
    still = Image.open(download(page, "Save this view as PNG", tmp_path))
    assert max(still.size) == 1280 and "w2c" in still.text["camera"]
    means = read_gaussians(opened.folder / "scene.ply").means.sort(0).values  # other formats have an order of their own
    for suffix in SUFFIXES:
        choose(page, "format", suffix)
        found = read_gaussians(download(page, "Download the scene", tmp_path).rename(tmp_path / f"got{suffix}"))
        assert torch.allclose(found.means.sort(0).values, means, atol=2e-3 * float(means.abs().max()))
    camera = page.locator("textarea").first
    press(page, "show")
    until(lambda: "w2c" in camera.input_value())
    assert download(page, "download", tmp_path).read_text() == camera.input_value()
    choose(page, "go to", "2  b.png")
    until(lambda: session.view() == 1)
    camera.fill(cameras_text(session.exhibit.cameras[:1], ["a"]))
    press(page, "go there")
    until(lambda: session.view() == 0)
    camera.fill("no camera")
    press(page, "go there")
    page.get_by_text("the cameras' JSON").first.wait_for()
    page.get_by_text("Save", exact=True).click()


def test_compare_with_the_photo(opened):
    page, session = opened.go_home()
    page.get_by_role("tab", name="Compare").click()
    choose(page, "compare with", "the photo of this view")
    page.get_by_text("Right: photo 1.").wait_for()

    def halves() -> tuple[float, float]:
        """How like the rendering the drawing is, left and right of the middle."""
        drawn, ours = canvas(page), rendering(page, session)
        middle = drawn.shape[1] // 2
        left, right = slice(0, middle - 20), slice(middle + 20, None)
        return alike(drawn[:, left], ours[:, left]), alike(drawn[:, right], ours[:, right])

    until(lambda: (found := halves())[0] > 26 and found[0] > found[1] + 8)  # on the right lies the photo
    choose(page, "how", "difference")
    until(lambda: max(halves()) < 15)
    press(page, "Score all photos")
    page.get_by_text("PSNR, dB").wait_for()
    rows = [float(cell) for cell in page.locator("tbody td:nth-child(2)").all_text_contents()]
    assert len(rows) == 3 and rows[0] == min(rows) > 12
    choose(page, "compare with", "nothing")


def test_a_path_is_made_kept_and_filmed(opened, tmp_path):
    page, session = opened.go_home()
    page.get_by_role("tab", name="Path").click()
    stop = page.get_by_role("button", name="Stop", exact=True)
    for count in ("1 key frame,", "2 key frames,"):
        press(page, "add")
        page.get_by_text(count).wait_for()
    press(page, "remove last")
    page.get_by_text("1 key frame,").wait_for()
    press(page, "clear")
    page.get_by_text("no key frames").wait_for()
    press(page, "Take the photos' cameras")
    fill(page, "seconds a step", "0.3")
    page.get_by_text("2 key frames, 0.3 s").wait_for()

    page.get_by_text("Path as JSON").click()
    kept = download(page, "save", tmp_path).read_text()
    assert path_from_text(kept).count == 2
    press(page, "clear")
    page.get_by_text("no key frames").wait_for()
    page.locator("textarea:visible").fill(kept)
    press(page, "load")
    page.get_by_text("2 key frames, 0.3 s").wait_for()

    press(page, "Preview")
    until(lambda: session.view() == 1)
    stop.wait_for(state="hidden")
    fill(page, "seconds a step", "60")
    page.get_by_text("2 key frames, 60.0 s").wait_for()
    press(page, "Preview")
    stop.click()  # long before the end, and so the path can be filmed next
    stop.wait_for(state="hidden")
    assert session.view() != 1
    fill(page, "seconds a step", "0.3")
    fill(page, "video's long side", "96")
    page.get_by_text("2 key frames, 0.3 s").wait_for()
    assert download(page, "Save as mp4", tmp_path).read_bytes()[4:8] == b"ftyp"
