"""Saving a run so that it can be killed at any moment.

A checkpoint is a folder. It is written beside its final name, flushed to disk and renamed; only then does `latest` name
it, and only then are older ones removed. Whatever happens in between, the checkpoint before it is whole. Files hold
whole tensors by name, so a run may go on with another number of processes than it was saved by.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from splat.tensor_file import save_tensors
from train.optimizer import Ema, local

KEEP = 2


def save(
    out: Path, state: dict, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, *, writes: bool = True
) -> Path:
    """Write out/checkpoints/step-N atomically and make it the latest; `state`, JSON with its "step", goes along.

    Every process must call this, one `writes`. Raises OSError (disk full, say); the older one stays.
    """
    folder = out / "checkpoints"
    final = folder / f"step-{state['step']:07d}"
    temporary = folder / f".writing-{final.name}"
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.glob(".writing-*"):
            shutil.rmtree(half)
        temporary.mkdir()
    try:
        for name, tensors in (
            ("model", dict(model.state_dict())),
            ("ema", ema.averages),
            ("optimizer", _moments(model, optimizer)),
        ):
            _write(temporary / f"{name}.safetensors", tensors, writes)
        if writes:
            sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
            (temporary / "state.json").write_text(json.dumps(state | {"files": sizes}))
            _publish(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        before = "the checkpoint before it is whole" if (folder / "latest").exists() else "there is none before it"
        raise OSError(f"{final} could not be saved ({error}); {before}, go on with --resume") from error
    return final


def _publish(temporary: Path, final: Path) -> None:
    """The written folder becomes the latest checkpoint. Each change is on disk before the next one begins."""
    folder = final.parent
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    if final.exists():  # left by a run that was killed before it had named it as the latest
        shutil.rmtree(final)
    os.replace(temporary, final)
    _flush(folder)
    pointer = folder / ".latest"
    pointer.write_text(final.name)
    _flush(pointer)
    os.replace(pointer, folder / "latest")
    _flush(folder)
    for old in sorted(p for p in folder.glob("step-*") if p.name <= final.name)[:-KEEP]:
        shutil.rmtree(old)


def find(out: Path) -> Path | None:
    """The latest checkpoint of a run that is whole; None where there is none. Damaged ones are named on stderr."""
    folder = out / "checkpoints"
    pointer = folder / "latest"
    if not pointer.is_file():
        return None
    latest = pointer.read_text().strip()
    for candidate in sorted((p for p in folder.glob("step-*") if p.name <= latest), reverse=True):
        problem = _damage(candidate)
        if problem is None:
            return candidate
        print(f"{candidate} is damaged ({problem}); trying the one before", file=sys.stderr)
    raise ValueError(f"{folder}: no whole checkpoint is left to go on from")


def resume(checkpoint: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> dict:
    """Load what `save` wrote and return its state. Raises ValueError when it belongs to another network."""
    _read(checkpoint / "model.safetensors", dict(model.state_dict()))
    _read(checkpoint / "ema.safetensors", ema.averages)
    path = checkpoint / "optimizer.safetensors"
    with safe_open(path, framework="pt") as file:
        names = {name.rpartition(".")[0] for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, p in model.named_parameters():
        if name in names:
            step = torch.zeros((), device=p.device)
            optimizer.state[p] = {
                "step": step,
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
    _read(path, _moments(model, optimizer))
    return json.loads((checkpoint / "state.json").read_text())


def full(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name. Rates follow from the step, so this is all of it."""
    return {
        f"{name}.{key}": value
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }


def _write(path: Path, tensors: Mapping[str, Tensor], writes: bool) -> None:
    whole = {}
    for name, tensor in tensors.items():
        value = full(tensor.detach())
        if writes:
            whole[name] = value.to("cpu", copy=True).contiguous()
    if not writes:
        return
    try:
        save_tensors(whole, path)
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


@torch.no_grad()
def _read(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from a file that must hold the same names and shapes."""
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        if stored != set(tensors):
            odd = sorted(stored ^ set(tensors))[0]
            raise ValueError(f"{path}: belongs to another network or setting, {odd} is in only one of them")
        for name, tensor in tensors.items():
            value = file.get_tensor(name)
            if value.shape != tensor.shape:
                raise ValueError(
                    f"{path}: {name} is {tuple(value.shape)}, the network's is {tuple(tensor.shape)}; other --preset?"
                )
            if hasattr(tensor, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor

                value = value.to(tensor.device)
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
            local(tensor).copy_(local(value))


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by what its state.json says was in it; None for a whole one."""
    try:
        sizes = json.loads((checkpoint / "state.json").read_text())["files"]
    except (OSError, ValueError, KeyError):
        return "state.json is missing or cut off"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
