"""Files from a browser: named, counted, measured and decoded with distrust; none of them may hurt the server."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viewer import uploads
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
