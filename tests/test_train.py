"""The trainer: batches as pure functions of their seed, exact resume, checkpoints that survive a crash."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from geometry.cameras import Cameras, project
from geometry.cue import CueConfig
from geometry.presets import PRESETS, BackboneConfig, CameraConfig, GaussianHeadConfig, HeadConfig, NetworkConfig
from geometry.scene import scene_from_tensors
from geometry.write_scene import write_scene
from train import checkpoint, nvs
from train.config import RECIPES, TrainConfig
from train.sources import Batch, SceneSource, Shape, augment, mirror, sample_seed, window

TINY = NetworkConfig(
    name="tiny",
    licence="Apache-2.0",
    backbone=BackboneConfig(dim=32, depth=4, heads=2, out_layers=(0, 1, 2, 3), alt_start=1),
    head=HeadConfig(features=16, out_channels=(8, 8, 8, 8), ray_levels=1),
    camera=CameraConfig(depth=1, heads=4),
    gs=GaussianHeadConfig(
        features=16, out_channels=(8, 8, 8, 8), sh_degree=1, convention="exact", rgb_residual=True, token_norm=True
    ),
    cue=CueConfig(planes=8, fine_planes=4, channels=(16, 24), match_channels=8),
    cameras_given="given",
    precision="autocast",
)


def walk(views: int, size=(28, 42)) -> Cameras:
    """Cameras that walk along x and look along z."""
    w2c = torch.eye(4).repeat(views, 1, 1)
    w2c[:, 0, 3] = -0.3 * torch.arange(views)
    K = torch.tensor([[30.0, 0, 20], [0, 31, 14], [0, 0, 1]]).expand(views, 3, 3)
    return Cameras(w2c, K, size)


class Planes:
    """Stands for the synthetic scenes: noise on a plane of random depth."""

    def batch(self, seed: int, shape: Shape, turn: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(sample_seed(seed, turn))
        lead = (shape.scenes, shape.context + shape.targets)
        cameras = walk(lead[1], shape.size)
        cameras = Cameras(cameras.w2c.expand(*lead, 4, 4), cameras.K.expand(*lead, 3, 3), shape.size)
        images = torch.rand(*lead, 3, *shape.size, generator=generator)
        depth = torch.full((*lead, *shape.size), 1.0) + torch.rand(1, generator=generator)
        return Batch(images, cameras, depth, depth > 0, shape.context, tuple(map(str, range(shape.scenes))))


@pytest.fixture
def tiny_run(monkeypatch, tmp_path):
    """A configuration of four steps, two of geometry and two with Gaussians."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(nvs, "SyntheticSource", lambda *a, **k: Planes())
    monkeypatch.setattr(nvs, "validate", lambda *a: {})
    return dataclasses.replace(
        RECIPES["smoke"],
        preset="tiny",
        out=tmp_path / "run",
        steps=4,
        geometry_steps=2,
        sizes=((28, 42),),
        geometry_sizes=((28, 28),),
        views=1,
        joint_views=1,
        draw=1,
        log_every=2,
        save_every=2,
        pose_dropout=0.3,
    )


