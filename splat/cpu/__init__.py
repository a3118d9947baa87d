"""Gaussian rasterisation compiled by numba: `projection` (3D to 2D), `binning` (tiles), `blending` (pixels).

Only `splat.raster_cpu` imports these modules, when it renders for the first time: importing one compiles its kernels,
or loads them from numba's cache. Each kernel has one explicit signature, so nothing is ever compiled twice. Loops that
run in parallel are cut by the problem, never by the number of threads, so repeats are identical bit by bit.
"""
