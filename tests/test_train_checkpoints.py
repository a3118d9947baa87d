"""Checkpoints: whatever stops a save, and wherever, the run goes on from one that is whole."""

import json
import os
import random
import resource
import signal
import time

import pytest
import torch
from torch import nn

from train import checkpoint
from train.optimizer import Ema


class Stopped(BaseException):
    """The process is gone: no handler may clean up after it."""


class Run:
    """A network whose every number is its step."""

    def __init__(self, width=8):
        self.model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2, bias=False))
        self.ema = Ema(self.model, 0.9)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        for p in self.model.parameters():
            self.optimizer.state[p] = {
                "step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)
            }  # fmt: skip

    def tensors(self):
        state = [value for p in self.model.parameters() for value in self.optimizer.state[p].values()]
        return [*(p.data for p in self.model.parameters()), *self.ema.averages.values(), *state]

    def save(self, out, step):
        for tensor in self.tensors():
            tensor.fill_(step)
        checkpoint.save(out, {"step": step, "skipped": 0}, self.model, self.ema, self.optimizer)


def assert_whole(out, among):
    """What is found loads, and is one of the steps `among` from its first number to its last."""
    run = Run()
    state = checkpoint.resume(checkpoint.find(out), run.model, run.ema, run.optimizer)
    assert state["step"] in among
    assert all(bool((tensor == state["step"]).all()) for tensor in run.tensors())
    return state["step"]


def test_a_save_that_stops_at_any_point_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Stop before the k-th operation on files, or half way through writing one, for every k."""
    seen = set()
    for k in range(200):
        out, left = tmp_path / str(k), [k]
        Run().save(out, 1)
        Run().save(out, 2)

        def count(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped

        with monkeypatch.context() as patch:
            for module, name in (
                (checkpoint.os, "replace"), (checkpoint.os, "fsync"), (checkpoint.shutil, "rmtree")
            ):  # fmt: skip
                original = getattr(module, name)
                patch.setattr(module, name, lambda *a, original=original, **k: (count(), original(*a, **k))[1])
            original = checkpoint.save_tensors

            def cut_short(tensors, path, original=original, count=count):
                original(tensors, path)
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) // 2])
                count()
                path.write_bytes(whole)

            patch.setattr(checkpoint, "save_tensors", cut_short)
            try:
                Run().save(out, 3)
                break
            except Stopped:
                pass
        seen.add(assert_whole(out, {2, 3}))
        Run().save(out, 4)  # and the next save works in what was left
        assert assert_whole(out, {4}) == 4
    assert seen == {2, 3} and k > 10


def test_kill_9_at_random_moments(tmp_path):
    rng, reached = random.Random(0), 0
    for _ in range(12):
        child = os.fork()
        if child == 0:
            run = Run()
            for step in range(reached + 1, reached + 1000):
                run.save(tmp_path, step)
            os._exit(0)
        latest, deadline = tmp_path / "checkpoints" / "latest", time.monotonic() + 20
        while time.monotonic() < deadline and not (latest.exists() and latest.read_text() > f"step-{reached:07d}"):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reached = assert_whole(tmp_path, range(reached + 1, reached + 1000))


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(tmp_path):
    """A limit on file sizes, from nothing to just too little, makes the writes fail as a full disk does."""
    Run().save(tmp_path, 1)
    largest = max(path.stat().st_size for path in (tmp_path / "checkpoints" / "step-0000001").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (0, 100, largest // 2, largest - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                with pytest.raises(OSError, match=r"step-0000002 could not be saved .*--resume"):
                    Run().save(tmp_path, 2)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert not list((tmp_path / "checkpoints").glob(".writing*"))
            assert assert_whole(tmp_path, {1}) == 1
    finally:
        signal.signal(signal.SIGXFSZ, old)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, capsys):
    Run().save(tmp_path, 1)
    Run().save(tmp_path, 2)
    path = tmp_path / "checkpoints" / "step-0000002" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert assert_whole(tmp_path, {1}) == 1
    assert "step-0000002 is damaged (optimizer.safetensors has" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "step-0000001" / "state.json").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint.find(tmp_path)


def test_two_are_kept_and_leftovers_do_not_push_them_out(tmp_path):
    for step in (1, 2, 3):
        Run().save(tmp_path, step)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-0000002", "step-0000003"]
    for step in (7, 8):  # of a run that was killed before it named them, and came back with other settings
        (folder / f"step-{step:07d}").mkdir()
    Run().save(tmp_path, 5)
    assert assert_whole(tmp_path, {5}) == 5
    assert (folder / "step-0000003").is_dir()


def test_another_network_is_refused(tmp_path):
    Run().save(tmp_path, 1)
    with pytest.raises(ValueError, match="other --preset"):
        other = Run(width=9)
        checkpoint.resume(checkpoint.find(tmp_path), other.model, other.ema, other.optimizer)
    other = Run()
    other.model.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="belongs to another network"):
        checkpoint.resume(checkpoint.find(tmp_path), other.model, other.ema, other.optimizer)
    assert json.loads((tmp_path / "checkpoints" / "step-0000001" / "state.json").read_text())["step"] == 1
