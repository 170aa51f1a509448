"""Mapping of a function over slides in processes that may crash.

A damaged slide can crash the process that reads it. Such a slide is retried once, alone, and then
reported; the others continue. Starting these processes takes a fraction of the time of a Dask
cluster (`wsi_pipeline.run.cluster`).
"""

import multiprocessing
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tiling.threads import count_cores
from wsi_pipeline.errors import StageError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 8  # by default; more rarely help where slides lie on one disk


def choose_workers(given: int | None, *, takes_all_cores: bool) -> int:
    """Choose how many slides, images or models a command processes at a time.

    Parameters
    ----------
    given : int, optional
        The option ``--workers``. Default: as many as keep the cores of this process busy.
    takes_all_cores : bool
        One of them takes all cores: its reading and computing have threads of their own.

    Examples
    --------
    >>> choose_workers(3, takes_all_cores=True), choose_workers(None, takes_all_cores=True)
    (3, 1)
    """
    if given is not None:
        return given
    return 1 if takes_all_cores else min(MOST_WORKERS, count_cores())


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    preload: Sequence[str] = ("tiling.footprint",),
) -> Iterator[tuple[int, Result | StageError]]:
    """Call a function on each item in other processes; yield number and result as each ends.

    Parameters
    ----------
    function : callable
        Importable by name; must catch its own errors.
    items : sequence
        Can be sent to a process; paths absolute.
    workers : int
    preload : names of modules
        Imported once, for all processes.

    Yields
    ------
    number, result
        A `StageError` in place of a result if the item crashed its process.
    """
    waiting = list(range(len(items)))[::-1]
    while waiting:
        suspects = yield from _map_until_crash(function, items, waiting, workers, preload)
        for number in suspects:
            yield number, _call_alone(function, items[number], preload)


def _map_until_crash(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    waiting: list[int],
    workers: int,
    preload: Sequence[str],
) -> Generator[tuple[int, Result | StageError], None, list[int]]:
    """Process items until a process crashes; return the items that were being processed."""
    running: dict[Future[Result], int] = {}
    with _open_pool(min(workers, len(waiting)), preload) as pool:
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


def _call_alone(
    function: Callable[[Item], Result], item: Item, preload: Sequence[str]
) -> Result | StageError:
    with _open_pool(1, preload) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return StageError(
                "reading it ends the whole process (a crash in the decoder, or too little memory); "
                "copy the file again from its source, or leave it out"
            )


@contextmanager
def _open_pool(workers: int, preload: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    """Start processes that are killed on an interrupt or error.

    Closing a pool waits for running work, which may take minutes.

    Parameters
    ----------
    workers : int
        At least 1.
    """
    # Not fork: a thread of this process may hold a lock at that moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(max_workers=max(1, workers), mp_context=context)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
