"""One thread that renders for all clients: the CPU kernels and the GPU are shared, and only the newest view counts."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class RenderWorker:
    """Runs one task at a time. `post` keeps one waiting task for each key, the newest; `call` waits for an answer.

    A task that raises is reported on stderr; the worker goes on. Keys take turns, so one busy tab does not starve
    another.
    """

    def __init__(self):
        self._waiting: dict[Hashable, tuple[float, Callable[[], object], Future]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="render-queue", daemon=True)
        self._thread.start()

    def post(self, key: Hashable, task: Callable[[], Result], delay: float = 0.0) -> Future:
        """Run `task` after `delay` seconds unless a newer one of this key takes its place, which cancels it."""
        future: Future = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            # Taken out first, so that the newcomer queues behind the other keys.
            replaced = self._waiting.pop(key, None)
            self._waiting[key] = (time.monotonic() + delay, task, future)
            self._changed.notify()
        if replaced is not None:
            replaced[2].cancel()
        return future

    def call(self, task: Callable[[], Result]) -> Result:
        """Run `task` and return what it returns, or raise what it raises. Never call this from within a task."""
        return self.post(object(), task).result()

    def drop(self, key: Hashable) -> None:
        """Forget the waiting task of a key, of a tab that was closed say."""
        with self._changed:
            waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting[2].cancel()

    def close(self) -> None:
        """Cancel what waits; what runs is not waited for."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
            self._changed.notify()
        for _, _, future in waiting:
            future.cancel()

    def _next(self) -> tuple[Callable[[], object], Future] | None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                key = next((key for key, (due, _, _) in self._waiting.items() if due <= now), None)
                if key is not None:
                    _, task, future = self._waiting.pop(key)
                    return task, future
                soonest = min((due for due, _, _ in self._waiting.values()), default=None)
                self._changed.wait(None if soonest is None else soonest - now)
        return None

    def _run(self) -> None:
        # The executor turns whatever a task raises into a result; its one thread is the only one that renders.
        with ThreadPoolExecutor(1, "render") as executor:
            while (following := self._next()) is not None:
                task, future = following
                if not future.set_running_or_notify_cancel():
                    continue
                error = (done := executor.submit(task)).exception()
                if error is None:
                    future.set_result(done.result())
                else:
                    print(f"viewer: a picture failed: {type(error).__name__}: {error}", file=sys.stderr)
                    future.set_exception(error)
