"""What is shown of a training run that goes on, and of an evaluation."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from geometry.presets import PRESETS
from splat.checkpoint import config_text
from splat.model import GaussianModel
from viewer import app as app_module
from viewer.app import App
from viewer.evaluation import scores_table
from viewer.evaluation_panel import read_parts
from viewer.opening import open_thing
from viewer.training_run import TrainingRun


def test_a_run_is_read_as_it_grows(tmp_path):
    run = TrainingRun(tmp_path)
    assert not run.read() and run.checkpoint() is None and run.drawings() == []
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 20, "loss": 2.0, "note": "x"}\n{"step": 40, "loss": NaN}\nnonsense\n{"step": 60, "lo')
    assert run.read() and not run.read()
    assert run.curve("loss")[1].tolist() == [2.0] and run.step == 20
    with open(metrics, "a") as file:
        file.write('ss": 1.0}\n')
    assert run.read() and run.curve("loss")[0].tolist() == [20, 60]
    metrics.write_text('{"step": 1, "loss": 5}\n')  # the run was started anew
    assert run.read() and run.curve("loss")[1].tolist() == [5.0]
    assert open_thing(tmp_path).path == tmp_path


def test_a_pointer_out_of_the_run_is_not_followed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("../..")
    assert TrainingRun(tmp_path).checkpoint() is None
    with pytest.raises(OSError, match="no checkpoint"):
        TrainingRun(tmp_path).export(tmp_path / "x")


def test_the_averaged_network_of_a_checkpoint_is_exported(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-0000040"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    tensors = {name: p.clone() for name, p in GaussianModel(PRESETS["nano"]).state_dict().items()}
    trained = {name: p + 1 for name, p in tensors.items() if name.startswith("gs_head.")}
    save_file(tensors, folder / "model.safetensors")
    save_file(trained, folder / "ema.safetensors")
    (folder.parent / "latest").write_text(folder.name)
    run = TrainingRun(tmp_path / "run")
    with pytest.raises(OSError, match="config.json"):
        run.export(tmp_path / "out")
    (tmp_path / "run" / "config.json").write_text('{"preset": "nano"}')
    assert run.export(tmp_path / "out") == "step-0000040"
    found = GaussianModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], trained.get(name, tensors[name])) for name in tensors)
    save_file({"backbone.other": torch.zeros(1)}, folder / "ema.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        run.export(tmp_path / "out")


def test_a_run_with_a_new_head_is_known_by_its_network_json(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-0000040"
    folder.mkdir(parents=True)
    head = PRESETS["nano"].gs
    network = replace(PRESETS["nano"], gs=replace(head, token_norm=not head.token_norm), name="other")
    tensors = GaussianModel(network).state_dict()
    save_file(tensors, folder / "model.safetensors")
    save_file({}, folder / "ema.safetensors")
    (folder.parent / "latest").write_text(folder.name)
    (tmp_path / "run" / "config.json").write_text('{"preset": "nano", "new_head": true}')
    run = TrainingRun(tmp_path / "run")
    with pytest.raises(ValueError, match="config.json"):
        run.export(tmp_path / "out")
    (tmp_path / "run" / "network.json").write_text(config_text(network))
    run.export(tmp_path / "out")
    found = GaussianModel.from_pretrained(tmp_path / "out")
    assert found.config == network and torch.equal(found.state_dict()[name := next(iter(tensors))], tensors[name])
    for other, what in ((config_text(PRESETS["nested"]), "no network"), ("{}", "network.json")):
        (tmp_path / "run" / "network.json").write_text(other)
        with pytest.raises(ValueError, match=what):
            run.export(tmp_path / "out")


def test_an_evaluation_lists_its_worst_pictures_first(tmp_path):
    rows = [{"scene": "a/b", "target": f"{i}.jpg", "psnr": 20.0 - i, "ssim": 0.5} for i in range(3)]
    result = {"bench": {"name": "folder"}, "protocol": {"name": "ours"}, "images": rows, "mean": None}
    (tmp_path / "results.json").write_text(json.dumps(result))
    with pytest.raises(OSError, match="prediction.json"):
        open_thing(tmp_path)
    (tmp_path / "a__b").mkdir()
    files = {f"{i}.jpg": f"renders/{i}.png" for i in range(3)}
    (tmp_path / "a__b" / "prediction.json").write_text(json.dumps({"files": files}))
    opened = open_thing(tmp_path)
    assert [p.target for p in opened.pictures] == ["2.jpg", "1.jpg", "0.jpg"]
    assert opened.pictures[0].render == tmp_path / "a__b" / "renders" / "2.png" and opened.pictures[0].photo is None
    assert scores_table(opened, opened.pictures[0]).splitlines()[2:] == ["| PSNR, dB | 18.00 | |", "| SSIM | 0.500 | |"]
    (tmp_path / "a__b" / "prediction.json").write_text(json.dumps({"files": files | {"1.jpg": "../../secret.png"}}))
    with pytest.raises(ValueError, match="outside"):
        open_thing(tmp_path)
    for other in ("[]", '{"bench": 3}', '{"method": "x"}', "7"):
        (tmp_path / "results.json").write_text(other)
        with pytest.raises(ValueError, match="eval_nvs"):
            open_thing(tmp_path)


def test_targets_of_an_evaluation_come_from_its_report(tmp_path):
    names = ("1.jpg", "x/2.jpg", "y/2.jpg")
    rows = [{"scene": "s", "target": name, "psnr": 20.0} for name in names]
    result = {"bench": {"name": "folder"}, "protocol": {"name": "ours"}, "images": rows, "mean": {"psnr": 20.0}}
    (tmp_path / "results.json").write_text(json.dumps(result))
    for folder in ("s/renders", "report-files/s"):
        (tmp_path / folder).mkdir(parents=True)
    files = {name: f"renders/{i}.png" for i, name in enumerate(names)}
    (tmp_path / "s" / "prediction.json").write_text(json.dumps({"files": files}))
    shades = {"report-files/s/1-photo.jpg": 200, "report-files/s/1-error.png": 90, "report-files/s/2-photo.jpg": 7}
    shades |= {f"s/renders/{i}.png": 100 + i for i in range(3)}
    for file, shade in shades.items():
        Image.fromarray(np.full((6, 8, 3), shade, np.uint8)).save(tmp_path / file)
    first, *alike = open_thing(tmp_path).pictures
    parts = read_parts(first)
    assert {name: int(part[0, 0, 0]) for name, part in parts.items()} == {"target": 200, "render": 100, "error": 90}
    # Two targets of one name: whose the photo is, nobody knows.
    assert all(list(read_parts(picture)) == ["render"] for picture in alike)


def test_a_run_without_scenes_is_shown_on_one_that_its_job_makes(tmp_path, monkeypatch):
    """The thread that reads the run stays free for curves and for Ctrl-C."""
    monkeypatch.setattr(app_module, "write_sample", write_four_bytes)
    monkeypatch.setattr(TrainingRun, "export", lambda run, folder: "step-0000040")
    (tmp_path / "run" / "checkpoints" / "step-0000040").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-0000040")
    (tmp_path / "run" / "config.json").write_text("{}")
    app, told = App(1000, "cpu", reconstruct=read_four_bytes), []
    app.sessions[0] = SimpleNamespace(run_changed=lambda: told.append("run"), job_changed=lambda job: None)
    app.add(open_thing(tmp_path / "run"))
    end = time.monotonic() + 120
    while (app.current is None or not app.current.finished) and time.monotonic() < end:
        time.sleep(0.05)
    assert app.current.error == "4 bytes in sample" and app.current.lines[0] == "making a scene to look at"
    assert told == ["run"]  # the new checkpoint, told before anything is made of it
    app.close()
    assert not app._follower.is_alive()


def write_four_bytes(folder, views, size):
    (folder / "file").write_bytes(b"four")


def read_four_bytes(scene, weights, views, size, device, report, *, refine):
    raise ValueError(f"{len((scene / 'file').read_bytes())} bytes in {scene.name}")
