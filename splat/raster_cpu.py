"""Rendering without CUDA: the numba kernels of `splat.cpu` as one differentiable function.

The kernels compile once, in about 20 seconds, and are cached on disk. NUMBA_NUM_THREADS limits the threads,
NUMBA_CACHE_DIR moves the cache; results do not depend on either.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geometry.cameras import Cameras
from geometry.compiled import compiling
from splat.gaussians import Gaussians

# numba's simplest threading layer aborts the process when two Python threads enter it together.
_LOCK = threading.Lock()
_OWNER = []  # the process that rendered first: its OpenMP threads do not survive a fork


def rasterize(gaussians: Gaussians, cameras: Cameras, *, near: float, far: float, antialiased: bool) -> tuple:
    """Colour [B, V, H, W, 3], depth sums [B, V, H, W] and alpha [B, V, H, W] on a black ground, float32 on the CPU.

    Gaussians [B, N, ...] and cameras [B, V], float32 on the CPU. Differentiable in all Gaussian fields and `w2c`.
    Raises ImportError without numba, and RuntimeError in a process forked from one that had rendered.
    """
    centers = torch.linalg.inv(cameras.w2c)[..., :3, 3]
    fields = (gaussians.means, gaussians.scales, gaussians.quats, gaussians.opacities, gaussians.sh)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (*fields, cameras.w2c))
    settings = (cameras.size, near, far, antialiased, keep)
    return _Rasterize.apply(*fields, cameras.w2c, centers, cameras.K, settings)


def back_project(
    gaussians: Gaussians,
    cameras: Cameras,
    images: Tensor,
    *,
    near: float,
    far: float,
    faint: float,
    emphasis: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [B, V, H, W, 3] and alpha [B, V, H, W] as of `rasterize`, and sums [B, N, 7] over pixels, by Gaussian.

    With e the `emphasis` of what the pixel lacks of `images` [B, V, H, W, 3]: of its weight in the pixel times e (3),
    times the mean size of what it lacks (1), of the weight alone (1), and of e times the change of the colour with its
    logit of opacity and the logarithm of its size (2). A Gaussian whose weights in a tile add up to less than `faint`
    gets nothing from there, and lets all light pass. No gradient. All float32 on the CPU; raises as `rasterize`.
    """
    fields = (gaussians.means, gaussians.scales, gaussians.quats, gaussians.opacities, gaussians.sh)
    color, transmittance = torch.empty(images.shape), torch.empty(images.shape[:-1])
    with _kernels() as kernels:
        sums = torch.zeros(*gaussians.means.shape[:-1], kernels.SUMS)
        memory = _memory(kernels, gaussians.means.shape[1])
        for b, v in np.ndindex(*cameras.shape):
            camera = _camera(cameras.w2c[b, v], cameras.K[b, v], cameras.size)
            splats, first, starts, ids, tiles_x = _sorted(kernels, _scene(b, *fields), camera, near, far, False, memory)
            lists = (splats, starts, ids, tiles_x)
            used, depth = np.zeros(len(starts) - 1, np.int64), np.empty(cameras.size, np.float32)
            kernels.blend(*lists, color[b, v].numpy(), depth, transmittance[b, v].numpy(), used, faint)
            lack = images[b, v] - color[b, v]
            values = torch.cat([emphasis(lack), lack.abs().mean(-1, keepdim=True)], -1)
            pairs = np.zeros((first[-1], kernels.SUMS), np.float32)
            kernels.gather(*lists, first, used, color[b, v].numpy(), _array(values), pairs)
            kernels.add_by_splat(first, pairs, sums[b].numpy())
    return color, 1 - transmittance, sums


def _sorted(
    kernels: SimpleNamespace,
    scene: list[np.ndarray],
    camera: tuple,
    near: float,
    far: float,
    antialiased: bool,
    splats: np.ndarray,
) -> tuple:
    """The `splats` on one camera's screen, and each tile's list of them, nearest first: what `blend` walks over."""
    kernels.project(*scene, *camera, near, far, antialiased, splats)
    tiles_x, tiles_y = kernels.tiles(*camera[-2:])
    first, starts, keys = kernels.bin_splats(splats, tiles_x, tiles_y)
    return splats, first, starts, kernels.sort_tiles(starts, keys), tiles_x


def _memory(kernels: SimpleNamespace, count: int) -> np.ndarray:
    """For so many splats; PyTorch's begins with a cache line, and so does each splat."""
    return torch.empty(count, kernels.COLUMNS).numpy()


