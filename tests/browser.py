"""A page of the viewer in headless Chromium, which draws in software, driven as by hand.

Nothing here waits for a length of time: `until` waits for what is to come, so that a slow machine is no failure.
"""

import base64
import io
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geometry.scene import Scene
from geometry.write_scene import write_scene
from splat.outputs import psnr, save
from splat.pipeline import reconstruct
from tests.synthetic_photos import arc, pinhole, render_corner
from viewer.app import App
from viewer.look import picture
from viewer.opening import open_thing
from viewer.server import start
from viewer.session import MODES, SPLATS, Session

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytest.importorskip("viser", reason="the viewer needs viser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need chromium"),
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # on one worker: two browsers that draw in software starve each other
]
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WINDOW = {"width": 700, "height": 400}
PATIENCE = 300  # seconds
# A reconstruction of so many views goes on until it is cancelled.
ENDLESS = 24


@dataclass(frozen=True)
class Desk:
    """A server of one small reconstruction in `folder`, made of `photos`, and a page of it with its session."""

    browser: object
    app: App
    url: str
    photos: Path
    folder: Path
    page: object
    session: Session

    def go_home(self):
        """The page and its session as when it was opened: tab View, drawn by the browser, in the first photo."""
        self.page.get_by_role("tab", name="View").click()
        choose(self.page, "draw", SPLATS)
        choose(self.page, "go to", "-")
        choose(self.page, "go to", "1  a.png")
        until(lambda: self.session.view() == 0 and self.session.mode == SPLATS)
        return self.page, self.session


@contextmanager
def desk(folder: Path) -> Iterator[Desk]:
    """Serve a reconstruction and open a page of it, with all files in `folder`."""
    photos = write_photos(folder / "photos")
    save(reconstruct(photos, size=84, device="cpu"), folder / "corner")
    with ExitStack() as stack:
        browser = stack.enter_context(chromium())
        app, url = stack.enter_context(serving(folder / "corner"))
        yield Desk(browser, app, url, photos, folder / "corner", *connect(browser, app, url))


@contextmanager
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def serving(thing: Path) -> Iterator[tuple[App, str]]:
    """An app that shows `thing`, and its address."""
    app = App(500_000, "cpu", reconstruct=reconstruct_small)
    server = start(app, "127.0.0.1", 0)
    app.add(open_thing(thing))
    yield app, f"http://127.0.0.1:{server.get_port()}"
    server.stop()
    app.close()


def reconstruct_small(scene, weights, views, size, device, report, *, refine):
    """What the page asks for, at the smallest size: software renderers draw few splats slowly enough."""
    if views == ENDLESS:
        report("waiting for the end")
        time.sleep(3600)
    return reconstruct(scene, weights, views, 84, device, report, refine=refine)


def write_photos(folder: Path) -> Path:
    """Two posed photos of 56 x 84."""
    size, w2c = (56, 84), arc(2, 10)
    K = pinhole(size, 77)
    pictures = [render_corner(m, K, size) for m in w2c]
    names, Ks = ("a.png", "b.png"), np.stack([K] * 2)
    write_scene(Scene("corner", Path("corner"), names, (size,) * 2, pictures.__getitem__, w2c, Ks), folder)
    return folder


def new_page(browser, url: str):
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(1000 * PATIENCE)
    # Left to itself, a page that draws slowly lowers its resolution, and its picture is no longer the server's.
    page.goto(f"{url}?fixedDpr=1")
    return page


def connect(browser, app: App, url: str):
    """A page and its session, once it shows the scene."""
    known = set(app.sessions)
    page = new_page(browser, url)
    page.wait_for_selector("canvas[data-engine]")
    until(lambda: set(app.sessions) - known)
    session = app.sessions[(set(app.sessions) - known).pop()]
    until(lambda: session.exhibit is not None)
    return page, session


def until(condition, seconds: float = PATIENCE, found=lambda: "it did not happen") -> None:
    """Wait until `condition` holds; if it never does, fail with what `found` says."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, found()
        time.sleep(0.05)


# --- what is seen ----------------------------------------------------------------------------------------------------


def canvas(page) -> np.ndarray:
    """The drawing without notices and panel: the middle of the canvas, float [H, W, 3] in 0..1."""
    shot = page.screenshot(timeout=1000 * PATIENCE)
    return _middle(np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")) / 255, page)


def rendering(page, session: Session, kind: str | None = None) -> np.ndarray:
    """What the server renders for the page as it is now, as `canvas` would see it."""
    look, box = replace(session.look, kind=kind or MODES[session.mode]), _box(page)
    camera = session.camera((int(box["height"]), int(box["width"])))
    frame = session.app.worker.call(lambda: picture(session.exhibit, session.gaussians(), camera, look))
    return _middle(frame / 255, page)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of two drawings at a quarter of their size; 0 while the page is being laid out and the sizes differ."""
    if a.shape != b.shape:
        return 0.0
    small = [np.asarray(Image.fromarray((255 * x).astype(np.uint8)).reduce(4), float) / 255 for x in (a, b)]
    return psnr(*map(torch.from_numpy, small))


def shows(page, session: Session, least: float = 26.0, kind: str | None = None) -> None:
    """Wait until the page draws what the server renders for it, to a PSNR above `least`."""
    seen = [0.0]

    def drawn() -> bool:
        seen[:] = [alike(canvas(page), rendering(page, session, kind))]
        return seen[0] > least

    until(drawn, found=lambda: f"{session.mode}: the page is at {seen[0]:.1f} dB from the server's picture")


def _middle(picture: np.ndarray, page) -> np.ndarray:
    return picture[160:380, 20 : int(_box(page)["width"]) - 10]


def _box(page) -> dict:
    return page.locator("canvas[data-engine]").bounding_box()


# --- what is done ----------------------------------------------------------------------------------------------------


def choose(page, label: str, option: str) -> None:
    """Pick an option of the dropdown with this label."""
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).first.click()


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def fill(page, label: str, value: str) -> None:
    """Type a number into the field with this label, or beside the slider that has it."""
    row = page.locator("div.mantine-Flex-root", has=page.get_by_text(label, exact=True)).last
    field = row.locator("input:not([type=hidden])").last
    field.fill(value)
    field.blur()


def download(page, name: str, to: Path) -> Path:
    """Press a button and keep what it sends under the name that it has."""
    with page.expect_download() as sent:
        press(page, name)
    sent.value.save_as(to / sent.value.suggested_filename)
    return to / sent.value.suggested_filename


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
