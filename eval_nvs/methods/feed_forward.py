"""Models of the `ffgs` package (github.com/libgs/ffgs, pre-release), behind its one pipeline class.

Written to its sources of 2026: `GSPipeline.from_pretrained`, called on posed `Views`, renders at `Cameras` in the frame
of those poses. Each model resizes and crops as it was trained to, and renders on its own background.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from eval_nvs.methods import Options
from eval_nvs.protocol import Protocol
from geometry.cameras import Cameras


@dataclass(frozen=True)
class Rendering:
    pipeline: object
    output: object
    cameras: Cameras

    def render(self, cameras: Cameras) -> Tensor:
        import ffgs

        pictures = self.pipeline.render(self.output, ffgs.Cameras(cameras.c2w, cameras.K, cameras.size))["images"]
        return pictures[0].clamp(0, 1)


class FeedForward:
    own_size, needs_poses = False, True

    def __init__(self, pipeline, identity: dict):
        self.pipeline, self.identity = pipeline, identity

    def reconstruct(self, images: Tensor, cameras: Cameras, points: Tensor | None) -> Rendering:
        import ffgs

        return Rendering(self.pipeline, self.pipeline(ffgs.Views(images, cameras.K, cameras.c2w)), cameras)


def load(options: Options, protocol: Protocol, device: str) -> FeedForward:
    try:
        import ffgs
    except ImportError as error:
        raise ImportError("--method ffgs needs the ffgs package: pip install --pre 'ffgs[render]'") from error
    try:
        release = version("ffgs")
    except PackageNotFoundError:
        release = "unknown"
    identity = {"method": "ffgs", "weights": options.weights, "ffgs": release}
    return FeedForward(ffgs.GSPipeline.from_pretrained(options.weights, device=device), identity)
