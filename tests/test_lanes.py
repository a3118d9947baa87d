"""Functions of eight lanes."""

from __future__ import annotations

import numpy as np
from numba import njit

from geometry.cpu.lanes import WIDTH, exp, load, store


@njit
def exp_of_all(x, out):
    for i in range(0, len(x), WIDTH):
        store(out, i, exp(load(x, i)))


def test_exp():
    x = np.linspace(-87, 88, 80_000, dtype=np.float32)
    got = np.empty_like(x)
    exp_of_all(x, got)
    np.testing.assert_allclose(got, np.exp(x.astype(np.float64)), rtol=2e-7)


def test_exp_has_bounds_and_keeps_nan():
    x = np.array([-np.inf, -1e9, -87, 88, 1e9, np.inf, np.nan, 0], np.float32)
    got = np.empty_like(x)
    exp_of_all(x, got)
    low, high = np.exp(np.float64(-87)), np.exp(np.float64(88))
    np.testing.assert_allclose(got, [low, low, low, high, high, high, np.nan, 1], rtol=2e-7)
