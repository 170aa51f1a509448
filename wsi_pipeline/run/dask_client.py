"""Tasks on Dask: workers on this machine, those of a running scheduler, or jobs of Slurm.

A task is sent compressed, and its result is a line: nothing large passes the scheduler. Where the
cluster is this command's own, no more tasks are sent than there are workers, so that a lost worker
has one task; a scheduler that runs anyway is sent `MOST_SENT` and distributes them.

The workers on this machine are processes without Dask's nannies, whose queues would leave
semaphores in /dev/shm after SIGKILL, and which set the environment of this process. They end with
this process, however that ends.
"""

import asyncio
import logging
import multiprocessing
import os
import re
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.errors import ConfigError, SchedulerLostError, StageError
from wsi_pipeline.run.process_pool import END_S, THREAD_VARIABLES, become_worker, describe_end

MOST_SENT = 4096  # tasks that wait at a running scheduler; it may have a thousand workers
CHECK_S = 0.5  # between checks whether a worker of this machine was lost
CHECK_JOBS_S = 15.0  # the same for jobs
CONNECT_S = 10.0
START_S = 30.0
CLOSE_S = 2.0
_GPUS = re.compile(
    r"--(?:gres[= ]gpu|gpus|gpus-per-(?:node|task))(?:[:= ][a-zA-Z][\w.-]*)?[:= ](\d+)"
)


@dataclass(frozen=True)
class _Connected:
    """A client and what is known of its cluster."""

    client: Any
    place: str  # for messages
    n_sent: int  # tasks that may be at the scheduler at a time
    is_own: bool
    shares_memory: bool = False  # all workers are on this machine
    causes: Sequence[str] = ()  # why workers of this machine ended


def map_on_dask(
    work: Callable[..., Any],
    tasks: Sequence[Any],
    *,
    dask: str,
    environments: Sequence[Mapping[str, str]],
    options: dict[str, Any],
    on_gpu: bool,
    print_line: PrintLine | None,
) -> Iterator[tuple[int, Any]]:
    """Run `work` on every task; see `wsi_pipeline.run.cluster.map_tasks`.

    Parameters
    ----------
    environments : sequence of mapping
        One for each worker to start, with what differs from this process's where it is on this
        machine.
    on_gpu : bool
        The tasks ask for the resource ``GPU`` where workers declare it.
    """
    _silence()
    with (
        _connect(dask, environments, options, on_gpu=on_gpu) as connected,
        _receive_lines(connected.client, print_line) as send_line,
    ):
        if print_line and not connected.is_own and not _count_workers(connected.client):
            print_line(f"no worker at {connected.place} yet; waiting for one")
        there = partial(work, print_line=send_line) if send_line else work
        resources = {"GPU": 1} if on_gpu and _declares_gpus(connected.client) else None
        yield from _Mapping(connected, there, tasks, resources).results()


