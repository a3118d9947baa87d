"""Weights on disk: names, kinds, round trips and the published layout."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from geometry.presets import PRESETS, CameraConfig
from splat import checkpoint
from splat.checkpoint import locate, show_licence
from splat.model import GaussianModel, MonocularModel, NestedModel, from_pretrained
from tests.tiny_networks import images, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("a")


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_weights_are_for_those_who_may_read_the_configuration(saved):
    weights, config = ((saved / name).stat().st_mode for name in ("model.safetensors", "config.json"))
    assert weights == config


def test_round_trip(model, saved):
    loaded = GaussianModel.from_pretrained(saved)
    assert loaded.config == model.config and not loaded.training
    assert all(a.equal(b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    assert loaded.head.scratch.output_conv2_aux[0][2] is loaded.head.scratch.output_conv2_aux[3][2]
    assert loaded.head.scratch.output_conv2_aux[3][2].weight is loaded.head.scratch.output_conv2_aux[0][2].weight
    inputs = images(2, (28, 28))
    # Not to the last bit: some CPU kernels add up in another order when weights lie elsewhere in memory.
    torch.testing.assert_close(loaded.geometry(inputs).depth, model.geometry(inputs).depth, rtol=1e-5, atol=0)
    assert all(p.requires_grad for p in loaded.parameters())
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_the_file_has_the_published_layout(model, saved):
    tensors = load_file(saved / "model.safetensors")
    assert len(tensors) == len(list(model.parameters()))
    assert all(name.startswith("model.") for name in tensors)
    assert "model.head.scratch.output_conv2_aux.0.2.weight" in tensors
    assert "model.head.scratch.output_conv2_aux.3.2.weight" not in tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(model, tmp_path, dtype):
    model.save_pretrained(tmp_path, dtype)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    loaded = GaussianModel.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.equal(model.state_dict()[name].to(dtype).float())


def test_a_file_alone_with_a_configuration_beside_it(saved, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(OSError, match="no configuration beside it"):
        GaussianModel.from_pretrained(tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text((saved / "config.json").read_text())
    GaussianModel.from_pretrained(tmp_path / "mine.safetensors")
    GaussianModel.from_pretrained(str(saved / "model.safetensors"))


def test_names_without_prefix_and_repeated_norms_are_read(model, saved):
    path = saved / "model.safetensors"
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    tensors["head.scratch.output_conv2_aux.3.2.weight"] = torch.full((32,), 9.0)  # the first name counts
    save_file(tensors, path)
    loaded = GaussianModel.from_pretrained(saved)
    assert loaded.head.scratch.output_conv2_aux[3][2].weight.equal(model.head.scratch.output_conv2_aux[0][2].weight)


@pytest.mark.parametrize("name", checkpoint.MODEL_NAMES)
def test_published_configurations(tmp_path, name):
    preset = PRESETS[checkpoint.MODEL_NAMES[name]]
    for values in ({"model_name": name}, {"model_name": name, "name": "x", "config": {"net": {"anything": 1}}}):
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert locate(tmp_path)[1] is preset
    (tmp_path / "config.json").write_text(checkpoint.config_text(preset))
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_name"] == name and "config" not in values
    assert locate(tmp_path)[1] == preset


def test_configurations_of_our_own_have_no_published_name(model):
    assert "model_name" not in json.loads(checkpoint.config_text(model.config))
    assert "model_name" not in json.loads(checkpoint.config_text(PRESETS["nano"]))
    wider = dataclasses.replace(PRESETS["small"], camera=CameraConfig(depth=5))
    assert "model_name" not in json.loads(checkpoint.config_text(wider))
    tuned = dataclasses.replace(PRESETS["small"], licence="mine")
    assert json.loads(checkpoint.config_text(tuned))["model_name"] == "da3-small"


@pytest.mark.parametrize("kind", ["a", "m", "nested"])
def test_the_official_class_reads_what_is_saved(kind, tmp_path, monkeypatch):
    """It is a `PyTorchModelHubMixin` that holds its network as `model` and builds it by `model_name`, strictly here."""
    hub = pytest.importorskip("huggingface_hub")
    ours, others = tiny_model(kind), tiny_model(kind).requires_grad_(False)

    class Official(torch.nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self, model_name: str = "da3-large", **kwargs):
            super().__init__()
            self.name, self.model = model_name, others

    for parameter in others.parameters():
        parameter.zero_()
    monkeypatch.setitem(PRESETS, "large", dataclasses.replace(ours.config, name="large"))
    ours.config = PRESETS["large"]
    ours.save_pretrained(tmp_path)
    official = Official.from_pretrained(tmp_path, strict=True)
    assert official.name == "da3-large"
    for (name, theirs), parameter in zip(official.model.state_dict().items(), ours.state_dict().values()):
        assert theirs.equal(parameter), name


@pytest.mark.parametrize("kind, cls", [("a", GaussianModel), ("m", MonocularModel), ("nested", NestedModel)])
def test_every_kind_of_model(kind, cls, tmp_path, monkeypatch):
    saved = tiny_model(kind)
    saved.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert type(loaded) is cls and loaded.config == saved.config and not loaded.training
    assert all(a.equal(b) for a, b in zip(loaded.state_dict().values(), saved.state_dict().values()))
    assert type(cls.from_pretrained(tmp_path)) is cls
    monkeypatch.setattr(checkpoint, "load_into", None)  # known before any weights are read
    other = MonocularModel if cls is GaussianModel else GaussianModel
    with pytest.raises(ValueError, match=rf"is a {cls.__name__} \(tiny\), not a {other.__name__}"):
        other.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name, repository",
    [
        *((name, name) for name in checkpoint.REPOSITORIES),
        ("depth-anything/DA3-LARGE", "DA3-LARGE"),
        ("depth-anything/da3-giant-1.1", "DA3-GIANT-1.1"),
        ("da3-small", "DA3-SMALL"),
        ("da3nested-giant-large", "DA3NESTED-GIANT-LARGE"),
        ("small", "DA3-SMALL"),
        ("base", "DA3-BASE"),
        ("large", "DA3-LARGE-1.1"),
        ("giant", "DA3-GIANT-1.1"),
        ("nested", "DA3NESTED-GIANT-LARGE-1.1"),
        ("metric", "DA3METRIC-LARGE"),
        ("mono", "DA3MONO-LARGE"),
    ],
)
def test_names_of_published_weights(name, repository, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_download", lambda repo, file: tmp_path / repo / file)
    path, config = locate(name)
    assert path == tmp_path / "depth-anything" / repository / "model.safetensors"
    assert config is PRESETS[checkpoint.REPOSITORIES[repository]]


def test_other_repositories_bring_their_configuration(monkeypatch, tmp_path, saved):
    asked = []
    monkeypatch.setattr(checkpoint, "_download", lambda repo, file: asked.append((repo, file)) or saved / file)
    assert locate("some.one/da3-tuned-1.1")[0] == saved / "model.safetensors"
    assert asked == [("some.one/da3-tuned-1.1", f) for f in ("model.safetensors", "config.json")]
    monkeypatch.chdir(tmp_path)  # an x beside the checkout would be found
    for missing in ("weights/model.safetensors", "a/b/c", "../x", "nothing.pt"):
        with pytest.raises(OSError, match="no such file or folder"):
            locate(missing)


def test_everything_that_does_not_fit_is_listed(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    for block in range(8):
        del tensors[f"model.backbone.pretrained.blocks.{block}.norm1.bias"]
    tensors["model.extra"] = torch.zeros(3)
    tensors["model.cam_dec.fc_t.bias"] = torch.zeros(4)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        GaussianModel.from_pretrained(saved)
    message = str(error.value)
    assert "8 missing (backbone.pretrained.blocks.0.norm1.bias, " in message and "and 3 more)" in message
    assert "1 unexpected (extra)" in message
    assert "1 misshapen (cam_dec.fc_t.bias (4,) instead of (3,))" in message
    assert "\n" not in message


def test_unknown_names():
    with pytest.raises(OSError, match=r"nowhere: no such file or folder, and not a known model \(nano, small"):
        GaussianModel.from_pretrained("nowhere")


def test_offline(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_, **__):
        raise hub.errors.LocalEntryNotFoundError("no connection\nand many more lines")

    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    for name in ("small", "da3-small", "depth-anything/DA3-SMALL"):
        with pytest.raises(
            OSError, match=r"DA3-SMALL/model.safetensors: not in the local cache .*no connection\)"
        ) as error:
            GaussianModel.from_pretrained(name)
        assert "\n" not in str(error.value)


def test_what_the_hub_has_cached_is_not_asked_for_again(saved, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / "models--somebody--tiny"
    (repository / "snapshots").mkdir(parents=True)
    saved.rename(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "hf_hub_download", None)
    assert GaussianModel.from_pretrained("somebody/tiny").config.name == "tiny"


def test_a_name_that_is_a_folder_is_not_downloaded(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    saved.rename(saved.parent / "small")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert GaussianModel.from_pretrained("small").config.name == "tiny"


def test_packaged_weights(model, monkeypatch, tmp_path):
    model.save_pretrained(tmp_path, torch.float16)
    (tmp_path / "model.safetensors").rename(tmp_path / "nano.safetensors")
    (tmp_path / "config.json").rename(tmp_path / "nano.json")
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path)
    assert GaussianModel.from_pretrained("nano").config == model.config


def test_a_failed_save_leaves_the_old_files(model, saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def stop(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_tensors", stop)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_licence_is_shown_once_and_kept(capsys, model, tmp_path):
    show_licence.cache_clear()
    for _ in range(2):
        for name in ("giant", "large", "nested", "small"):
            show_licence(PRESETS[name])
    lines = [f"Weights of '{name}': CC BY-NC 4.0, non-commercial use only." for name in ("giant", "large", "nested")]
    assert capsys.readouterr().err.splitlines() == [*lines, "Weights of 'small': Apache-2.0."]
    tuned = tiny_model("a", licence=PRESETS["giant"].licence)
    tuned.save_pretrained(tmp_path)
    loaded = GaussianModel.from_pretrained(tmp_path)
    assert "CC BY-NC 4.0" in capsys.readouterr().err
    assert dataclasses.replace(loaded.config, licence="none") == model.config


def test_eight_bit_weights(model, tmp_path):
    """A quarter of the size; every row within half a step of its largest entry, and the network all but the same."""
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "small", torch.int8)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "full")]
    assert sizes[0] < 0.35 * sizes[1]
    loaded = GaussianModel.from_pretrained(tmp_path / "small")
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        rows, other = (t.flatten(1) if t.ndim == 4 else t for t in (a, b))
        step = rows.abs().amax(-1, keepdim=True) / 127
        assert ((rows - other).abs() <= 0.51 * step + 1e-3 * rows.abs()).all(), name
    inputs = images(2, (28, 28))
    torch.testing.assert_close(model.geometry(inputs).depth, loaded.geometry(inputs).depth, atol=0, rtol=0.2)


def test_eight_bit_tensors_need_their_scale(model, tmp_path):
    model.save_pretrained(tmp_path / "small", torch.int8)
    path = tmp_path / "small" / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith(".scale")).removesuffix(".scale")
    save_file({**tensors, name + ".scale": torch.ones(3, 1)}, path)
    with pytest.raises(ValueError, match=r"the 8-bit tensor .* and its scale \(3, 1\) do not fit"):
        GaussianModel.from_pretrained(path.parent)
    save_file({n: t for n, t in tensors.items() if n != name + ".scale"}, path)
    with pytest.raises(ValueError, match="stored as torch.int8"):
        GaussianModel.from_pretrained(path.parent)
