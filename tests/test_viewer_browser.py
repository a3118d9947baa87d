"""The page in a real browser: headless Chromium draws the splats in software and is driven like by hand."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import raysplat
from geometry.scene import Scene
from geometry.write_scene import write_scene
from splat.outputs import psnr, save
from splat.pipeline import reconstruct
from splat.ply import read_ply
from tests.synthetic_photos import arc, pinhole, render_corner
from viewer.app import App
from viewer.opening import open_thing
from viewer.server import start

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("viser", reason="the viewer needs viser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need chromium"),
    pytest.mark.slow,
]
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WINDOW = {"width": 700, "height": 400}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three posed photos of 56 x 84."""
    size, w2c = (56, 84), arc(3, 16)
    K = pinhole(size, 77)
    pictures = [render_corner(m, K, size) for m in w2c]
    scene = Scene(
        "corner", Path("corner"), ("a.png", "b.png", "c.png"), (size,) * 3, pictures.__getitem__, w2c, np.stack([K] * 3)
    )
    folder = tmp_path_factory.mktemp("photos")
    write_scene(scene, folder)
    return folder


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "corner"
    save(reconstruct(photos, size=84, device="cpu"), out)
    return out


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def served(folder):
    """A server of the reconstruction, and the app behind it."""
    app = App(500_000, "cpu")
    app.add(open_thing(folder))
    server = start(app, "127.0.0.1", 0)
    yield app, f"http://127.0.0.1:{server.get_port()}"
    server.stop()
    app.close()


def connect(browser, app, url):
    """A page and its session, once it shows the scene."""
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(150_000)
    known = set(app.sessions)
    page.goto(url)
    page.wait_for_selector("canvas[data-engine]")
    until(lambda: set(app.sessions) - known)
    session = app.sessions[(set(app.sessions) - known).pop()]
    until(lambda: session.exhibit is not None)
    return page, session


def until(condition, seconds=180.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return condition()


def canvas(page) -> np.ndarray:
    """The drawing without notices and panel: the middle of the canvas, float [H, W, 3] in 0..1."""
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot(timeout=60_000))).convert("RGB")) / 255
    width = page.locator("canvas[data-engine]").bounding_box()["width"]
    return picture[160:380, 20 : int(width) - 10]


