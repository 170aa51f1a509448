"""Operations on files that a file server would answer: opening, listing, and looking at them."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

COUNTED = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.utime"}
_counters: list[Counter[str]] = []


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _counters and event in COUNTED:
        for counter in _counters:
            counter[event] += 1


sys.addaudithook(_hear)  # stays for good, and does nothing outside of `count_operations`


@contextmanager
def count_operations() -> Iterator[Counter[str]]:
    """Count the operations of this process, by name; `os.stat` is none of the audited ones."""
    counter: Counter[str] = Counter()
    kept = os.stat

    def stat(*arguments, **options):
        counter["os.stat"] += 1
        return kept(*arguments, **options)

    os.stat = stat
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)
        os.stat = kept
