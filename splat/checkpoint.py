"""Weights and configurations on disk: .safetensors and JSON, nothing that could run code.

Parameter names in a file are the published ones, that is with the prefix `model.`. Reading is strict.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from geometry.presets import PRESETS, ModelConfig, config_from_dict
from splat.atomic import whole_file
from splat.tensor_file import save_tensors

WEIGHTS = Path(__file__).parent / "weights"  # what comes with the package: <name>.safetensors and <name>.json
OWNER = "depth-anything"
REPOSITORIES = {  # of OWNER, each with its preset, whose own name means the last of them
    "DA3-SMALL": "small",
    "DA3-BASE": "base",
    "DA3-LARGE": "large",
    "DA3-LARGE-1.1": "large",
    "DA3-GIANT": "giant",
    "DA3-GIANT-1.1": "giant",
    "DA3NESTED-GIANT-LARGE": "nested",
    "DA3NESTED-GIANT-LARGE-1.1": "nested",
    "DA3METRIC-LARGE": "metric",
    "DA3MONO-LARGE": "mono",
}
MODEL_NAMES = {name.removesuffix("-1.1").lower(): preset for name, preset in REPOSITORIES.items()}  # in config.json
PREFIX = "model."
FILE, CONFIG = "model.safetensors", "config.json"
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STORED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_CONFIG, MAX_HEADER = 1 << 20, 1 << 24  # bytes; a hundred times what the largest network needs
SHOWN = 5  # names listed in an error, of each kind
SCALE = ".scale"  # suffix of what an 8-bit tensor is multiplied by, row by row
SMALL = 4096  # tensors with fewer elements stay in 16 bits beside 8-bit ones: they cost little and matter most


def locate(source: str | Path) -> tuple[Path, ModelConfig]:
    """The weights file and the configuration that `source` (see `splat.model.from_pretrained`) means."""
    path, name = Path(source), str(source)
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
    repository = published(name)
    if repository is not None:
        return _download(f"{OWNER}/{repository}", FILE), PRESETS[REPOSITORIES[repository]]
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix not in (".safetensors", *OTHER_FORMATS):
        return _download(name, FILE), read_config(_download(name, CONFIG))
    known = ", ".join(dict.fromkeys(["nano", *REPOSITORIES.values(), *REPOSITORIES]))
    raise OSError(f"{source}: no such file or folder, and not a known model ({known})")


def published(name: str) -> str | None:
    """The published repository that `name` means: its own in capitals or not, with or without owner, or a preset's."""
    own = name.upper().removeprefix(OWNER.upper() + "/")
    return own if own in REPOSITORIES else {preset: last for last, preset in REPOSITORIES.items()}.get(name)


