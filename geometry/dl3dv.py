"""DL3DV-10K: the training releases, the benchmark release in both its forms, and the list of its 140 scenes.

    <root>/<batch>/<hash>/{transforms.json, images_4|images_8}                       DL3DV-ALL-960P, -480P
    <root>/<hash>/nerfstudio/{transforms.json, images, images_2, images_4, images_8} DL3DV-Benchmark
    <root>/<hash>/gaussian_splat/{sparse/0, images, ...}                             the same frames, undistorted

Intrinsics on disk are those of the 4K frame, whatever copy is there; lens distortion is undone on loading.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from geometry.dataset_folders import folders_below
from geometry.images import image_size, is_image_name
from geometry.read_colmap import find_model, read_colmap
from geometry.read_nerfstudio import read_nerfstudio
from geometry.scene import Scene

COPIES = ("images_8", "images_4", "images_2", "images")  # smallest first
HASH = re.compile(r"[0-9a-f]{16,64}")
# The 140 scenes of DL3DV-Benchmark by the first 16 digits of their hash, in the order of the published list.
BENCHMARK = tuple(
    """
    032dee9fb0a8bc1b 0569e83fdc248a51 06da796666297fe4 073f5a9b983ced6f 07d9f9724ca854fa 0853979305f7ecb8
    093ef327b4e4f9d4 0a1b7c20a92c43c6 0a485338bbdaf19b 0bfdd020cf475b9c 119fd56d3797e2d3 1264931635e127fb
    14eb48a50e37df54 15ff83e2531668d2 165f5af8bfe32f70 183dd248f6a86e07 1ba74c22670ad047 1d6a9ed47cce39fd
    1da888bdedfc9629 1de58be515696102 2385549d398bdfb5 26fd23358fa11fff 280abf7bd93b81b0 286239bd0d4436b7
    2991a75d1f0fb2b7 2b65ba886efac7af 2beaca318994c254 2cbfe28643b6636f 2f3e1c0f688c84ce 32c2b92fac40c698
    341b4ff3dfd3d377 35317e621976e87f 35872363e17af5d1 374ffd0c5ff8e544 387eeb925ba47af5 389a460ca1995e06
    3b16a10ec9b4ab71 3b7529dcccf7097c 3bb3bb4d3e871d79 3bb894d1933f3081 41036716da7efda3 444da1b4a3f1ca01
    457e9a1ae777b0c7 484c0aca40c1087f 493816813d2d6d24 4ae797d07b6d1644 4ff8650b5c1140e9 50c46cf8b8b22c8d
    513e4ea2e8477b06 54bf355ca7e08ed1 56452d9cd9e2e034 565553aa894be621 599ca3e04cae3ec8 5a27c00f525f5484
    5a69d1027b477be4 5c3af581028068a3 5c8dafad7d782c76 5f0041e53d59d67c 63798f5c6fbfcb4e 669c36225b273e22
    66fd66cbed40a2d1 6d221625614d0515 6d81c5ab0d480fd4 6e11e7f4fea305c7 70eac6ff18a1daae 71b2dc8a2aa553da
    75fbbe467353cfde 7705a2edd022de9d 7a9f97660be8f242 7da3db99059a436a 800cf88687a79c23 8324b3ca22085040
    85cd0e92110bcd35 8b9fb9d9f10e8c64 8cb2e97d26a639f0 8fdc5130f0731360 90cb7ef95384138c 917e9c8985d353b0
    918c8dad730c3b80 91afb9910b042f71 946f49be73928469 9641a1ed7963ce5c 9c8c0e0fadd97abf 9cbc5548643ca9cf
    9e9a89ae6fed06d6 9fb0588ff045ec64 a17a984ca90a9b58 a401469cb0fa576b a62c330f5403e2e4 a62f9a1c6362e7c8
    a726c1112ad026ef adb95f29c15b8a89 adf35184a12d4cfa af0d7039e64af395 b2076bc7231bac44 b3bf9079b442c681
    b4f53094fd31dcc2 b5faa2a8ce980030 b6d1134cb03c855d b92b499c9bf92327 ba55c875d20c34ee c076929db6501cf7
    c37109a55effe000 c37726ce770ac50a c455899acfc88163 cbd44beb04f9c98f cc08c0bdc34ddd28 cd9c981eeb4a9091
    ceb252f5d4419510 d1b3a0b37acc7220 d3812aad538261e7 d3af8212ae1600f0 d4fbeba0168af8fd d8de66037bd03dd0
    d904ae2998f775e4 d9b6376623741313 d9f4c746e6fa4563 dac9796dd69e1c25 dafa9c7cbda9d1dd ddfdcfdf02d53dd8
    ded5e4b46aedbef4 df04f58064684c1a df29c225863d0173 df4f9d9a0adfc54c e5684b3292bfd77d e78f8cebd2bd93d9
    e8ce51b6abfe05bf e9360e7a89bee835 eb4cf52988f805e6 ec1e44d4dc0f8fa7 ec305787b70029b7 ed16328235c610f1
    ef59aac437132bfc f004c810d94bac93 f477ffc4b398bed8 f71ac346cd0fc465 f7aaea9ac683bb19 fb2c0499c225d612
    fb3b73f1d3fe9d19 ff592398657b3dfe
