"""A small cache that forgets what was used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Lru(Generic[Key, Value]):
    """At most `size` values by key. Copies and pickles start empty, so open files never travel.

    Args:
        size: Number of values kept, >= 1.
        drop: Called with each value that is forgotten (to close it).
    """

    def __init__(self, size: int, *, drop: Callable[[Value], object] | None = None) -> None:
        self.size, self._drop = size, drop
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of `key`, made by `make()` when it is not there."""
        if key not in self._values:
            self._values[key] = make()
            while len(self._values) > self.size:
                forgotten = self._values.popitem(last=False)[1]
                if self._drop is not None:
                    self._drop(forgotten)
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        """Forget everything."""
        while self._values:
            forgotten = self._values.popitem()[1]
            if self._drop is not None:
                self._drop(forgotten)

    def __len__(self) -> int:
        return len(self._values)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_values": OrderedDict()}