def _download(repository: str, file: str) -> Path:
    """`file` of a Hugging Face repository, from the local cache where it is there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Without a network the hub's own search of its cache gives up on the network first, which takes 20 seconds.
        cached = try_to_load_from_cache(repository, file)
        return Path(cached if isinstance(cached, str) else hf_hub_download(repository, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{repository}/{file}: not in the local cache and could not be downloaded ({reason}); "
            "fetch the repository elsewhere and pass its folder"
        ) from error


def read_config(path: Path) -> ModelConfig:
    """A configuration written by `save`, or a published one, whose `model_name` says all."""
    try:
        with _open(path) as file:
            text = file.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG:
            raise ValueError(f"larger than {MAX_CONFIG} bytes")
        values = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise OSError(f"{path}: missing; it says which network the weights belong to") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path}: not the JSON of a configuration ({_short(str(error))})") from error
    try:
        if isinstance(values, dict) and "model_name" in values:
            name = values.pop("model_name")
            if "kind" not in values:  # else ours follows, for which the published code has no use
                if name not in list(MODEL_NAMES):
                    raise ValueError(f"model_name {_short(str(name))!r} is not among {', '.join(MODEL_NAMES)}")
                return PRESETS[MODEL_NAMES[name]]
        return config_from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_text(config: ModelConfig) -> str:
    """The JSON of a configuration; with the published name in front, where the network is a published one."""
    values = dataclasses.asdict(config)
    for name, preset in MODEL_NAMES.items():
        if config == dataclasses.replace(PRESETS[preset], licence=config.licence):
            values = {"model_name": name} | values
    return json.dumps(values, indent=2) + "\n"


def check_format(path: Path) -> None:
    """OSError in one line unless `path` starts like a .safetensors file: the length of its header, then the header."""
    if path.suffix.lower() in OTHER_FORMATS:
        raise OSError(f"{path}: maybe a pickle, which can run any code when read; only .safetensors files are loaded")
    try:
        with _open(path) as file:
            head = file.read(16)
            length = int.from_bytes(head[:8], "little")
            if head[8:9] == b"{" and length <= MAX_HEADER:
                header = head[8:] + file.read(max(0, length - 8))
                json.loads(header[:length], object_pairs_hook=_once)
                return
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path}: damaged or cut off (header: {_short(str(error))}); fetch it again") from error
    if head[8:9] == b"{":
        raise OSError(f"{path}: damaged or cut off (its header would have {length} bytes); fetch it again")
    if head.startswith((b"PK", b"\x80")):
        raise OSError(f"{path}: a pickle, which can run any code when read; only .safetensors files are loaded")
    if head.startswith(b"version https:/"):
        raise OSError(f"{path}: a Git LFS pointer and not the weights; run `git lfs pull`")
    raise OSError(f"{path}: not a .safetensors file")


def _open(path: Path) -> BinaryIO:
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or a device may never end
        raise OSError(errno.EINVAL, "Not a regular file")
    return open(path, "rb")


def _once(pairs: list[tuple[str, object]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise ValueError(f"{_short(name)} appears twice")
        names.add(name)


def _short(name: str) -> str:
    """A name from a file as part of one line."""
    text = json.dumps(name)[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    check_format(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise OSError(f"{path}: damaged or cut off ({_short(str(error))}); fetch it again") from error
    except (RuntimeError, MemoryError) as error:
        raise MemoryError(f"{path}: {path.stat().st_size / 1e9:.1f} GB do not fit into memory") from error


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of what `read_tensors` would give, from the header alone: the rest may be gigabytes of another network."""
    with _opened(path) as file:
        names = set(file.keys())
        scales = {name for name in names if name.removesuffix(SCALE) in names - {name}}
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names - scales}
    own = Counter(name.removeprefix(PREFIX) for name in shapes)
    twice = [name for name, times in own.items() if times > 1]
    if twice:
        raise ValueError(f"{path}: {_short(twice[0])} is there twice, with and without the prefix {PREFIX!r}")
    return {name.removeprefix(PREFIX): shapes[name] for name in sorted(shapes)}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, without the published prefix, in float32 and finite."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    scales = {name: tensors.pop(name + SCALE) for name in list(tensors) if name + SCALE in tensors}
    read = {}
    for name, tensor in tensors.items():
        eight_bits = tensor.dtype == torch.int8 and name in scales
        if not eight_bits and tensor.dtype not in STORED:
            raise ValueError(f"{path}: {_short(name)} is stored as {tensor.dtype}, not as floating point")
        if eight_bits:
            rows = tensor.flatten(1) if tensor.ndim == 4 else tensor
            if scales[name].shape != (*rows.shape[:-1], 1):
                raise ValueError(
                    f"{path}: the 8-bit tensor {_short(name)} {tuple(tensor.shape)} and its scale "
                    f"{tuple(scales[name].shape)} do not fit"
                )
        tensor = from_8_bits(tensor, scales[name]) if eight_bits else tensor.float()
        # The sum is finite if all are, but for overflow, and several times as quick to find.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {_short(name)} holds values that are not finite; the training run broke there")
        read[name.removeprefix(PREFIX)] = tensor
    return read


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
    stored = stored_shapes(path)
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    shared = shared_names(model)
    missing = [name for name in expected if name not in stored and name not in shared]
    unexpected = [name for name in stored if name not in expected]
    misshapen = [
        f"{name} {stored[name]} instead of {shape}"
        for name, shape in expected.items()
        if stored.get(name, shape) != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = [_list(kind, names) for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(f"{path}: does not fit {model.config.name!r}: " + "; ".join(problems))
    tensors = read_tensors(path)
    tensors |= {name: tensors[first] for name, first in shared.items() if first in tensors}
    model.load_state_dict(tensors, assign=True)


def _list(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(map(_short, names[:SHOWN]))}{more})"


def shared_names(model: nn.Module) -> dict[str, str]:
    """Names under which a parameter appears again, each with its first name; files hold the first only."""
    first: dict[int, str] = {}
    shared = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared[name] = first[id(parameter)]
    return shared


def save(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Write `model` and its `config` into `folder`, shared parameters once; int8 stores rows with a scale."""
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
    with whole_file(folder / FILE) as temporary:
        save_tensors(tensors, temporary, {"format": "pt"})
    with whole_file(folder / CONFIG) as temporary:
        temporary.write_text(config_text(model.config), encoding="utf-8")


@lru_cache
def show_licence(config: ModelConfig) -> None:
    """Say once what the weights may be used for."""
    print(f"Weights of {_short(config.name)!r}: {_short(config.licence)}.", file=sys.stderr)
