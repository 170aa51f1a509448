"""Process pools that are killed on an interrupt or error."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def open_process_pool(
    workers: int, *, preload: Sequence[str] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Start processes that are killed on an interrupt or error.

    Closing a pool waits for running work, which may take minutes.

    Parameters
    ----------
    workers : int
        At least 1.
    preload : names of modules
        Imported once, for all processes.
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
