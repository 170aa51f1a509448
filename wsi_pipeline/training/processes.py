"""Several processes that train one model, one per GPU, and what they say to each other.

Every process draws the same batches and takes its share of each; losses and gradients are averaged
by the number of patches, so k processes do what one does with the same batch, to rounding. The
first process alone writes.
"""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.errors import TrainingError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Result = TypeVar("Result")
_POLL_S = 0.2


def rank() -> int:
    """Number of this process among those that train together; 0 where it trains alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_share(n: int) -> slice:
    """Rows of a batch of `n` that this process takes: contiguous, as equal as can be."""
    start, stop = (n * k // n_processes() for k in (rank(), rank() + 1))
    return slice(start, stop)


def wait_for_all() -> None:
    """Go on when every process is here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_all(value: float, device: torch.device) -> float:
    """Add a number up over the processes."""
    if not dist.is_initialized():
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def add_up_gradients(model: nn.Module) -> None:
    """Replace each gradient by its sum over the processes, many in one message."""
    if not dist.is_initialized():
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:  # none of the batch's patches was this process's
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


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
    on_progress: Progress,
) -> Result:
    """Call ``work(*arguments, on_progress)`` in several processes that form a group; one: here.

    Parameters
    ----------
    work : function
        Importable by name; what it returns in the first process is returned.
    arguments
        Sent to each process.
    processes : int
    on_progress : function
        Called here with what the first process tells.

    Raises
    ------
    Exception
        What `work` raised in one of the processes; the others are ended.
    TrainingError
        If a process died without a word.
    """
    if processes == 1:
        return work(*arguments, on_progress)
    context = mp.get_context("spawn")
    told, answers = context.Array("q", 2), context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        members = [
            context.Process(
                target=_member, args=(number, processes, meeting, work, arguments, told, answers)
            )
            for number in range(processes)
        ]
        for member in members:
            member.start()
        try:
            result: Result = _wait(members, told, answers, on_progress)
        finally:
            for member in members:
                member.terminate()
            for member in members:
                member.join()
    return result


def _wait(members: Sequence[Any], told: Any, answers: Any, on_progress: Progress) -> Any:
    said = (0, 0)
    while True:
        if answers.empty():
            ended = [m.exitcode for m in members if m.exitcode not in (None, 0)]
            if ended and answers.empty():
                raise TrainingError(
                    f"a training process ended without a word (exit code {ended[0]}); often too "
                    "little memory: lower batch_size or processes"
                )
            time.sleep(_POLL_S)
        else:
            kind, value = answers.get()
            if kind == "raised":
                raise value
            return value
        if tuple(told) != said:
            said = tuple(told)
            on_progress(*said)


def _member(
    number: int,
    count: int,
    meeting: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    told: Any,
    answers: Any,
) -> None:
    """Be one of the processes."""

    def tell(done: int, total: int) -> None:
        if number == 0:
            told[:] = (done, total)

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    try:
        with _group(number, count, meeting):
            result = work(*arguments, tell)
        if number == 0:
            answers.put(("done", result))
    except Exception as error:
        answers.put(("raised", _sendable(error)))


@contextlib.contextmanager
def _group(number: int, count: int, meeting: str) -> Iterator[None]:
    """Join the group; its messages stay on this machine."""
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(number % torch.cuda.device_count())
    dist.init_process_group(backend, init_method=meeting, rank=number, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _sendable(error: Exception) -> Exception:
    """Errors of the pipeline go as they are; others as their text, for not all can be sent."""
    if type(error).__module__.split(".")[0] in {"tiling", "wsi_pipeline", "builtins"}:
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
