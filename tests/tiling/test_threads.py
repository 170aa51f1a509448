"""Work in background threads: results in order, a few ahead, nothing left running."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.threads import map_in_threads


@given(n=st.integers(0, 20), threads=st.integers(1, 4), ahead=st.integers(0, 4))
@settings(max_examples=30)
def test_results_keep_the_order_of_the_items(n, threads, ahead):
    def load(i):
        time.sleep(0.001 * (i % 3))  # later items may be ready sooner
        return i * i

    assert list(map_in_threads(load, range(n), threads=threads, ahead=ahead)) == [
        i * i for i in range(n)
    ]


def test_few_items_are_worked_on_ahead():
    loaded, gate = [], threading.Event()

    def load(i):
        loaded.append(i)
        return i

    results = map_in_threads(load, range(100), threads=1, ahead=2)
    assert next(results) == 0
    gate.wait(0.1)
    results.close()

    assert len(loaded) <= 4  # the one given, one in the thread, two waiting


def test_an_error_is_raised_at_its_place_and_ends_the_threads():
    def load(i):
        if i == 3:
            raise OSError("three")
        return i

    results = map_in_threads(load, range(10), threads=2)

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="three"):
        next(results)
    assert not [t for t in threading.enumerate() if t.name.startswith("map-in-threads")]
