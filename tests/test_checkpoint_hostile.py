"""Files that are not what they say: one clear line each, nothing run, nothing large allocated."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from geometry.presets import PRESETS
from splat.checkpoint import MAX_CONFIG, MAX_HEADER, check_format, config_text
from splat.model import from_pretrained
from tests.tiny_networks import tiny_model


@pytest.fixture
def saved(tmp_path):
    tiny_model("m").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def refusal(folder, kind: type[Exception] = OSError) -> str:
    """The one line with which loading fails, which names the file."""
    with pytest.raises(kind) as error:
        from_pretrained(folder)
    message = str(error.value)
    assert type(error.value) in (ValueError, OSError) and "\n" not in message
    assert str(folder) in message and len(message) < 1000
    return message


def torch_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    return buffer.getvalue()


def header(entries: dict | bytes, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(start: int, end: int, shape: tuple = (4,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FOUR = b'"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a .safetensors file"),
        (b"<html>404</html>", "not a .safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (pickle.dumps({"a": 1}), "a pickle"),
        (pickle.dumps({"a": 1}, protocol=0), "not a .safetensors file"),
        (torch_saved(), "a pickle"),
        (header({"a": entry(0, 16)}, 2**60), "header would have 1152921504606846976 bytes"),
        (header({"a": entry(0, 16)}, 2**64 - 1), "damaged or cut off"),
        (header({"a": entry(0, 16)}, 1000) + bytes(16), "damaged or cut off"),
        (header({"a": entry(0, 16), "b": entry(8, 24)}) + bytes(24), "damaged or cut off"),  # overlapping
        (header({"a": entry(0, 16), "b": entry(32, 48)}) + bytes(48), "damaged or cut off"),  # a hole
        (header({"a": entry(0, 16)}) + bytes(8), "damaged or cut off"),  # beyond the end
        (header({"a": entry(0, 16)}) + bytes(32), "damaged or cut off"),  # more than is said
        (header({"a": entry(16, 0)}) + bytes(16), "damaged or cut off"),
        (header({"a": entry(0, 16, (2**40, 2**40))}) + bytes(16), "damaged or cut off"),
        (header({"a": entry(0, 16, (-4,))}) + bytes(16), "damaged or cut off"),
        (header({"a": entry(0, 16, dtype="F99")}) + bytes(16), "damaged or cut off"),
        (header(b'{"a":{' + FOUR + b',"a":{' + FOUR + b"}") + bytes(16), "a appears twice"),
        (header(b'{"a":{"dtype":"I32",' + FOUR + b"}") + bytes(16), "dtype appears twice"),
        (header(b'{"a":' + b"[" * 100_000), "damaged or cut off"),
        (header(b'{"a\xff":1}'), "damaged or cut off"),
        (header(b"[]"), "not a .safetensors file"),
    ],
)
def test_files_that_are_something_else(saved, content, message):
    (saved / "model.safetensors").write_bytes(content)
    assert message in refusal(saved)


def test_a_huge_header_is_not_read(saved):
    with open(saved / "model.safetensors", "wb") as file:
        file.write(header(b"{", 200_000_000))
        file.truncate(8 + 200_000_000)
    tracemalloc.start()
    assert "header would have 200000000 bytes" in refusal(saved)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_HEADER / 4


@pytest.mark.parametrize("bytes_of_header", [0x4B50, 0x80, 0x180])
def test_a_length_may_look_like_something_else(bytes_of_header, tmp_path):
    """The file starts with its length, whose bytes may be those that archives and pickles start with."""
    text = json.dumps({"a": entry(0, 16)}).encode().ljust(bytes_of_header)
    (tmp_path / "a.safetensors").write_bytes(header(text) + bytes(16))
    assert (tmp_path / "a.safetensors").read_bytes()[:1] in b"P\x80"
    check_format(tmp_path / "a.safetensors")


@pytest.mark.parametrize("cut", [1, 1000, 100_000])
def test_a_file_cut_off(saved, cut):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    assert "damaged or cut off" in refusal(saved)


def test_pickles_are_refused_by_name(saved):
    for suffix in (".pt", ".bin", ".ckpt", ".PTH"):
        path = saved / f"weights{suffix}"
        path.write_bytes((saved / "model.safetensors").read_bytes())
        assert "only .safetensors files are loaded" in refusal(path)


def changed(folder, **tensors) -> None:
    path = folder / "model.safetensors"
    names = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(path) | {f"model.{name}": t for name, t in names.items()}, path)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.uint8, torch.int8, torch.complex64, torch.float8_e5m2]
)
def test_other_stored_types(saved, dtype):
    changed(saved, backbone__pretrained__norm__bias=torch.zeros(64).to(dtype))
    assert f"backbone.pretrained.norm.bias is stored as {dtype}" in refusal(saved, ValueError)


def test_values_of_what_does_not_fit_are_not_read(saved, monkeypatch):
    changed(saved, huge=torch.zeros(4))
    monkeypatch.setattr("splat.checkpoint.read_tensors", lambda path: pytest.fail("read the values"))
    assert "1 unexpected (huge)" in refusal(saved, ValueError)


def test_more_than_memory_holds_is_told(saved):
    """The file says that it holds 15 TB, and does, in a hole. Some systems map even that; none reads it."""
    size = 15 * 10**12
    text = header({"model.huge": entry(0, size, (size // 4,))})
    try:
        with open(saved / "model.safetensors", "wb") as file:
            file.write(text)
            file.truncate(len(text) + size)
    except OSError:
        pytest.skip("this file system has no files of that size")
    with pytest.raises((MemoryError, ValueError), match="15000.0 GB do not fit into memory|1 unexpected"):
        from_pretrained(saved)


def test_a_parameter_under_two_names(saved):
    path = saved / "model.safetensors"
    save_file(load_file(path) | {"backbone.pretrained.norm.bias": torch.zeros(64)}, path)
    assert "backbone.pretrained.norm.bias is there twice" in refusal(saved, ValueError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite(saved, value, dtype):
    weight = torch.ones(64, 64, dtype=dtype)
    weight[3, 5] = value
    changed(saved, backbone__pretrained__blocks__2__attn__proj__weight=weight)
    assert "blocks.2.attn.proj.weight holds values that are not finite" in refusal(saved, ValueError)


def test_both_infinities_cancel_nothing(saved):
    changed(saved, backbone__pretrained__norm__bias=torch.tensor([1, -1] * 32) * torch.inf)
    assert "norm.bias holds values that are not finite" in refusal(saved, ValueError)


def test_large_values_are_finite(saved):
    changed(saved, backbone__pretrained__norm__bias=torch.full((64,), 3e38))  # their sum is not
    assert from_pretrained(saved).backbone.pretrained.norm.bias.eq(3e38).all()


def test_too_large_for_float32(saved):
    changed(saved, backbone__pretrained__norm__bias=torch.full((64,), 1e300, dtype=torch.float64))
    assert "norm.bias holds values that are not finite" in refusal(saved, ValueError)


def test_scales_of_8_bit_tensors(tmp_path):
    tiny_model("m").save_pretrained(tmp_path, torch.int8)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(n for n in tensors if n.endswith(".scale"))
    for scale, message in (
        (torch.ones(1, 10**6), "do not fit"),  # as a broadcast it would ask for a terabyte
        (torch.tensor(1.0), "do not fit"),
        (tensors[name] * torch.nan, "not finite"),
    ):
        save_file(tensors | {name: scale}, tmp_path / "model.safetensors")
        assert message in refusal(tmp_path, ValueError)


def test_shapes_of_nothing_and_names_of_many_lines(saved):
    changed(
        saved,
        backbone__pretrained__norm__bias=torch.zeros(0),
        backbone__pretrained__norm__weight=torch.zeros(()),
        **{"a\nb" + "c" * 10_000: torch.zeros(1)},
    )
    message = refusal(saved, ValueError)
    assert "norm.bias (0,) instead of (64,)" in message and "norm.weight () instead of (64,)" in message
    assert r"a\nbccc" in message


def test_folders_in_place_of_files(saved):
    (saved / "model.safetensors").unlink()
    assert "cannot be read (No such file" in refusal(saved)
    (saved / "model.safetensors").mkdir()
    assert "cannot be read (Is a directory)" in refusal(saved)
    (saved / "config.json").unlink()
    (saved / "config.json").mkdir()
    assert "Is a directory" in refusal(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_never_ends_is_not_read(saved, name):
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    assert "cannot be read (Not a regular file)" in refusal(saved)
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert "cannot be read (Not a regular file)" in refusal(saved)
    (saved / name).unlink()
    (saved / name).symlink_to(name)
    assert "cannot be read (Too many levels of symbolic links)" in refusal(saved)


GOOD = json.loads(config_text(PRESETS["nano"]))


@pytest.mark.parametrize(
    "text, kind, message",
    [
        ("{", OSError, "not the JSON of a configuration"),
        ("[" * 100_000, OSError, "not the JSON of a configuration"),
        ("9" * 10_000, OSError, "not the JSON of a configuration"),
        (" " * (MAX_CONFIG + 1), OSError, "larger than"),
        (b"\xff\xfe", OSError, "not the JSON of a configuration"),
        ("[1, 2]", ValueError, "config must be an object"),
        ("null", ValueError, "config must be an object"),
        ("{}", ValueError, "config lacks the key 'name'"),
        ({"model_name": "da3-enormous"}, ValueError, "model_name 'da3-enormous' is not among da3-small"),
        ({"model_name": ["da3-small"]}, ValueError, "is not among"),
        ({"model_name": "x" * 100_000}, ValueError, "is not among"),
        (GOOD | {"colour": 1}, ValueError, "config has the unknown key 'colour'"),
        (GOOD | {"kind": {}}, ValueError, "config.kind must be one of"),
        (GOOD | {"kind": "monocular"}, ValueError, "config has the unknown key 'camera'"),
        (GOOD | {"licence": 3}, ValueError, "config.licence must be of type str, got 3"),
        (GOOD | {"licence": ["x" * 100_000]}, ValueError, "config.licence must be of type str"),
        (GOOD | {"head": GOOD["head"] | {"features": 1e400}}, ValueError, "head.features must be of type int"),
        (GOOD | {"backbone": GOOD["backbone"] | {"depth": 10**9}}, ValueError, "backbone.depth must be 4 to 256"),
        (GOOD | {"backbone": GOOD["backbone"] | {"dim": 2**40}}, ValueError, "backbone.dim must be 8 to 16384"),
    ],
)
def test_wrong_configurations(saved, text, kind, message):
    text = json.dumps(text) if isinstance(text, dict) else text
    (saved / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refusal(saved, kind)


def test_no_configuration(saved):
    (saved / "config.json").unlink()
    assert "config.json: missing" in refusal(saved)
