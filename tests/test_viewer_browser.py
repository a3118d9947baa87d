"""The page in a real browser: headless Chromium draws the splats in software and is driven like by hand."""

import base64
import io
import json
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
from splat.files import SUFFIXES, read_gaussians
from splat.outputs import psnr, save
from splat.pipeline import reconstruct
from tests.synthetic_photos import arc, pinhole, render_corner
from viewer.app import App
from viewer.browser_camera import cameras_text
from viewer.camera_keys import path_from_text
from viewer.opening import open_thing
from viewer.server import start
from viewer.session import RENDERED, SPLATS

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("viser", reason="the viewer needs viser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need chromium"),
    pytest.mark.slow,
]
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WINDOW = {"width": 700, "height": 400}
PATIENCE = 180_000  # milliseconds: a slow machine is no failure


def reconstruct_small(scene, weights, views, size, device, report):
    """What the page asks for, at the smallest size: software renderers draw few splats slowly enough."""
    return reconstruct(scene, weights, views, 84, device, report)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two posed photos of 56 x 84."""
    size, w2c = (56, 84), arc(2, 10)
    K = pinhole(size, 77)
    pictures = [render_corner(m, K, size) for m in w2c]
    scene = Scene(
        "corner", Path("corner"), ("a.png", "b.png"), (size,) * 2, pictures.__getitem__, w2c, np.stack([K] * 2)
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


@pytest.fixture(scope="module")
def served(folder):
    """A server of the reconstruction, and the app behind it."""
    app = App(500_000, "cpu", reconstruct=reconstruct_small)
    app.add(open_thing(folder))
    server = start(app, "127.0.0.1", 0)
    yield app, f"http://127.0.0.1:{server.get_port()}"
    server.stop()
    app.close()


@pytest.fixture(scope="module")
def tab(browser, served):
    """One page for all tests, and its session: to open one takes a software renderer seconds."""
    page, session = connect(browser, *served)
    yield page, session
    page.close()


@pytest.fixture
def at_home(tab):
    """The page as it was when it was opened: first tab, drawn by the browser, in the first photo's camera."""
    page, session = tab
    page.get_by_role("tab", name="View").click()
    choose(page, "draw", SPLATS)
    choose(page, "go to", "-")
    choose(page, "go to", "1  a.png")
    until(lambda: session.view() == 0 and session.mode == SPLATS)
    return page, session


def connect(browser, app, url):
    """A page and its session, once it shows the scene."""
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(PATIENCE)
    known = set(app.sessions)
    page.goto(url)
    page.wait_for_selector("canvas[data-engine]")
    until(lambda: set(app.sessions) - known)
    session = app.sessions[(set(app.sessions) - known).pop()]
    until(lambda: session.exhibit is not None)
    return page, session


def until(condition, seconds=PATIENCE / 1000):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return condition()


def canvas(page) -> np.ndarray:
    """The drawing without notices and panel: the middle of the canvas, float [H, W, 3] in 0..1."""
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot(timeout=PATIENCE))).convert("RGB")) / 255
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


def drop(page, file: Path) -> None:
    """Let a file fall on the area for uploads."""
    content = base64.b64encode(file.read_bytes()).decode()
    made = """([content, name]) => {
        const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), dropped = new DataTransfer();
        dropped.items.add(new File([bytes], name, {type: "image/png"}));
        return dropped;
    }"""
    transfer = page.evaluate_handle(made, [content, file.name])
    page.locator("label:has(#raysplat-photos)").dispatch_event("drop", {"dataTransfer": transfer})


def choose(page, label: str, option: str) -> None:
    """Pick an option of the dropdown with this label."""
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).first.click()


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def download(page, name: str, to: Path) -> Path:
    """Press a button and keep what it sends under the name that it has."""
    with page.expect_download() as sent:
        press(page, name)
    sent.value.save_as(to / sent.value.suggested_filename)
    return to / sent.value.suggested_filename


