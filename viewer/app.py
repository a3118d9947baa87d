"""What all tabs of the browser share: the scenes that are open, the render thread, the jobs and the run in training."""

from __future__ import annotations

import itertools
import sys
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from geometry.synthetic import write_sample
from splat.pipeline import reconstruct
from viewer.evaluation import Evaluation
from viewer.exhibit import Exhibit
from viewer.jobs import Job, JobQueue, Reconstructor, Request
from viewer.opening import Photos
from viewer.render_worker import RenderWorker
from viewer.training_run import TrainingRun

if TYPE_CHECKING:
    from viewer.session import Session

# Results of jobs beyond this many are forgotten, the oldest first; what the command line named stays.
MOST_RESULTS = 6
_POLL_SECONDS = 2.0
# How long the thread that reads a run may take to end.
_PATIENCE = 10.0


class App:
    """The state behind the page. `exhibits` are the open scenes by name; `sessions` are the tabs.

    `most` is how many Gaussians a browser is given to draw; `device` is where jobs and rendering run.
    """

    def __init__(self, most: int, device: str = "auto", reconstruct: Reconstructor = reconstruct):
        self.most, self.device = most, render_device(device)
        self.job_device = device
        self.exhibits: dict[str, Exhibit] = {}
        self.sessions: dict[int, Session] = {}
        self.run: TrainingRun | None = None
        self.evaluation: Evaluation | None = None
        self.worker = RenderWorker()
        self.current: Job | None = None
        self._results: list[str] = []
        self._numbers = itertools.count(1)
        self._folder = TemporaryDirectory(prefix="raysplat-viewer-")
        self._uploads: dict[int, TemporaryDirectory] = {}
        self._closed = threading.Event()
        self._shown_checkpoint = ""
        self._follower: threading.Thread | None = None
        self.follow = True
        self.jobs = JobQueue(reconstruct, self.folder, self._job_changed)

    @property
    def folder(self) -> Path:
        """A temporary folder of this server."""
        return Path(self._folder.name)

    def add(self, thing: Exhibit | Photos | TrainingRun | Evaluation) -> None:
        """Show what `open_thing` opened; photos are reconstructed first."""
        if isinstance(thing, Exhibit):
            self.show(thing)
        elif isinstance(thing, Evaluation):
            self.evaluation = thing
        elif isinstance(thing, TrainingRun):
            self.run = thing
            self._follower = threading.Thread(target=self._follow, name="training run", daemon=True)
            self._follower.start()
        else:
            self.submit(Request(thing.path, thing.name, device=self.job_device))

    def show(self, exhibit: Exhibit) -> None:
        """Add a scene, or put a newer one in the place of that name, and tell all tabs."""
        self.exhibits[exhibit.name] = exhibit.to(self.device)
        for session in list(self.sessions.values()):
            session.exhibits_changed(exhibit.name)

    def submit(self, request: Request, upload: TemporaryDirectory | None = None) -> Job:
        """Queue a reconstruction; `upload` is kept until it is over. Raises ValueError when it cannot be."""
        job = self.jobs.submit(request)
        if upload is not None:
            self._uploads[job.number] = upload
        self.current = job
        self._job_changed(job)
        return job

    def next_number(self) -> int:
        """A number for a scene's name, never given twice."""
        return next(self._numbers)

    def close(self) -> None:
        """Stop jobs, rendering and polling, and remove the temporary files."""
        self._closed.set()
        self.jobs.close()
        if self._follower is not None:
            self._follower.join(_PATIENCE)
        self.worker.close()
        for upload in self._uploads.values():
            upload.cleanup()
        self._folder.cleanup()

    def _job_changed(self, job: Job) -> None:
        if job.finished:
            upload = self._uploads.pop(job.number, None)
            if upload is not None:
                upload.cleanup()
        if job.state == "done" and job.exhibit is not None:
            self._keep(job.exhibit)
            job.exhibit = None
        if job.state == "failed":
            print(f"viewer: {job.request.name}: {job.error}", file=sys.stderr)
        if not self._closed.is_set():
            for session in list(self.sessions.values()):
                session.job_changed(job)

    def _keep(self, exhibit: Exhibit) -> None:
        if exhibit.name not in self._results:
            self._results.append(exhibit.name)
        for name in self._results[:-MOST_RESULTS]:
            self._results.remove(name)
            self.exhibits.pop(name, None)
        self.show(exhibit)

    def _follow(self) -> None:
        """The thread that watches a training run: metrics, pictures, and a scene from each new checkpoint."""
        before = None
        while not self._closed.wait(_POLL_SECONDS if before else 0.1):
            try:
                changed = self.run.read()
                newest = self.run.checkpoint()
                now = (newest, self.run.drawings()[:1])
                if changed or now != before:
                    for session in list(self.sessions.values()):
                        session.run_changed()
                before = now
                busy = self.current is not None and not self.current.finished
                if self.follow and newest and newest.name != self._shown_checkpoint and not busy:
                    self.show_checkpoint()
            except (OSError, ValueError) as error:
                print(f"viewer: {error}", file=sys.stderr)

    def show_checkpoint(self) -> None:
        """Reconstruct the run's validation scene with its newest network. Raises OSError or ValueError."""
        weights = self.folder / "network"
        newest = self.run.checkpoint()
        # Remembered before it is tried: one that cannot be read is not tried again and again.
        self._shown_checkpoint = newest.name if newest else ""
        step = self.run.export(weights)
        scene, make = self.run.validation_scene(), None
        if scene is None:
            scene, make = self.folder / "sample", partial(write_sample, views=6, size=(168, 224))
        self.submit(Request(scene, f"{self.run.name} at {step}", weights, 4, device=self.job_device, make=make))


def render_device(device: str) -> str:
    """Where pictures are rendered: on the GPU that `device` names where gsplat is installed, else on the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device if device.startswith("cuda") and find_spec("gsplat") else "cpu"
