"""Samples made ahead of the loop, in its order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")


class Prefetcher(Generic[Key, Made]):
    """An iterator over `make(key)` for the `keys` in their order, of which the next `ahead` are made by threads.

    What `make` raises is raised by `next` in its turn; ValueError and OSError name the key. With more than one of
    `threads`, `make` must bear being called at once. Use as a context manager, or call `close`: keys not begun are
    dropped, those begun are waited for.
    """

    def __init__(self, make: Callable[[Key], Made], keys: Iterable[Key], ahead: int = 2, threads: int = 1):
        if ahead < 1 or threads < 1:
            raise ValueError(f"ahead and threads must be 1 or more, got {ahead} and {threads}")
        self._make, self._keys = make, iter(keys)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        self._made: deque[tuple[Key, Future[Made]]] = deque()
        self._more(ahead)

    def __iter__(self) -> Iterator[Made]:
        return self

    def __next__(self) -> Made:
        if not self._made:
            raise StopIteration
        key, future = self._made.popleft()
        try:
            value = future.result()
        except (ValueError, OSError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"sample {key}: {error}") from error
        self._more(1)
        return value

    def __enter__(self) -> Prefetcher[Key, Made]:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; iterating further raises StopIteration."""
        self._made.clear()
        self._keys = iter(())
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _more(self, count: int) -> None:
        for key in islice(self._keys, count):
            self._made.append((key, self._pool.submit(self._make, key)))
