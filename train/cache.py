"""A cache with a limit, for what several threads read again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any


class Cache:
    """Keeps what was used last, up to `limit` in the unit of the costs given. Safe to use from several threads."""

    def __init__(self, limit: int):
        self.limit, self.total = limit, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Any], cost: Callable[[Any], int] = lambda value: 1) -> Any:
        """The value of `key`, from `make` if it is not here. Threads that miss at once may all make it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        value = make()
        price = cost(value)
        with self._lock:
            if key not in self._kept and price <= self.limit:
                self._kept[key] = (value, price)
                self.total += price
                while self.total > self.limit:
                    self.total -= self._kept.popitem(last=False)[1][1]
        return value
