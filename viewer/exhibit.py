"""What the viewer shows: Gaussians, and what is known of the photos that they were made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geometry.cameras import Cameras
from splat.atomic import whole_file
from splat.finite import finite_rows
from splat.gaussians import Gaussians
from splat.reconstruct import Reconstruction
from splat.video import depth_range

# The typical distance of the scene in the browser's unit; its clipping planes and 16-bit covariances suit that.
BROWSER_DISTANCE = 4.0
_SAMPLE = 20_000
_GAUSSIANS = ("means", "scales", "quats", "opacities", "sh")
_VIEWS = ("images", "depth", "confidence")


@dataclass(frozen=True)
class Exhibit:
    """One scene: `gaussians` [N] and at least one camera to start from, all in one world.

    `cameras` [V] with `names` are those of the photos; without any (`guessed`) it is one that sees the whole scene.
    `images` [V, 3, H, W] in [0, 1], z-`depth` and `confidence` [V, H, W] are None where the source holds none.
    `distance` is the typical distance from the cameras to the Gaussians, in the world's unit. `backdrop` of the
    Gaussians, the last ones, are a sphere behind the scene. `notes` are lines for the user.
    """

    name: str
    gaussians: Gaussians
    cameras: Cameras
    names: tuple[str, ...]
    guessed: bool = False
    images: Tensor | None = None
    depth: Tensor | None = None
    confidence: Tensor | None = None
    notes: tuple[str, ...] = ()
    distance: float = 1.0
    backdrop: int = 0

    @property
    def browser_scale(self) -> float:
        """Factor from the world's unit to that of the page."""
        return BROWSER_DISTANCE / self.distance

    @property
    def splat_confidence(self) -> Tensor | None:
        """Confidence [N - backdrop] of Gaussians before the backdrop, where there is one for each pixel, else None."""
        if self.confidence is None or self.confidence.numel() != self.gaussians.count - self.backdrop:
            return None
        return self.confidence.reshape(-1)

    @cached_property
    def depth_range(self) -> tuple[float, float] | None:
        """Nearest and farthest depth for colours, None where no depth is known; kept, since it sorts all pixels."""
        return None if self.depth is None else depth_range(self.depth)

    @property
    def up(self) -> Tensor:
        """The direction [3] in the world that is up in most cameras, unit length."""
        up = -self.cameras.w2c[:, 1, :3].mean(0)
        return torch.nn.functional.normalize(up, dim=0) if float(up.norm()) > 1e-3 else -self.cameras.w2c[0, 1, :3]

    def to(self, device: str) -> Exhibit:
        """With the Gaussians on `device`; the rest stays on the CPU."""
        return replace(self, gaussians=self.gaussians.to(device))


def make_exhibit(name: str, gaussians: Gaussians, cameras: Cameras | None, names=(), notes=(), **more) -> Exhibit:
    """An exhibit of float32 tensors on the CPU; a camera is guessed where there is none.

    Gaussians that are not finite are left out, with a note. Raises ValueError when no other is there.
    """
    gaussians = gaussians.to("cpu", torch.float32)
    fine = finite_rows(gaussians)
    kept = int(fine.sum())
    if kept == 0:
        raise ValueError(f"{name} holds no Gaussians" + " that are finite" * (gaussians.count > 0))
    if kept < gaussians.count:
        notes = (*notes, f"{gaussians.count - kept:,} Gaussians are not finite and left out")
        gaussians = gaussians.select(fine)
    guessed = cameras is None
    cameras = guess_camera(gaussians) if guessed else cameras.to("cpu", torch.float32)
    sample = gaussians.means[:: max(1, gaussians.count // _SAMPLE)]
    distance = torch.cdist(cameras.centers[:8], sample).nanmedian()
    more = {k: v.detach().to("cpu", torch.float32) if torch.is_tensor(v) else v for k, v in more.items()}
    return Exhibit(
        name=name,
        gaussians=gaussians,
        cameras=cameras,
        names=("overview",) if guessed else tuple(names),
        guessed=guessed,
        notes=tuple(notes),
        distance=max(float(distance), 1e-12),
        **more,
    )


def from_reconstruction(name: str, r: Reconstruction) -> Exhibit:
    """All that a reconstruction holds."""
    notes = (f"weights {r.weights}", *r.notes)
    parts = {"images": r.images, "depth": r.depth, "confidence": r.confidence}
    return make_exhibit(name, r.gaussians, r.cameras, r.names, notes=notes, backdrop=r.backdrop, **parts)


def guess_camera(gaussians: Gaussians) -> Cameras:
    """A camera [1] of 540 x 720 that sees most of the Gaussians along +z, y down, as scenes of this format lie."""
    middle = gaussians.means.median(0).values
    reach = torch.linalg.vector_norm(gaussians.means - middle, dim=-1)
    reach = max(float(reach[:: max(1, len(reach) // _SAMPLE)].quantile(0.8)), 1e-6)
    w2c = torch.eye(4)
    w2c[:3, 3] = -(middle - torch.tensor([0, 0.15 * reach, 2.2 * reach]))
    K = torch.tensor([[600.0, 0, 360], [0, 600, 270], [0, 0, 1]])
    return Cameras(w2c[None], K[None], (540, 720))


def write_exhibit(path: Path, exhibit: Exhibit) -> None:
    """Write everything to one .safetensors file, whole or not at all; how a job hands its result over."""
    tensors = {name: getattr(exhibit.gaussians, name) for name in _GAUSSIANS}
    tensors |= {"w2c": exhibit.cameras.w2c, "K": exhibit.cameras.K}
    tensors |= {name: getattr(exhibit, name) for name in _VIEWS if getattr(exhibit, name) is not None}
    about = {name: getattr(exhibit, name) for name in ("name", "names", "notes", "backdrop")}
    about["size"] = exhibit.cameras.size
    with whole_file(path) as temporary:
        # Clones, because two names of one memory are refused.
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, temporary, {"about": json.dumps(about)})


def read_exhibit(path: Path) -> Exhibit:
    """Read what `write_exhibit` wrote. Raises OSError when it is not that."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            about = json.loads(file.metadata()["about"])
    except SafetensorError as error:
        raise OSError(f"{path} cannot be read ({error})") from error
    return make_exhibit(
        about["name"],
        Gaussians(*(tensors[name] for name in _GAUSSIANS)),
        Cameras(tensors["w2c"], tensors["K"], tuple(about["size"])),
        about["names"],
        notes=tuple(about["notes"]),
        backdrop=about["backdrop"],
        **{name: tensors[name] for name in _VIEWS if name in tensors},
    )
