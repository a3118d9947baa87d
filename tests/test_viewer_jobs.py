"""What comes from a browser: uploads, jobs, and pages of other sites. None of it may hurt the server."""

import io
import os
import signal
import socket
import struct
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from splat.reconstruct import Reconstruction
from viewer import uploads
from viewer.app import App
from viewer.guard import allowed, is_loopback
from viewer.jobs import MOST_WAITING, Job, JobQueue, Request
from viewer.render_worker import RenderWorker
from viewer.server import start
from viewer.uploads import Inbox


def photo(size=(24, 32), kind="JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def send(inbox: Inbox, name: str, content: bytes, key: str = "", piece: int = 1000) -> str:
    key = key or name
    pieces = [content[i : i + piece] for i in range(0, len(content), piece)]
    inbox.begin(key, name, len(content), len(pieces))
    for i, part in enumerate(pieces):
        transfer = inbox.receive(key, i, part)
    assert transfer.complete
    return inbox.finish(key)


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_names_from_a_browser_are_never_paths():
    inbox = Inbox()
    assert send(inbox, "../../etc/pass<wd>.jpg", photo()) == "pass_wd_.jpg"
    assert send(inbox, "C:\\x\\b.exe", photo(kind="PNG")) == "b.exe"
    folder = inbox.source
    assert sorted(p.name for p in folder.iterdir()) == ["0001.jpg", "0002.png"]
    assert [label for _, label in inbox.files] == ["pass_wd_.jpg", "b.exe"]
    inbox.close()
    assert not folder.exists()


def test_what_is_no_photo_is_refused_and_removed():
    inbox = Inbox()
    for name, content in {
        "a.jpg": b"<script>alert(1)</script>",
        "b.jpg": photo()[:300],
        "c.mp4": b"no video at all" * 100,
        "d.gif": photo(kind="GIF"),
        "tiny.png": photo((4, 4), "PNG"),
    }.items():
        with pytest.raises(ValueError, match=name) as error:
            send(inbox, name, content)
        assert "raysplat-upload" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="upload photos"):
        inbox.source  # noqa: B018
    send(inbox, "fine.jpg", photo())
    assert len(os.listdir(inbox.source)) == 1
    inbox.close()


