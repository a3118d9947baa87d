"""The trainer: batches as pure functions of their place, exact resume, bad steps skipped and named."""

import dataclasses
import errno
import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from geometry.backbone import Block
from geometry.cameras import transform
from geometry.presets import PRESETS, CorrelationConfig, HeadConfig
from geometry.scene import SparsePoints, scene_from_tensors
from geometry.scene_pack import PackSettings, write_pack
from geometry.write_scene import write_scene
from splat.model import GaussianModel
from tests.tiny_networks import images, tiny_model
from tests.train_run import TINY, Planes, tiny_config, walk
from train import metrics_log, nvs
from train.config import LossWeights
from train.flops import FlopCount, layer_flops
from train.objective import Forward, Objective, into_predicted
from train.plan import plan
from train.recipes import RECIPES
from train.sources import Shape, sample_seed
from train.start import add_head, make_model, prepare_blocks, with_gaussian_head
from train.validate import real_windows, validate


@pytest.fixture
def tiny_run(monkeypatch, tmp_path):
    """A configuration of four steps, two of geometry and two with Gaussians."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(nvs, "SyntheticSource", lambda *a, **k: Planes())
    monkeypatch.setattr(nvs, "validate", lambda *a: {})
    return tiny_config(tmp_path / "run")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resume_is_exact(tiny_run, tmp_path):
    nvs.main(tiny_run)
    halted = dataclasses.replace(tiny_run, out=tmp_path / "halted", resume=True)
    nvs.main(dataclasses.replace(halted, stop_after_minutes=1e-9))
    assert (halted.out / "checkpoints" / "latest").read_text() == "step-0000002"
    with open(halted.out / "metrics.jsonl", "a") as log:
        log.write('{"step": 3, "loss": 1}\n{"step": 4, "lo')  # of a run that was killed after its last checkpoint
    nvs.main(halted)
    for name in ("model", "ema", "optimizer"):
        straight, resumed = (
            load_file(out / "checkpoints" / "step-0000004" / f"{name}.safetensors")
            for out in (tiny_run.out, halted.out)
        )
        assert straight and straight.keys() == resumed.keys()
        assert all(straight[key].equal(resumed[key]) for key in straight)
    straight, resumed = rows(tiny_run.out / "metrics.jsonl"), rows(halted.out / "metrics.jsonl")
    assert [row["step"] for row in straight] == [row["step"] for row in resumed] == [2, 4]
    assert straight[1]["loss"] == resumed[1]["loss"] and "psnr" in straight[1]
    assert (tiny_run.out / "model" / "model.safetensors").is_file()
    assert json.loads((tiny_run.out / "config.json").read_text())["preset"] == "tiny"


def test_the_published_model_is_the_average(tiny_run):
    nvs.main(dataclasses.replace(tiny_run, ema=0.5))
    published = GaussianModel.from_pretrained(tiny_run.out / "model").state_dict()
    folder = tiny_run.out / "checkpoints" / "step-0000004"
    averages, weights = load_file(folder / "ema.safetensors"), load_file(folder / "model.safetensors")
    assert all(published[name].equal(average) for name, average in averages.items())
    assert any(not published[name].equal(weights[name]) for name in averages)


def test_a_run_is_not_overwritten_and_resume_begins_where_there_is_none(tiny_run, capsys):
    nvs.main(dataclasses.replace(tiny_run, resume=True, stop_after_minutes=1e-9))
    assert "nothing to resume" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds a run already"):
        nvs.main(tiny_run)
    nvs.main(dataclasses.replace(tiny_run, resume=True, lr=1e-5))
    assert "--lr was 0.0006 and is now 1e-05" in capsys.readouterr().err


def test_a_poisoned_sample_is_skipped_counted_and_named(tiny_run, monkeypatch):
    monkeypatch.setattr(nvs, "SyntheticSource", lambda *a, **k: Planes(poison=(1,)))
    nvs.main(dataclasses.replace(tiny_run, batches=2))
    (skipped,) = rows(tiny_run.out / "skipped.jsonl")
    (poisoned,) = skipped["loss_not_finite"]
    assert skipped["step"] == 1 and len(skipped["samples"]) == 2
    assert poisoned[0] == f"plane/{sample_seed(plan(tiny_run, 0).seed, 1)}/0/0"
    assert rows(tiny_run.out / "metrics.jsonl")[0]["skipped_in_all"] == 1
    tensors = load_file(tiny_run.out / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    steps = load_file(tiny_run.out / "checkpoints" / "step-0000004" / "optimizer.safetensors")
    assert max(float(v) for k, v in steps.items() if k.endswith(".step")) == 3  # of four


def test_bad_steps_in_a_row_stop_the_run_with_a_dump(tiny_run, monkeypatch):
    monkeypatch.setattr(nvs, "SyntheticSource", lambda *a, **k: Planes(poison=range(100)))
    with pytest.raises(FloatingPointError, match="no finite gradient in 2 steps"):
        nvs.main(dataclasses.replace(tiny_run, max_skips=2))
    (dump,) = (tiny_run.out / "dump").iterdir()
    with safe_open(dump, framework="pt") as file:
        assert file.get_tensor("images").isnan().all() and "plane/" in file.metadata()["names"]
    assert [row["step"] for row in rows(tiny_run.out / "skipped.jsonl")] == [1, 2]


def test_a_full_disk_is_one_line_that_names_the_run(tiny_run, monkeypatch, capsys):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics_log, "write", write)
    with pytest.raises(SystemExit) as ended:
        nvs.run(tiny_run)
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith("run: no space left on the disk; make room and go on with --resume\n")


def test_all_kinds_of_training_take_a_step(tiny_run, monkeypatch):
    """Head alone, poses predicted, checkpointing, a teacher: losses fall out finite and frozen weights stay."""
    predicted = dataclasses.replace(with_gaussian_head(TINY, "predicted"), cue=None, name="predicted")
    monkeypatch.setitem(PRESETS, "predicted", predicted)
    loss = LossWeights(depth=0, cue=0, ssi_depth=1, opacity=0.1, scale=0.1)
    changes = {
        "preset": "predicted", "trained": "gaussians", "geometry_steps": 0, "unposed_gaussians": True,
        "pose_dropout": 0.5, "checkpointing": True, "loss": loss, "steps": 3, "seed": 3,
    }  # fmt: skip
    config = dataclasses.replace(tiny_run, **changes)
    assert {plan(config, step).posed for step in range(3)} == {True, False}
    torch.manual_seed(sample_seed(3, "init") % 2**32)
    before = make_model(config).state_dict()
    nvs.main(config)
    after = load_file(config.out / "checkpoints" / "step-0000003" / "model.safetensors")
    changed = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"gs_head"}
    logged = set().union(*rows(config.out / "metrics.jsonl"))
    assert {"ssi_depth", "opacity", "scale", "psnr", "unposed/psnr"} <= logged


def test_sweeps_can_be_trained_alone(tiny_run, monkeypatch):
    config = dataclasses.replace(tiny_run, steps=2, sweep_steps=2, pose_dropout=0.5, log_every=1, save_every=2)
    torch.manual_seed(sample_seed(config.seed, "init") % 2**32)
    before = make_model(config).state_dict()
    nvs.main(config)
    after = load_file(config.out / "checkpoints" / "step-0000002" / "model.safetensors")
    assert {name.split(".")[0] for name in before if not before[name].equal(after[name])} == {"cue"}
    assert {"sweep_alone", "sweep_coarse", "sweep_depth"} <= rows(config.out / "metrics.jsonl")[0].keys()
    monkeypatch.setitem(PRESETS, "plain", dataclasses.replace(TINY, cue=None, name="plain"))
    with pytest.raises(ValueError, match="plain has no plane sweeps to train alone: give --sweep-steps 0"):
        nvs.main(dataclasses.replace(config, preset="plain", out=tiny_run.out.with_name("plain")))


def test_cameras_can_be_trained_alone(tiny_run, monkeypatch):
    compares = dataclasses.replace(TINY.camera, correlation=CorrelationConfig(dim=16, depth=1, heads=2))
    monkeypatch.setitem(PRESETS, "compares", dataclasses.replace(TINY, camera=compares, name="compares"))
    changes = {"preset": "compares", "trained": "cameras", "steps": 2, "log_every": 1, "save_every": 2}
    config = dataclasses.replace(tiny_run, **changes)
    torch.manual_seed(sample_seed(config.seed, "init") % 2**32)
    before = make_model(config).state_dict()
    nvs.main(config)
    after = load_file(config.out / "checkpoints" / "step-0000002" / "model.safetensors")
    assert {name.split(".")[0] for name in before if not before[name].equal(after[name])} == {"cam_dec"}
    first = rows(config.out / "metrics.jsonl")[0]
    assert {"unposed/camera_degrees", "unposed/camera_t", "unposed/camera_fov"} <= first.keys()
    assert not {"unposed/depth", "unposed/psnr"} & first.keys()
    with pytest.raises(ValueError, match="tiny has a camera decoder that reads its backbone: give --trained all"):
        nvs.main(dataclasses.replace(config, preset="tiny", out=tiny_run.out.with_name("token")))


def test_own_rotations_are_validated_where_they_are_trained():
    torch.manual_seed(0)
    forward, config = Forward(GaussianModel(TINY), False), tiny_config("", val_size=28)
    told = validate(forward, TINY, config, Planes(), None, None)
    assert 0 < told["val/rotation"] < 180 and told["val/abs_rel"] > 0
    posed = dataclasses.replace(config, pose_dropout=0)
    assert told.keys() - validate(forward, TINY, posed, Planes(), None, None).keys() == {"val/rotation"}


def test_checkpointing_and_the_flop_count_leave_gradients_alone():
    torch.manual_seed(0)
    model = GaussianModel(TINY)
    batch = Planes().batch(0, Shape(1, 2, 1, (28, 42)))
    gradients, counts = [], []
    for checkpointing in (False, True):
        prepare_blocks(model, checkpointing=checkpointing, compiled=False)
        flops = FlopCount(model)
        loss, _ = Objective(TINY, LossWeights())(Forward(model, False), batch, True, True)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        counts.append(flops.take())
        model.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert counts[0] == counts[1] > 0


def test_a_compiled_run_saves_under_plain_names_and_resumes(tiny_run, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # all but the machine code
    config = dataclasses.replace(tiny_run, compile=True, steps=3, geometry_steps=3, pose_dropout=0)
    nvs.main(dataclasses.replace(config, stop_after_minutes=1e-9))
    nvs.main(dataclasses.replace(config, resume=True))
    saved = load_file(config.out / "checkpoints" / "step-0000003" / "model.safetensors")
    assert saved.keys() == GaussianModel(TINY).state_dict().keys()


def test_every_kind_of_step_runs_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    settings = torch._dynamo.config
    monkeypatch.setattr(settings, "recompile_limit", settings.recompile_limit)  # as it was, for tests after this
    monkeypatch.setattr(settings, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    model = GaussianModel(PRESETS["nano"])
    prepare_blocks(model, checkpointing=False, compiled=True)
    for shape in (Shape(1, 2, 0, (28, 42)), Shape(3, 4, 0, (42, 28))):
        batch = Planes().batch(0, shape)
        for cameras in (batch.cameras, None):
            for learns in (True, False):
                with torch.set_grad_enabled(learns):
                    model.encode(batch.images, cameras, reference_view="first")


def test_flops_of_a_block_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    block = Block(32, 2)
    with FlopCounterMode(display=False) as counter:
        block(torch.randn(3, 10, 32))
    ours = layer_flops(block, torch.Size((3, 10, 32)), torch.Size((3, 10, 32)))
    assert ours == counter.get_total_flops()


def test_a_new_head_draws_a_picture_and_the_rest_is_as_it_was(monkeypatch):
    bare = dataclasses.replace(TINY, gs=None, cue=None, head=HeadConfig(features=16, out_channels=(8, 8, 8, 8)))
    torch.manual_seed(0)
    model = GaussianModel(bare)
    headed = add_head(model, "given")
    assert headed.config.gs.out_channels == bare.head.out_channels and headed.config.cameras_given == "given"
    weights = headed.state_dict()
    assert all(weights[name].equal(tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        _, gaussians = headed(torch.rand(1, 2, 3, 28, 42), walk(2)[None])
    assert (gaussians.opacities - 0.82).abs().max() < 0.1


def test_without_poses_the_first_view_is_the_world_as_it_is_in_the_targets():
    model, photos = tiny_model("a"), images(3, (28, 42))
    told = Forward(model, False)(photos, None, rays=True, gaussians=False).geometry.rays
    first, chosen = (
        model.decode(model.encode(photos, reference_view=rule), rays=True).rays for rule in ("first", "saddle_balanced")
    )
    assert told.equal(first) and not told.equal(chosen)


def test_targets_follow_into_the_predicted_frame():
    inputs = walk(4)[None]
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    rotation = rotation * torch.linalg.det(rotation)
    shift = torch.tensor([1.0, -2.0, 0.5])
    seen = transform(inputs, rotation, shift, 2.5)
    moved = into_predicted(seen, inputs, inputs)
    torch.testing.assert_close(moved.w2c, seen.w2c, atol=1e-4, rtol=1e-4)


def test_stored_depth_in_a_unit_of_its_own_feeds_the_loss_that_is_free_of_it():
    torch.manual_seed(0)
    forward = Forward(GaussianModel(TINY), False)
    batch = Planes().batch(0, Shape(2, 3, 1, (28, 42)))
    slope = torch.linspace(0.5, 2, 42).expand_as(batch.depth)
    batch = dataclasses.replace(batch, depth=batch.depth * slope)
    stored = dataclasses.replace(batch, depth=3 * batch.depth + 1, metric=False)

    def scalars(batch, posed, teacher=None, **weights):
        return Objective(TINY, LossWeights(**weights), teacher=teacher)(forward, batch, posed, posed)[1]

    for posed in (True, False):
        bare = scalars(dataclasses.replace(batch, depth=None, valid=None), posed, ssi_depth=1.0)
        metric, free = scalars(batch, posed, ssi_depth=1.0), scalars(stored, posed, ssi_depth=1.0)
        assert "depth" in metric and free.keys() - bare.keys() == {"ssi_depth", "ssi_depth_gradient"}
        assert all(free[name].equal(bare[name]) for name in bare.keys() - {"loss"}), "not even as the unit of length"
        torch.testing.assert_close(free["ssi_depth"], metric["ssi_depth"], rtol=2e-3, atol=1e-4)

    teacher = GaussianModel(TINY)
    both = scalars(batch, True, teacher, ssi_depth=1.0)
    alone = scalars(dataclasses.replace(batch, depth=None, valid=None), True, teacher, ssi_depth=1.0)
    assert both["ssi_depth"].equal(scalars(batch, True, ssi_depth=1.0)["ssi_depth"])
    assert both["teacher_ssi_depth"].equal(alone["teacher_ssi_depth"]) and "ssi_depth" not in alone


def test_the_recipe_of_the_paper_learns_depth_from_sparse_points(tiny_run, tmp_path):
    """Packs keep COLMAP's points and who saw them; a scene without any trains all the same."""
    images = torch.rand(9, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    scene = scene_from_tensors(images, walk(9), "walk")
    points = np.random.default_rng(0).uniform((-1, -1, 2), (4, 1, 4), (200, 3))
    (tmp_path / "points").mkdir()
    seen = SparsePoints(points, (np.arange(200),) * 9)
    write_pack(dataclasses.replace(scene, points=seen), tmp_path / "points" / "a.scene")
    write_scene(scene, tmp_path / "none" / "b")
    recipe = RECIPES["paper-pose-conditioned"]
    loss = dataclasses.replace(recipe.loss, perceptual=0)
    changes = {"scenes_share": 1, "scenes_from": 0, "geometry_steps": 0, "steps": 2, "data": recipe.data, "loss": loss}
    for name, learns in (("points", True), ("none", False)):
        config = dataclasses.replace(tiny_run, **changes, out=tmp_path / f"run-{name}", scenes=(str(tmp_path / name),))
        nvs.main(config)
        (row,) = rows(config.out / "metrics.jsonl")
        assert (row["real/ssi_depth"] > 0) == learns and "real/depth" not in row and row["skipped_in_all"] == 0


def test_scenes_on_disk_train(tiny_run, tmp_path):
    images = torch.rand(9, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    write_scene(scene_from_tensors(images, walk(9), "walk"), tmp_path / "scenes" / "walk")
    changes = {"scenes": (str(tmp_path / "scenes"),), "scenes_share": 1, "scenes_from": 0, "geometry_steps": 0}
    config = dataclasses.replace(tiny_run, **changes, val_scenes=tmp_path / "scenes", log_every=1)
    nvs.main(config)
    logged = rows(config.out / "metrics.jsonl")
    assert [row["step"] for row in logged] == [1, 2, 3, 4] and all("real/psnr" in row for row in logged)
    with pytest.raises(OSError, match="nothing: no such file or folder"):
        nvs.main(dataclasses.replace(config, out=tmp_path / "other", scenes=(str(tmp_path / "nothing"),)))


def test_validation_takes_packs_and_folders_and_says_what_lacks(tmp_path):
    images = torch.rand(6, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    scene = scene_from_tensors(images, walk(6), "same")
    write_scene(scene, tmp_path / "val" / "a" / "same")
    (tmp_path / "val" / "b").mkdir()
    write_pack(scene, tmp_path / "val" / "b" / "same.scene", PackSettings(lossless=True))
    folder, _, pack, _ = real_windows(tmp_path / "val", 3, 2, 42)
    assert [folder[0], pack[0]] == ["a/same", "b/same"], "each is scored under a name of its own"
    assert folder[1].equal(pack[1]) and folder[1].shape == (5, 3, 28, 42)
    meta = tmp_path / "val" / "a" / "same" / "transforms.json"
    frames = json.loads(meta.read_text())
    for frame in frames["frames"]:
        del frame["transform_matrix"]
    meta.write_text(json.dumps(frames))
    with pytest.raises(ValueError, match="same: the scene has no poses"):
        real_windows(tmp_path / "val", 3, 1, 42)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no scene with cameras here"):
        real_windows(tmp_path / "empty", 3, 2, 42)
