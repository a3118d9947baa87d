"""Our networks, with any weights that `splat.model` loads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from eval_nvs.methods import Options
from eval_nvs.methods.splats import Splats, check_renderer
from eval_nvs.protocol import Protocol
from geometry.cameras import Cameras
from splat import checkpoint
from splat.model import GaussianModel, NestedModel, from_pretrained
from splat.reconstruct import reconstruct
from splat.refine import refine


class Ours:
    own_size, needs_poses = True, False

    def __init__(self, model: GaussianModel | NestedModel, protocol: Protocol, options: Options, identity: dict):
        self.model, self.protocol, self.options, self.identity = model, protocol, options, identity

    def reconstruct(self, images: Tensor, cameras: Cameras | None, points: Tensor | None) -> Splats:
        result = reconstruct(images, cameras, self.model, cameras_from=self.options.cameras_from)
        gaussians = result.gaussians
        if self.options.refine:
            gaussians = refine(gaussians, result.evened, result.cameras, self.options.refine, fixed=result.backdrop)
        return Splats(gaussians, result.cameras, self.protocol)


def load(options: Options, protocol: Protocol, device: str) -> Ours:
    """Raises ValueError or OSError for weights that cannot be had, ImportError where nothing can render."""
    if options.refine < 0:
        raise ValueError(f"--refine must be 0 or more steps, got {options.refine}")
    check_renderer(device)
    model = from_pretrained(options.weights).to(device)
    path, config = checkpoint.locate(options.weights)
    identity = {
        "method": "ours",
        "weights": options.weights,
        "network": config.name,
        "licence": config.licence,
        "sha256": file_digest(path),
        "refine": options.refine,
        "cameras_from": options.cameras_from,
    }
    return Ours(model, protocol, options, identity)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
