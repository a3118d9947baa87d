"""Photographs in, 3D Gaussians and novel views out.

    import raysplat
    scene = raysplat.open_scene("photos")
    raysplat.reconstruct(scene).save("out")

Names are imported when they are first used, so that `import raysplat` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Cameras": "geometry.cameras",
    "open_scene": "geometry.scene",
    "Gaussians": "splat.gaussians",
    "GaussianModel": "splat.model",
    "Reconstruction": "splat.reconstruct",
    "reconstruct": "splat.pipeline",
    "render": "splat.render",
    "read_ply": "splat.ply",
    "write_ply": "splat.ply",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'raysplat' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
