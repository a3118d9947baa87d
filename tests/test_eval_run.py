"""The benchmark from scenes on disk to results: two stages, what stops a run, several processes, every method."""

import dataclasses
import itertools
import json
import multiprocessing
import socket
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from eval_nvs import methods, predictions, run, stages
from eval_nvs.benches import open_bench
from eval_nvs.methods import per_scene
from eval_nvs.methods.splats import Splats
from eval_nvs.prefetch import ahead
from eval_nvs.protocol import PROTOCOLS, load, split
from eval_nvs.target_cameras import optimize, target_cameras
from geometry.alignment import Similarity
from geometry.cameras import Cameras
from geometry.images import read_image
from geometry.rotations import matrices_from_quats
from splat.gaussians import Gaussians
from splat.model import GaussianModel
from tests.eval_run import arguments, run_process, walk, write_scenes
from tests.train_run import TINY

NAMES = ("one", "three", "two")
# Processes are forked from one that has everything imported but has run nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.eval_run"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def single(root, tmp_path_factory):
    """A finished run of one process."""
    out = tmp_path_factory.mktemp("single")
    assert run.main(arguments(root, out)) == 0
    return out


def result_of(out):
    return json.loads((out / "results.json").read_text())


def test_scores_are_of_what_is_stored(root, single):
    result = result_of(single)
    bench = open_bench("folder", root)
    scene = bench.open("two")
    views = split(scene, PROTOCOLS["paper"])
    photos = load(scene, views.targets, (270, 480))[0]
    rows = [row for row in result["images"] if row["scene"] == "two"]
    assert [row["target"] for row in rows] == list(views.targets) and len(rows) == 2
    stored = predictions.read(single / "two")
    for row, photo in zip(rows, photos, strict=True):
        render = read_image(single / "two" / stored.files[row["target"]])
        assert row["psnr"] == pytest.approx(
            peak_signal_noise_ratio(photo.permute(1, 2, 0).double().numpy(), render / 255, data_range=1)
        )


def test_the_mean_is_over_scenes_and_the_result_says_what_it_is_of(root, single):
    result = result_of(single)
    means = [np.mean([r["psnr"] for r in result["images"] if r["scene"] == name]) for name in NAMES]
    assert result["mean"]["psnr"] == pytest.approx(np.mean(means))
    assert result["protocol"]["inputs"] == 12 and result["protocol"]["size"] == [270, 480]
    assert result["method"] == {"method": "nearest"}
    assert [s["scene"] for s in result["scenes"]] == list(NAMES) and all(
        len(s["inputs"]) == 12 for s in result["scenes"]
    )
    assert result["scored_with"]["torch"] == torch.__version__
    assert set(result["left_out"]) == {"lpips_vgg", "lpips_alex"}
    assert "LPIPS (VGG) left out: no vgg backbone" in (single / "table.md").read_text()


def test_a_second_run_predicts_nothing_and_scores_alike(root, single, monkeypatch):
    before = (single / "table.md").read_text()
    monkeypatch.setattr(stages, "draw", lambda *a: pytest.fail("predicted again"))
    assert run.main(arguments(root, single)) == 0
    assert run.main(arguments(root, single, score_only=True, report=False)) == 0
    assert (single / "table.md").read_text() == before


