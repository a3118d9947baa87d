"""The page in a real browser: uploads and jobs beside another tab, an evaluation, other sites, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import raysplat
from tests.browser import (
    ENDLESS,
    alike,
    canvas,
    choose,
    connect,
    desk,
    drop,
    fill,
    needs_browser,
    new_page,
    press,
    serving,
    shows,
    until,
)
from viewer.session import SPLATS

pytestmark = needs_browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with desk(tmp_path_factory.mktemp("tabs")) as made:
        yield made


def test_photos_are_dropped_and_reconstructed_beside_another_tab(opened, tmp_path):
    page, session = opened.go_home()
    other, bystander = connect(opened.browser, opened.app, opened.url)
    page.get_by_role("tab", name="New").click()
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    (tmp_path / "empty.jpg").write_bytes(b"")
    first, second = sorted((opened.photos / "images").glob("*.png"))
    page.locator("#raysplat-photos").set_input_files([tmp_path / "bad.jpg", tmp_path / "empty.jpg", first])
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
    fill(page, "refine", "5")
    press(page, "Reconstruct")
    page.get_by_text("refined by 5 steps").wait_for()
    until(lambda: session.exhibit.name.startswith("reconstruction"))
    assert bystander.exhibit.name == "corner" and session.exhibit.images.shape[0] == 2
    shows(page, session)

    # A job that is cancelled leaves everything as it is, and a closed tab leaves the other alone.
    page.locator("#raysplat-photos").set_input_files([first, second])
    page.get_by_text("2 uploaded: a.png, b.png").wait_for()
    fill(page, "views", str(ENDLESS))
    press(page, "Reconstruct")
    page.get_by_text("waiting for the end").wait_for()
    press(page, "Cancel")
    page.get_by_text("cancelled").first.wait_for()
    other.close()
    until(lambda: len(opened.app.sessions) == 1)
    choose(page, "scene", "corner")
    until(lambda: session.exhibit.name == "corner")


def test_the_pictures_of_an_evaluation(opened, tmp_path):
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
    with serving(tmp_path) as (app, url):
        page = new_page(opened.browser, url)
        page.get_by_text("20.00").first.wait_for()
        page.get_by_text("20.50").first.wait_for()
        until(lambda: canvas(page).std() > 0.1)
        three = canvas(page)
        press(page, "better")
        page.get_by_text("21.00").first.wait_for()
        until(lambda: alike(canvas(page), three) < 25)
        # Controls that need a scene say so.
        page.get_by_role("tab", name="Path").click()
        press(page, "add")
        page.get_by_text("no scene is open yet").wait_for()
        page.close()
        until(lambda: not app.sessions)


def test_pages_of_other_sites_are_turned_away(opened):
    from viser import __version__
    from websockets.exceptions import ConnectionClosedError
    from websockets.sync.client import connect as dial

    address, protocol = opened.url.replace("http", "ws"), [f"viser-v{__version__}"]
    with dial(address, origin=opened.url, subprotocols=protocol) as socket:
        assert len(socket.recv(60)) > 0
    with dial(address, origin="https://evil.example", subprotocols=protocol) as socket:
        with pytest.raises(ConnectionClosedError) as refused:
            socket.recv(60)
        assert refused.value.rcvd.code == 1008


def test_ctrl_c_ends_the_server_cleanly(opened):
    root = Path(raysplat.__file__).parents[1]
    command = [sys.executable, "-m", "viewer", str(opened.folder), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        line = server.stderr.readline()
        assert "http://127.0.0.1:" in line
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=300)
    assert server.returncode == 0 and "Traceback" not in err and "stopped" in err
