"""Two processes train as one does, and end together."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.train_run import run_process

ROOT = Path(__file__).parents[1]
# Processes are forked from one that has everything imported but has run nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.nvs", "tests.train_run"])


def start(out, processes=1, fsdp=False, each=({}, {}), **changes):
    """The processes of a run, as `accelerate launch` would start them; `each` adds changes for one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        env = {"ACCELERATE_USE_FSDP": str(fsdp).lower()}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            env |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        mine = {"out": out, "log": said(out, rank, "samples")} | changes | each[rank]
        children.append(CONTEXT.Process(target=run_process, args=(env, said(out, rank, "stderr"), mine)))
        children[-1].start()
    return children


def said(out, rank, what):
    return out.with_name(f"{out.name}.{what}.{rank}")


def finish(out, children, timeout=120):
    """Exit codes and what was said on stderr."""
    deadline = time.monotonic() + timeout
    for child in children:
        child.join(max(0.1, deadline - time.monotonic()))
        child.kill()
        child.join()
    texts = [said(out, rank, "stderr").read_text() for rank in range(len(children))]
    return [child.exitcode for child in children], texts


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def samples(out, processes):
    read = [said(out, rank, "samples").read_text().splitlines() for rank in range(processes)]
    return {name for names in read for name in names if "validation" not in name}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of three batches a step on one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    codes, texts = finish(out, start(out, batches=3))
    assert codes == [0], texts
    return out


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_train_as_one(alone, tmp_path, fsdp):
    """The same samples, losses, norms, validation and weights; three batches do not even come out even over two."""
    out = tmp_path / "run"
    codes, texts = finish(out, start(out, processes=2, fsdp=fsdp, batches=3))
    assert codes == [0, 0], texts
    assert samples(out, 2) == samples(alone, 1)
    one, two = rows(alone), rows(out)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two, strict=True):
        for name in a.keys() - {"images_per_s", "data_wait", "tflops"}:
            # Adam makes much of the last bit: what is 1e-5 apart at first is 1e-3 apart two steps on. And a share of
            # pixels jumps by a whole one.
            far = 1e-4 if a["step"] == one[0]["step"] else 5e-3
            near = 2e-3 if "delta" in name else 1e-5
            assert b[name] == pytest.approx(a[name], rel=far, abs=near), name
    for name in ("model", "ema", "optimizer"):
        a, b = (load_file(run / "checkpoints" / "step-0000004" / f"{name}.safetensors") for run in (alone, out))
        assert a.keys() == b.keys()
        # Adam divides by gradients that may be near 0, which makes much of the last bit: of a few in two million
        # weights as much as a step, 1e-3.
        assert all((a[key] - b[key]).abs().mean() < 2e-4 for key in a)
    # A checkpoint does not know how many processes wrote it.
    codes, texts = finish(out, start(out, steps=5, batches=3, resume=True))
    assert codes == [0] and (out / "checkpoints" / "step-0000005").is_dir(), texts


@pytest.mark.slow
def test_one_process_that_fails_or_is_poisoned_speaks_for_both(tmp_path):
    """Poison on one: both skip. A photo that cannot be read on one: one line that says so, and both end."""
    began = time.monotonic()
    each = ({}, {"poison": [1], "breaks": 3})
    out = tmp_path / "run"
    codes, texts = finish(out, start(out, processes=2, save_every=1, log_every=1, each=each))
    assert codes == [1, 1] and time.monotonic() - began < 60
    assert "train/nvs.py: error: process 1 of 2: plane.jpg: cut off" in texts[1]
    assert "Traceback" not in texts[0] + texts[1]
    assert (out / "checkpoints" / "latest").read_text() == "step-0000003"
    (skipped,) = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert skipped["step"] == 2 and len(skipped["samples"]) == 2 and len(skipped["loss_not_finite"]) == 1


LONG = {"steps": 400, "geometry_steps": 400, "save_every": 3, "resume": True, "pose_dropout": 0}


def begin(out, **changes):
    """The processes of a long run, once they have saved a checkpoint of their own."""
    latest, before = out / "checkpoints" / "latest", None
    if latest.exists():
        before = latest.read_text()
    children = start(out, **LONG | changes)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not latest.exists() or latest.read_text() == before):
        time.sleep(0.02)
    return children


def last_step(out):
    return int((out / "checkpoints" / "latest").read_text().removeprefix("step-"))


@pytest.mark.slow
def test_sigterm_saves_and_kill_9_loses_nothing_that_was_saved(tmp_path):
    out = tmp_path / "run"
    for _ in range(2):
        (child,) = begin(out)
        child.kill()
        child.join()
    (child,) = begin(out)
    child.terminate()
    (code,), (text,) = finish(out, [child])
    assert code == 0 and "stopped by SIGTERM after step" in text
    assert last_step(out) >= 9 and f"after step {last_step(out)};" in text
    assert not (out / "validation").exists(), "who stops a run may not wait for long"
    steps = [row["step"] for row in rows(out) if "loss" in row]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_what_ends_one_process_ends_both_and_the_run_goes_on(tmp_path):
    """SIGTERM to one: both save and end well. Kill -9 of one: the other says so. Then one process goes on alone."""
    out = tmp_path / "run"
    children = begin(out, processes=2)
    os.kill(children[1].pid, signal.SIGTERM)
    codes, texts = finish(out, children)
    assert codes == [0, 0] and f"stopped by another process after step {last_step(out)}" in texts[0]
    children = begin(out, processes=2)
    children[1].kill()
    codes, texts = finish(out, children, timeout=60)
    assert codes == [1, -signal.SIGKILL] and "process 0 of 2: another process has ended" in texts[0]
    steps = last_step(out) + 1
    codes, texts = finish(out, start(out, **LONG | {"steps": steps, "geometry_steps": steps}))
    assert codes == [0] and last_step(out) == steps, texts


def test_launcher_files_name_what_the_trainer_does():
    ddp, fsdp = (yaml.safe_load((ROOT / "train" / name).read_text()) for name in ("ddp.yaml", "fsdp.yaml"))
    assert (ddp["distributed_type"], fsdp["distributed_type"]) == ("MULTI_GPU", "FSDP")
    assert ddp["mixed_precision"] == fsdp["mixed_precision"] == "no"
    assert {k: v for k, v in ddp.items() if k != "distributed_type"}.items() <= fsdp.items()
