"""Processes that end when the work is no longer wanted."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def open_process_pool(
    workers: int, *, preload: Sequence[str] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Start processes that are killed on the way out of an interrupt or an error.

    A pool's own end waits for the work that is under way, which may take minutes.

    Parameters
    ----------
    workers : int
        At least 1.
    preload : names of modules
        Imported once, for all processes.
    """
    # Not forked from here: a thread of this process may hold a lock at that moment.
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
