"""Frames of a video: sharp ones, spread over its length."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from geometry.read_video import choose_frames, read_video
from geometry.scene import open_scene, views

FRAMES, SIZE = 96, (96, 128)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Every sixth frame is sharp, the others are blurred; black and white fields across the top spell its number."""
    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 24, SIZE[::-1])
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    for number in range(FRAMES):
        picture = noise if number % 6 == 3 else cv2.GaussianBlur(noise, (0, 0), 4)
        picture = picture.copy()
        for bit in range(8):
            picture[:24, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
        picture[80:, :, 2] = 255  # red in OpenCV's order
        writer.write(picture)
    writer.release()
    return path


def number_of(frame: np.ndarray) -> int:
    return sum(int(frame[4:20, 16 * bit + 4 : 16 * bit + 12].mean() > 127) << bit for bit in range(8))


def test_sharp_frames_are_chosen_in_even_stretches(video):
    scene = read_video(video, count=8)
    numbers = [int(name.removeprefix("frame_")) for name in scene.names]
    assert len(scene) == 8 and all(n % 6 == 3 for n in numbers)
    assert np.diff(numbers).min() >= 6 and np.diff(numbers).max() <= 18
    assert [number_of(scene.load(i)) for i in range(8)] == numbers
    red, green, blue = scene.load(0)[84:92].reshape(-1, 3).mean(0)
    assert red > green + 40 and red > blue + 40
    assert "8 of 96 frames" in scene.notes[0]


def test_short_videos_give_every_frame(video):
    scene = read_video(video, count=500)
    assert len(scene) == FRAMES and scene.names[-1] == "frame_000095"
    assert number_of(scene.load(50)) == 50


def test_a_video_is_a_scene(video):
    scene = open_scene(video)
    images, cameras = views(scene, [0, 5], 56, multiple=14)
    assert scene.name == "walk" and images.shape == (2, 3, 42, 56) and cameras is None


def test_large_frames_are_kept_smaller(tmp_path):
    path = tmp_path / "large.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 24, (2560, 1440))
    for value in (50, 200):
        writer.write(np.full((1440, 2560, 3), value, np.uint8))
    writer.release()
    assert read_video(path).sizes == ((1080, 1920),) * 2


def test_choice_takes_the_sharpest_of_each_middle():
    sharpness = np.arange(40.0)
    assert choose_frames(sharpness, 4) == [7, 17, 27, 37]  # stretches of 10, middles 2..7 (round half to even), ...
    sharpness[15] = 99
    assert choose_frames(sharpness, 4)[1] == 15
    assert choose_frames(np.full(40, -1.0), 4) == [2, 12, 22, 32]
    for total in range(1, 30):
        chosen = choose_frames(np.random.default_rng(total).random(total), 7)
        assert chosen == sorted(set(chosen)) and len(chosen) == min(total, 7) and chosen[-1] < total


@pytest.mark.parametrize("content", [None, b"", b"not a video at all"])
def test_files_that_are_no_video(tmp_path, content, capfd):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match="bad.mp4") as error:
        read_video(path)
    assert "\n" not in str(error.value)


def test_count_must_be_positive(video):
    with pytest.raises(ValueError, match="at least 1"):
        read_video(video, count=0)
