"""How busy the device is while the benchmark predicts: `python benchmarks/eval_throughput.py`, one GPU.

Scenes are of the paper's protocol: 12 inputs and one target in 8 of 320 photos, 960x540 PNG as in DL3DV's release at
that size, made on the spot and in the disk cache. It prints which share of the wall time the network and the renderer
take; the rest is waiting for photos and moving pictures. With random weights (`random:giant`, any preset) the network
costs what it always does, but Gaussians have odd sizes, so the renderer's time is not that of a trained network.
`--weights random:nano --scenes 2 --photos 16 --device cpu` tries it out on a CPU.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from eval_nvs.environment import device_name
from eval_nvs.methods import Method, Options, load
from eval_nvs.methods.ours import Ours
from eval_nvs.protocol import PROTOCOLS, Protocol, split
from eval_nvs.stages import predict
from geometry.cameras import Cameras
from geometry.presets import ANY_VIEW
from geometry.scene import open_scene, scene_from_tensors
from geometry.write_scene import write_scene
from splat.model import GaussianModel
from splat.pipeline import pick_device

RANDOM = "random:"


@dataclass(frozen=True)
class Args:
    weights: str = "random:giant"  # random:PRESET, or whatever eval_nvs/run.py takes
    scenes: int = 12  # that are timed; one more is run before
    photos: int = 320  # in a scene
    size: tuple[int, int] = (540, 960)  # of a photo, height and width
    device: str = "auto"  # auto, cpu, cuda


def main(args: Args) -> None:
    device, protocol = pick_device(args.device), PROTOCOLS["paper"]
    method = method_of(args.weights, protocol, device)
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "scenes", Path(folder) / "out"
        names = [f"scene{i:02d}" for i in range(args.scenes + 1)]
        write_scenes(root, names, args.photos, args.size)

        def opener(name: str):
            scene = open_scene(root / name)
            return scene, split(scene, protocol)

        predict(method, protocol, opener, names[:1], out, device, progress=False)
        failed, seconds = predict(method, protocol, opener, names[1:], out, device)
    if failed:
        raise RuntimeError(f"{len(failed)} scenes failed, the first: {next(iter(failed.values()))}")
    wall = seconds["wall"]
    print(f"{args.weights}, {args.scenes} scenes of {args.photos} photos {args.size[0]}x{args.size[1]}, 12 inputs,")
    machine = f"{device_name(device)}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{-(-args.photos // 8)} targets each; {machine}\n")
    print("| | s a scene | share of the wall time |\n|---|---|---|")
    busy = seconds["reconstruct"] + seconds["render"]
    rows = {
        "network": seconds["reconstruct"],
        "renderer": seconds["render"],
        "both": busy,
        "wall": wall,
        "reading, in threads": seconds["load"],
    }
    for name, value in rows.items():
        print(f"| {name} | {value / args.scenes:.3f} | {100 * value / wall:.1f} % |")


def method_of(weights: str, protocol: Protocol, device: str) -> Method:
    if not weights.startswith(RANDOM):
        return load(Options("ours", weights), protocol, device)
    name = weights.removeprefix(RANDOM)
    if name not in ANY_VIEW:
        raise ValueError(f"no preset '{name}'; there are {', '.join(ANY_VIEW)}")
    torch.manual_seed(0)
    with torch.device(device):
        model = GaussianModel(ANY_VIEW[name]).eval().requires_grad_(False)
    return Ours(model, protocol, {"method": "ours", "weights": weights})


def write_scenes(root: Path, names: list[str], photos: int, size: tuple[int, int]) -> None:
    """Scenes on a gentle arc around one grainy picture; all but the first are links to it, and decoded all the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 27, 48, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0]
    picture = (picture + 0.03 * torch.randn(3, *size, generator=generator)).clamp(0, 1)
    angle = torch.linspace(-0.6, 0.6, photos)
    w2c = torch.eye(4).repeat(photos, 1, 1)
    w2c[:, 0, 0] = w2c[:, 2, 2] = angle.cos()
    w2c[:, 0, 2], w2c[:, 2, 0] = angle.sin(), -angle.sin()
    w2c[:, 2, 3] = 4
    K = torch.tensor([[0.8 * size[1], 0, size[1] / 2], [0, 0.8 * size[1], size[0] / 2], [0, 0, 1]])
    scene = scene_from_tensors(picture[None].expand(photos, -1, -1, -1), Cameras(w2c, K.expand(photos, 3, 3), size))
    first = root / names[0]
    write_scene(scene, first)
    for name in names[1:]:
        shutil.copytree(first, root / name, copy_function=os.link)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
