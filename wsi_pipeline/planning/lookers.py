"""Looking at many slides at once, in processes that may die.

A damaged slide can take the process that reads it down with it. Such a slide is tried once more,
alone, and then named; the others go on.
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


def look_at_each(
    look: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[tuple[int, Result | StageError]]:
    """Call a function on each item in other processes; yield number and result as each ends.

    Parameters
    ----------
    look : callable
        Importable by name; must catch its own errors.
    items : sequence
        Can be sent to a process; paths absolute.

    Yields
    ------
    number, result
        A `StageError` in place of a result where the process died of the item.
    """
    waiting = list(range(len(items)))[::-1]
    while waiting:
        suspects = yield from _look_until_death(look, items, waiting, workers)
        for number in suspects:
            yield number, _look_alone(look, items[number])


def _look_until_death(
    look: Callable[[Item], Result], items: Sequence[Item], waiting: list[int], workers: int
) -> Generator[tuple[int, Result | StageError], None, list[int]]:
    """Work until a process dies; returns the items that were being looked at then."""
    running: dict[Future[Result], int] = {}
    with _open_pool(min(workers, len(waiting))) as pool:
        while waiting or running:
            try:
                # No more are sent than are looked at, so a death has few suspects.
                while waiting and len(running) < workers:
                    future = pool.submit(look, items[waiting[-1]])
                    running[future] = waiting.pop()
            except BrokenProcessPool:
                return list(running.values())
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if isinstance(future.exception(), BrokenProcessPool):
                    return list(running.values())
                yield running.pop(future), future.result()
    return []


def _look_alone(look: Callable[[Item], Result], item: Item) -> Result | StageError:
    with _open_pool(1) as pool:
        try:
            return pool.submit(look, item).result()
        except BrokenProcessPool:
            return StageError(
                "reading it ends the whole process (a crash in the decoder, or too little memory); "
                "copy the file again from its source, or leave it out"
            )