def bomb(side: int) -> bytes:
    """The header of a PNG of side x side pixels, and no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_hostile_files_get_one_line_before_they_are_decoded(monkeypatch):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", photo())
    decoded = []
    monkeypatch.setattr(uploads, "read_image", lambda path: decoded.append(path))
    inbox = Inbox()
    for name, content in {
        "bomb.png": bomb(50_000),
        "large.png": bomb(11_000),
        "zip.jpg": archive.getvalue(),
        "drawing.svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"></svg>',
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n",
        "no frames.mp4": struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"isom", 0, b"isom", b"mp41"),
        "nothing.jpg": b"",
    }.items():
        with pytest.raises(ValueError, match=name) as error:
            send(inbox, name, content)
        assert "\n" not in str(error.value) and "raysplat-upload" not in str(error.value)
    assert decoded == [] and inbox.files == []
    inbox.close()


def test_ten_thousand_files_leave_two_hundred():
    inbox, refused = Inbox(), 0
    for i in range(10_000):
        try:
            inbox.begin(str(i), f"{i}.jpg", 10, 1)
        except ValueError:
            refused += 1
    assert refused == 10_000 - uploads.MOST_FILES
    inbox.close()


def test_a_decoder_that_is_missing_or_runs_out_of_memory_is_a_refusal(monkeypatch):
    for error in (ImportError("needs pillow-heif"), MemoryError()):

        def fail(path, error=error):
            raise error

        monkeypatch.setattr(uploads, "image_size", fail)
        inbox = Inbox()
        with pytest.raises(ValueError, match="a.heic"):
            send(inbox, "a.heic", photo())
        assert os.listdir(Path(inbox._folder.name)) == []
        inbox.close()


def test_a_picture_with_too_many_pixels_is_not_decoded(monkeypatch):
    monkeypatch.setattr(uploads, "MOST_PIXELS", 500)
    inbox = Inbox()
    with pytest.raises(ValueError, match="too many"):
        send(inbox, "bomb.png", photo(kind="PNG"))
    inbox.close()


def test_limits_on_number_and_size(monkeypatch):
    monkeypatch.setattr(uploads, "MOST_FILES", 2)
    inbox = Inbox()
    send(inbox, "a.jpg", photo())
    inbox.begin("slow", "b.jpg", 100, 1)
    with pytest.raises(ValueError, match="at most 2 files"):
        inbox.begin("c", "c.jpg", 100, 1)
    monkeypatch.setattr(uploads, "MOST_FILES", 50)
    with pytest.raises(ValueError, match="64 MB"):
        inbox.begin("d", "d.jpg", 65 * uploads.MEGABYTE, 10)
    with pytest.raises(ValueError, match="not taken"):
        inbox.begin("e", "e.mp4", uploads.MOST_BYTES + 1, 10)
    with pytest.raises(ValueError, match="together"):
        inbox.begin("f", "f.mp4", uploads.MOST_BYTES, 10)
    for size, parts in ((0, 0), (-1, 1), (10, 0), (10, 10**9)):
        with pytest.raises(ValueError, match="g.jpg"):
            inbox.begin("g", "g.jpg", size, parts)
    inbox.close()


def test_pieces_that_do_not_fit_are_refused():
    inbox = Inbox()
    with pytest.raises(ValueError, match="not announced"):
        inbox.receive("x", 0, b"abc")
    inbox.begin("long", "a.jpg", 5, 2)
    with pytest.raises(ValueError, match="do not fit"):
        inbox.receive("long", 0, b"123456")
    inbox.begin("short", "a.jpg", 5, 1)
    with pytest.raises(ValueError, match="do not fit"):
        inbox.receive("short", 0, b"1234")
    inbox.begin("order", "a.jpg", 5, 2)
    with pytest.raises(ValueError, match="do not fit"):
        inbox.receive("order", 1, b"12")
    assert inbox.files == []
    inbox.close()


def test_a_job_takes_the_files_along():
    inbox = Inbox()
    send(inbox, "a.jpg", photo())
    source, taken = inbox.source, inbox.release()
    assert inbox.files == [] and source == Path(taken.name)
    inbox.close()
    assert len(os.listdir(source)) == 1
    taken.cleanup()


# --- jobs: each starts a process, so there are few -------------------------------------------------------------------


def make(scene, weights, views, size, device, report) -> Reconstruction:
    """A reconstructor for tests; `weights` says how it goes."""
    report(f"looking at {scene}")
    if weights == "fails":
        raise ValueError(f"{scene}: no photo\nhere")
    if weights == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if weights == "hangs":
        time.sleep(600)
    means = torch.rand(5, 3)
    gaussians = Gaussians(means, means + 0.1, torch.eye(4)[:1].expand(5, 4), means[:, 0], means[:, None])
    cameras = Cameras(torch.eye(4)[None], torch.eye(3)[None], (2, 3))
    images, depth = torch.rand(1, 3, 2, 3), torch.ones(1, 2, 3)
    return Reconstruction(gaussians, cameras, depth, depth, images, ("a",), "test")


def wait(jobs: list[Job], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not all(job.finished for job in jobs):
        assert time.monotonic() < end, [job.status for job in jobs]
        time.sleep(0.05)


def test_jobs_run_one_by_one_and_none_hurts_the_next(tmp_path):
    states: list[tuple[int, str]] = []
    queue = JobQueue(make, tmp_path, lambda job: states.append((job.number, job.state)))
    fails, dies, works = (queue.submit(Request(tmp_path, w, w)) for w in ("fails", "dies", "works"))
    assert queue.ahead(works) >= 1
    wait([fails, dies, works])
    assert (fails.state, fails.error) == ("failed", "no photo here")
    assert dies.state == "failed" and "memory" in dies.error and "\n" not in dies.status
    assert works.state == "done" and works.exhibit.name == "works" and works.exhibit.gaussians.count == 5
    assert works.lines == ["looking at works"]
    running = [number for number, state in states if state == "running"]
    assert list(dict.fromkeys(running)) == [1, 2, 3] and os.listdir(tmp_path) == []
    queue.close()


def test_a_running_and_a_waiting_job_are_cancelled(tmp_path):
    queue = JobQueue(make, tmp_path)
    hangs, waits = (queue.submit(Request(tmp_path, w, w)) for w in ("hangs", "works"))
    with pytest.raises(ValueError, match="waiting already"):
        for _ in range(MOST_WAITING + 1):
            queue.submit(Request(tmp_path, "more", "works"))
    queue.cancel(waits)
    assert waits.state == "cancelled"
    while not hangs.lines:
        time.sleep(0.05)
    start = time.monotonic()
    queue.close()  # ends the running one as well
    assert hangs.state == "cancelled" and time.monotonic() - start < 30
    with pytest.raises(ValueError):
        queue.submit(Request(tmp_path, "late", "works"))


# --- rendering for several tabs --------------------------------------------------------------------------------------


def test_only_the_newest_picture_of_a_tab_is_made():
    worker, gate, made = RenderWorker(), threading.Event(), []
    first = worker.post("a", gate.wait)
    while not first.running():
        time.sleep(0.001)
    old = worker.post("a", lambda: made.append("old"))
    other = worker.post("b", lambda: made.append("other"))
    new = worker.post("a", lambda: made.append("new"))
    gate.set()
    new.result(5), other.result(5)
    assert made == ["other", "new"] and old.cancelled()
    late = worker.post("c", lambda: made.append("late"), delay=30)
    worker.drop("c")
    assert late.cancelled()
    worker.close()


def test_a_picture_that_fails_leaves_the_worker_alive(capsys):
    worker = RenderWorker()
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0)
    assert worker.call(lambda: 7) == 7 and "ZeroDivisionError" in capsys.readouterr().err
    worker.close()


# --- other sites -----------------------------------------------------------------------------------------------------


def test_pages_of_other_sites_are_not_served():
    here = "127.0.0.1:8080"
    assert allowed("http://127.0.0.1:8080", here, "127.0.0.1") and allowed(None, here, "127.0.0.1")
    assert allowed("http://localhost:9000", "localhost:9000", "127.0.0.1")  # through a tunnel
    assert allowed("http://[::1]:8080", "[::1]:8080", "::1")
    assert not allowed("https://evil.example", here, "127.0.0.1")
    assert not allowed("http://127.0.0.1:1234", here, "127.0.0.1")
    assert not allowed("null", here, "127.0.0.1")
    assert not allowed("http://evil.example:8080", "evil.example:8080", "127.0.0.1")  # DNS rebinding
    assert not allowed(None, None, "127.0.0.1")
    assert allowed("http://LOCALHOST:8080", "LOCALHOST:8080", "::1")
    for half in ("[::1", "[", "//", "127.0.0.1:8080@evil.example", "[::ffff:10.0.0.1]:8080"):
        assert not allowed(f"http://{half}", half, "127.0.0.1") and not allowed(None, half, "127.0.0.1")
    assert not allowed("http://[::1", here, "127.0.0.1")
    assert allowed("http://big.machine:8080", "big.machine:8080", "0.0.0.0")
    assert not allowed("http://evil.example", "big.machine:8080", "0.0.0.0")


def test_a_taken_port_and_an_open_host_are_told_in_one_line(capsys):
    pytest.importorskip("viser", reason="the viewer needs viser")
    app = App(1000, "cpu")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is taken") as error:
            start(app, "127.0.0.1", port)
    assert "\n" not in str(error.value) and "warning" not in capsys.readouterr().err
    server = start(app, "0.0.0.0", 0)
    assert "warning: 0.0.0.0 can be reached by other machines" in capsys.readouterr().err
    server.stop()
    app.close()


def test_what_is_a_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.1.4", "example.org", "", "::")))
