"""Number formats: which part runs in which, and that nothing is left changed."""

from __future__ import annotations

import pytest
import torch

from geometry import precision as precision_module
from geometry.precision import default_precision, precision, store_bfloat16
from tests.test_network import SIZE, some_cameras
from tests.tiny_networks import images, tiny_model

CPU_HAS_BFLOAT16 = precision_module.cpu_has_bfloat16  # as it is before tests/conftest.py answers for it


def flags() -> tuple[str, str, bool]:
    """How float32 products of matrices and convolutions are rounded on CUDA, and whether autocast is on."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    return *(place.fp32_precision for place in places), torch.is_autocast_enabled("cpu")


@pytest.fixture(autouse=True)
def flags_are_put_back():
    before = flags()
    yield
    assert flags() == before


def formats(model, run) -> dict[str, torch.dtype]:
    """Formats in which parts of the any-view model answer."""
    seen = {}
    parts = {
        "backbone": model.backbone.pretrained.blocks[-1].mlp,
        "head": model.head.scratch.output_conv1,
        "gs": model.gs_head.scratch.output_conv1,
        "camera": model.cam_dec,
        "given": model.cam_enc,
    }
    hooks = [p.register_forward_hook(lambda m, i, out, n=n: seen.update({n: out.dtype})) for n, p in parts.items()]
    with run:
        geometry, gaussians = model(images(2, SIZE), some_cameras(2))
    for hook in hooks:
        hook.remove()
    assert geometry.depth.dtype == geometry.cameras.w2c.dtype == gaussians.means.dtype == torch.float32
    return seen


FLOAT, BRAIN = torch.float32, torch.bfloat16


@pytest.mark.parametrize("trained", ["float32", "autocast"])
def test_which_part_runs_in_which_format(trained):
    model = tiny_model("a", precision=trained)
    heads = BRAIN if trained == "autocast" else FLOAT
    cameras = {"camera": FLOAT, "given": FLOAT}
    dense = {"backbone": BRAIN, "head": BRAIN, "gs": BRAIN} | cameras
    assert formats(model, precision("float32", "cpu")) == dict.fromkeys(dense, FLOAT)
    assert formats(model, precision("bfloat16", "cpu")) == dense
    own = torch.autocast("cpu", dtype=torch.bfloat16)
    assert formats(model, own) == dense | {"head": heads, "gs": heads}


def test_float32_wins_over_an_autocast_around_it():
    model, inputs = tiny_model("a"), images(2, SIZE)
    exact = model.geometry(inputs).depth
    with torch.autocast("cpu", dtype=torch.bfloat16), precision("float32", "cpu"):
        assert model.geometry(inputs).depth.equal(exact)


def test_bfloat16_is_near():
    for kind in ("a", "m"):
        model, inputs = tiny_model(kind), images(2, SIZE)
        run = model.geometry if kind == "a" else model
        exact = run(inputs).depth
        with precision("bfloat16", "cpu"):
            near = run(inputs).depth
        assert near.dtype == torch.float32 and not near.equal(exact)
        assert (near / exact).log().abs().mean() < 0.05


def older(value: str):
    torch.set_float32_matmul_precision(value)


def newer(value: str):
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = value


@pytest.mark.parametrize("allow", [lambda: None, lambda: older("high"), lambda: older("medium"), lambda: newer("tf32")])
@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
def test_tf32_is_off_inside_and_back_after(mode, allow):
    try:
        allow()
        before = flags()
        with pytest.raises(ZeroDivisionError), precision(mode, "cpu"):
            assert flags()[:2] == ("ieee", "ieee")
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
            1 / 0  # noqa: B018
        assert flags() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        newer("none")
        torch.backends.cudnn.conv.fp32_precision = "tf32"


def test_modes_nest():
    model = tiny_model("a")
    with precision("bfloat16", "cpu"):
        assert set(formats(model, precision("float32", "cpu")).values()) == {FLOAT}
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("capabilities", "fast"), [({}, "float32"), ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")]
)
def test_the_default_is_what_the_processor_is_fast_in(capabilities, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False} | capabilities, raising=False)
    monkeypatch.setattr(precision_module, "cpu_has_bfloat16", CPU_HAS_BFLOAT16)
    assert default_precision("cpu") == default_precision(torch.device("cpu")) == fast
    assert default_precision(torch.device("cuda", 1)) == "bfloat16" and default_precision("mps") == "float32"


def test_unknown_modes():
    with (
        pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'tf32'"),
        precision("tf32", "cpu"),
    ):
        pass


@pytest.mark.parametrize("kind", ["a", "b", "nested"])
def test_weights_stored_in_bfloat16_give_the_same(kind):
    model, inputs = tiny_model(kind), images(2, SIZE)
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    with precision("bfloat16", "cpu"):
        geometry, gaussians = model(inputs, rays=True)
        store_bfloat16(model)
        again, splats = model(inputs, rays=True)
    for name in ("depth", "confidence", "rays"):
        assert getattr(again, name).equal(getattr(geometry, name)), name
    assert again.cameras.w2c.equal(geometry.cameras.w2c) and splats.means.equal(gaussians.means)
    after = sum(p.numel() * p.element_size() for p in model.parameters())
    assert after < 0.85 * before
