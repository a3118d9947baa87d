"""What a result was made with: versions, git commit, device."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("raysplat", "torchvision", "gsplat", "lpips", "scikit-image", "numpy")
_ROOT = Path(__file__).resolve().parents[1]


@lru_cache(maxsize=1)
def environment() -> dict:
    """Versions by package (None: not installed) and the git commit of this checkout, None outside one."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "torch": torch.__version__, **versions, "commit": _commit()}


def device_name(device: str) -> str:
    """The GPU's name, or the processor's kind and how many threads torch uses."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with a + where tracked files were changed since."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", _ROOT, *arguments], check=True, capture_output=True, text=True).stdout.strip()
