"""Work for processes and Dask's workers, which import it by name."""

import os
import signal
import sys
import time
from pathlib import Path

from wsi_pipeline.run.cluster import map_tasks


def double(number: int) -> int:
    return 2 * number


def count_attempts(path: Path) -> int:
    """Leave a file for each attempt at a task; how many came before."""
    before = len(list(path.parent.glob(f"{path.name}.*")))
    path.with_suffix(f".{before}").touch()
    return before


def fail_at_first(path: Path) -> str:
    if count_attempts(path) == 0:
        raise OSError("a file system that was away for a moment")
    return "done"


def fail_always(path: Path) -> str:
    count_attempts(path)
    raise OSError("a file that cannot be read")


def work_or_die(path: Path) -> str:
    """Die once, always, or not at all, as the file's name has it."""
    attempts = count_attempts(path)
    if path.name == "always" or (path.name == "once" and attempts == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return path.name


def report(number: int, *, print_line) -> int:
    print_line(f"line of {number}")
    return number


def get_gpu(number: int) -> tuple[int, str | None, str]:
    """Its process, the GPU it sees, and its threads."""
    time.sleep(0.3)  # so that the other process takes the next
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"]


def has_gpu(number: int) -> bool:
    """Whether its Dask worker declares one."""
    from distributed import get_worker

    return "GPU" in get_worker().state.total_resources


def sleep(number: int) -> int:
    os.write(1, b"begun\n")
    time.sleep(60)
    return number


def main() -> None:
    """Sleep in workers, to be killed meanwhile."""
    dask = sys.argv[1] if len(sys.argv) > 1 else None
    for _ in map_tasks(sleep, [1, 2, 3], workers=2, dask=dask):
        pass


if __name__ == "__main__":
    main()
