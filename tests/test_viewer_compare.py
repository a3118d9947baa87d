"""Two pictures as one, errors, scores, and pictures beside each other."""

import numpy as np
import pytest

from tests import viewer_scene
from viewer.browser_camera import on_canvas
from viewer.compare import combine, error_map, error_table, paste, view_error
from viewer.exhibit import make_exhibit
from viewer.look import Look, picture
from viewer.sheet import sheet


@pytest.fixture(scope="module")
def exhibit():
    return viewer_scene.exhibit()


def test_a_wipe_shows_each_side():
    a, b = np.full((4, 20, 3), 10, np.uint8), np.full((4, 20, 3), 200, np.uint8)
    wiped = combine(a, b, "wipe", 0.25)
    assert (wiped[:, :4] == 10).all() and (wiped[:, 6:] == 200).all()
    assert (combine(a, b, "wipe", 0.0) == 200).all() and (combine(a, b, "wipe", 7.0) == 10).all()
    both = combine(a, b, "side by side")
    assert (both[:, :9] == 10).all() and (both[:, 11:] == 200).all() and both.shape == a.shape
    assert (a == 10).all()
    with pytest.raises(ValueError, match="shape"):
        combine(a, b[:2], "wipe")


def test_errors_are_bright_where_pictures_differ():
    a = np.zeros((6, 6, 3), np.uint8)
    b = a.copy()
    b[2:4, 2:4] = 255
    error = error_map(a, b).sum(-1)
    assert error[2:4, 2:4].min() > 500 > 20 > error[0].max()


def test_scores_are_psnr_and_worst_first(exhibit):
    errors = [view_error(exhibit, Look(), i) for i in range(3)]
    assert all(e.psnr > 60 for e in errors)
    spoiled = exhibit.images.clone()
    spoiled[1] = 1 - spoiled[1]
    worse = make_exhibit("w", exhibit.gaussians, exhibit.cameras, ("a", "b|<b>", "c"), images=spoiled)
    table = error_table([view_error(worse, Look(), i) for i in range(3)]).splitlines()
    assert table[2].startswith("| b  b ") and len(table) == 6 and "mean" in table[-1]


def test_a_photo_lies_where_it_belongs(exhibit):
    camera, place = on_canvas(exhibit.cameras[:1], (60, 200))
    ours = picture(exhibit, exhibit.gaussians, camera, Look(background=(0, 0, 0)))
    laid = paste(ours, exhibit.images[0], place)
    top, left, height, width = place
    assert np.array_equal(laid[:, :left], ours[:, :left])
    part, photo = (x[top : top + height, left : left + width].astype(float) for x in (ours, laid))
    assert np.abs(part - photo).mean() < 0.5 * np.abs(np.roll(part, 4, 1) - photo).mean()


def test_a_sheet_shows_pictures_as_large_as_it_can():
    shades = {"a": 40, "b": 120, "c": 220}
    pictures = {name: np.full((30, 60, 3), shade, np.uint8) for name, shade in shades.items()}
    for canvas, rows in (((100, 900), 1), ((900, 200), 3), ((300, 420), 2)):
        page = sheet(pictures, canvas)
        assert page.shape == (*canvas, 3)
        tops = {}
        for shade in shades.values():
            ys, xs = np.nonzero((page == shade).all(-1))
            assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1) > 0.08 * page[..., 0].size  # whole, and not small
            tops[int(ys.min())] = None
        assert len(tops) == rows
    assert sheet(pictures, (16, 16)).shape == (16, 16, 3)