def _silence() -> None:
    """Keep Dask from reporting every lost connection: the commands report what matters."""
    import distributed  # noqa: F401  # its import sets the levels of its loggers

    names = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] == "distributed"]
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _Mapping:
    """The tasks of one call: those that wait, that were sent, and that are to be tried again."""

    def __init__(
        self,
        connected: _Connected,
        work: Callable[[Any], Any],
        tasks: Sequence[Any],
        resources: dict[str, int] | None,
    ) -> None:
        from distributed import as_completed

        self._connected = connected
        self._work = work
        self._tasks = tasks
        self._resources = resources
        self._ended = as_completed()
        self._number_by_key: dict[str, int] = {}

    def results(self) -> Iterator[tuple[int, Any]]:
        waiting = deque(range(len(self._tasks)))
        again: deque[int] = deque()
        tried: set[int] = set()
        while waiting or again or self._number_by_key:
            while waiting and len(self._number_by_key) < self._connected.n_sent:
                self._send(waiting.popleft())
            if not waiting and again and not self._number_by_key:
                self._send(again.popleft())  # alone: the others may have taken its memory
            future = next(self._ended)
            number = self._number_by_key.pop(future.key)
            result = self._receive(future, may_try_again=number not in tried)
            if result is None:
                tried.add(number)
                (again if self._connected.shares_memory else waiting).append(number)
            else:
                yield number, result[0]

    def _send(self, number: int) -> None:
        key = f"wsi-pipeline-{uuid.uuid4()}"
        self._number_by_key[key] = number
        packed = pack(self._work, self._tasks[number])
        try:
            future = self._connected.client.submit(
                call_packed, packed, key=key, pure=False, resources=self._resources
            )
        except Exception as error:
            self._raise_if_lost(error)
            raise
        self._ended.add(future)

    def _receive(self, future: Any, *, may_try_again: bool) -> tuple[Any] | None:
        """Return the result, in a tuple; None to try again."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        try:
            return (future.result(),)
        except CancelledError as error:
            self._raise_lost(error)
        except KilledWorker as error:
            # Another's scheduler has tried it again by itself.
            if may_try_again and not error.allowed_failures:
                return None
            return (StageError(self._describe_loss(error.allowed_failures)),)
        except Exception as error:
            self._raise_if_lost(error)
            if may_try_again:
                return None
            found = StageError(f"unexpected {type(error).__name__}: {error}; tried twice")
            found.__cause__ = error
            return (found,)
        finally:
            future.release()

    def _describe_loss(self, allowed_failures: int) -> str:
        causes = self._connected.causes
        tried = "twice" if not allowed_failures else f"{allowed_failures + 1} times"
        if causes:
            return f"{causes[-1]}; tried {tried}"
        return (
            "its worker was lost, most often because memory ran out; give the workers more memory; "
            f"tried {tried}"
        )

    def _raise_if_lost(self, error: Exception) -> None:
        if self._connected.client.status not in ("running", "newly-created"):
            self._raise_lost(error)

    def _raise_lost(self, error: Exception) -> NoReturn:
        raise SchedulerLostError(self._connected.place) from error


# ------------------------------------------------------------ what is sent


def pack(work: Callable[[Any], Any], task: Any) -> bytes:
    """Compress a task for the way to its worker: that of 1,000 slides has ten times their text."""
    return zlib.compress(ForkingPickler.dumps((work, task)))


def call_packed(packed: bytes) -> Any:
    """Run a packed task, in a worker."""
    work, task = ForkingPickler.loads(zlib.decompress(packed))
    return work(task)


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
        with suppress(Exception):  # the scheduler may be lost
            client.unsubscribe_topic(topic)


def _send_line(topic: str, line: str) -> None:
    """Send a line from a worker to the command that waits for it."""
    from distributed import get_worker

    get_worker().log_event(topic, line)


def _count_workers(client: Any) -> int:
    return int(client.scheduler_info(n_workers=0)["n_workers"])


def _declares_gpus(client: Any) -> bool:
    """Whether any worker declares the resource ``GPU``."""
    workers = client.scheduler_info()["workers"].values()
    return any(worker.get("resources", {}).get("GPU") for worker in workers)


# ------------------------------------------------------------ the clusters


@contextmanager
def _connect(
    dask: str,
    environments: Sequence[Mapping[str, str]],
    options: dict[str, Any],
    *,
    on_gpu: bool,
) -> Iterator[_Connected]:
    if dask == "local":
        with _open_local(environments) as connected:
            yield connected
    elif dask == "slurm":
        with _open_slurm(len(environments), options, on_gpu=on_gpu) as connected:
            yield connected
    else:
        client = _open_client(dask)
        try:
            yield _Connected(client, dask, MOST_SENT, is_own=False)
        finally:
            with suppress(Exception):  # the scheduler may be lost
                client.close(timeout=CLOSE_S)


def _open_client(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise StageError(
            f"--dask {address}: cannot connect to a Dask scheduler ({error}); "
            "use tcp://HOST:PORT, local or slurm"
        ) from error


@contextmanager
def _open_local(environments: Sequence[Mapping[str, str]]) -> Iterator[_Connected]:
    """Start a scheduler in this process, and a worker process for each environment."""
    import dask
    from distributed import Client, LocalCluster

    causes: list[str] = []
    # A task that is lost with its worker is sent again from here, alone.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=0,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port, this machine only
            silence_logs=logging.CRITICAL + 1,
        ) as cluster,
        _LocalWorkers(cluster.scheduler_address, environments, causes),
        Client(cluster, timeout=CONNECT_S) as client,
    ):
        with suppress(TimeoutError):  # one is enough to begin with
            client.wait_for_workers(len(environments), timeout=START_S)
        yield _Connected(
            client,
            "local",
            len(environments),
            is_own=True,
            shares_memory=True,
            causes=causes,
        )


class _LocalWorkers:
    """Worker processes on this machine; one that is lost is replaced."""

    def __init__(
        self, address: str, environments: Sequence[Mapping[str, str]], causes: list[str]
    ) -> None:
        self._address = address
        self._environments = environments
        self._causes = causes
        self._processes: list[BaseProcess] = []
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._replace_lost, daemon=True)

    def __enter__(self) -> "_LocalWorkers":
        self._processes = [self._start(number) for number in range(len(self._environments))]
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._keeper.join()
        for process in self._processes:  # closing them would wait for running tasks
            process.kill()
        for process in self._processes:
            process.join(END_S)

    def _start(self, number: int) -> BaseProcess:
        environment = {**os.environ, **self._environments[number]}
        resources = {"GPU": 1} if "CUDA_VISIBLE_DEVICES" in self._environments[number] else None
        process = multiprocessing.get_context("forkserver").Process(
            target=serve_scheduler,
            args=(self._address, number, environment, resources),
            daemon=True,
        )
        process.start()
        return process

    def _replace_lost(self) -> None:
        while not self._stopped.wait(CHECK_S):
            for number, process in enumerate(self._processes):
                if not process.is_alive():
                    self._causes.append(describe_end(process.exitcode))
                    self._processes[number] = self._start(number)


def serve_scheduler(
    address: str, number: int, environment: Mapping[str, str], resources: dict[str, float] | None
) -> NoReturn:
    """Entry point of a worker process on this machine."""
    become_worker(environment)
    _silence()
    from distributed import Worker

    async def serve() -> None:
        worker = Worker(
            address,
            nthreads=1,
            name=number,
            resources=resources,
            memory_limit=0,  # nothing is stored, so nothing can be freed or paused for
            dashboard=False,
        )
        await worker
        await worker.finished()

    asyncio.run(serve())
    os._exit(0)


@contextmanager
def _open_slurm(n_jobs: int, options: dict[str, Any], *, on_gpu: bool) -> Iterator[_Connected]:
    import dask
    from dask_jobqueue.slurm import SLURMCluster
    from distributed import Client

    options = complete_slurm_options(options, on_gpu=on_gpu)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        try:
            cluster = SLURMCluster(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"--dask slurm: {error}; set it in the config under cluster "
                "(cores, memory, walltime, queue, account, ...)"
            ) from error
        stopped = threading.Event()

        def keep_jobs() -> None:
            """Submit again what was lost, such as a job at its time limit."""
            while not stopped.wait(CHECK_JOBS_S):
                cluster.scale(jobs=n_jobs)

        with cluster, Client(cluster, timeout=CONNECT_S) as client:
            cluster.scale(jobs=n_jobs)
            keeper = threading.Thread(target=keep_jobs, daemon=True)
            keeper.start()
            try:
                n_workers = n_jobs * int(options.get("processes") or 1)
                yield _Connected(client, "slurm", n_workers, is_own=True)
            finally:
                stopped.set()
                keeper.join()


def complete_slurm_options(options: Mapping[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """Add to the options of a ``SLURMCluster`` what every command needs.

    A worker processes one slide at a time. It declares the GPU that its job is given by
    ``job_extra_directives``.

    Raises
    ------
    ConfigError
        If a job is given several GPUs: its processes would share the first.

    Examples
    --------
    >>> given = {"cores": 4, "job_extra_directives": ["--gres=gpu:1"]}
    >>> complete_slurm_options(given, on_gpu=True)["worker_extra_args"]
    ['--nthreads', '1', '--resources', 'GPU=1']
    """
    found = dict(options)
    # Workers on other nodes must reach the scheduler; the dashboard stays local.
    found.setdefault("scheduler_options", {"dashboard_address": "127.0.0.1:0"})
    found.setdefault("processes", 1)
    more = ["--nthreads", "1"]
    directives = found.get("job_extra_directives") or ()
    numbers = [int(match[1]) for match in map(_GPUS.search, map(str, directives)) if match]
    if on_gpu and numbers:
        if max(numbers) > 1 or int(found["processes"] or 1) > 1:
            raise ConfigError(
                "cluster: one process per GPU: set processes: 1 and --gres=gpu:1 in "
                "cluster.options, and --workers to the number of GPUs"
            )
        more += ["--resources", "GPU=1"]
    if found.get("cores"):  # Dask sets these to 1 where they are not set
        share = max(1, int(found["cores"]) // int(found["processes"] or 1))
        exports = [f"export {name}={share}" for name in THREAD_VARIABLES]
        found["job_script_prologue"] = [*exports, *(found.get("job_script_prologue") or ())]
    found["worker_extra_args"] = [*(found.get("worker_extra_args") or ()), *more]
    return found
