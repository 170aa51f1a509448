"""Mapping of work over slides: in this process, in others on this machine, or on Dask.

Every command that processes several slides or images does it here. Dask can be workers on this
machine, any scheduler, or Slurm through dask-jobqueue (`wsi_pipeline.run.dask_client`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from tiling.threads import count_cores
from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.errors import StageError
from wsi_pipeline.run.process_pool import PRELOAD, THREAD_VARIABLES, map_in_processes

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_tasks(
    work: Callable[..., Result],
    tasks: Sequence[Task],
    *,
    workers: int = 1,
    apart: bool = False,
    dask: str | None = None,
    cluster_options: Mapping[str, Any] | None = None,
    gpus: Sequence[str] | None = None,
    print_line: PrintLine | None = None,
    preload: Sequence[str] = PRELOAD,
) -> Iterator[tuple[int, Result | StageError]]:
    """Run `work` on every task; yield each task's number and result as it ends.

    A task whose process is lost, or that ends with an error, is tried once more, after the others;
    on this machine alone, since they may have taken its memory. In this process, errors are raised.

    Parameters
    ----------
    work : callable
        Importable by name; must catch its own errors.
    tasks : sequence
        Can be sent to a process; paths absolute, or relative to a folder in the task.
    workers : int
        Processes on this machine, or of the cluster that `dask` starts; at most one per task.
    apart : bool
        Never run a task in this process, which a damaged file could end.
    dask : str, optional
        ``local``, ``slurm``, or a scheduler's address (``tcp://...``).
    cluster_options : mapping, optional
        Arguments of dask-jobqueue's ``SLURMCluster``: cores, memory, walltime, ...
    gpus : sequence of str, optional
        The tasks use a GPU, and these are the ones of this machine to share out, as
        ``CUDA_VISIBLE_DEVICES`` names them: one for each process. None: they use no GPU.
    print_line : function, optional
        Called here, perhaps by another thread, with each line that `work` reports by the keyword
        argument `print_line` that it then gets.
    preload : names of modules
        Imported once, for all processes of this machine.

    Yields
    ------
    number, result
        A `StageError` in place of a result if its process was lost twice, for example for lack of
        memory.

    Raises
    ------
    SchedulerLostError
        If the connection to a scheduler was lost. What was yielded before is done.
    """
    if not tasks:
        return
    workers = min(workers, len(tasks), *([len(gpus)] if gpus and _is_local(dask) else []))
    if dask is None and workers <= 1 and not apart:
        here = partial(work, print_line=print_line) if print_line else work
        for number, task in enumerate(tasks):
            yield number, here(task)
    elif dask is None:
        yield from map_in_processes(
            work,
            tasks,
            workers=workers,
            preload=preload,
            environments=share_machine(workers, gpus),
            print_line=print_line,
        )
    else:
        from wsi_pipeline.run.dask_client import map_on_dask

        yield from map_on_dask(
            work,
            tasks,
            dask=dask,
            environments=share_machine(workers, gpus),
            options=dict(cluster_options or {}),
            on_gpu=gpus is not None,
            print_line=print_line,
        )


def _is_local(dask: str | None) -> bool:
    return dask in (None, "local")


def share_machine(workers: int, gpus: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Environment of each process of this machine: its share of the cores, and its GPU.

    Examples
    --------
    >>> [one["CUDA_VISIBLE_DEVICES"] for one in share_machine(2, ["0", "1"])]
    ['0', '1']
    """
    cores = str(max(1, count_cores() // workers))
    threads = dict.fromkeys(THREAD_VARIABLES, cores)
    shared = [{"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {} for n in range(workers)]
    return [threads | one for one in shared]
