"""Saving a run so that it can be killed at any moment.

A checkpoint is a folder. It is written beside its final name, flushed to disk and renamed; only then does `latest` name
it, and only then are older ones removed. Whatever happens in between, the checkpoint before it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

KEEP = 2


def save(out: Path, step: int, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write out/checkpoints/step-N atomically and make it the latest.

    Raises OSError (disk full, say); the older one stays.
    """
    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for half in folder.glob(".writing-*"):
        shutil.rmtree(half)
    temporary = folder / f".writing-{step:07d}"
    temporary.mkdir()
    try:
        save_file(_tensors(model), temporary / "model.safetensors")
        save_file(_tensors(ema), temporary / "ema.safetensors")
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        (temporary / "state.json").write_text(json.dumps({"step": step}))
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        final = folder / f"step-{step:07d}"
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    pointer = folder / ".latest"
    pointer.write_text(final.name)
    _flush(pointer)
    os.replace(pointer, folder / "latest")
    _flush(folder)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return final


def resume(out: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the latest checkpoint of a run and return its step. Raises ValueError when there is none."""
    pointer = out / "checkpoints" / "latest"
    if not pointer.is_file():
        raise ValueError(f"{out}: nothing to resume, {pointer} does not exist; start without --resume")
    folder = pointer.parent / pointer.read_text().strip()
    _load(model, folder / "model.safetensors")
    _load(ema, folder / "ema.safetensors")
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
    return int(json.loads((folder / "state.json").read_text())["step"])


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    # Shared tensors appear under several names; safetensors wants each once, and clones are small beside the images.
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}


def _load(module: nn.Module, path: Path) -> None:
    module.load_state_dict(load_file(path), strict=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