def fill(page, label: str, value: str) -> None:
    """Type a number beside the slider with this label."""
    row = page.locator("div.mantine-Flex-root", has=page.get_by_text(label, exact=True)).last
    field = row.locator("input:not([type=hidden])").last
    field.fill(value)
    field.blur()


def test_the_page_draws_what_the_server_renders(at_home):
    page, session = at_home
    drawn = settled(page)
    assert drawn.std() > 0.08
    choose(page, "draw", RENDERED)
    rendered = settled(page)
    assert alike(drawn, rendered) > 18
    choose(page, "draw", "depth")
    assert alike(settled(page), rendered) < 18
    choose(page, "draw", "opacity (alpha)")
    alpha = settled(page)
    assert np.ptp(alpha, axis=-1).max() < 0.1 and alpha.mean() > 0.3  # grey, and not empty

    # Dragging turns the camera; the photo's name takes it back.
    box = page.locator("canvas[data-engine]").bounding_box()
    page.mouse.move(200, 300)
    page.mouse.down()
    page.mouse.move(min(320, box["width"] - 20), 330, steps=4)
    page.mouse.up()
    until(lambda: session.view() is None)
    choose(page, "go to", "2  b.png")
    until(lambda: session.view() == 1)
    press(page, "previous")
    until(lambda: session.view() == 0)


def test_every_control_of_the_view(at_home):
    page, session = at_home
    whole = session.exhibit.gaussians.count
    for label, value, reset, reached in (
        ("opacity from", "0.9", "0", lambda: session.gaussians().count < whole),
        ("confidence from", "60", "0", lambda: 0.3 * whole < session.gaussians().count < 0.5 * whole),
        ("SH degree", "0", "1", lambda: session.gaussians().sh_degree == 0),
        ("near clip", "0.9", "0.01", lambda: session.look.near == 0.9),
    ):
        fill(page, label, value)
        until(reached)
        fill(page, label, reset)
        until(lambda reached=reached: not reached())
    page.get_by_text("above the thresholds").wait_for(state="detached")

    field = page.locator("input[value^='rgb(']").first
    field.fill("rgb(200, 0, 0)")
    field.press("Enter")
    field.blur()
    until(lambda: session.look.background == (200 / 255, 0, 0))
    fill(page, "opacity from", "1")
    seen = settled(page)  # nothing but background
    assert np.abs(seen.mean((0, 1)) - (200 / 255, 0, 0)).max() < 0.05
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


def test_files_and_cameras_leave_and_come_back(at_home, folder, tmp_path):
    page, session = at_home
    page.get_by_text("Save", exact=True).click()
    still = Image.open(download(page, "Save this view as PNG", tmp_path))
    assert max(still.size) == 1280 and "w2c" in still.text["camera"]
    means = read_gaussians(folder / "scene.ply").means.sort(0).values  # other formats have an order of their own
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


def test_compare_with_the_photo(at_home):
    page, session = at_home
    page.get_by_role("tab", name="Compare").click()
    choose(page, "compare with", "the photo of this view")
    page.get_by_text("Right: photo 1.").wait_for()
    wiped = settled(page)
    choose(page, "how", "difference")
    assert alike(settled(page), wiped) < 20
    press(page, "Score all photos")
    page.get_by_text("PSNR, dB").wait_for()
    rows = [float(cell) for cell in page.locator("tbody td:nth-child(2)").all_text_contents()]
    assert len(rows) == 3 and rows[0] == min(rows) > 12
    choose(page, "compare with", "nothing")


def test_a_path_is_made_kept_and_filmed(at_home, tmp_path):
    page, session = at_home
    page.get_by_role("tab", name="Path").click()
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
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    fill(page, "seconds a step", "10")
    page.get_by_text("2 key frames, 10.0 s").wait_for()
    press(page, "Preview")
    press(page, "Stop")  # in the middle, and so the path can be filmed next
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    fill(page, "seconds a step", "0.3")
    fill(page, "video's long side", "96")
    page.get_by_text("2 key frames, 0.3 s").wait_for()
    assert download(page, "Save as mp4", tmp_path).read_bytes()[4:8] == b"ftyp"


