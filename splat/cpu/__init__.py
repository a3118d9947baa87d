"""What numba compiles for Gaussians on the CPU: `adapter` makes them of raw values, the rest rasterises them.

`projection` (3D to 2D), `binning` (tiles) and `blending` (pixels) are imported by `splat.raster_cpu` alone, when it
renders for the first time, and `adapter`, a twin as those in `geometry.cpu`, by `splat.adapter`: importing one compiles
its kernels, or loads them from the cache. Each kernel has one explicit signature, so nothing is ever compiled twice.
Loops that run in parallel are cut by the problem, never by the number of threads, so repeats are identical bit by bit.
"""
