"""Decoding photos of every kind, refusing broken ones in one line, and resampling."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from geometry import images as im


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_pixels_and_size(tmp_path, picture, orientation):
    photo = Image.fromarray(picture)
    exif = photo.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    photo.save(path, exif=exif)
    turns = {  # what the viewer must do, written out by hand from the EXIF standard
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    want = turns[orientation](picture)
    np.testing.assert_array_equal(im.read_image(path), want)
    assert im.image_size(path) == want.shape[:2]
    np.testing.assert_array_equal(im.read_image(path, upright=False), picture)
    assert im.image_size(path, upright=False) == (12, 20)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 100, 0, 255)
    rgba[0, 1] = (200, 100, 0, 0)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = im.read_image(tmp_path / "a.png")
    assert read[0, 0].tolist() == [200, 100, 0] and read[0, 1].tolist() == [255, 255, 255]
    grey = Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), mode="LA")
    grey.save(tmp_path / "la.png")
    assert im.read_image(tmp_path / "la.png")[0].tolist() == [[10] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 6, 5, 4])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    assert im.read_image(tmp_path / "p.png")[0].tolist() == [[9, 8, 7], [255] * 3]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert im.read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_other_modes_come_out_as_rgb(tmp_path, picture, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(picture).convert(mode).save(path)
    read = im.read_image(path)
    assert read.shape == (12, 20, 3) and read.dtype == np.uint8 and read.flags.writeable


def test_heic_is_known_by_content_not_by_suffix(tmp_path, picture):
    heif = pytest.importorskip("pillow_heif")
    large = np.kron(picture, np.ones((8, 8, 1), np.uint8))
    path = tmp_path / "phone.jpg"
    heif.from_pillow(Image.fromarray(large)).save(path, quality=95)
    assert im.image_size(path) == (96, 160)
    assert np.abs(im.read_image(path).astype(int) - large).mean() < 16
    assert im.is_image_name("IMG_0001.HEIC")


def _broken(kind: str, path) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no picture")
    elif kind in ("jpg", "png", "webp"):
        noise.save(path, format={"jpg": "JPEG"}.get(kind, kind.upper()))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "header":
        path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "jpg", "png", "webp", "header"])
def test_broken_files_are_named_in_one_line(tmp_path, kind):
    path = tmp_path / f"broken_{kind}.jpg"
    _broken(kind, path)
    with pytest.raises(OSError, match=f"broken_{kind}.jpg") as error:
        im.read_image(path)
    assert "\n" not in str(error.value)


def test_missing_heif_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    with pytest.raises(ImportError, match=r"a.heic.*raysplat\[heic\]"):
        im.read_image(path)


def test_exif_focal_follows_the_diagonal(tmp_path, picture):
    photo = Image.fromarray(np.zeros((480, 640, 3), np.uint8))
    exif = photo.getexif()
    exif.get_ifd(0x8769)[0xA405] = 26
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert im.exif_focal(tmp_path / "a.jpg") == pytest.approx(26 * 800 / 43.2666)
    Image.fromarray(picture).save(tmp_path / "b.jpg")
    assert im.exif_focal(tmp_path / "b.jpg") is None


def test_natural_order():
    names = ["f10.png", "f9.png", "F1.png", "10.png", "9.png", "f9a.png"]
    assert sorted(names, key=im.natural_key) == ["9.png", "10.png", "F1.png", "f9.png", "f9a.png", "f10.png"]


@pytest.mark.parametrize(
    "sizes, want",
    [
        ([(270, 480)], (280, 504)),
        ([(480, 270)], (504, 280)),
        ([(300, 300)], (504, 504)),
        ([(300, 400), (400, 300), (300, 400)], (378, 504)),
        ([(10, 1000)], (14, 504)),
    ],
)
def test_common_size_follows_the_median_shape(sizes, want):
    assert im.fit_size(sizes, 504, 14) == want


def test_area_averaging_is_exact():
    image = np.random.default_rng(2).integers(0, 256, (12, 18, 3)).astype(np.float32)
    want = image.reshape(4, 3, 6, 3, 3).mean((1, 3))
    np.testing.assert_allclose(im.resize_array(image, (4, 6)), want, atol=1e-3)


def test_bytes_round_trip_and_crops_are_centred(picture):
    np.testing.assert_array_equal(im.to_uint8(im.to_tensor([picture]))[0], picture)
    np.testing.assert_array_equal(im.crop_array(picture, (5, 8)), picture[3:8, 6:14])
    assert im.cover_size((12, 20), (24, 24)) == (24, 40)
    assert im.center_window((12, 20), (5, 8)) == (3, 6)
