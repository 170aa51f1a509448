"""Mapping of a function over slides in processes that may crash.

A damaged slide can crash the process that reads it. Such a slide is retried once, alone, and then
reported; the others continue.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from os import cpu_count
from typing import TypeVar

from wsi_pipeline.errors import StageError
from wsi_pipeline.run.process_pool import open_process_pool

Item = TypeVar("Item")
Result = TypeVar("Result")

_open_pool = partial(open_process_pool, preload=("tiling.footprint",))

MOST_WORKERS = 8  # by default; more rarely help where slides lie on one disk


def default_workers() -> int:
    """As many processes as there are cores, within reason."""
    return min(MOST_WORKERS, cpu_count() or 1)


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[tuple[int, Result | StageError]]:
    """Call a function on each item in other processes; yield number and result as each ends.

    Parameters
    ----------
    function : callable
        Importable by name; must catch its own errors.
    items : sequence
        Can be sent to a process; paths absolute.

    Yields
    ------
    number, result
        A `StageError` in place of a result if the item crashed its process.
    """
    waiting = list(range(len(items)))[::-1]
    while waiting:
        suspects = yield from _map_until_crash(function, items, waiting, workers)
        for number in suspects:
            yield number, _call_alone(function, items[number])


def _map_until_crash(
    function: Callable[[Item], Result], items: Sequence[Item], waiting: list[int], workers: int
) -> Generator[tuple[int, Result | StageError], None, list[int]]:
    """Process items until a process crashes; return the items that were being processed."""
    running: dict[Future[Result], int] = {}
    with _open_pool(min(workers, len(waiting))) as pool:
        while waiting or running:
            try:
                # Only as many as workers are submitted, so a crash has few suspects.
                while waiting and len(running) < workers:
                    future = pool.submit(function, items[waiting[-1]])
                    running[future] = waiting.pop()
            except BrokenProcessPool:
                return list(running.values())
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if isinstance(future.exception(), BrokenProcessPool):
                    return list(running.values())
                yield running.pop(future), future.result()
    return []


def _call_alone(function: Callable[[Item], Result], item: Item) -> Result | StageError:
    with _open_pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return StageError(
                "reading it ends the whole process (a crash in the decoder, or too little memory); "
                "copy the file again from its source, or leave it out"
            )