def test_resume_is_exact(tiny_run, tmp_path):
    nvs.main(tiny_run)
    halted = dataclasses.replace(tiny_run, out=tmp_path / "halted")
    nvs.main(dataclasses.replace(halted, stop_after_minutes=1e-9))
    assert json.loads((halted.out / "checkpoints" / "step-0000001" / "state.json").read_text())["step"] == 1
    nvs.main(dataclasses.replace(halted, resume=True))
    for name in ("model", "ema"):
        straight, resumed = (
            load_file(out / "checkpoints" / "step-0000004" / f"{name}.safetensors")
            for out in (tiny_run.out, halted.out)
        )
        assert all(straight[key].equal(resumed[key]) for key in straight)
    rows = [json.loads(line) for line in (tiny_run.out / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in rows) and any("psnr" in row for row in rows)
    assert (tiny_run.out / "model" / "model.safetensors").is_file()
    assert json.loads((tiny_run.out / "config.json").read_text())["preset"] == "tiny"


def test_a_run_is_not_overwritten_and_nothing_is_resumed_from_nothing(tiny_run):
    with pytest.raises(ValueError, match="nothing to resume"):
        nvs.main(dataclasses.replace(tiny_run, resume=True))
    nvs.main(dataclasses.replace(tiny_run, stop_after_minutes=1e-9))
    with pytest.raises(ValueError, match="holds a run already"):
        nvs.main(tiny_run)


def test_a_poisoned_sample_is_skipped_and_a_poisoned_source_stops_the_run(tiny_run, monkeypatch):
    class Poisoned(Planes):
        def batch(self, seed, shape, turn=0):
            good = super().batch(seed, shape, turn)
            return dataclasses.replace(good, images=good.images * float("nan"))

    monkeypatch.setattr(nvs, "SyntheticSource", lambda *a, **k: Poisoned())
    with pytest.raises(FloatingPointError, match="no finite gradient in 2 steps"):
        nvs.main(tiny_run)

    calls = []

    class Once(Planes):
        def batch(self, seed, shape, turn=0):
            calls.append(seed)
            good = super().batch(seed, shape, turn)
            return dataclasses.replace(good, images=good.images * float("nan")) if len(calls) == 1 else good

    monkeypatch.setattr(nvs, "SyntheticSource", lambda *a, **k: Once())
    nvs.main(dataclasses.replace(tiny_run, out=tiny_run.out.with_name("once")))
    tensors = load_file(tiny_run.out.with_name("once") / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_crash_while_saving_leaves_the_checkpoint_before(tiny_run, monkeypatch):
    nvs.main(dataclasses.replace(tiny_run, stop_after_minutes=1e-9))
    original = checkpoint.save_file

    def full_disk(tensors, path):
        if path.name == "ema.safetensors":
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        nvs.main(dataclasses.replace(tiny_run, resume=True))
    folder = tiny_run.out / "checkpoints"
    assert (folder / "latest").read_text() == "step-0000001"
    assert not list(folder.glob(".writing*"))
    monkeypatch.setattr(checkpoint, "save_file", original)
    nvs.main(dataclasses.replace(tiny_run, resume=True))
    assert (folder / "latest").read_text() == "step-0000004"


def test_plans_depend_on_the_step_alone():
    config = dataclasses.replace(TrainConfig(), steps=60, geometry_steps=30, scenes=".", scenes_from=0.75, draw=3)
    plans = [nvs.plan(config, step) for step in range(60)]
    assert plans == [nvs.plan(config, step) for step in range(60)]
    for first in range(0, 60, 3):
        assert len({(p.shape, p.seed) for p in plans[first : first + 3]}) == 1
        assert [p.turn for p in plans[first : first + 3]] == [0, 1, 2]
    assert not any(p.joint for p in plans[:30]) and not any(p.real for p in plans[:45])
    assert any(p.real for p in plans[45:]) and all(p.posed and p.joint for p in plans if p.real)
    assert len({p.seed for p in plans}) == 20


def test_learning_rate_warms_up_and_falls_to_nothing():
    config = dataclasses.replace(TrainConfig(), steps=100, warmup=10, decay=0.4)
    rates = [nvs.learning_rate(config, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[60] == 1.0
    assert all(a >= b for a, b in zip(rates[60:], rates[61:], strict=False)) and rates[-1] < 0.01


def test_mirrored_cameras_see_the_mirrored_world():
    cameras = walk(3)
    points = torch.randn(50, 3) + torch.tensor([0.0, 0, 5])
    pixels, depth = project(points, cameras)
    flipped, depth_too = project(points * torch.tensor([-1.0, 1, 1]), mirror(cameras))
    torch.testing.assert_close(flipped[..., 0], cameras.size[1] - pixels[..., 0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(flipped[..., 1], pixels[..., 1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(depth_too, depth)


def test_windows_hold_neighbours_and_targets_lie_between():
    distance = np.abs(np.arange(30)[:, None] - np.arange(30)[None]).astype(float)
    rng = np.random.default_rng(0)
    spans = []
    for _ in range(50):
        views = window(distance, 4, 2, rng)
        assert len(set(views)) == 6
        spans.append(max(views) - min(views))
        assert min(views[:4]) < min(views[4:]) or max(views[:4]) > max(views[4:])
    assert max(spans) < 16
    with pytest.raises(ValueError, match="cannot give"):
        window(distance[:5, :5], 4, 2, rng)


def test_scenes_on_disk_give_the_same_batch_for_the_same_seed(tmp_path):
    images = torch.rand(9, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    write_scene(scene_from_tensors(images, walk(9), "walk"), tmp_path / "scenes" / "walk")
    source = SceneSource(tmp_path / "scenes", torch.device("cpu"))
    shape = Shape(2, 3, 2, (28, 42))
    first, again, other = source.batch(1, shape), source.batch(1, shape), source.batch(2, shape)
    assert first.images.equal(again.images) and first.names == again.names
    assert first.names != other.names or not first.images.equal(other.images)
    assert first.images.shape == (2, 5, 3, 28, 42) and first.depth is None
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="every sub-folder must be a posed scene"):
        SceneSource(tmp_path / "nothing", torch.device("cpu"))


def test_augmentation_keeps_pictures_and_cameras_together():
    image = torch.zeros(1, 3, 28, 42, dtype=torch.uint8)
    image[:, :, 5, 30] = 255
    cameras = walk(1)
    for seed in range(6):
        moved, turned = augment(image, cameras, np.random.default_rng(seed))
        column = int(moved[0].mean(0).flatten().argmax()) % 42
        was_mirrored = bool(turned.K[0, 0, 2] != cameras.K[0, 0, 2])
        assert column == (11 if was_mirrored else 30)
