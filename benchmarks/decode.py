"""How fast photos reach the trainer: python benchmarks/decode.py [--photos FOLDER]

Prints a Markdown table of images per second of CPU time, which a busy machine does not change: bare libjpeg-turbo
(cv2.imdecode of bytes in memory, to BGR), the same photos through a scene pack (read, checksum, decode to RGB), and
through the whole source (choice of 12 + 4 of 48 views, decode, resize, crop, stack), each with its share of the bare
rate. For a GPU the source ends with bytes, which are mirrored and tinted there (torch's "meta" device stands for it,
and takes more of the CPU); on the CPU it makes floats. Then the sizes of packs, opening 1000 of them, and samples a
second. Without --photos the photos are blurred noise.
"""

import argparse
import datetime
import os
import platform
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from geometry.encoded_photo import encode_photo
from geometry.images import is_image_name, read_image, resize_array
from geometry.scene import Scene
from geometry.scene_pack import PackSettings, open_pack, write_pack
from train.batch import Shape
from train.prefetch import Prefetcher
from train.scene_sources import SceneOptions, SceneSource

VIEWS = 48


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos to take instead of noise")
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU seconds each row is measured for")
    parser.add_argument("--packs", type=int, default=1000, help="packs to open")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(f"Decoding, {datetime.date.today()}, {platform.processor() or platform.machine()}; best of 5 rounds\n")
    print("| stored | wanted | how | images/s per core | of bare |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for stored in ((270, 480), (540, 960)):
            for wanted in ((270, 480), (266, 476)):
                decoding(scene(options.photos, stored), wanted, Path(folder), options)
        print()
        opening(Path(folder), options.packs)
        samples(options.photos, Path(folder))


def scene(photos, size, views=VIEWS):
    """Pictures of `size` with cameras on a line."""
    if photos is None:
        rng = np.random.default_rng(0)
        # Blurred noise on several scales costs a JPEG decoder about what photos do.
        pictures = [sum(blotches(rng, size, cell) for cell in (2, 8, 32)) for _ in range(8)]
        pictures = [np.clip(p, 0, 255).astype(np.uint8) for p in pictures]
    else:
        files = sorted(p for p in photos.rglob("*") if is_image_name(p))[:views]
        pictures = [resize_array(read_image(file), size) for file in files]
    w2c = np.tile(np.eye(4), (views, 1, 1))
    w2c[:, 0, 3] = np.arange(views)
    K = np.tile(np.array([[size[1], 0, size[1] / 2], [0, size[1], size[0] / 2], [0, 0, 1.0]]), (views, 1, 1))
    names = tuple(f"{i:04d}.jpg" for i in range(views))
    return Scene("line", Path("line"), names, (size,) * views, lambda i: pictures[i % len(pictures)], w2c, K)


def blotches(rng, size, cell):
    small = rng.uniform(0, 85, (size[0] // cell + 1, size[1] // cell + 1, 3))
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def decoding(made, wanted, folder, options):
    path = folder / "one" / "line.scene"
    path.parent.mkdir(exist_ok=True)
    write_pack(made, path, PackSettings())
    packed = open_pack(path)
    stored = made.sizes[0]
    in_memory = [encode_photo(made.load(i), 95, False) for i in range(len(made))]
    plain = SceneOptions("farthest", cache_mb=0, decoders=1)
    gpu, cpu = (SceneSource(path, torch.device(kind), plain) for kind in ("meta", "cpu"))
    shape = Shape(1, 12, 4, wanted)
    rows = {
        "bare libjpeg-turbo": (lambda i: cv2.imdecode(np.frombuffer(in_memory[i % VIEWS], np.uint8), 1), 1),
        "pack": (lambda i: packed.load(i % VIEWS), 1),
    }
    if stored[0] >= 2 * wanted[0]:
        rows["bare, then area resize"] = (
            lambda i: resize_array(cv2.imdecode(np.frombuffer(in_memory[i % VIEWS], np.uint8), 1), wanted),
            1,
        )
        rows["pack, decoded at the size wanted"] = (lambda i: packed.load(i % VIEWS, wanted), 1)
    rows["source, for a GPU"] = (lambda i: gpu.batch(i, shape), 16)
    rows["source, on the CPU"] = (lambda i: cpu.batch(i, shape), 16)
    bare = None
    for name, rate in rates(rows, options.seconds).items():
        bare = bare or rate
        sizes = f"| {stored[0]}x{stored[1]} | {wanted[0]}x{wanted[1]} "
        print(f"{sizes}| {name} | {rate:.0f} | {100 * rate / bare:.0f} % |", flush=True)


def rates(rows, seconds):
    """Images per second of CPU time of each row, best of 5 rounds in turn."""
    best = dict.fromkeys(rows, 0.0)
    for _ in range(5):
        for name, (work, images) in rows.items():
            done, start = 0, time.process_time()
            while (spent := time.process_time() - start) < seconds / 5:
                work(done)
                done += 1
            best[name] = max(best[name], done * images / spent)
    return best


def opening(folder, count):
    """Many small packs: listing them, and opening each."""
    root = folder / "many"
    root.mkdir()
    write_pack(scene(None, (27, 48), 300), root / "0.scene")
    content = (root / "0.scene").read_bytes()
    for i in range(1, count):
        (root / f"{i}.scene").write_bytes(content)
    start = time.process_time()
    drawn = SceneSource(root, torch.device("cpu"))
    listed = time.process_time()
    for path in drawn.scenes.values():
        open_pack(path, points=False)
    opened = time.process_time()
    print(f"{count} packs of 300 views: listed in {listed - start:.3f} s, opened in {opened - listed:.2f} s of CPU")


def samples(photos, folder):
    """Samples of 12 + 4 views at 270x480 from 100 scenes of 300 views, most drawn once; then beside a loop."""
    root = folder / "scenes"
    root.mkdir()
    write_pack(scene(photos, (270, 480), 300), root / "0.scene")
    for i in range(1, 100):
        os.link(root / "0.scene", root / f"{i}.scene")
    size = (root / "0.scene").stat().st_size
    print(f"a pack of 300 views of 480x270: {size / 1e6:.1f} MB")
    drawn = SceneSource(root, torch.device("meta"), SceneOptions("farthest", cache_mb=0, decoders=1))
    shape, count, step = Shape(1, 12, 4, (270, 480)), 20, 0.5
    start = time.process_time()
    for seed in range(count):
        drawn.batch(seed, shape)
    print(f"a sample of 12 + 4 views of 300, for a GPU: {1e3 * (time.process_time() - start) / count:.0f} ms of CPU")
    start = time.perf_counter()
    with Prefetcher(lambda seed: drawn.batch(seed, shape), range(count)) as ahead:
        for _ in ahead:
            time.sleep(step)
    waited = 1 - count * step / (time.perf_counter() - start)
    print(f"a loop of {step} s a step with one thread making ahead waits {100 * waited:.1f} % of its time")


if __name__ == "__main__":
    main()
