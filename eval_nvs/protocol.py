"""What defines a score: which images are inputs and targets, at which size, through which cameras.

`PROTOCOLS["paper"]` is Table 5 of Depth Anything 3 (arXiv 2511.10647, section 6.1). Fields marked [?] are not stated
there; each is chosen once, here, and docs/nvs-benchmark.md gives the reason. A result file keeps the whole protocol.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from geometry.cameras import Cameras
from geometry.scene import Scene, views
from geometry.view_selection import farthest_points, pose_distance

# Decimals to which camera distances are compared, so that rounding on another machine chooses the same views.
DISTANCE_DECIMALS = 9


@dataclass(frozen=True)
class Protocol:
    """Everything that two results must share to be compared; sizes are (height, width).

    Images are taken in the order of their names (`sorted`, by code point). Without a window, one in `hold` is a target
    and the inputs are chosen among the others. With one, the first `window` images are the scene, inputs are chosen
    among all of them, and `targets` others are spread evenly over the rest.
    """

    name: str
    inputs: int = 12  # input views, by farthest point sampling over the cameras
    hold: int = 8  # one in so many images is a target
    offset: int = 0  # [?] place of the first target in the order of names: i % hold == offset, as LLFF and 3DGS do
    window: int = 0  # images from the start that count; 0: all
    targets: int = 0  # target views in a window; 0: all that `hold` gives
    max_images: int = 400  # [?] larger scenes are thinned evenly to so many: the paper has "300 to 400" a scene
    rotation_weight: float = 1.0  # [?] of angle / pi beside distance / largest distance of the scene
    first_input: int = 0  # [?] farthest point sampling starts with this candidate, in the order of names
    size: tuple[int, int] = (270, 480)  # targets, and the renders they are compared with
    network_size: tuple[int, int] = (266, 476)  # [?] inputs: nearest multiples of the network's patch of 14
    fit: Literal["crop"] = "crop"  # [?] scaled to cover the size, aspect kept, centre cut; portrait photos too
    distortion: Literal["undone"] = "undone"  # [?] images are pinhole pictures; K and pixels agree
    cameras: Literal["given", "aligned", "optimized"] = "given"  # given: poses of the data set for inputs and targets;
    # aligned: no poses given, target cameras follow by Sim(3) from the input cameras; optimized: then fitted to targets
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)  # [?] of renders, as in the released renderer
    near: float = 0.01  # [?] z below which Gaussians are not drawn, in units of the given poses: gsplat's default
    lpips: Literal["vgg", "alex"] = "vgg"  # [?] the network of the headline figure
    mean: Literal["scenes"] = "scenes"  # [?] over the images of a scene, then over scenes
    indices: str = ""  # name and SHA-256 of the index file that replaced the choice of views, if one did

    def __post_init__(self):
        if min(self.inputs, self.hold, *self.size, *self.network_size) < 1 or self.max_images < 2:
            raise ValueError(f"protocol {self.name}: numbers of views and sizes must be at least 1")
        if not 0 <= self.offset < self.hold:
            raise ValueError(f"protocol {self.name}: offset must be in 0..{self.hold - 1}, got {self.offset}")
        if self.window and (self.targets < 1 or self.inputs + self.targets > self.window):
            raise ValueError(
                f"protocol {self.name}: {self.inputs} inputs and {self.targets} targets in a window of {self.window}"
            )


def variant(protocol: Protocol, **changes) -> Protocol:
    """The protocol with other values of some fields, and a name that tells which: `paper, inputs=4`."""
    changed = {k: v for k, v in sorted(changes.items()) if getattr(protocol, k) != v}
    told = [f"{k}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in changed.items()]
    return replace(protocol, name=", ".join([protocol.name, *told]), **changed)


def _named() -> dict[str, Protocol]:
    # Square windows from the first frame, eight targets: the setting of YoNoSplat and ZipSplat on DL3DV.
    square = {"targets": 8, "size": (252, 252), "network_size": (252, 252)}
    given = [
        Protocol("paper"),
        Protocol("window-50", inputs=6, window=50, **square),
        Protocol("window-100", inputs=12, window=100, **square),
        Protocol("window-150", inputs=24, window=150, **square),
    ]
    pose_free = [replace(p, name=f"{p.name}-{c}", cameras=c) for c in ("aligned", "optimized") for p in given]
    return {p.name: p for p in (*given, *pose_free)}


PROTOCOLS: dict[str, Protocol] = _named()


@dataclass(frozen=True)
class Split:
    """Names of the input and target images of a scene, both in the order of names, and their `digest`."""

    scene: str
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    digest: str  # 16 hex digits over the protocol, the scene and the names


def split(scene: Scene, protocol: Protocol) -> Split:
    """The inputs and targets of `scene`; a pure function of its names and poses and of the protocol.

    Raises ValueError when the scene has no poses or too few images.
    """
    if scene.w2c is None:
        raise ValueError(f"{scene.root}: this scene has no camera poses; the benchmark needs them for its targets")
    order = sorted(range(len(scene)), key=scene.names.__getitem__)
    if protocol.window:
        candidates = order = order[: protocol.window]
    else:
        order = [order[i] for i in evenly(len(order), protocol.max_images)]
        held = order[protocol.offset :: protocol.hold]
        candidates = [i for i in order if i not in set(held)]
    least = max(protocol.inputs + protocol.first_input, 1)
    if len(order) < protocol.window or len(candidates) < least or (not protocol.window and not held):
        need = protocol.window or f"{least} beside one target in {protocol.hold}"
        raise ValueError(f"{scene.root}: {len(order)} images; protocol '{protocol.name}' needs {need}")
    chosen = farthest_points(distances(scene.w2c[candidates], protocol), protocol.inputs, protocol.first_input)
    inputs = [candidates[i] for i in sorted(chosen)]
    if protocol.window:
        rest = [i for i in order if i not in set(inputs)]
        held = [rest[i] for i in evenly(len(rest), protocol.targets)]
    return make_split(scene, [scene.names[i] for i in inputs], [scene.names[i] for i in held], protocol)


def make_split(scene: Scene, inputs: Sequence[str], targets: Sequence[str], protocol: Protocol) -> Split:
    """The split of these names, with its digest."""
    return Split(
        scene.name, tuple(inputs), tuple(targets), _hash([asdict(protocol), scene.name, list(inputs), list(targets)])
    )


def digest(splits: Iterable[Split]) -> str:
    """16 hex digits over all splits of a run, whatever their order."""
    return _hash(sorted([s.scene, s.digest] for s in splits))


def distances(w2c: np.ndarray, protocol: Protocol) -> np.ndarray:
    """[V, V] camera distances of `geometry.view_selection.pose_distance` with the protocol's weight of rotation."""
    turned = np.array(w2c, dtype=np.float64)
    turned[:, :3, 3] = 0
    weighted = pose_distance(w2c) + (protocol.rotation_weight - 1) * pose_distance(turned)
    return weighted.round(DISTANCE_DECIMALS)


def evenly(total: int, count: int) -> list[int]:
    """`count` of 0..total-1, evenly spread, each in the middle of its share; all of them if there are no more."""
    return list(range(total)) if total <= count else [(2 * k + 1) * total // (2 * count) for k in range(count)]


def load(scene: Scene, names: Sequence[str], size: tuple[int, int]) -> tuple[Tensor, Cameras]:
    """Images [V, 3, H, W] float32 in [0, 1] at `size`, in the order of `names`, and their float32 cameras [V].

    Each photo is scaled to cover `size`, aspect kept, and its centre is cut; K follows exactly. Photos may differ in
    size and camera. They are decoded in parallel. Raises ValueError for a name that the scene does not have, OSError
    naming the photo that does not decode.
    """
    place = {name: i for i, name in enumerate(scene.names)}
    unknown = [name for name in names if name not in place]
    if unknown:
        raise ValueError(f"{scene.root}: no image named {unknown[0]} in this scene")
    images, cameras = views(scene, [place[name] for name in names], size)
    if cameras is None:
        raise ValueError(f"{scene.root}: this scene has no camera poses")
    return images, cameras


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
