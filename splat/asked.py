"""What may be asked of a network (`splat.predict`), and the errors that say what may not, before it runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor

from geometry.cameras import Cameras, validate
from geometry.presets import check_range
from splat.model import GaussianModel, MonocularModel, NestedModel

Output = Literal["depth", "cameras", "gaussians"]
Model = GaussianModel | NestedModel | MonocularModel
CamerasFrom = Literal["decoder", "rays", "matches"]


def check_asked(
    images: Tensor,
    cameras: Cameras | None,
    K: Tensor | None,
    photos: Tensor | None,
    outputs: Collection[str],
    frame: str,
    cameras_from: str,
) -> None:
    """ValueError, with what to do, unless these arguments of `predict` fit together."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"images must be [V, 3, H, W] with one view or more, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in 0..1, got {images.dtype}")
    low, high = (float(x) for x in images.aminmax())
    # Resampled photos overshoot a little; NaN compares as neither.
    if not (low >= -0.5 and high <= 1.5):
        raise ValueError(f"images must be in 0..1 and finite, got values from {low:g} to {high:g}")
    for name, value, known in (
        *(("outputs", output, get_args(Output)) for output in outputs),
        ("frame", frame, ("given", "network")),
        ("cameras_from", cameras_from, get_args(CamerasFrom)),
    ):
        if value not in known:
            raise ValueError(f"{name} can be {', '.join(known)}, not {value!r}")
    count, size = len(images), tuple(images.shape[-2:])
    if photos is not None and (
        photos.shape[:2] != images.shape[:2] or photos.shape[-2] * size[1] != photos.shape[-1] * size[0]
    ):
        raise ValueError(
            f"photos must be the images {tuple(images.shape)}, larger by one factor, got {tuple(photos.shape)}"
        )
    if K is not None and cameras is not None:
        raise ValueError("give cameras, which have intrinsics, or K alone; not both")
    if K is not None and K.shape != (count, 3, 3):
        raise ValueError(f"K must be {(count, 3, 3)} for {count} images, got {tuple(K.shape)}")
    if cameras is not None and (cameras.shape != (count,) or tuple(cameras.size) != size):
        raise ValueError(
            f"cameras must be [{count}] of {size[0]}x{size[1]} (H x W) as the images are, "
            f"got {list(cameras.shape)} of {cameras.size[0]}x{cameras.size[1]}"
        )
    if K is not None:
        cameras = Cameras(torch.eye(4).expand(count, 4, 4), K, size)
    if cameras is not None:
        validate(cameras)


def check_looks(looks: int | None, model: Model) -> None:
    """ValueError unless `model` can take so many looks at its own pictures; None is always right."""
    if looks is None:
        return
    gs = getattr(model.da3.config if isinstance(model, NestedModel) else model.config, "gs", None)
    if gs is None or gs.looks == 0:
        raise ValueError(
            f"{model.config.name} does not look at its own pictures, so looks={looks} cannot be asked of it"
        )
    check_range("looks", looks, 0, 16)