def settled(page, seconds=30.0) -> np.ndarray:
    """The drawing once it no longer changes; viser fades in, slowly where a CPU draws."""
    end, before = time.monotonic() + seconds, canvas(page)
    while time.monotonic() < end:
        time.sleep(0.4)
        now = canvas(page)
        if np.abs(now - before).max() < 0.02:
            return now
        before = now
    return before


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two drawings at a quarter of their size."""
    small = [np.asarray(Image.fromarray((255 * x).astype(np.uint8)).reduce(4), float) / 255 for x in (a, b)]
    return psnr(*map(torch.from_numpy, small))


def choose(page, label: str, option: str) -> None:
    """Pick an option of the dropdown with this label."""
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).first.click()


def fill(page, label: str, value: str) -> None:
    """Type a number beside the slider with this label."""
    row = page.locator("div.mantine-Flex-root", has=page.get_by_text(label, exact=True)).last
    row.locator("input:not([type=hidden])").last.fill(value)


def test_the_page_draws_what_the_server_renders(browser, served, folder, tmp_path):
    app, url = served
    page, session = connect(browser, app, url)
    until(lambda: session.view() == 0)
    drawn = settled(page)
    assert drawn.std() > 0.08
    choose(page, "draw", "rendered by the server")
    rendered = settled(page)
    assert alike(drawn, rendered) > 18

    # Flipping the controls changes the picture.
    choose(page, "draw", "depth")
    assert alike(settled(page), rendered) < 18
    choose(page, "draw", "splats, drawn by the browser")
    fill(page, "opacity from", "0.95")
    until(lambda: session.look.opacity == 0.95)
    assert alike(settled(page), drawn) < 25
    fill(page, "opacity from", "0")

    # Dragging turns the camera; the photo's name takes it back.
    box = page.locator("canvas[data-engine]").bounding_box()
    page.mouse.move(200, 300)
    page.mouse.down()
    page.mouse.move(min(320, box["width"] - 20), 330, steps=4)
    page.mouse.up()
    until(lambda: session.view() is None)
    choose(page, "go to", "2  b.png")
    until(lambda: session.view() == 1)

    # Files: a still with its camera, and the scene.
    page.get_by_text("Save", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this view as PNG").click()
    still = Image.open(download.value.path())
    assert max(still.size) == 1280 and "w2c" in still.text["camera"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the scene").click()
    download.value.save_as(tmp_path / "scene.ply")
    assert np.allclose(read_ply(tmp_path / "scene.ply").means, read_ply(folder / "scene.ply").means)
    page.close()


def test_compare_with_the_photo_and_save_a_path(browser, served):
    app, url = served
    page, session = connect(browser, app, url)
    page.get_by_role("tab", name="Compare").click()
    choose(page, "compare with", "the photo of this view")
    page.get_by_text("Right: photo 1.").wait_for()
    wiped = settled(page)
    choose(page, "how", "difference")
    assert alike(settled(page), wiped) < 20
    page.get_by_role("button", name="Score all photos").click()
    page.get_by_text("PSNR, dB").wait_for()
    rows = [float(cell) for cell in page.locator("tbody td:nth-child(2)").all_text_contents()]
    assert len(rows) == 4 and rows[0] == min(rows) > 12

    page.get_by_role("tab", name="Path").click()
    page.get_by_role("button", name="Take the photos' cameras").click()
    page.get_by_text("3 key frames, 4.0 s").wait_for()
    fill(page, "seconds a step", "0.3")
    fill(page, "video's long side", "96")
    page.get_by_text("3 key frames, 0.6 s").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as mp4").click()
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
    page.close()


def test_photos_are_uploaded_and_reconstructed_beside_another_tab(browser, served, photos):
    app, url = served
    page, session = connect(browser, app, url)
    other, bystander = connect(browser, app, url)
    page.get_by_role("tab", name="New").click()
    images = sorted((photos / "images").glob("*.png"))
    bad = photos / "bad.jpg"
    bad.write_bytes(b"no photo")
    page.locator("#raysplat-photos").set_input_files([*images, bad])
    page.get_by_text("bad.jpg: ").first.wait_for()
    page.get_by_text("a.png, b.png, c.png").wait_for()
    page.get_by_role("button", name="Reconstruct", exact=True).click()
    until(lambda: session.exhibit.name.startswith("reconstruction"), 90)
    assert bystander.exhibit.name == "corner" and session.exhibit.images.shape[0] == 3
    assert settled(page).std() > 0.05
    # A closed tab leaves the other alone.
    page.close()
    until(lambda: len(app.sessions) == 1)
    choose(other, "scene", session.exhibit.name)
    until(lambda: bystander.exhibit is session.exhibit)
    other.close()


def test_pages_of_other_sites_are_turned_away(served):
    from viser import __version__
    from websockets.exceptions import ConnectionClosedError
    from websockets.sync.client import connect as dial

    app, url = served
    protocol = [f"viser-v{__version__}"]
    with dial(url.replace("http", "ws"), origin=url, subprotocols=protocol) as socket:
        assert len(socket.recv(5)) > 0
    with dial(url.replace("http", "ws"), origin="https://evil.example", subprotocols=protocol) as socket:
        with pytest.raises(ConnectionClosedError) as refused:
            socket.recv(5)
        assert refused.value.rcvd.code == 1008


def test_ctrl_c_ends_the_server_cleanly(folder):
    root = Path(raysplat.__file__).parents[1]
    command = [sys.executable, "-m", "viewer", str(folder), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        line = server.stderr.readline()
        assert "http://127.0.0.1:" in line
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=120)
    assert server.returncode == 0 and "Traceback" not in err and "stopped" in err