""".split()
)


def is_benchmark_scene(name: str | Path) -> bool:
    """Whether `name`, a hash of 16 digits or more or a path with one in it, is a scene of the benchmark."""
    return any(found[:16] in BENCHMARK for found in HASH.findall(str(name).lower()))


def find_dl3dv(root: Path) -> dict[str, Path]:
    """Hash to folder of all scenes below `root`, in the order of their hashes.

    Where a scene is there twice, the shallower folder wins: the benchmark release before the training release.
    """
    found: dict[str, Path] = {}
    for folder in folders_below(root, lambda path: bool(HASH.fullmatch(path.name)), deepest=4):
        found.setdefault(folder.name, folder)
    return dict(sorted(found.items()))


def form_of(folder: Path) -> Path | None:
    """The folder inside a scene's folder that holds its cameras: the distorted, native form before the other."""
    for inner in (folder / "nerfstudio", folder, folder / folder.name / "nerfstudio", folder / folder.name):
        if (inner / "transforms.json").is_file():
            return inner
    for inner in (folder / "gaussian_splat", folder / folder.name / "gaussian_splat"):
        if find_model(inner) is not None:
            return inner
    return None


def open_dl3dv(folder: Path, least: tuple[int, int] = (270, 480)) -> Scene:
    """The scene in the folder of one hash, from the smallest copy of its photos that covers `least` (H, W).

    Without such a copy the largest is read, and `notes` say so: nerfstudio/images_8 of benchmark scene 07d9f972 holds
    240x135 photos, half of what the others have. Raises OSError or ValueError with one line naming what is wrong.
    """
    form = form_of(folder)
    if form is None:
        raise FileNotFoundError(
            f"{folder}: neither nerfstudio/transforms.json nor gaussian_splat/sparse/0 in this scene"
        )
    copy, notes = pick_copy(form, least)
    if form.name == "gaussian_splat":
        scene = read_colmap(form, find_model(form), copy)
    else:
        scene = read_nerfstudio(form / "transforms.json", copy)
    where = (form / copy).relative_to(folder) if copy else form.name
    return replace(scene, name=folder.name, notes=(f"read from {where}", *notes, *scene.notes))


def pick_copy(form: Path, least: tuple[int, int]) -> tuple[str | None, tuple[str, ...]]:
    """The smallest of COPIES whose first photo covers `least` in either orientation, else the largest; and notes."""
    sizes = {}
    for copy in COPIES:
        photos = sorted(filter(is_image_name, (form / copy).iterdir())) if (form / copy).is_dir() else []
        if photos:
            sizes[copy] = image_size(photos[0])
    for copy, (height, width) in sizes.items():
        if min(height, width) >= min(least) and max(height, width) >= max(least):
            small = "; ".join(f"{name} has only {w}x{h}" for name, (h, w) in sizes.items() if h < height)
            return copy, (f"{copy} was taken: {small}",) if small else ()
    if not sizes:
        return None, ()
    copy, (height, width) = max(sizes.items(), key=lambda item: item[1])
    return copy, (f"the largest photos here, {copy}, are {width}x{height}: smaller than {least[1]}x{least[0]}",)
