"""Reconstructions asked for in the browser: one at a time, each in a process of its own, so that it can be stopped.

A job that fails, runs out of memory or is cancelled ends its process and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, Protocol

from splat.atomic import whole_folder
from splat.reconstruct import Reconstruction
from viewer.exhibit import Exhibit, from_reconstruction, read_exhibit, write_exhibit

MOST_WAITING = 8
_FINISHED = ("done", "failed", "cancelled")
# A process that does not end this long after it was asked to is killed.
_PATIENCE = 5.0


class Reconstructor(Protocol):
    """What makes Gaussians of photos: a function of a module, because a new process imports it by name."""

    def __call__(
        self,
        scene: Path,
        weights: str | Path,
        views: int | None,
        size: int,
        device: str,
        report: Callable[[str], None],
        *,
        refine: int,
    ) -> Reconstruction: ...


@dataclass(frozen=True)
class Request:
    """What to reconstruct, and how; the fields are those of `raysplat reconstruct`.

    `make` writes the source where it is not there yet, in the job's process, so that nobody waits for it.
    """

    source: Path
    name: str
    weights: str | Path = "nano"
    views: int | None = None
    size: int = 252
    device: str = "auto"
    refine: int = 0
    make: Callable[[Path], object] | None = None


@dataclass
class Job:
    """A request on its way; `lines` are its progress, `error` one line, `exhibit` the result."""

    request: Request
    number: int
    state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
    lines: list[str] = field(default_factory=list)
    error: str = ""
    exhibit: Exhibit | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        return self.state in _FINISHED

    @property
    def status(self) -> str:
        """One line for the user."""
        last = f": {self.lines[-1]}" if self.lines else ""
        return {
            "waiting": "waiting for its turn",
            "running": f"working{last}",
            "done": "done",
            "failed": f"failed: {self.error}",
            "cancelled": "cancelled",
        }[self.state]


class JobQueue:
    """Runs requests one after the other with `reconstruct`; results lie in `folder` until they are read.

    `on_change` is called with a job whenever its state or progress changes, from a thread of the queue.
    """

    def __init__(self, reconstruct: Reconstructor, folder: Path, on_change: Callable[[Job], None] = lambda job: None):
        self._reconstruct, self._folder, self._on_change = reconstruct, folder, on_change
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._made = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Job:
        """Queue a request. Raises ValueError when too many wait."""
        with self._changed:
            if self._closed or len(self._waiting) >= MOST_WAITING:
                raise ValueError(f"{len(self._waiting)} reconstructions are waiting already; try again later")
            self._made += 1
            job = Job(request, self._made)
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stop a job, whether it waits or runs; a finished one stays as it is."""
        job.stop.set()
        with self._changed:
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
                job.state = "cancelled"
        if waited:
            self._on_change(job)

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one."""
        with self._changed:
            return self._waiting.index(job) + (self._running is not None) if job in self._waiting else 0

    def close(self) -> None:
        """Cancel everything and wait until the running process is gone."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify()
        for job in jobs:
            self.cancel(job)
        self._thread.join(2 * _PATIENCE)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.pop(0)
                job.state = "running"
            self._on_change(job)
            self._run(job)
            with self._changed:
                self._running = None
            self._on_change(job)

    def _run(self, job: Job) -> None:
        """Run a job in a new process and set its final state."""
        result = self._folder / f"job-{job.number}.safetensors"
        # A fresh interpreter: threads, locks and CUDA do not survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_reconstruct, args=(self._reconstruct, job.request, result, theirs), daemon=True
        )
        process.start()
        theirs.close()
        try:
            while not job.stop.is_set():
                if not ours.poll(0.1):
                    continue
                kind, text = ours.recv()
                if kind == "line":
                    job.lines.append(text)
                    self._on_change(job)
                elif kind == "failed":
                    job.error = text
                    break
                else:
                    job.exhibit = read_exhibit(result)
                    break
        except (EOFError, OSError) as error:
            process.join(_PATIENCE)
            job.error = f"its process ended with code {process.exitcode}" if isinstance(error, EOFError) else str(error)
            if process.exitcode == -signal.SIGKILL:
                job.error += ", probably for lack of memory; use fewer views or a smaller size"
        finally:
            _end(process)
            ours.close()
            result.unlink(missing_ok=True)
        job.state = "cancelled" if job.stop.is_set() else "done" if job.exhibit else "failed"


def _reconstruct(reconstruct: Reconstructor, request: Request, result: Path, connection: Connection) -> None:
    """The process of a job: sends ("line", text) as it goes and ("done", "") or ("failed", why) at the end."""
    # Ctrl-C reaches the whole group; the server stops its jobs itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Cancelled, it removes its temporary files before it goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    r = request

    def for_page(text: str) -> str:
        # An upload lies in a folder whose name says nothing to anyone.
        return text.replace(f"{r.source}: ", "").replace(str(r.source), r.name)

    def report(line: str) -> None:
        print(line, file=sys.stderr)
        connection.send(("line", for_page(line)))

    try:
        if r.make is not None and not r.source.exists():
            report("making a scene to look at")
            with whole_folder(r.source) as folder:
                r.make(folder)
        made = reconstruct(r.source, r.weights, r.views, r.size, r.device, report, refine=r.refine)
        made = replace(made, notes=tuple(map(for_page, made.notes)))
        write_exhibit(result, from_reconstruction(r.name, made))
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        connection.send(("failed", for_page(" ".join(str(error).split())) or type(error).__name__))
    else:
        connection.send(("done", ""))


def _end(process: multiprocessing.process.BaseProcess) -> None:
    process.join(0.5 if process.exitcode is None else 0)
    if process.is_alive():
        process.terminate()
        process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
