"""Look at the machine: libraries, GPU, memory, weights. Nothing is changed and nothing is downloaded."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing looked at: "ok"; "missing", when only some uses need it; or "broken", when every use does."""

    name: str
    state: Literal["ok", "missing", "broken"]
    found: str
    advice: str = ""


CORE = {
    "numpy": "numpy",
    "timm": "timm",
    "einops": "einops",
    "safetensors": "safetensors",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "tyro": "tyro",
}
OPTIONAL = {
    "pycolmap": ("colmap", "camera poses from photos"),
    "viser": ("viewer", "the viewer in the browser"),
    "lpips": ("eval", "LPIPS scores"),
    "accelerate": ("train", "training, and scoring on several GPUs"),
    "pillow-heif": ("heic", "HEIC photos"),
}


def examine() -> list[Finding]:
    """All findings, in the order in which they are worth reading."""
    return [
        _python(),
        *_torch(),
        *(_core(name, module) for name, module in CORE.items()),
        _numba(),
        *(_optional(name, extra, what) for name, (extra, what) in OPTIONAL.items()),
        _ffmpeg(),
        _memory(),
        _disk(),
        *_weights(),
    ]


def _python() -> Finding:
    version = platform.python_version()
    fine = sys.version_info >= (3, 10)
    found = f"{version} on {platform.system()} {platform.machine()}"
    return Finding("python", "ok" if fine else "broken", found, "" if fine else "install Python 3.10 or newer")


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Finding("torch", "broken", _line(error), "pip install torch")]
    findings = [Finding("torch", "ok", torch.__version__)]
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        return [*findings, Finding("GPU", "ok", found), _gsplat(torch.__version__, torch.version.cuda)]
    if Path("/proc/driver/nvidia/version").exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        advice = "update the driver or install the torch build that fits it: https://pytorch.org/get-started/locally"
        return [
            *findings,
            Finding("GPU", "missing", f"NVIDIA driver present, but torch ({built}) cannot use it", advice),
        ]
    return [*findings, Finding("GPU", "missing", "no NVIDIA GPU; everything runs on the CPU, rendering with numba")]


def _gsplat(torch_version: str, cuda: str | None) -> Finding:
    """Only asked for where there is a GPU. Not imported: without a fitting wheel that starts to compile CUDA code."""
    version = _version("gsplat")
    if version is None:
        return Finding(
            "gsplat", "missing", "not installed; rendering on the GPU needs it", "pip install 'raysplat[gs]'"
        )
    # Wheels built for one torch and CUDA say so in their local version, 1.5.3+pt24cu124 for instance.
    local = version.partition("+")[2]
    if local:
        want = f"pt{''.join(torch_version.split('.')[:2])}cu{(cuda or '').replace('.', '')}"
        if local != want:
            advice = "pip install --force-reinstall --no-deps gsplat, which compiles for this torch (needs nvcc)"
            return Finding("gsplat", "missing", f"{version} was built for another torch or CUDA than {want}", advice)
    elif shutil.which("nvcc") is None and not _compiled_gsplat():
        advice = "install the CUDA toolkit, or a gsplat wheel from https://docs.gsplat.studio/whl/"
        return Finding("gsplat", "missing", f"{version} compiles at its first use, but there is no nvcc", advice)
    return Finding("gsplat", "ok", version)


def _compiled_gsplat() -> bool:
    """Whether the installed gsplat carries its compiled kernels."""
    files = metadata.files("gsplat") or []
    return any(file.suffix in (".so", ".pyd") for file in files)


def _core(name: str, module: str) -> Finding:
    try:
        import_module(module)
    except (ImportError, OSError) as error:
        return Finding(name, "broken", _line(error), f"pip install {name}")
    return Finding(name, "ok", _version(name) or "present")


def _numba() -> Finding:
    try:
        import numba
    except (ImportError, OSError) as error:
        return Finding("numba", "broken", _line(error), "pip install numba; the CPU renderer is compiled with it")
    threads = f"{numba.config.NUMBA_NUM_THREADS} thread(s)"
    return Finding("numba", "ok", f"{numba.__version__}, {threads}, {os.cpu_count()} CPU core(s)")


def _optional(name: str, extra: str, what: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, "missing", f"not installed; for {what}", f"pip install 'raysplat[{extra}]'")
    return Finding(name, "ok", f"{version}; for {what}")


def _ffmpeg() -> Finding:
    try:
        import imageio_ffmpeg

        return Finding("ffmpeg", "ok", imageio_ffmpeg.get_ffmpeg_version())
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("ffmpeg", "missing", _line(error), "pip install imageio-ffmpeg; videos are written with it")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "ok", "size unknown")
    few = "less than 4 GiB: few views at a small size only" if total < 4 else ""
    return Finding("memory", "ok", f"{total:.1f} GiB", few)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding("disk", "ok", f"{free:.1f} GiB free here", "results need up to 1 GiB a scene" if free < 1 else "")


def _weights() -> list[Finding]:
    """Weights that lie here already, so that no network is needed for them."""
    shipped = sorted(path.stem for path in (Path(__file__).parent.parent / "splat" / "weights").glob("*.safetensors"))
    findings = [Finding("shipped weights", "ok" if shipped else "missing", ", ".join(shipped) or "none")]
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except (ImportError, OSError) as error:
        return [*findings, Finding("huggingface-hub", "broken", _line(error), "pip install huggingface-hub")]
    cached = sorted(
        path.name.removeprefix("models--").replace("--", "/") for path in Path(HF_HUB_CACHE).glob("models--*")
    )
    depth_anything = [name for name in cached if name.startswith("depth-anything/")]
    found = ", ".join(depth_anything) or "none of Depth Anything 3"
    return [*findings, Finding("cached weights", "ok" if depth_anything else "missing", f"{found} in {HF_HUB_CACHE}")]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
