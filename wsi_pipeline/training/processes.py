"""Training of one model in several processes, one per GPU.

Every process draws the same batches and computes its share of each. Losses and gradients are
averaged by the number of patches, so k processes give the same result as one, up to rounding.
Gradients are exchanged while the backward pass computes the next ones (DistributedDataParallel).
Only the first process writes files.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsi_pipeline.config.devices import check_one_each, resolve_device
from wsi_pipeline.contracts import Reporter
from wsi_pipeline.errors import PipelineError, TrainingError

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_POLL_S = 0.2
_LAST_WORDS_S = 2.0  # from when a process loses the others until the one that died is known


def rank() -> int:
    """Number of this process in its group; 0 if it trains alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes() -> int:
    """Number of processes in the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_share(n: int) -> slice:
    """Rows of a batch of `n` that this process takes: contiguous, as equal as can be."""
    start, stop = (n * k // n_processes() for k in (rank(), rank() + 1))
    return slice(start, stop)


def wait_for_all() -> None:
    """Wait until all processes have reached this point."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_all(value: float, device: torch.device) -> float:
    """Sum a number over the processes."""
    if not dist.is_initialized():
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def sum_losses(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum each of several numbers over the processes."""
    if not dist.is_initialized():
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return [float(total) for total in totals.cpu()]


def share_gradients(loss: nn.Module) -> nn.Module:
    """Wrap a loss so that gradients are averaged over the processes during the backward pass."""
    if not dist.is_initialized():
        return loss
    # Batch normalisation's running statistics are those of the first process.
    normalised = any(isinstance(m, torch.nn.BatchNorm2d) for m in loss.modules())
    with warnings.catch_warnings():  # PyTorch 2.13 has another name for it, earlier ones have not
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            loss, broadcast_buffers=normalised, gradient_as_bucket_view=True
        )


def without_exchange(loss: nn.Module, *, unless: bool) -> contextlib.AbstractContextManager[Any]:
    """Keep a shared loss's gradients in this process; the next backward pass adds and shares."""
    if unless or not isinstance(loss, DistributedDataParallel):
        return contextlib.nullcontext()
    return loss.no_sync()


def gather_rows(values: NDArray[np.float64], n: int, device: torch.device) -> NDArray[np.float64]:
    """Put the shares of `own_share(n)` together: (own rows,) of each process -> (n,)."""
    if not dist.is_initialized():
        return values
    longest = -(-n // n_processes())
    padded = torch.full((longest,), torch.nan, dtype=torch.float64, device=device)
    padded[: len(values)] = torch.from_numpy(values)
    parts = [torch.empty_like(padded) for _ in range(n_processes())]
    dist.all_gather(parts, padded)
    sizes = [n * (k + 1) // len(parts) - n * k // len(parts) for k in range(len(parts))]
    return torch.cat([p[:size] for p, size in zip(parts, sizes, strict=True)]).cpu().numpy()


def in_processes(
    work: Callable[..., Result],
    *arguments: Any,
    processes: int,
    device: str,
    on_progress: Reporter,
) -> Result:
    """Call ``work(*arguments, on_progress)`` in several processes that form a group; one: here.

    They end when this process ends, for any reason.

    Parameters
    ----------
    work : function
        Importable by name; what it returns in the first process is returned.
    arguments
        Sent to each process.
    processes : int
    device : str
        As `resolve_device` takes it; GPUs go round.
    on_progress : Reporter
        Called in this process with the progress and the lines of the first one.

    Raises
    ------
    Exception
        What `work` raised in one of the processes; the others are ended.
    ConfigError
        If the processes would share a GPU.
    TrainingError
        If a process died without reporting an error.
    """
    if processes == 1:
        return work(*arguments, on_progress)
    check_one_each(device, processes)
    context = mp.get_context("spawn")
    # Without a lock: a process killed while it held one would hang this one.
    progress, answers = context.RawArray("q", 2), context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        members = [
            context.Process(
                target=_member,
                args=(number, processes, device, meeting, work, arguments, progress, answers),
            )
            for number in range(processes)
        ]
        try:
            with _children_allowed():
                for member in members:
                    member.start()
            result: Result = _wait(members, progress, answers, on_progress)
        finally:
            _end([member for member in members if member.pid is not None])
    return result


@contextlib.contextmanager
def _children_allowed() -> Iterator[None]:
    # Dask's workers are daemons, which may not start processes that could outlive them. Ours end
    # with their parent.
    here = multiprocessing.current_process()
    daemon = here.daemon
    if daemon:
        here.daemon = False
    try:
        yield
    finally:
        if daemon:
            here.daemon = True


def _end(members: Sequence[Any]) -> None:
    for member in members:
        member.terminate()
    until = time.monotonic() + _LAST_WORDS_S  # for all of them together
    for member in members:
        member.join(max(0.0, until - time.monotonic()))
        if member.exitcode is None:  # in a driver's call that no signal interrupts
            member.kill()
            member.join()


def _wait(members: Sequence[Any], progress: Any, answers: Any, on_progress: Reporter) -> Any:
    reported, kind = (0, 0), "line"
    while kind == "line":
        while answers.empty():
            # Checked before the answers: a process sends its answer before it ends.
            died = _died(members)
            if died is not None and answers.empty():
                raise _died_silently(died)
            time.sleep(_POLL_S)
            if tuple(progress) != reported:
                reported = (progress[0], progress[1])
                on_progress(*reported)
        kind, value = answers.get()
        if kind == "line":
            on_progress.line(value)
    if kind == "done":
        return value
    if not isinstance(value, PipelineError):  # perhaps only the loss of another process
        died = _died(members, patience_s=_LAST_WORDS_S)
        if died is not None:
            raise _died_silently(died) from value
    raise value


def _died(members: Sequence[Any], *, patience_s: float = 0.0) -> int | None:
    """Return the exit code of a process that ended by itself; None if none does in time."""
    until = time.monotonic() + patience_s
    while True:
        codes = [member.exitcode for member in members if member.exitcode not in (None, 0)]
        if codes or time.monotonic() >= until:
            return codes[0] if codes else None
        time.sleep(0.05)


def _died_silently(exit_code: int) -> TrainingError:
    if exit_code < 0:
        return TrainingError(
            f"a training process was killed (signal {-exit_code}); often too little memory: lower "
            "batch_size or processes"
        )
    return TrainingError(
        f"a training process ended without an error message (exit code {exit_code}); see its last "
        "output above, or in the worker's log"
    )


def _member(
    number: int,
    count: int,
    device: str,
    meeting: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    progress: Any,
    answers: Any,
) -> None:
    """Entry point of a training process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(done: int, total: int) -> None:
        if number == 0:
            progress[:] = (done, total)

    def send_line(line: str) -> None:
        if number == 0:
            answers.put(("line", line))

    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    try:
        with _group(number, count, meeting, resolve_device(device, worker=number)):
            result = work(*arguments, Reporter(report, send_line))
        if number == 0:
            answers.put(("done", result))
    except Exception as error:
        answers.put(("raised", _sendable(error)))
    # At the interpreter's own end PyTorch's threads are destroyed, which aborts now and then, and
    # the other processes would be taken for lost with this one.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    """End this process when its parent ends, killed or not."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _group(number: int, count: int, meeting: str, device: torch.device) -> Iterator[None]:
    """Join the group; its messages stay on this machine."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=meeting,
        rank=number,
        world_size=count,
        device_id=device if on_gpu else None,
    )
    yield
    dist.destroy_process_group()  # not after an error, for it may wait for one that is gone


def _sendable(error: Exception) -> Exception:
    """Convert other errors than those of the pipeline to text, since not all can be pickled."""
    if type(error).__module__.split(".")[0] in {"tiling", "wsi_pipeline", "builtins"}:
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
