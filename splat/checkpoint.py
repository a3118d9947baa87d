"""Weights and configurations on disk: .safetensors and JSON, nothing that could run code.

Parameter names in a file are the published ones, that is with the prefix `model.`. Reading is strict.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geometry.presets import PRESETS, NetworkConfig, config_from_dict
from splat.atomic import whole_file

WEIGHTS = Path(__file__).parent / "weights"  # what comes with the package: <name>.safetensors and <name>.json
REPOSITORIES = {
    "small": "depth-anything/DA3-SMALL",
    "base": "depth-anything/DA3-BASE",
    "large": "depth-anything/DA3-LARGE-1.1",
    "giant": "depth-anything/DA3-GIANT-1.1",
}
PREFIX = "model."
FILE, CONFIG = "model.safetensors", "config.json"
SHOWN = 5  # names listed in an error, of each kind
SCALE = ".scale"  # suffix of what an 8-bit tensor is multiplied by, row by row
SMALL = 4096  # tensors with fewer elements stay in 16 bits beside 8-bit ones: they cost little and matter most


def locate(source: str | Path) -> tuple[Path, NetworkConfig]:
    """The weights file and the configuration that `source` (see `GaussianModel.from_pretrained`) means."""
    path, name = Path(source), str(source).removeprefix("da3-")
    if path.is_dir():
        return path / FILE, read_config(path / CONFIG)
    if path.is_file():
        check_format(path)
        beside = [c for c in (path.with_suffix(".json"), path.with_name(CONFIG)) if c.is_file()]
        if not beside:
            raise OSError(f"{path}: no configuration beside it; put {CONFIG} of its model into the same folder")
        return path, read_config(beside[0])
    packaged = WEIGHTS / f"{name}.safetensors"
    if packaged.is_file():
        return packaged, read_config(packaged.with_suffix(".json"))
    if name in REPOSITORIES:
        return _download(REPOSITORIES[name], FILE), PRESETS[name]
    if str(source).count("/") == 1 and path.suffix == "":
        return _download(str(source), FILE), read_config(_download(str(source), CONFIG))
    known = ", ".join(dict.fromkeys(["nano", *REPOSITORIES]))
    raise OSError(f"{source}: no such file or folder, and not a known model ({known})")


def _download(repository: str, file: str) -> Path:
    """`file` of a Hugging Face repository, from the local cache where it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{repository}/{file}: not in the local cache and could not be downloaded ({reason}); "
            "fetch the repository elsewhere and pass its folder"
        ) from error


def read_config(path: Path) -> NetworkConfig:
    """A configuration written by `save`, or a published one, whose `model_name` is a preset's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OSError(f"{path}: missing; it says which network the weights belong to") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OSError(f"{path}: not valid JSON ({error})") from error
    if isinstance(values, dict) and "model_name" in values:
        name = str(values["model_name"]).removeprefix("da3-")
        if name not in PRESETS:
            raise ValueError(f"{path}: model_name {values['model_name']!r} is not among {', '.join(PRESETS)}")
        return PRESETS[name]
    try:
        return config_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_format(path: Path) -> None:
    """OSError in one line unless `path` starts like a .safetensors file."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror})") from error
    if head.startswith((b"PK", b"\x80")) or path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise OSError(f"{path}: a pickle, which can run any code when read; only .safetensors files are loaded")
    if head.startswith(b"version https:/"):
        raise OSError(f"{path}: a Git LFS pointer and not the weights; run `git lfs pull`")
    if len(head) < 9 or head[8:9] != b"{":
        raise OSError(f"{path}: not a .safetensors file")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, without the published prefix, in float32."""
    check_format(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise OSError(f"{path}: damaged or cut off ({error}); fetch it again") from error
    scales = {name: tensors.pop(name + SCALE) for name in list(tensors) if name + SCALE in tensors}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not (tensor.dtype == torch.int8 and name in scales):
            raise ValueError(f"{path}: {name} is stored as {tensor.dtype}, not as floating point")
    try:
        tensors = {name: from_8_bits(t, scales[name]) if name in scales else t.float() for name, t in tensors.items()}
    except RuntimeError as error:
        raise ValueError(f"{path}: an 8-bit tensor and its scale do not fit ({error})") from error
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def to_8_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor [..., N] as int8 and its scale [..., 1]; a convolution's [O, I, h, w] has one scale per first index."""
    rows = tensor.flatten(1) if tensor.ndim == 4 else tensor
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (rows / scale).round().to(torch.int8).view(tensor.shape), scale


def from_8_bits(tensor: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `to_8_bits` up to rounding, in float32."""
    rows = tensor.flatten(1) if tensor.ndim == 4 else tensor
    return (rows.float() * scale.float()).view(tensor.shape)


def load_into(model: nn.Module, path: Path) -> None:
    """Give `model` (which may be on the meta device) the parameters in `path`; ValueError lists what does not fit."""
    tensors = read_tensors(path)
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    shared = shared_names(model)
    tensors |= {name: tensors[first] for name, first in shared.items() if first in tensors}
    missing = [name for name in expected if name not in tensors and name not in shared]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = [_list(kind, names) for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(f"{path}: does not fit {model.config.name!r}: " + "; ".join(problems))
    model.load_state_dict(tensors, assign=True)


def _list(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{more})"


def shared_names(model: nn.Module) -> dict[str, str]:
    """Names under which a parameter appears again, each with its first name; files hold the first only."""
    first: dict[int, str] = {}
    shared = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared[name] = first[id(parameter)]
    return shared


def save(model: nn.Module, config: NetworkConfig, folder: Path, dtype: torch.dtype) -> None:
    """Write `model` and its configuration into `folder`, shared parameters once; int8 stores rows with a scale."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = shared_names(model)
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if name in shared:
            continue
        if dtype == torch.int8 and tensor.ndim > 1 and tensor.numel() >= SMALL:
            tensors[PREFIX + name], tensors[PREFIX + name + SCALE] = to_8_bits(tensor.float())
        else:
            tensors[PREFIX + name] = tensor.to(torch.float16 if dtype == torch.int8 else dtype)
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    with whole_file(folder / FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with whole_file(folder / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")


@lru_cache
def show_licence(config: NetworkConfig) -> None:
    """Say once what the weights may be used for, where that is limited."""
    if "NC" in config.licence:
        print(f"Weights of {config.name!r}: {config.licence}.", file=sys.stderr)
