"""What was made, kept in the order of its last use within a budget of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by key, the least recently used ones dropped; for many threads.

    Parameters
    ----------
    budget : bytes
    size_of : function
        Bytes of a value.
    """

    def __init__(self, budget: int, size_of: Callable[[Value], int]) -> None:
        self._budget = budget
        self._size_of = size_of
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value, made now if it is not kept.

        Two threads that ask for a missing value at once both make it: that is cheaper than to wait
        on each other for all the rest.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.bytes += self._size_of(value)
            while self.bytes > self._budget and len(self._values) > 1:
                _, dropped = self._values.popitem(last=False)
                self.bytes -= self._size_of(dropped)
        return value
