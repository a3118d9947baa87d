"""Which images `train/textures.py` takes for textures, and what it says of the others."""

import numpy as np
import pytest
from PIL import Image

from train.textures import Args, main


def bricks(seed, size=(300, 300)):
    """A wall: blocks of its own colours, each a little uneven."""
    generator = np.random.default_rng(seed)
    blocks = generator.uniform(40, 200, (10, 10, 3)).repeat(size[0] // 10, 0).repeat(size[1] // 10, 1)
    return Image.fromarray((blocks + generator.normal(0, 12, blocks.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    bricks(1).save(folder / "wall.png")
    bricks(2, (600, 400)).save(folder / "deep" / "large.png")
    return folder


def chosen(folder, out, **options):
    main(Args((folder,), out, **options))
    return [Image.open(path) for path in sorted(out.iterdir())]


def test_takes_images_at_any_depth_and_shrinks_them(images, tmp_path, capsys):
    kept = chosen(images, tmp_path / "out", longest=320)
    assert sorted(max(image.size) for image in kept) == [300, 320]
    assert all(image.format == "JPEG" and image.mode == "RGB" for image in kept)
    assert capsys.readouterr().out == f"2 textures in {tmp_path / 'out'}, of 2 that qualify among 2 images (all)\n"


def with_hole():
    image = bricks(3).convert("RGBA")
    image.paste((0, 0, 0, 0), (10, 10, 40, 40))
    return image


def normal_map():
    tilt = np.random.default_rng(4).normal(0, 30, (300, 300, 2))
    return Image.fromarray(np.dstack([128 + tilt, np.full((300, 300), 240)]).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "image, reason",
    [
        (bricks(3).resize((255, 400)), "too small"),
        (bricks(3).resize((300, 700)), "too long"),
        (with_hole(), "see-through"),
        (normal_map(), "normal maps or sky"),
        (Image.new("RGB", (300, 300), (90, 120, 60)), "plain"),
        (Image.fromarray(np.linspace(0, 255, 300).repeat(300).reshape(300, 300).astype(np.uint8)), "plain"),
        (bricks(1), "like another"),
    ],
)
def test_leaves_out_and_says_why(images, tmp_path, capsys, image, reason):
    image.save(images / "other.png")
    assert len(chosen(images, tmp_path / "out")) == 2
    assert capsys.readouterr().out.endswith(f"of 2 that qualify among 3 images (1 {reason})\n")


def test_an_opaque_alpha_channel_is_no_hole(images, tmp_path):
    bricks(3).convert("RGBA").save(images / "other.png")
    assert len(chosen(images, tmp_path / "out")) == 3


def test_a_damaged_file_is_left_out(images, tmp_path, capsys):
    content = (images / "wall.png").read_bytes()
    (images / "damaged.png").write_bytes(content[: len(content) // 2])
    (images / "notes.txt").write_text("no image")
    assert len(chosen(images, tmp_path / "out")) == 2
    assert capsys.readouterr().out.endswith("among 3 images (1 unreadable)\n")


def test_draws_the_same_ones_for_the_same_seed(images, tmp_path):
    for seed in range(3, 9):
        bricks(seed).save(images / f"{seed}.png")

    def draw(name, seed):
        return [image.tobytes() for image in chosen(images, tmp_path / name, most=4, seed=seed)]

    first = draw("a", 0)
    assert len(first) == 4 and first == draw("b", 0) and first != draw("c", 1)


def test_bad_wishes_are_one_line(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        main(Args((tmp_path / "nowhere",), tmp_path / "out"))
    with pytest.raises(ValueError, match="one or more folders"):
        main(Args((), tmp_path / "out"))
    with pytest.raises(ValueError, match="--longest must be 256 or more, got 100"):
        main(Args((images,), tmp_path / "out", longest=100))
    with pytest.raises(ValueError, match="--most must be 1 or more, got 0"):
        main(Args((images,), tmp_path / "out", most=0))
    with pytest.raises(FileExistsError, match="not empty"):
        main(Args((images,), images))
    with pytest.raises(ValueError, match="none of 0 images"):
        (tmp_path / "empty").mkdir()
        main(Args((tmp_path / "empty",), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