def test_an_interrupted_run_goes_on(root, single, tmp_path, monkeypatch):
    draw, drawn = stages.draw, []

    def draw_two(method, protocol, views, device):
        drawn.append(views.split.scene)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(method, protocol, views, device)

    monkeypatch.setattr(stages, "draw", draw_two)
    with pytest.raises(KeyboardInterrupt):
        run.main(arguments(root, tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one"]
    assert run.main(arguments(root, tmp_path / "out")) == 0
    assert drawn == ["one", "three", "three", "two"]
    assert (tmp_path / "out" / "table.md").read_text() == (single / "table.md").read_text()


def test_what_a_killed_run_left_is_removed(tmp_path):
    write_scenes(tmp_path / "scenes", ("a [b]",))
    out = tmp_path / "out"
    for name in (".a [b].0123abcd.new", ".other.0123abcd.new"):
        (out / name / "renders").mkdir(parents=True)
    assert run.main(arguments(tmp_path / "scenes", out, report=False)) == 0
    assert sorted(p.name for p in out.iterdir()) == [".other.0123abcd.new", "a [b]", "results.json", "table.md"]


def test_what_a_reader_left_out_or_assumed_is_told(tmp_path):
    write_scenes(tmp_path / "scenes", ("one",), views=20)
    (tmp_path / "scenes" / "one" / "images" / "0007.png").unlink()
    out = tmp_path / "out"
    assert run.main(arguments(tmp_path / "scenes", out)) == 0
    (note,) = result_of(out)["scenes"][0]["notes"]
    assert "1 of 20 frames cannot be used" in note and "0007.png" in note
    assert "1 of 20 frames cannot be used" in (out / "report.html").read_text()


def test_a_scene_that_fails_is_named_and_the_run_goes_on(root, tmp_path, capsys):
    broken = tmp_path / "scenes"
    write_scenes(broken, ("one", "two"))
    photo = sorted((broken / "one" / "images").iterdir())[3]
    photo.write_bytes(photo.read_bytes()[:500])
    out = tmp_path / "out"
    assert run.main(arguments(broken, out)) == 1
    result = result_of(out)
    assert list(result["failed"]) == ["one"] and photo.name in result["failed"]["one"]
    assert [s["scene"] for s in result["scenes"]] == ["two"] and result["mean"] is None
    assert "No mean: 1 failed (one)" in capsys.readouterr().out
    assert run.main(arguments(broken, out, allow_missing=True)) == 1
    assert result_of(out)["mean"]["psnr"] == result_of(out)["scenes"][0]["psnr"]


def test_missing_scenes_refuse_the_mean(root, tmp_path, monkeypatch):
    whole = open_bench("folder", root)
    monkeypatch.setattr(run, "open_bench", lambda *a: dataclasses.replace(whole, missing=("four",)))
    assert run.main(arguments(root, tmp_path / "out")) == 1
    assert result_of(tmp_path / "out")["mean_refused"] == "1 missing (four)"
    assert run.main(arguments(root, tmp_path / "out", allow_missing=True)) == 0
    assert "| 3 of 4 |" in (tmp_path / "out" / "table.md").read_text()
    assert run.main(arguments(root, tmp_path / "out", scenes=("two",), report=False)) == 0
    assert result_of(tmp_path / "out")["subset"]


def test_other_settings_are_refused_in_words(root, single):
    with pytest.raises(ValueError, match=r"other settings: protocol.name was .*--overwrite"):
        run.main(arguments(root, single, protocol="paper-aligned", method="ours", weights="nano"))
    with pytest.raises(ValueError, match='method.method was "nearest" and is "gsplat"'):
        run.main(arguments(root, single, method="gsplat"))
    with pytest.raises(ValueError, match="no scene nine in benchmark folder; there are one, three, two"):
        run.main(arguments(root, single, scenes=("nine",)))
    with pytest.raises(ValueError, match="needs poses"):
        run.main(arguments(root, single, protocol="paper-aligned"))


def test_overwrite_predicts_again_and_loses_nothing_else(root, tmp_path):
    out = tmp_path / "out"
    assert run.main(arguments(root, out, limit=1)) == 0
    render = next((out / "one" / "renders").iterdir())
    good = render.read_bytes()
    Image.new("RGB", (480, 270)).save(render)
    assert run.main(arguments(root, out, limit=1, overwrite=True)) == 0
    assert render.read_bytes() == good
    (out / "one" / "mine.txt").write_text("notes")
    assert run.main(arguments(root, out, limit=1, overwrite=True, report=False)) == 1
    assert "mine.txt" in result_of(out)["failed"]["one"] and (out / "one" / "mine.txt").exists()


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_the_same_table(root, single, tmp_path, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    children = []
    for rank in range(count):
        environment = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = (environment, tmp_path / f"said{rank}", root, tmp_path / "out")
        children.append(CONTEXT.Process(target=run_process, args=given))
        children[-1].start()
    for child in children:
        child.join(100)
        child.kill()
    assert [child.exitcode for child in children] == [0] * count, (tmp_path / "said0").read_text()
    assert (tmp_path / "out" / "table.md").read_text() == (single / "table.md").read_text()
    ours, theirs = (result_of(out)["images"] for out in (tmp_path / "out", single))
    assert ours == theirs


def test_our_network_with_poses_and_without(root, tmp_path):
    torch.manual_seed(0)
    GaussianModel(TINY).save_pretrained(tmp_path / "weights")
    options = {"method": "ours", "weights": str(tmp_path / "weights"), "limit": 1, "report": False}
    assert run.main(arguments(root, tmp_path / "posed", **options)) == 0
    assert len(result_of(tmp_path / "posed")["method"]["sha256"]) == 64
    assert run.main(arguments(root, tmp_path / "free", protocol="paper-aligned", **options)) == 0
    assert result_of(tmp_path / "free")["protocol"]["cameras"] == "aligned"
    matched = tmp_path / "matched"
    assert run.main(arguments(root, matched, protocol="paper-aligned", cameras_from="matches", **options)) == 0
    assert result_of(matched)["method"]["cameras_from"] == "matches"
    assert run.short_name(methods.Options(cameras_from="matches")) == "nano-matches"


def test_our_network_is_refined_where_asked(root, tmp_path):
    torch.manual_seed(0)
    GaussianModel(TINY).save_pretrained(tmp_path / "weights")
    options = {"method": "ours", "weights": str(tmp_path / "weights"), "limit": 1, "report": False}
    means = []
    for steps in (0, 8):
        assert run.main(arguments(root, tmp_path / str(steps), refine=steps, **options)) == 0
        result = result_of(tmp_path / str(steps))
        assert result["method"]["refine"] == steps
        means.append(result["mean"]["psnr"])
    assert means[1] > means[0] + 0.1
    assert run.short_name(methods.Options(refine=8)) == "nano-refine8"
    with pytest.raises(ValueError, match="--refine must be 0 or more steps, got -1"):
        run.main(arguments(root, tmp_path / "minus", refine=-1, **options))


def blob_scene(protocol):
    """Coloured balls on a plane two units ahead of the walk."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(400, 3, generator=generator) * torch.tensor([4.0, 2.0, 1.0]) + torch.tensor([-1.5, -1.0, 2.0])
    gaussians = Gaussians(
        means, torch.full_like(means, 0.08), torch.tensor([[1.0, 0, 0, 0]]).repeat(400, 1), torch.full((400,), 0.9),
        torch.rand(400, 1, 3, generator=generator) * 3 - 1.5,
    )  # fmt: skip
    return Splats(gaussians, walk(6), protocol)


def test_target_cameras_follow_the_inputs_and_can_be_fitted():
    given, aligned = PROTOCOLS["paper"], PROTOCOLS["paper-aligned"]
    scene, cameras = blob_scene(given), walk(6)
    turn = matrices_from_quats(torch.nn.functional.normalize(torch.tensor([0.9, 0.1, -0.3, 0.2]), dim=0))
    bend = cameras.w2c.clone()
    bend[:, 1, 3] = 0.05 * torch.arange(6) ** 2  # centres in a line would not determine a rotation
    cameras = Cameras(bend, cameras.K, cameras.size)
    elsewhere = Similarity(turn, torch.tensor([1.0, -2.0, 0.5]), torch.tensor(3.0))
    moved = elsewhere.cameras(cameras)
    seen = target_cameras(dataclasses.replace(scene, cameras=cameras[:4]), moved[:4], moved[4:], None, aligned)
    torch.testing.assert_close(seen.w2c, cameras[4:].w2c, atol=1e-4, rtol=1e-4)
    assert target_cameras(scene, moved[:4], moved[4:], None, given) is not cameras

    small = Cameras(walk(1).w2c, walk(1).K * torch.tensor([[0.2], [0.2], [1.0]]), (54, 96))
    photo = scene.render(small)
    wrong = small.w2c.clone()
    wrong[0, 0, 3] += 0.05
    fitted = optimize(scene, Cameras(wrong, small.K, small.size), photo)
    assert (fitted.w2c - small.w2c).abs().max() < 0.01 < 0.02 < (wrong - small.w2c).abs().max()
    torch.testing.assert_close(torch.linalg.det(fitted.w2c[0, :3, :3]), torch.tensor(1.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_points", [True, False])
def test_per_scene_optimisation_beats_where_it_starts(with_points, monkeypatch):
    ticks = itertools.count()  # a clock of its own: 100 steps in 3 s, however busy the machine
    monkeypatch.setattr(per_scene, "time", types.SimpleNamespace(perf_counter=lambda: 0.03 * next(ticks)))
    truth = blob_scene(PROTOCOLS["paper"])
    small = Cameras(walk(4).w2c, walk(4).K * torch.tensor([[0.2], [0.2], [1.0]]), (54, 96))
    photos = truth.render(small)
    points = truth.gaussians.means[::2] if with_points else None

    def error(seconds):
        fitted = per_scene.PerScene(PROTOCOLS["paper"], seconds, "cpu", count=1000).reconstruct(photos, small, points)
        return float((fitted.render(small) - photos).abs().mean())

    assert error(3.0) < 0.7 * error(1e-6)


def test_ffgs_is_called_by_its_own_interface(monkeypatch):
    with pytest.raises(ImportError, match="pip install --pre"):
        methods.load(methods.Options("ffgs"), PROTOCOLS["paper"], "cpu")
    ffgs = types.ModuleType("ffgs")
    ffgs.Views = lambda images, intrinsics, c2w: (images, intrinsics, c2w)
    ffgs.Cameras = lambda c2w, intrinsics, image_shape: (c2w, intrinsics, image_shape)

    class Pipeline:
        @classmethod
        def from_pretrained(cls, pretrained, *, device):
            assert (pretrained, device) == ("family/variant", "cpu")
            return cls()

        def __call__(self, views):
            return views

        def render(self, output, cameras):
            torch.testing.assert_close(output[2], walk(3).c2w)
            return {"images": output[0][None, : len(cameras[0])] * 2}

    ffgs.GSPipeline = Pipeline
    monkeypatch.setitem(sys.modules, "ffgs", ffgs)
    method = methods.load(methods.Options("ffgs", "family/variant"), PROTOCOLS["paper"], "cpu")
    pictures = method.reconstruct(torch.full((3, 3, 4, 4), 0.6), walk(3), None).render(walk(2))
    assert pictures.shape == (2, 3, 4, 4) and float(pictures.max()) == 1.0


def test_reading_ahead_keeps_the_order_and_the_errors():
    def inverse(x):
        return 1 / x

    results = []
    for item, result in ahead(inverse, [1, 0, 2, 4]):
        try:
            results.append((item, result()))
        except ZeroDivisionError:
            results.append((item, None))
    assert results == [(1, 1), (0, None), (2, 0.5), (4, 0.25)]


def test_views_of_an_index_file(root, tmp_path):
    indices = tmp_path / "theirs.json"
    indices.write_text(json.dumps({"two": {"context": [0, 4, 8, 12], "target": [2, 6]}}))
    out = tmp_path / "out"
    assert run.main(arguments(root, out, scenes=("two",), indices=indices, report=False)) == 0
    result = result_of(out)
    assert len(result["scenes"][0]["inputs"]) == 4 and len(result["images"]) == 2
    assert result["protocol"]["indices"].startswith("theirs.json") and "theirs.json" in (out / "table.md").read_text()
