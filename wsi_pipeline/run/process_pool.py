"""Mapping of a function over items in processes of this machine, any of which may be lost.

A damaged slide can crash the process that reads it, and a large one can exhaust the memory. Such an
item is processed once more, alone, after the others; then it has failed, with the cause.

Each process has a pipe of its own: there are no queues, whose semaphores would remain in /dev/shm
after SIGKILL, and it is always known which item a lost process had. A process ends with its parent,
however that ends.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar

from tiling.threads import count_cores
from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.errors import StageError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 8  # by default; more rarely help where slides lie on one disk
PRELOAD = ("tiling.footprint", "tiling.build")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
END_S = 2.0  # for an idle process to end by itself


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
    function: Callable[..., Result],
    items: Sequence[Item],
    *,
    workers: int,
    preload: Sequence[str] = PRELOAD,
    environments: Sequence[Mapping[str, str]] = ({},),
    print_line: PrintLine | None = None,
) -> Iterator[tuple[int, Result | StageError]]:
    """Call a function on each item in other processes; yield number and result as each ends.

    Parameters
    ----------
    function : callable
        Importable by name; must catch its own errors.
    items : sequence
        Can be sent to a process; paths absolute.
    workers : int
        Processes, at most one per item.
    preload : names of modules
        Imported once, for all processes.
    environments : sequence of mapping
        Environment variables that the processes get in turn, before anything else is imported.
    print_line : function, optional
        Called here with each line that `function` reports by the keyword argument `print_line` that
        it then gets.

    Yields
    ------
    number, result
        A `StageError` in place of a result if the item ended its process twice.
    """
    pool = _Pool(function, items, preload, environments, print_line)
    try:
        yield from pool.map(max(1, min(workers, len(items))))
    finally:
        pool.close()


@dataclass(eq=False)
class _Worker:
    """A process, and the end of its pipe here."""

    process: BaseProcess
    connection: Connection
    place: int  # its environment
    number: int | None = None  # of the item that it has


class _Pool:
    """The processes of one call of `map_in_processes`."""

    def __init__(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        preload: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        print_line: PrintLine | None,
    ) -> None:
        self._function = function
        self._items = items
        self._preload = preload
        self._environments = environments
        self._print_line = print_line
        self._workers: list[_Worker] = []

    def map(self, n_workers: int) -> Iterator[tuple[int, Any]]:
        waiting = deque(range(len(self._items)))
        lost: dict[int, str] = {}  # cause, by the item that is to be tried again
        again: deque[int] = deque()
        while True:
            self._assign(waiting, n_workers)
            if not waiting and not self._busy():  # alone: the others may have taken its memory
                self._assign(again, 1)
            busy = self._busy()
            if not busy:
                return
            for worker in self._wait(busy):
                number = worker.number
                assert number is not None
                kind, answer = self._receive(worker)
                if kind == "line":
                    assert self._print_line is not None
                    self._print_line(answer)
                elif kind == "done":
                    worker.number = None
                    yield number, answer
                elif number in lost:
                    yield number, StageError(f"{answer}; tried twice")
                else:
                    lost[number] = answer
                    again.append(number)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.number is not None]

    def _assign(self, numbers: deque[int], n_workers: int) -> None:
        """Give items to idle processes, and start those that are missing."""
        while numbers and len(self._busy()) < n_workers:
            idle = [worker for worker in self._workers if worker.number is None]
            worker = idle[0] if idle else self._start()
            worker.number = numbers.popleft()
            with suppress(OSError):  # it was lost in the meantime, which the next wait notices
                worker.connection.send(self._items[worker.number])

    def _start(self) -> _Worker:
        taken = [worker.place for worker in self._workers]
        place = next(n for n in range(len(taken) + 1) if n not in taken)
        environment = self._environments[place % len(self._environments)]
        # Not fork: a thread of this process may hold a lock at that moment.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(self._preload))
        here, there = context.Pipe()
        process = context.Process(
            target=_serve, args=(there, {**os.environ, **environment}), daemon=True
        )
        process.start()
        there.close()
        worker = _Worker(process, here, place)
        self._workers.append(worker)
        here.send((self._function, self._print_line is not None))
        return worker

    def _wait(self, busy: Sequence[_Worker]) -> list[_Worker]:
        """Wait until processes have sent something, or are lost."""
        ready = wait([one for w in busy for one in (w.connection, w.process.sentinel)])
        return [w for w in busy if w.connection in ready or w.process.sentinel in ready]

    def _receive(self, worker: _Worker) -> tuple[str, Any]:
        """Receive what a process has sent; ``lost`` and the cause if it has ended."""
        try:
            if worker.connection.poll():  # also what it sent before it ended
                kind, answer = worker.connection.recv()
                if kind == "raised":
                    worker.number = None
                return kind, answer
        except (EOFError, OSError):
            pass
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join(END_S)
        cause = describe_end(worker.process.exitcode)
        _end(worker.process)
        return "lost", cause

    def close(self) -> None:
        """End all processes; at once those that have an item."""
        for worker in self._workers:
            if worker.number is not None:
                worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(END_S)
            _end(worker.process)
        self._workers.clear()


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def describe_end(code: int | None) -> str:
    """Describe why a process has ended, by its exit code, and what to do.

    Examples
    --------
    >>> describe_end(-11)
    'its process crashed (SIGSEGV): the file may be damaged; copy it again, or leave it out'
    """
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if name in {"SIGKILL", "SIGTERM"}:
            return (
                f"its process was killed ({name}), most often because memory ran out; lower "
                "--workers, or give the job more memory"
            )
        return (
            f"its process crashed ({name}): the file may be damaged; copy it again, or leave it out"
        )
    return (
        f"its process ended (exit code {code}): a crash in the decoder, or too little memory; copy "
        "the file again from its source, or leave it out"
    )


# ------------------------------------------------------------ in the other process


def _serve(connection: Connection, environment: Mapping[str, str]) -> NoReturn:
    """Entry point of a process: call the function on each item that arrives."""
    become_worker(environment)
    try:
        function, reports = connection.recv()
        lock = threading.Lock()  # work may report from threads
        if reports:
            function = partial(function, print_line=partial(_send, connection, lock, "line"))
        while True:
            item = connection.recv()
            try:
                _send(connection, lock, "done", function(item))
            except Exception as error:
                _send(connection, lock, "raised", f"unexpected {type(error).__name__}: {error}")
    except (EOFError, OSError):  # nothing more to do, or the parent has ended
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # freeing memory takes libraries seconds


def _send(connection: Connection, lock: threading.Lock, kind: str, content: Any) -> None:
    with lock:
        connection.send((kind, content))


def become_worker(environment: Mapping[str, str]) -> None:
    """Prepare this process for work: its environment; its end with its parent's.

    Ctrl-C in a terminal reaches all processes: the parent handles it.
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of this process's parent, killed or not, then end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
