"""The windows evaluation: its table, and a whole run on made-up scenes with a tiny network."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval_nvs import windows
from geometry.scene import SparsePoints, scene_from_tensors
from geometry.write_scene import write_scene
from splat.model import GaussianModel
from tests.backbones import write_alexnet
from tests.test_train import TINY, walk


def test_table_means_are_over_scenes():
    def score(scene, psnr, copy):
        return windows.Score(scene, ("a",), "b", psnr, 0.5, copy)

    text = windows.table([score("one", 20, 10), score("one", 22, 12), score("two", 30, 29)])
    assert "| one | 21.00 | 0.500 | 11.00 | +10.00 |" in text
    assert "**mean of 2 scenes** | **25.50** | **0.500** | **20.00** | **+5.50**" in text


def test_what_optimisation_reaches_has_a_column():
    rows = [windows.Score("one", ("a",), "b", 20, 0.5, 15, fitted_psnr=fitted) for fitted in (17.0, 18.0)]
    text = windows.table(rows).splitlines()
    assert text[:2] == [
        "| scene | PSNR | SSIM | nearest copy | gain | fitted to the inputs |",
        "|---|---|---|---|---|---|",
    ]
    assert text[2] == "| one | 20.00 | 0.500 | 15.00 | +5.00 | 17.50 |"


def test_depth_is_compared_at_the_points_that_a_view_saw():
    cameras = walk(2)
    xyz = cameras.centers.double().numpy() + np.array([0.0, 0.0, 4.0])  # one before each view
    scene = scene_from_tensors(torch.rand(2, 3, 28, 42), cameras, "one")
    scene = replace(scene, points=SparsePoints(xyz, (np.array([0]), np.array([], np.int64))))
    known = windows.known_depth(scene, [0, 1], cameras)
    assert (known > 0).sum((1, 2)).tolist() == [1, 0]
    torch.testing.assert_close(known.max(), torch.tensor(4.0))
    scores = windows.depth_scores(torch.full_like(known, 5.5), known)
    assert scores == {"abs_rel": pytest.approx(0.375, abs=1e-4), "delta": 0}
    assert windows.depth_scores(torch.full_like(known, 3.9), known)["delta"] == 1
    every = windows.known_depth(replace(scene, points=SparsePoints(xyz)), [0, 1], cameras)
    assert (every > 0).sum((1, 2)).tolist() == [2, 2], "who saw which is not known"
    nothing = windows.known_depth(replace(scene, points=None), [0, 1], cameras)
    assert windows.depth_scores(known, nothing) == {}

    score = windows.Score("one", ("a",), "b", 20, 0.5, 15)
    lines = windows.table([replace(score, **scores), replace(score, scene="two")]).splitlines()
    assert lines[0].endswith("| gain | depth AbsRel | delta 1.25 |")
    assert lines[2].endswith("| +5.00 | 0.375 | 0.000 |") and lines[3].endswith("| +5.00 |  |  |")
    assert lines[4].endswith("| **0.375** | **0.000** |")


@pytest.fixture
def data(tmp_path):
    """Folders of two scenes of noise and of a tiny network, and where results may go."""
    images = torch.rand(7, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    for name in ("one", "two"):
        write_scene(scene_from_tensors(images, walk(7), name), tmp_path / "scenes" / name)
    torch.manual_seed(0)
    GaussianModel(TINY).save_pretrained(tmp_path / "weights")
    options = {"size": 42, "groups": 1, "device": "cpu", "out": tmp_path / "out"}
    return windows.Args(tmp_path / "scenes", str(tmp_path / "weights"), **options)


def test_a_whole_run(data, tmp_path, capsys):
    windows.main(replace(data, seconds=0.2))
    assert "mean of 2 scenes" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(result["images"]) == 4 and all(row["psnr"] > 0 and row["fitted_psnr"] > 0 for row in result["images"])
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["one-0.png", "two-0.png"]
    with pytest.raises(ValueError, match="no scene folders here"):
        windows.main(windows.Args(tmp_path / "nowhere"))


def test_lpips_is_scored_where_its_backbone_is_given(data, tmp_path, capsys):
    weights = write_alexnet(tmp_path / "alex.npz")
    windows.main(replace(data, size=84, lpips_weights=weights))
    assert "| PSNR | SSIM | LPIPS (Alex) | nearest copy |" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(0.01 < row["lpips"] < 2 for row in result["images"])
    with pytest.raises(ValueError, match="nothing.npz"):
        windows.main(replace(data, lpips_weights=tmp_path / "nothing.npz"))


def test_without_poses_targets_follow_the_cameras_that_were_found(data, tmp_path, capsys):
    windows.main(replace(data, cameras_from="decoder"))
    head = "| scene | PSNR | SSIM | nearest copy | gain | rotation error | of the worst pair |"
    assert head in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["cameras_from"] == "decoder"
    assert all(0 < row["rotation"] < row["worst_rotation"] < 180 for row in result["images"])


def test_results_say_how_many_views_matches_placed(data, tmp_path):
    windows.main(replace(data, cameras_from="matches"))
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all("match between the images" in row["notes"][0] for row in result["images"])