def test_photos_are_dropped_and_reconstructed_beside_another_tab(browser, served, at_home, photos, tmp_path):
    app, url = served
    page, session = at_home
    other, bystander = connect(browser, app, url)
    page.get_by_role("tab", name="New").click()
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    (tmp_path / "empty.jpg").write_bytes(b"")
    first, second = sorted((photos / "images").glob("*.png"))
    page.locator("#raysplat-photos").set_input_files([tmp_path / "bad.jpg", tmp_path / "empty.jpg", first])
    page.get_by_text("bad.jpg: ").first.wait_for()
    page.get_by_text("1 uploaded: a.png").wait_for()
    page.get_by_text("refused: 2").wait_for()
    page.get_by_text("Uploading").first.wait_for(state="hidden")  # no notice waits for a transfer that is over
    drop(page, second)
    page.get_by_text("2 uploaded: a.png, b.png").wait_for()

    # What one tab sets is not the other's.
    page.get_by_role("tab", name="View").click()
    fill(page, "SH degree", "0")
    choose(other, "draw", "depth")
    choose(other, "go to", "2  b.png")
    until(lambda: session.look.degree == 0 and bystander.mode == "depth" and bystander.view() == 1)
    assert bystander.look.degree == 1 and session.mode == SPLATS and session.view() == 0

    page.get_by_role("tab", name="New").click()
    press(page, "Reconstruct")
    until(lambda: session.exhibit.name.startswith("reconstruction"))
    assert bystander.exhibit.name == "corner" and session.exhibit.images.shape[0] == 2
    assert settled(page).std() > 0.05

    # A job that is cancelled leaves everything as it is, and a closed tab leaves the other alone.
    page.locator("#raysplat-photos").set_input_files([first, second])
    page.get_by_text("2 uploaded: a.png, b.png").wait_for()
    press(page, "Reconstruct")
    press(page, "Cancel")
    page.get_by_text("cancelled").first.wait_for()
    other.close()
    until(lambda: len(app.sessions) == 1)
    choose(page, "scene", "corner")
    until(lambda: session.exhibit.name == "corner")


def test_the_pictures_of_an_evaluation(browser, tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"scene": "s", "target": f"{i}.png", "psnr": 20.0 + i, "ssim": 0.5} for i in range(2)]
    result = {"bench": {"name": "sample"}, "protocol": {"name": "paper"}, "images": rows, "mean": {"psnr": 20.5}}
    for sub in ("s/renders", "report-files/s"):
        (tmp_path / sub).mkdir(parents=True)
    files = {f"{i}.png": f"renders/{i}.png" for i in range(2)}
    (tmp_path / "results.json").write_text(json.dumps(result))
    (tmp_path / "s" / "prediction.json").write_text(json.dumps({"files": files}))
    for file in ("s/renders/0.png", "s/renders/1.png", "report-files/s/0-photo.jpg", "report-files/s/0-error.png"):
        Image.fromarray(rng.integers(0, 255, (27, 48, 3), np.uint8)).save(tmp_path / file)
    app = App(1000, "cpu")
    app.add(open_thing(tmp_path))
    server = start(app, "127.0.0.1", 0)
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://127.0.0.1:{server.get_port()}")
    page.get_by_text("20.00").first.wait_for()
    page.get_by_text("20.50").first.wait_for()
    three = settled(page)
    press(page, "better")
    page.get_by_text("21.00").first.wait_for()
    assert three.std() > 0.1 and alike(settled(page), three) < 25
    # Controls that need a scene say so.
    page.get_by_role("tab", name="Path").click()
    press(page, "add")
    page.get_by_text("no scene is open yet").wait_for()
    page.close()
    server.stop()
    app.close()


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
