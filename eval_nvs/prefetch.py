"""Reading ahead: what the next scenes need is decoded in threads while this one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = 2
) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Each item, in order, with a call that gives `function(item)` or raises what it raised.

    At most `depth` results are computed in advance, each in a thread of its own. Those not asked for are dropped when
    the iteration ends early.
    """
    pool, queue, rest = ThreadPoolExecutor(depth), deque[tuple[Item, Future]](), iter(items)
    try:
        for item in rest:
            queue.append((item, pool.submit(function, item)))
            if len(queue) > depth:
                item, future = queue.popleft()
                yield item, future.result
        while queue:
            item, future = queue.popleft()
            yield item, future.result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
