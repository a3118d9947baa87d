"""Samples made ahead of the loop: in order, errors in their turn, no thread left."""

import threading
import time

import pytest

from train.prefetch import Prefetcher


def test_prefetching_keeps_the_order_and_works_ahead():
    begun = []

    def make(key):
        begun.append(key)
        time.sleep(0.01 * (key % 3))
        return key * key

    with Prefetcher(make, range(20), ahead=4, threads=3) as ahead:
        time.sleep(0.1)
        assert set(begun) == set(range(4))
        assert list(ahead) == [key * key for key in range(20)]
    assert list(Prefetcher(make, [], ahead=2)) == []


def test_an_error_comes_in_its_turn_and_names_the_sample():
    def make(key):
        if key == 2:
            raise OSError("photo.jpg: damaged")
        if key == 3:
            raise KeyError("a bug")
        return key

    with Prefetcher(make, range(5)) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        with pytest.raises(OSError, match=r"sample 2: photo\.jpg: damaged"):
            next(ahead)
    with Prefetcher(make, [3]) as ahead, pytest.raises(KeyError):
        next(ahead)


def test_closing_ends_the_threads():
    before = threading.active_count()
    begun = []
    ahead = Prefetcher(lambda key: begun.append(key) or time.sleep(0.02), range(1000), ahead=50)
    next(ahead)
    ahead.close()
    assert len(begun) < 10 and threading.active_count() == before
    assert list(ahead) == []
    with pytest.raises(ValueError, match="1 or more"):
        Prefetcher(print, [], ahead=0)
