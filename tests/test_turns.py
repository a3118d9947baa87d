"""Work dealt out to threads as they become free."""

from __future__ import annotations

import numpy as np
import pytest
from numba import get_num_threads, njit, prange, set_num_threads

from geometry.cpu.turns import TAKERS, take


@njit(parallel=True)
def take_all(taken):
    turn = np.zeros(1, np.int64)
    for _taker in prange(TAKERS):
        item = take(turn)
        while item < len(taken):
            taken[item] += 1
            item = take(turn)


@pytest.mark.parametrize("count", [0, 1, 100_000])
def test_every_item_is_taken_once_whatever_the_number_of_threads(count):
    before = get_num_threads()
    try:
        for threads in {1, before}:
            set_num_threads(threads)
            taken = np.zeros(count, np.int64)
            take_all(taken)
            assert (taken == 1).all()
    finally:
        set_num_threads(before)
