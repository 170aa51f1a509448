"""One way to run work: a stage is a function of one slide, mapped over slides.

In this process, on a Dask ``LocalCluster``, on any Dask scheduler, on Slurm through
dask-jobqueue, or as one shard of a job array. Which slides a shard holds follows from the data
set alone, so shards need not talk to each other.
"""

import heapq
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from wsi_pipeline.errors import ConfigError, StageError

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """One part of a data set: number `index` of `count`, from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"--shard {self.index}/{self.count}: the index counts from 0, "
                f"so it must be in 0 to {self.count - 1}"
            )


@dataclass(frozen=True)
class ArrayVariables:
    """How a scheduler tells a task its place in a job array; None where it does not tell."""

    scheduler: str
    index: str
    first: str | None
    last: str | None
    step: str | None
    outside: str  # what `index` holds outside arrays, where it is set at all


# sbatch(1), "OUTPUT ENVIRONMENT VARIABLES"; qsub(1) of Grid Engine; bsub(1) of LSF; qsub(1B).
ARRAYS = (
    ArrayVariables(
        "Slurm",
        index="SLURM_ARRAY_TASK_ID",
        first="SLURM_ARRAY_TASK_MIN",
        last="SLURM_ARRAY_TASK_MAX",
        step="SLURM_ARRAY_TASK_STEP",
        outside="",
    ),
    ArrayVariables(
        "Grid Engine",
        index="SGE_TASK_ID",
        first="SGE_TASK_FIRST",
        last="SGE_TASK_LAST",
        step="SGE_TASK_STEPSIZE",
        outside="undefined",
    ),
    ArrayVariables(
        "LSF",
        index="LSB_JOBINDEX",
        first=None,
        last="LSB_JOBINDEX_END",
        step="LSB_JOBINDEX_STEP",
        outside="0",
    ),
    ArrayVariables("PBS", index="PBS_ARRAY_INDEX", first=None, last=None, step=None, outside=""),
)


def parse_shard(text: str, environ: Mapping[str, str] = os.environ) -> Shard:
    """Read ``I/N``, ``auto`` or ``auto/N``.

    ``auto`` takes the place in the job array from the scheduler's environment variables.
    ``auto/N`` states the number of tasks where the scheduler does not tell it (PBS), or where
    only some tasks of an array run again.

    Examples
    --------
    >>> parse_shard("2/8", {})
    Shard(index=2, count=8)
    >>> parse_shard("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1",
    ...                      "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "8"})
    Shard(index=4, count=8)
    """
    head, _, tail = text.partition("/")
    try:
        if head == "auto":
            return _shard_from_array(environ, int(tail) if tail else None)
        return Shard(int(head), int(tail))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"--shard '{text}' is none of I/N (0-based, e.g. 0/8), auto, auto/N"
        ) from error


def _shard_from_array(environ: Mapping[str, str], count: int | None) -> Shard:
    for array in ARRAYS:
        if environ.get(array.index, "") not in {"", array.outside}:
            return _shard_of_task(array, environ, count)
    names = ", ".join(array.index for array in ARRAYS)
    raise ConfigError(
        f"--shard auto: not in a job array (none of {names} is set); "
        "submit with an array option, or say --shard I/N"
    )


def _shard_of_task(array: ArrayVariables, environ: Mapping[str, str], count: int | None) -> Shard:
    def told(name: str | None, default: int) -> int:
        return int(environ.get(name, default)) if name else default

    index = int(environ[array.index])
    if count is not None:
        return Shard(index % count, count)  # arrays from 0 and from 1 both cover every shard
    first = told(array.first, 1 if array.scheduler == "LSF" else 0)
    step = told(array.step, 1)
    n_slurm = told("SLURM_ARRAY_TASK_COUNT" if array.scheduler == "Slurm" else None, 0)
    last = told(array.last, first + step * (n_slurm - 1))
    if last < index:
        raise ConfigError(
            f"--shard auto: {array.scheduler} does not report how many tasks the array has; "
            "use --shard auto/N"
        )
    total = (last - first) // step + 1
    if (index - first) % step or n_slurm not in {0, total}:
        raise ConfigError(
            f"--shard auto: the job array ({array.index}={index}, from {first} to {last} by "
            f"{step}) has gaps; say --shard I/N, or --shard auto/N with the size of the whole array"
        )
    return Shard((index - first) // step, total)


def select_shard(weights: Mapping[str, int], shard: Shard | None) -> set[str]:
    """Choose the keys of one shard: disjoint, covering, balanced by weight.

    The heaviest key goes to the lightest shard so far (longest processing time first), ties by
    key and shard number, so every task of an array finds the same shards by itself.

    Examples
    --------
    >>> sorted(select_shard({"a": 5, "b": 3, "c": 2}, Shard(1, 2)))
    ['b', 'c']
    """
    if shard is None:
        return set(weights)
    loads = [(0, 0, number) for number in range(shard.count)]
    chosen: set[str] = set()
    for key in sorted(weights, key=lambda key: (-weights[key], key)):
        # The count breaks ties of weightless keys, which else would all go to shard 0.
        load, n, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + weights[key], n + 1, number))
        if number == shard.index:
            chosen.add(key)
    return chosen


def map_tasks(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    workers: int = 1,
    dask: str | None = None,
    cluster_options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Result | StageError]]:
    """Run `work` on every task; yield each task's number and result as it ends.

    Parameters
    ----------
    work : callable
        Importable by name; must catch its own errors.
    workers : int
        Processes on this machine, where `dask` does not say otherwise; not more than tasks.
    dask : str, optional
        ``local``, ``slurm``, or a scheduler's address (``tcp://...``).
    cluster_options : mapping, optional
        What dask-jobqueue's ``SLURMCluster`` is given: cores, memory, walltime, ...

    Yields
    ------
    number, result
        A `StageError` in place of a result if a worker was lost, for example for want of memory.
    """
    if not tasks:
        return
    workers = min(workers, len(tasks))
    if dask is None and workers <= 1:
        for number, task in enumerate(tasks):
            yield number, work(task)
        return
    with _dask_client(dask or "local", workers, dict(cluster_options or {})) as client:
        yield from _map_on_client(client, work, tasks)


def worker_number() -> int | None:
    """Tell which worker of this machine's own cluster this process is; None: of none.

    Workers of a batch system are not numbered: each job sees the GPUs it was given.
    """
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # no worker
        return None
    return name if isinstance(name, int) else None


def _map_on_client(
    client: Any, work: Callable[[Task], Result], tasks: Sequence[Task]
) -> Iterator[tuple[int, Result | StageError]]:
    from distributed import as_completed

    # A task is sent once and tried once more if its worker dies; then its slide has failed.
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
    """Undo what Dask's nannies leave in this process's environment.

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
    """End the workers on this machine at once: closing a cluster waits for what they are doing."""
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
            f"--dask {address}: no Dask scheduler answers there ({error}); "
            "give tcp://HOST:PORT, local or slurm"
        ) from error


def _slurm_cluster(workers: int, options: dict[str, Any]) -> Any:
    from dask_jobqueue.slurm import SLURMCluster

    # Workers on other nodes must reach the scheduler; nobody else need see its dashboard.
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
