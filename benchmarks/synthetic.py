"""How many synthetic scenes a second this machine makes, by stage, and what they look like.

    python benchmarks/synthetic.py --batch 128                     # on a GPU
    python benchmarks/synthetic.py --batch 4 --views 4 --size 64 --sheet sheet.png

Stages are timed apart with a wait for the device after each, the whole batch without one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from geometry.synthetic import SyntheticBatch, SyntheticConfig, make_atlas, sample_batch
from geometry.synthetic.batch import cast, develop, draw_pixel_filter
from geometry.synthetic.dice import Dice
from geometry.synthetic.rigs import candidates, choose, path, sample_intrinsics
from geometry.synthetic.scenes import KINDS, ambience_table, primitive_table, sample_layout


class Clock:
    """Collects seconds by name, waiting for the device at both ends."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self.start = time.perf_counter()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def lap(self, name: str) -> None:
        self.wait()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.start
        self.start = now


def stages(clock: Clock, seed: int, batch: int, views: int, size: tuple[int, int], atlas, config) -> None:
    """One batch, step by step as in `sample_batch`."""
    clock.wait()
    clock.start = time.perf_counter()
    dice = Dice(seed, batch, clock.device)
    layout, _ = sample_layout(dice, config.counts, config.kinds)
    table = primitive_table(dice, layout, atlas.shape[0])
    ambience = ambience_table(dice, layout, atlas.shape[0])
    clock.lap("layout and looks")
    K, fov = sample_intrinsics(dice, views, size, config.fov, config.lenses)
    offset, inward = path(dice, views, config.targets, config.baseline, config.rigs)
    c2w = candidates(dice, layout, offset, inward, fov)
    clock.lap("camera candidates")
    best = choose(c2w, K, size, views - config.targets, table, layout.waves, config.counts, config.steps)
    c2w = c2w[torch.arange(batch, device=clock.device), best]
    clock.lap("choice of cameras")
    soft = draw_pixel_filter(dice, views)
    light, _ = cast(table, layout.waves, ambience, c2w, K, size, atlas, config, config.shadows > 0, soft)
    clock.lap("ray casting")
    develop(dice, light, config)
    clock.lap("development")


def contact_sheet(batch: SyntheticBatch, path: Path) -> None:
    """One row a scene: every view, then the inverse depth of the first and the last."""
    from PIL import Image

    scenes, views, _, height, width = batch.images.shape
    images = batch.images.permute(0, 3, 1, 4, 2).reshape(scenes * height, views * width, 3)
    middle = torch.where(batch.valid, batch.depth, torch.nan).flatten(1).nanmedian(-1).values[:, None, None, None]
    inverse = torch.where(batch.valid, 0.4 * middle / batch.depth, 0.0).clamp(0, 1)[:, [0, -1]]
    inverse = inverse.permute(0, 2, 1, 3).reshape(scenes * height, 2 * width, 1).expand(-1, -1, 3)
    sheet = (torch.cat([images, inverse], 1) * 255).byte().cpu().numpy()
    Image.fromarray(sheet).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--views", type=int, default=7)
    parser.add_argument("--size", type=int, default=252)
    parser.add_argument("--textures", type=int, default=256, help="how many the atlas holds")
    parser.add_argument("--photos", type=Path, help="folder of photographs for half of the textures")
    parser.add_argument("--kind", choices=[k.__name__ for k in KINDS], help="only scenes of this sort")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-shadows", action="store_true", help="else every batch has them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet to this PNG and time nothing")
    args = parser.parse_args()
    device, size = torch.device(args.device), (args.size, args.size)
    config = SyntheticConfig(shadows=0.0 if args.no_shadows else 1.0)
    if args.kind:
        config = replace(config, kinds=tuple(float(k.__name__ == args.kind) for k in KINDS))
    start = time.perf_counter()
    atlas = make_atlas(0, args.textures, device=device, photos=args.photos)
    print(f"atlas of {args.textures} textures: {time.perf_counter() - start:.1f} s")
    if args.sheet:
        contact_sheet(sample_batch(args.seed, args.batch, args.views, size, atlas, device, config), args.sheet)
        return

    clock = Clock(device)
    stages(clock, args.seed, args.batch, args.views, size, atlas, config)
    print("first batch (compiling included):", {k: f"{v:.2f} s" for k, v in clock.seconds.items()})
    clock.seconds.clear()
    for i in range(args.repeats):
        stages(clock, args.seed + i, args.batch, args.views, size, atlas, config)
    for name, seconds in clock.seconds.items():
        print(f"{name:20s} {1000 * seconds / args.repeats:9.2f} ms")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock.wait()
    start = time.perf_counter()
    for i in range(args.repeats):
        sample_batch(args.seed + i, args.batch, args.views, size, atlas, device, config)
    submitted = time.perf_counter() - start
    clock.wait()
    seconds = (time.perf_counter() - start) / args.repeats
    print(f"{args.batch} scenes of {args.views} views at {args.size}: {args.batch / seconds:.1f} scenes/s")
    print(f"{1000 * seconds:.1f} ms a batch, of which the host is busy {1000 * submitted / args.repeats:.1f} ms")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