class _Rasterize(torch.autograd.Function):
    """One image after the other; what the backward pass needs of each is kept in `ctx.images`."""

    @staticmethod
    def forward(ctx, means, scales, quats, opacities, sh, w2c, centers, K, settings):
        ctx.save_for_backward(means, scales, quats, opacities, sh, w2c, centers, K)
        ctx.size, near, far, ctx.antialiased, keep = settings
        ctx.images = {}
        (height, width), batch = ctx.size, w2c.shape[:2]
        color, depth, transmittance = (torch.empty(*batch, height, width, *c) for c in ((3,), (), ()))
        with _kernels() as kernels:
            memory = _memory(kernels, means.shape[1])
            for b, v in np.ndindex(*batch):
                scene = _scene(b, means, scales, quats, opacities, sh)
                camera, options = _camera(w2c[b, v], K[b, v], ctx.size), (near, far, ctx.antialiased)
                place = _memory(kernels, means.shape[1]) if keep else memory
                splats, first, starts, ids, tiles_x = _sorted(kernels, scene, camera, *options, place)
                used = np.zeros(len(starts) - 1, np.int64)
                picture = color[b, v].numpy(), depth[b, v].numpy(), transmittance[b, v].numpy()
                kernels.blend(splats, starts, ids, tiles_x, *picture, used, 0.0)
                if keep:
                    ctx.images[b, v] = splats, first, starts, ids, tiles_x, used, *picture
        return color, depth, 1 - transmittance

    @staticmethod
    @once_differentiable
    def backward(ctx, v_color, v_depth, v_alpha):
        means, scales, quats, opacities, sh, w2c, centers, K = ctx.saved_tensors
        gradients = [
            torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (means, scales, quats, opacities, sh)
        ]
        v_w2c, v_centers = torch.zeros_like(w2c, dtype=torch.float64), torch.zeros_like(centers, dtype=torch.float64)
        with _kernels() as kernels:
            for (b, v), image in ctx.images.items():
                first = image[1]
                v_splats = np.zeros((first[-1], kernels.GRADIENTS), np.float32)
                v_picture = _array(v_color[b, v]), _array(v_depth[b, v]), _array(-v_alpha[b, v])
                kernels.blend_vjp(*image, *v_picture, v_splats)
                scene, v_scene = _scene(b, means, scales, quats, opacities, sh), _scene(b, *gradients)
                camera = _camera(w2c[b, v], K[b, v], ctx.size)
                v_camera = v_w2c[b, v].numpy(), v_centers[b, v].numpy()
                kernels.project_vjp(*scene, *camera, ctx.antialiased, v_splats, first, *v_scene, *v_camera)
        return *gradients, v_w2c.to(w2c.dtype), v_centers.to(centers.dtype), None, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _scene(b: int, *fields: Tensor) -> list[np.ndarray]:
    return [_array(field[b]) for field in fields]


def _camera(w2c: Tensor, K: Tensor, size: tuple[int, int]) -> tuple:
    w2c, K = w2c.double(), K.double()
    center = -torch.linalg.solve(w2c[:3, :3], w2c[:3, 3])
    focal_and_center = torch.stack([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    return _array(w2c), _array(focal_and_center), _array(center), size[1], size[0]


@contextmanager
def _kernels():
    """The compiled kernels, for one thread at a time."""
    if _OWNER and _OWNER[0] != os.getpid():
        raise RuntimeError(
            "this process was forked from one that had already rendered on the CPU, whose threads are lost here; "
            "start workers with the 'spawn' method, or render in the parent only"
        )
    with _LOCK:
        _OWNER[:] = [os.getpid()]
        # Both share one OpenMP, in which numba's first parallel kernel also sets how many threads PyTorch uses: sums
        # would round differently from then on, and a resumed run would part from one that went straight through.
        threads = torch.get_num_threads()
        try:
            yield _load()
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _load() -> SimpleNamespace:
    """Import the kernels, which compiles them or loads them from the cache; says so on stderr when it takes long."""
    package = Path(__file__).parent
    shared = [package.parent / "geometry" / "cpu" / name for name in ("__init__.py", "lanes.py", "turns.py")]
    try:
        with compiling("the CPU renderer", 20, [*shared, package / "sh.py", *sorted((package / "cpu").glob("*.py"))]):
            from splat.cpu import binning, blending, projection, projection_vjp
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise ImportError("rendering without CUDA needs numba: pip install numba") from error
    return SimpleNamespace(
        COLUMNS=projection.COLUMNS,
        GRADIENTS=projection_vjp.GRADIENTS,
        SUMS=blending.SUMS,
        tiles=lambda width, height: (-(-width // binning.TILE_WIDTH), -(-height // binning.TILE_HEIGHT)),
        project=projection.project,
        project_vjp=projection_vjp.project_vjp,
        bin_splats=binning.bin_splats,
        sort_tiles=binning.sort_tiles,
        add_by_splat=binning.add_by_splat,
        blend=blending.blend,
        blend_vjp=blending.blend_vjp,
        gather=blending.gather,
    )
