"""Scores on procedural scenes: what they measure, and a whole run with a tiny network."""

import json
from dataclasses import replace

import pytest
import torch

from eval_nvs import procedural
from geometry.alignment import rotation_error
from geometry.synthetic import make_atlas
from splat.model import GaussianModel
from splat.predict import Prediction
from tests.test_train import TINY

ARGS = procedural.Args(scenes=1, size=28, context=2, targets=1, textures=16, device="cpu")


@pytest.fixture(scope="module")
def atlas():
    return make_atlas(procedural.SEED, 16, device="cpu")


def test_scenes_are_the_same_each_time_and_differ_from_each_other(atlas):
    a, b, c = (procedural.draw(ARGS, number, atlas) for number in (0, 0, 1))
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, c.images)
    assert a.images.shape == (3, 3, 28, 28) and bool((a.depth[a.valid] > 0).all())
    zoomed = procedural.draw(replace(ARGS, lenses=True), 0, atlas)
    same, other = (focal.max() / focal.min() for focal in (s.cameras.K[:, 0, 0] for s in (a, zoomed)))
    assert same < 1.2 < other


def test_inputs_of_different_days_are_changed_and_targets_are_not(atlas):
    plain, wild = (procedural.draw(replace(ARGS, wild=wild), 0, atlas) for wild in (False, True))
    assert torch.equal(plain.images[2:], wild.images[2:]) and torch.equal(plain.cameras.w2c, wild.cameras.w2c)
    assert (plain.images[:2] != wild.images[:2]).flatten(1).any(1).all()
    assert (wild.depth[:2][plain.valid[:2]] <= plain.depth[:2][plain.valid[:2]]).all()


def test_depth_is_scored_against_the_truth(atlas, monkeypatch):
    """Depth that is right scores in full; 1.4 times too far it is 0.4 off, and beyond 1.25."""
    sample = procedural.draw(ARGS, 0, atlas)
    torch.manual_seed(0)
    model = GaussianModel(TINY).eval()
    honest = procedural.predict

    def with_depth(depth):
        def answer(images, cameras, model, outputs, cameras_from=None):
            found = honest(images, cameras, model, outputs)
            if cameras is None:
                return Prediction(cameras=sample.cameras[:2], depth=3 * depth[: len(images)])
            return replace(found, depth=depth)

        return answer

    monkeypatch.setattr(procedural, "predict", with_depth(sample.depth[:2]))
    values, row = procedural.score(model, sample, 2)
    assert values["abs_rel"] == 0 and values["delta"] == 1
    assert values["rotation"] < 0.1 and values["matched_rotation"] < 0.1
    # Without poses the scale is free.
    for kind in ("unposed", "single"):
        assert values[f"{kind}_abs_rel"] < 1e-5 and values[f"{kind}_delta"] == 1
    assert row.shape == (2 + 4, 3, 28, 28)
    monkeypatch.setattr(procedural, "predict", with_depth(1.4 * sample.depth[:2]))
    values, _ = procedural.score(model, sample, 2)
    assert values["abs_rel"] == pytest.approx(0.4, abs=1e-3) and values["delta"] == 0


def test_the_packaged_network_has_poses_of_its_own(atlas):
    """Small pictures and few scenes: what counts is that the weights belong to the code; the card has the figures."""
    args, model = replace(ARGS, size=126, context=3), GaussianModel.from_pretrained("nano")
    own, unturned = 0.0, 0.0
    for number in range(10):  # two of the first four it hardly turns
        sample = procedural.draw(args, number, atlas)
        images, cameras = sample.images[:3], sample.cameras[:3]
        own += rotation_error(procedural.predict(images, None, model, ("cameras",)).cameras, cameras)
        unturned += rotation_error(replace(cameras, w2c=torch.eye(4).expand(3, 4, 4)), cameras)
    assert own < 0.8 * unturned


def test_the_packaged_network_sees_depth_in_one_photo(atlas):
    """Likewise: nearer to the truth than a wall at one distance, which is what is left when weights and code part."""
    args, model = replace(ARGS, size=126), GaussianModel.from_pretrained("nano")
    seen, wall = 0.0, 0.0
    for number in range(6):
        sample = procedural.draw(args, number, atlas)
        known, truth = sample.valid[0], sample.depth[0]
        depth = procedural.predict(sample.images[:1], None, model, ("depth",)).depth[0]
        seen += procedural.aligned_errors(depth[known], truth[known])[1]
        wall += procedural.aligned_errors(torch.ones_like(truth)[known], truth[known])[1]
    assert seen > 1.3 * wall


def test_a_scene_that_fails_shows_beside_the_mean():
    rows = [
        dict.fromkeys(procedural.NAMES, 0.5),
        dict.fromkeys(procedural.NAMES, 0.5),
        dict.fromkeys(procedural.NAMES, 2.0),
    ]
    lines = procedural.table(rows).splitlines()
    assert lines[0] == "| 3 procedural scenes | mean | median | worst |"
    assert lines[2] == "| depth AbsRel | 1.00 | 0.500 | 2.00 |"
    assert lines[3] == "| depth delta 1.25 | 1.00 | 0.500 | 0.500 |"


def test_a_whole_run(tmp_path, capsys):
    torch.manual_seed(0)
    GaussianModel(TINY).save_pretrained(tmp_path / "weights")
    procedural.main(replace(ARGS, scenes=2, weights=str(tmp_path / "weights"), out=tmp_path / "out"))
    assert "| 2 procedural scenes |" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(result["scenes"]) == 2 and set(result["scenes"][0]) == set(procedural.NAMES)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["000.png", "001.png"]
    with pytest.raises(ValueError, match="multiple of 14"):
        procedural.main(replace(ARGS, size=30))
