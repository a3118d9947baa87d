"""Preprocessing against the official pixels, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geometry.preprocess import SIZE_RULES, output_size, preprocess
from geometry.tables import image_statistics
from tests.tiny_networks import golden, image

PARTS = Path(__file__).parent / "data" / "da3_parts.npz"
SIZES = {"odd": (77, 123), "odd_tall": (149, 61), "big": (337, 611), "exact": (84, 112)}


@pytest.fixture(scope="module")
def parts():
    return np.load(PARTS)


def photo(height: int, width: int, view: int = 0) -> np.ndarray:
    return (image(view, height, width).transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)


def intrinsics(height: int, width: int) -> np.ndarray:
    return np.array([[0.9 * width, 0, width / 2 + 0.5], [0, 1.1 * height, height / 2 - 0.25], [0, 0, 1]])


def pixels(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().byte()[0].permute(1, 2, 0).numpy()


def sample(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    return flat[(np.arange(len(like)) * len(flat)) // len(like)]


@pytest.mark.parametrize("method", SIZE_RULES)
@pytest.mark.parametrize("name", SIZES)
def test_pixels_and_intrinsics_are_the_published_ones(name, method, parts):
    images, K = preprocess([photo(*SIZES[name])], intrinsics(*SIZES[name])[None], 112, method)
    got = pixels(images)
    assert got.shape == tuple(parts[f"preprocess/{name}.{method}.shape"])
    want = parts[f"preprocess/{name}.{method}.u8"]
    np.testing.assert_array_equal(sample(got, want), want)
    np.testing.assert_array_equal(K[0], parts[f"preprocess/{name}.{method}.K"])
    assert output_size(SIZES[name], 112, method) == got.shape[:2]


@pytest.mark.parametrize("name", SIZES)
def test_every_pixel_is_the_published_one(name):
    figures = golden("preprocess")
    np.testing.assert_array_equal(photo(*SIZES[name]), figures[f"{name}.in"])
    for method in SIZE_RULES:
        images, _ = preprocess([figures[f"{name}.in"]], size=112, method=method)
        np.testing.assert_array_equal(pixels(images), figures[f"{name}.{method}.u8"])


def test_images_of_mixed_sizes_are_cut_alike(parts):
    photos = [photo(77, 123), photo(149, 61, 1), photo(100, 100, 2)]
    K = np.stack([intrinsics(*p.shape[:2]) for p in photos])
    images, K = preprocess(photos, K, 112)
    assert images.shape == (3, 3, 70, 42) and images.dtype == K.dtype == torch.float32
    mean, std = image_statistics(torch.device("cpu"))
    want = parts["preprocess/mixed.normalised"]
    np.testing.assert_allclose(sample(((images - mean) / std).numpy(), want), want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(K, parts["preprocess/mixed.K"])


def test_table_of_sizes(parts):
    for width, height, rule, new_width, new_height in parts["preprocess/sizes_504"].tolist():
        if (width, height) == (50, 3000) and rule > 0:  # where the published rules give 0 or 30240 pixels
            with pytest.raises(ValueError, match="leaves nothing|more than 8 times as long as wide"):
                output_size((height, width), 504, SIZE_RULES[rule])
        else:
            assert output_size((height, width), 504, SIZE_RULES[rule]) == (new_height, new_width)


def test_intrinsics_follow_the_pixels():
    """A bright spot stays where the moved identity sends it."""
    spots, photos = [(20, 30), (60, 90), (40, 50)], []
    for (y, x), shape in zip(spots, [(84, 126), (98, 126), (112, 84)]):
        photos.append(np.zeros((*shape, 3), np.uint8))
        photos[-1][y - 2 : y + 2, x - 2 : x + 2] = 255
    for method in SIZE_RULES:
        images, moves = preprocess(photos, np.eye(3)[None].repeat(3, 0), 84, method)
        height, width = images.shape[-2:]
        for shown, move, (y, x) in zip(images[:, 0], moves, spots):
            grid_y, grid_x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            found = torch.stack([(shown * grid_x).sum(), (shown * grid_y).sum()]) / shown.sum()
            want = (move @ torch.tensor([x, y, 1.0]))[:2]
            torch.testing.assert_close(found, want, rtol=0, atol=0.2)


def test_files_and_arrays_are_the_same(tmp_path):
    photos = [photo(40, 60, v) for v in range(12)]
    for i, pixel in enumerate(photos):
        Image.fromarray(pixel).save(tmp_path / f"{i}.png")
    files = [tmp_path / "0.png", *(str(tmp_path / f"{i}.png") for i in range(1, 12))]
    assert preprocess(files, size=56)[0].equal(preprocess(photos, size=56)[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photos[0]).save(tmp_path / "turned.png", exif=turned)
    assert preprocess([tmp_path / "turned.png"], size=56)[0].shape == (1, 3, 56, 42)


def test_wrong_inputs_are_named(tmp_path):
    good = photo(40, 60)
    for bad in (good.astype(np.float32), good[..., 0], good[..., [0, 1, 2, 2]], good[:0]):
        with pytest.raises(ValueError, match=r"image 1: must be uint8 RGB \[H, W, 3\]"):
            preprocess([good, bad])
    with pytest.raises(ValueError, match="image 1: 1000x20 pixels become 504x10, .* use upper_bound_resize"):
        preprocess([good, photo(1000, 20)], method="upper_bound_crop")
    with pytest.raises(ValueError, match="image 0: .* more than 8 times as long as wide"):
        preprocess([photo(20, 1000)], method="lower_bound_resize")
    with pytest.raises(ValueError, match="method must be one of upper_bound_resize, "):
        preprocess([good], method="stretch")
    with pytest.raises(ValueError, match=r"K must be \(1, 3, 3\) for 1 images"):
        preprocess([good], np.eye(3))
    with pytest.raises(ValueError, match="images is empty"):
        preprocess([])
    with pytest.raises(ValueError, match="size must be 1 pixel or more"):
        preprocess([good], size=0)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        preprocess([good, tmp_path / "missing.png"])
