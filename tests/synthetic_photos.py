"""Photos of a made-up textured corner, for tests that need real feature matches without any data."""

from __future__ import annotations

import cv2
import numpy as np


def look_at(center, target, up=(0.0, -1.0, 0.0)) -> np.ndarray:
    """OpenCV w2c [4, 4] of a camera at `center` that looks at `target`, y down."""
    center, forward = np.array(center, dtype=float), np.subtract(target, center).astype(float)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    w2c = np.eye(4)
    w2c[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    w2c[:3, 3] = -w2c[:3, :3] @ center
    return w2c


def arc(count: int, degrees: float = 40.0) -> np.ndarray:
    """w2c [count, 4, 4] on an arc around the corner that rises, so that no two hypotheses about the axes agree."""
    angles = np.radians(np.linspace(-degrees / 2, degrees / 2, count))
    centers = [(5 * np.sin(a), -1.2 - 0.8 * a + 0.4 * a * a, -5 * np.cos(a)) for a in angles]
    return np.stack([look_at(c, (0.3 * i / count, 0.2, 0.0)) for i, c in enumerate(centers)])


def pinhole(size: tuple[int, int], focal: float) -> np.ndarray:
    return np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])


def render_corner(w2c: np.ndarray, K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: floor y = 1.5, wall z = 2, wall x = 3 and a tilted board in front of them."""
    height, width = size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T @ w2c[:3, :3]
    center = -w2c[:3, :3].T @ w2c[:3, 3]
    tilt = np.array([0.3, -0.2, -0.93])
    planes = [  # normal, offset, half size of the plane or None
        (np.array([0.0, 1, 0]), 1.5, None),
        (np.array([0.0, 0, 1]), 2.0, None),
        (np.array([1.0, 0, 0]), 3.0, None),
        (tilt / np.linalg.norm(tilt), 0.2, 1.0),
    ]
    nearest = np.full((height, width), np.inf)
    picture = np.zeros((height, width, 3), np.uint8)
    for k, (normal, offset, half) in enumerate(planes):
        slope = rays @ normal
        depth = (offset - center @ normal) / np.where(np.abs(slope) < 1e-9, 1e-9, slope)
        points = center + depth[..., None] * rays
        right = np.cross(normal, (0.31, 0.52, 0.8))
        right /= np.linalg.norm(right)
        s, t = points @ right, points @ np.cross(normal, right)
        seen = (depth > 0.1) & (depth < nearest)
        if half is not None:
            seen &= (np.abs(s) < half) & (np.abs(t) < half)
        texture = _texture(k)
        maps = [((x * 80) % texture.shape[0]).astype(np.float32) for x in (s, t)]
        painted = cv2.remap(texture, *maps, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        picture[seen] = painted[seen]
        nearest[seen] = depth[seen]
    return picture


def _texture(seed: int) -> np.ndarray:
    """512 x 512 blotches of several sizes, so that features are found near and far."""
    rng = np.random.default_rng(seed)
    total = np.zeros((512, 512, 3), np.float32)
    for cell in (4, 8, 16, 48):
        noise = rng.uniform(0, 1, (512 // cell + 1, 512 // cell + 1, 3)).astype(np.float32)
        total += cv2.resize(noise, (512, 512), interpolation=cv2.INTER_CUBIC)
    total = (total - total.min()) / np.ptp(total)
    return (255 * total).astype(np.uint8)


def similarity_errors(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Largest centre error over the true extent and largest rotation error in degrees, after the best similarity."""
    x, y = (-np.einsum("vji,vj->vi", w[:, :3, :3], w[:, :3, 3]) for w in (found, true))
    a, b = x - x.mean(0), y - y.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u * sign @ vt
    scale = (d * sign).sum() / (a**2).sum()
    extent = np.linalg.norm(y[:, None] - y[None], axis=-1).max()
    center_error = np.linalg.norm(scale * a @ rotation.T - b, axis=1).max() / extent
    difference = found[:, :3, :3] @ rotation.T - true[:, :3, :3]
    angle = 2 * np.arcsin(np.clip(np.linalg.norm(difference, axis=(1, 2)) / np.sqrt(8), 0, 1))
    return float(center_error), float(np.degrees(angle.max()))


def dot(size: tuple[int, int], pixel, sigma: float = 4.0) -> np.ndarray:
    """uint8 [H, W, 3]: a soft white dot centred on `pixel` (x, y), pixel centres at .5."""
    v, u = np.mgrid[: size[0], : size[1]] + 0.5
    weight = np.exp(-((u - pixel[0]) ** 2 + (v - pixel[1]) ** 2) / (2 * sigma**2))
    return np.repeat((255 * weight).round().astype(np.uint8)[..., None], 3, axis=2)


def dot_position(image: np.ndarray) -> np.ndarray:
    """(x, y) of the dot in [H, W, 3]."""
    weight = image[..., 0].astype(float)
    v, u = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(weight * u).sum(), (weight * v).sum()]) / weight.sum()
