"""What a step of training is made of: plans, shares, rates, averages, means, and who may end it."""

import dataclasses
import os
import signal
import time

import pytest
import torch

from train import metrics_log
from train.config import TrainConfig, check
from train.guard import Guard, Sample
from train.optimizer import Ema, learning_rate
from train.plan import plan, shares
from train.recipes import RECIPES

STEP = torch.ones(()), [Sample(0, ("a",), torch.tensor(True))]


@pytest.fixture
def signals_are_put_back():
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


def test_ctrl_c_ends_the_run_after_the_step_and_again_at_once(tmp_path, signals_are_put_back):
    guard = Guard(TrainConfig(out=tmp_path), None, 0, time.monotonic())
    for step in range(2):
        guard.reach(step, *STEP)
        assert not guard.settle(behind=0)
    os.kill(os.getpid(), signal.SIGINT)
    guard.reach(2, *STEP)
    assert not guard.settle(behind=1) and guard.settle(behind=0) and guard.stopped_by == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.parametrize(("minutes", "stops"), [(1.5, True), (3.0, False)])
def test_the_time_limit_counts_from_the_start_of_the_program(tmp_path, signals_are_put_back, minutes, stops):
    guard = Guard(TrainConfig(out=tmp_path, stop_after_minutes=minutes), None, 0, time.monotonic() - 120)
    guard.reach(0, *STEP)
    assert guard.settle(behind=0) is stops


def test_plans_depend_on_the_step_alone():
    config = dataclasses.replace(TrainConfig(), steps=60, geometry_steps=30, scenes=(".",), scenes_from=0.75, draw=3)
    plans = [plan(config, step) for step in range(60)]
    assert plans == [plan(config, step) for step in range(60)]
    for first in range(0, 60, 3):
        assert len({(p.shape, p.seed) for p in plans[first : first + 3]}) == 1
        assert [p.turn for p in plans[first : first + 3]] == [0, 1, 2]
    assert not any(p.joint for p in plans[:30]) and not any(p.real for p in plans[:45])
    assert any(p.real for p in plans[45:]) and all(p.posed and p.joint for p in plans if p.real)
    assert len({p.seed for p in plans}) == 20


def test_sweeps_come_first_and_are_given_the_cameras():
    config = dataclasses.replace(TrainConfig(), steps=60, geometry_steps=40, sweep_steps=20, pose_dropout=0.9, draw=1)
    plans = [plan(config, step) for step in range(60)]
    assert [p.alone for p in plans] == ["sweeps"] * 20 + [None] * 40
    assert all(p.posed and not p.joint for p in plans[:20]) and not all(p.posed for p in plans[20:40])
    with pytest.raises(ValueError, match=r"--sweep-steps must lie in 0\.\.40, got 41"):
        check(dataclasses.replace(config, sweep_steps=41))


def test_one_input_alone_is_for_steps_with_depth():
    config = TrainConfig(
        steps=90, geometry_steps=60, sweep_steps=30, contexts=(1,), scenes=(".",), scenes_from=0, draw=1
    )
    plans = [plan(config, step) for step in range(90)]
    assert all(p.shape.context == (2 if p.alone or p.real else 1) for p in plans)
    assert any(p.real for p in plans) and {p.joint for p in plans if p.shape.context == 1} == {True, False}
    cameras = dataclasses.replace(config, trained="cameras", scenes=())
    assert all(plan(cameras, step).shape.context == 2 for step in range(90))


@pytest.mark.parametrize("what", ["wide", "lenses", "wild"])
def test_a_share_of_the_draws_is_of_a_kind_and_nothing_else_changes(what):
    def plans(share):
        shares = {"wide": "wide_share", "lenses": "lens_share", "wild": "wild_share"}
        config = dataclasses.replace(TrainConfig(), steps=300, geometry_steps=150, draw=3, **{shares[what]: share})
        return [plan(config, step) for step in range(300)]

    def of_kind(share):
        return [getattr(p.shape, what) for p in plans(share)]

    some = of_kind(0.5)
    assert not any(of_kind(0.0)) and all(of_kind(1.0))
    assert 0.35 < sum(some) / 300 < 0.65 and all(len(set(some[i : i + 3])) == 1 for i in range(0, 300, 3))
    without = [p._replace(shape=dataclasses.replace(p.shape, **{what: False})) for p in plans(0.5)]
    assert without == plans(0.0)


def test_a_camera_decoder_alone_is_never_given_cameras():
    config = dataclasses.replace(TrainConfig(), steps=60, geometry_steps=20, sweep_steps=10, trained="cameras")
    plans = [plan(config, step) for step in range(60)]
    assert {(p.alone, p.posed, p.joint, p.real) for p in plans} == {("cameras", False, False, False)}
    check(config)
    with pytest.raises(ValueError, match="--trained cameras learns from synthetic scenes alone: leave out --scenes"):
        check(dataclasses.replace(config, scenes=("S",)))


def test_batches_are_shared_out_whatever_the_number_of_processes():
    for batches, processes in ((8, 1), (8, 2), (8, 3), (2, 4), (None, 3)):
        everyone = [shares(batches, rank, processes) for rank in range(processes)]
        assert len({len(mine) for mine in everyone}) == 1
        real = sorted(share.index for mine in everyone for share in mine if share.weight > 0)
        assert real == list(range(batches or processes))
        assert sum(share.weight for mine in everyone for share in mine) == pytest.approx(1)


def test_recipes_are_runs_that_only_lack_their_data():
    for name, recipe in RECIPES.items():
        given = {"scenes": ("scenes",), "lpips_weights": "lpips"} if recipe.init else {}
        config = dataclasses.replace(recipe, **given)
        check(config)
        for step in range(50):
            now = plan(config, step)
            tokens = now.shape.scenes * now.shape.context * now.shape.size[0] * now.shape.size[1]
            budget = config.joint_views if now.joint else config.views
            assert now.shape.context >= (2 if now.alone or now.real else 1)
            assert not any(side % 14 for side in now.shape.size)
            assert tokens <= max(1.2 * budget * 252 * 252, 2 * now.shape.size[0] * now.shape.size[1]), name
    with pytest.raises(ValueError, match="--scenes"):
        check(dataclasses.replace(RECIPES["base-apache"], lpips_weights="lpips"))
    with pytest.raises(ValueError, match="--lpips-weights"):
        check(dataclasses.replace(RECIPES["base-apache"], scenes=("scenes",)))


def test_learning_rate_warms_up_and_falls_to_nothing():
    config = dataclasses.replace(TrainConfig(), steps=100, warmup=10, decay=0.4)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[60] == 1.0
    assert all(a >= b for a, b in zip(rates[60:], rates[61:], strict=False)) and rates[-1] < 0.01


def test_the_average_follows_and_swaps_in_place():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = Ema(model, 0.75)
    ema.update(0)
    model.weight.data.fill_(5.0)
    ema.update(1)
    with ema.in_place():
        assert model.weight.tolist() == [[2.0, 2.0]]
    assert model.weight.tolist() == [[5.0, 5.0]] and ema.averages["weight"].tolist() == [[2.0, 2.0]]


def test_the_meter_weighs_batches_and_leaves_out_what_is_not_finite():
    meter = metrics_log.Meter(torch.device("cpu"), None)
    for value, weight in ((1.0, 0.5), (4.0, 0.25), (float("nan"), 0.25), (100.0, 0.0)):
        meter.add({"loss": torch.tensor(value)}, weight)
    assert meter.report()["loss"] == pytest.approx(2.0)
