"""Mapping of work over slides: in this process, on Dask, or on Slurm.

Dask can be a ``LocalCluster``, any scheduler, or Slurm through dask-jobqueue.
"""

import logging
import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.errors import ConfigError, StageError

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_tasks(
    work: Callable[..., Result],
    tasks: Sequence[Task],
    *,
    workers: int = 1,
    dask: str | None = None,
    cluster_options: Mapping[str, Any] | None = None,
    print_line: PrintLine | None = None,
) -> Iterator[tuple[int, Result | StageError]]:
    """Run `work` on every task; yield each task's number and result as it ends.

    Parameters
    ----------
    work : callable
        Importable by name; must catch its own errors.
    workers : int
        Processes on this machine, or of the cluster that `dask` starts; at most one per task.
    dask : str, optional
        ``local``, ``slurm``, or a scheduler's address (``tcp://...``).
    cluster_options : mapping, optional
        Arguments of dask-jobqueue's ``SLURMCluster``: cores, memory, walltime, ...
    print_line : function, optional
        Called here, perhaps by another thread, with each line that `work` reports by the keyword
        argument `print_line` that it then gets.

    Yields
    ------
    number, result
        A `StageError` in place of a result if a worker was lost, for example out of memory.
    """
    if not tasks:
        return
    workers = min(workers, len(tasks))
    if dask is None and workers <= 1:
        here = partial(work, print_line=print_line) if print_line else work
        for number, task in enumerate(tasks):
            yield number, here(task)
        return
    with (
        _dask_client(dask or "local", workers, dict(cluster_options or {})) as client,
        _receive_lines(client, print_line) as send_line,
    ):
        there = partial(work, print_line=send_line) if send_line else work
        yield from _map_on_client(client, there, tasks)


@contextmanager
def _receive_lines(client: Any, print_line: PrintLine | None) -> Iterator[PrintLine | None]:
    """Print lines of workers here; yields what they call with each."""
    if print_line is None:
        yield None
        return
    topic = f"wsi-pipeline-{uuid.uuid4()}"  # other commands may use the same scheduler
    client.subscribe_topic(topic, lambda event: print_line(event[1]))
    try:
        yield partial(_send_line, topic)
    finally:
        client.unsubscribe_topic(topic)


def _send_line(topic: str, line: str) -> None:
    """Send a line from a worker to the command that waits for it."""
    from distributed import get_worker

    get_worker().log_event(topic, line)


def worker_number() -> int | None:
    """Number of this process among the workers of a local cluster; None if it is not one.

    Workers of a batch system are not numbered: each job sees the GPUs assigned to it.
    """
    # A worker has imported it; anywhere else its import would take a second.
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        name = distributed.get_worker().name
    except ValueError:  # no worker
        return None
    return name if isinstance(name, int) else None


def _map_on_client(
    client: Any, work: Callable[[Task], Result], tasks: Sequence[Task]
) -> Iterator[tuple[int, Result | StageError]]:
    from distributed import as_completed

    # A task that ends with an error is retried once; one whose worker dies, three times (Dask's
    # distributed.scheduler.allowed-failures). Then its slide has failed.
    futures = client.map(work, tasks, pure=False, retries=1)
    number_by_key = {future.key: number for number, future in enumerate(futures)}
    for future in as_completed(futures):
        number = number_by_key[future.key]
        try:
            yield number, future.result()
        except Exception as error:
            log.debug("task %d was lost", number, exc_info=error)
            yield (
                number,
                StageError(
                    f"its worker was lost ({type(error).__name__}); often too little memory: "
                    "lower --workers"
                ),
            )
        future.release()


@contextmanager
def _dask_client(dask: str, workers: int, options: dict[str, Any]) -> Iterator[Any]:
    with _environment_kept():
        yield from _open_client(dask, workers, options)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo changes of this process's environment by Dask's nannies.

    They set OMP_NUM_THREADS=1 for their workers, and every library imported here afterwards would
    compute on one thread.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _open_client(dask: str, workers: int, options: dict[str, Any]) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)  # it reports every connection
    if dask == "local":
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port, this machine only
            silence_logs=logging.ERROR,
        )
    elif dask == "slurm":
        cluster = _slurm_cluster(workers, options)
    else:
        with closing(_connect(dask)) as client:
            yield client
        return
    with cluster, Client(cluster) as client:
        try:
            yield client
        except BaseException:
            _kill_workers(cluster)
            raise


def _kill_workers(cluster: Any) -> None:
    """Kill the workers on this machine: closing a cluster waits for running tasks."""
    for nanny in getattr(cluster, "workers", {}).values():
        nanny.auto_restart = False
    for process in multiprocessing.active_children():
        process.kill()


def _connect(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise StageError(
            f"--dask {address}: cannot connect to a Dask scheduler ({error}); "
            "use tcp://HOST:PORT, local or slurm"
        ) from error


def _slurm_cluster(workers: int, options: dict[str, Any]) -> Any:
    from dask_jobqueue.slurm import SLURMCluster

    # Workers on other nodes must reach the scheduler; the dashboard stays local.
    options.setdefault("scheduler_options", {"dashboard_address": "127.0.0.1:0"})
    try:
        cluster = SLURMCluster(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--dask slurm: {error}; set it in the config under cluster "
            "(cores, memory, walltime, queue, account, ...)"
        ) from error
    cluster.scale(jobs=workers)
    return cluster
