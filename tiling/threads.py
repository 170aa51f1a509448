"""Work in threads that ends when the caller does.

A pool's threads cannot be killed. After Ctrl-C, a scheduler's SIGTERM or an error, a process waits
until its threads have finished their current items and, if everything was queued at once, all
remaining ones: minutes, where a damaged slide is read. So only a few items are submitted ahead, and
long work calls `check_stopped` between its steps.
"""

import collections
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_own = threading.local()  # `stop`: an Event, in threads of `map_in_threads`


def count_cores() -> int:
    """Count the cores that this process may use: of a job, those it was given."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Stopped(BaseException):
    """The caller of this thread's work no longer waits for it."""


def check_stopped() -> None:
    """End this thread's work if its result is no longer needed; does nothing in other threads.

    Raises
    ------
    Stopped
    """
    stop: threading.Event | None = getattr(_own, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


@contextmanager
def in_background(work: Callable[[], Result]) -> Iterator[Callable[[], Result]]:
    """Start work in another thread; what is yielded waits for its result.

    Where the block ends early, the work ends at its next `check_stopped`.

    Parameters
    ----------
    work : function
        What it raises is raised where its result is waited for.
    """
    stop = threading.Event()

    def run() -> Result:
        _own.stop = stop
        check_stopped()
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix="in-background") as pool:
        future = pool.submit(run)
        try:
            yield future.result
        finally:
            stop.set()


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 1, ahead: int = 2
) -> Iterator[Result]:
    """Apply a function to each item in background threads, yielding results in order.

    A single item of a sequence is worked on in the caller's thread.

    Where the caller ends early (Ctrl-C, an error, a generator that is closed), no item is begun any
    more, and those that are being worked on end at their next `check_stopped`.

    Parameters
    ----------
    work : function
        Run in a thread; what it raises is raised here, at its place in the order.
    items : iterable
        Taken lazily: at most `threads` + `ahead` items are in memory beyond the one yielded.
    threads : int
        How many items are worked on at once.
    ahead : int
        How many results may wait.
    """
    if isinstance(items, Sequence) and len(items) <= 1:
        for item in items:  # nothing to do at the same time: no thread is worth its start
            check_stopped()
            yield work(item)
        return
    stop = threading.Event()

    def run(item: Item) -> Result:
        _own.stop = stop
        check_stopped()
        return work(item)

    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="map-in-threads")
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            check_stopped()  # of the thread that waits
            waiting.append(pool.submit(run, item))
            if len(waiting) > threads + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
