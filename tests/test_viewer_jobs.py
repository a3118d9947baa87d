"""Reconstructions asked for in a browser, and pictures rendered for several tabs: what fails, fails alone."""

import os
import signal
import threading
import time

import pytest
import torch

from geometry.cameras import Cameras
from splat.gaussians import Gaussians
from splat.reconstruct import Reconstruction
from viewer.jobs import MOST_WAITING, Job, JobQueue, Request
from viewer.render_worker import RenderWorker


def make(scene, weights, views, size, device, report, *, refine) -> Reconstruction:
    """A reconstructor for tests; `weights` says how it goes."""
    report(f"looking at {scene}")
    if weights == "fails":
        raise ValueError(f"{scene}: no photo\nhere")
    if weights == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if weights == "hangs":
        time.sleep(600)
    means = torch.rand(5, 3)
    gaussians = Gaussians(means, means + 0.1, torch.eye(4)[:1].expand(5, 4), means[:, 0], means[:, None])
    cameras = Cameras(torch.eye(4)[None], torch.eye(3)[None], (2, 3))
    images, depth = torch.rand(1, 3, 2, 3), torch.ones(1, 2, 3)
    return Reconstruction(gaussians, cameras, depth, depth, images, ("a",), "test")


def wait(jobs: list[Job], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not all(job.finished for job in jobs):
        assert time.monotonic() < end, [job.status for job in jobs]
        time.sleep(0.05)


def test_jobs_run_one_by_one_and_none_hurts_the_next(tmp_path):
    states: list[tuple[int, str]] = []
    queue = JobQueue(make, tmp_path, lambda job: states.append((job.number, job.state)))
    fails, dies, works = (queue.submit(Request(tmp_path, w, w)) for w in ("fails", "dies", "works"))
    assert queue.ahead(works) >= 1
    wait([fails, dies, works])
    assert (fails.state, fails.error) == ("failed", "no photo here")
    assert dies.state == "failed" and "memory" in dies.error and "\n" not in dies.status
    assert works.state == "done" and works.exhibit.name == "works" and works.exhibit.gaussians.count == 5
    assert works.lines == ["looking at works"]
    running = [number for number, state in states if state == "running"]
    assert list(dict.fromkeys(running)) == [1, 2, 3] and os.listdir(tmp_path) == []
    queue.close()


def test_a_running_and_a_waiting_job_are_cancelled(tmp_path):
    queue = JobQueue(make, tmp_path)
    hangs, waits = (queue.submit(Request(tmp_path, w, w)) for w in ("hangs", "works"))
    with pytest.raises(ValueError, match="waiting already"):
        for _ in range(MOST_WAITING + 1):
            queue.submit(Request(tmp_path, "more", "works"))
    queue.cancel(waits)
    assert waits.state == "cancelled"
    while not hangs.lines:
        time.sleep(0.05)
    queue.close()  # ends the running one as well, which would take ten minutes
    wait([hangs])
    assert hangs.state == "cancelled"
    with pytest.raises(ValueError):
        queue.submit(Request(tmp_path, "late", "works"))


def test_only_the_newest_picture_of_a_tab_is_made():
    worker, gate, made = RenderWorker(), threading.Event(), []
    first = worker.post("a", gate.wait)
    while not first.running():
        time.sleep(0.001)
    old = worker.post("a", lambda: made.append("old"))
    other = worker.post("b", lambda: made.append("other"))
    new = worker.post("a", lambda: made.append("new"))
    gate.set()
    new.result(60), other.result(60)
    assert made == ["other", "new"] and old.cancelled()
    late = worker.post("c", lambda: made.append("late"), delay=30)
    worker.drop("c")
    assert late.cancelled()
    worker.close()


def test_a_picture_that_fails_leaves_the_worker_alive(capsys):
    worker = RenderWorker()
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0)
    assert worker.call(lambda: 7) == 7 and "ZeroDivisionError" in capsys.readouterr().err
    worker.close()
