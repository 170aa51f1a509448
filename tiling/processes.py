"""Whether another process of this machine is still there."""

import os
from pathlib import Path


def read_start(pid: int) -> int | None:
    """When a process was started, in the system's ticks; None: unknown, or it has ended.

    A process whose end nobody has noticed yet (a zombie) has ended.
    """
    fields = _read_stat(pid)
    return int(fields[19]) if fields and not _is_over(fields) else None


def has_ended(pid: int) -> bool:
    """Whether there is no such process of this machine, or it is a zombie.

    Where the first process of a container does not wait for the orphans that it inherits, a killed
    one remains as a zombie, and still takes signals.
    """
    fields = _read_stat(pid)
    if fields:
        return _is_over(fields)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is there, and belongs to somebody else
    return False


def _read_stat(pid: int) -> list[str]:
    """Fields 3 (state) to 52 of proc(5), ``/proc/PID/stat``; none where they cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()  # the name before may contain anything
    return fields if len(fields) > 19 else []


def _is_over(fields: list[str]) -> bool:
    return fields[0] in {"Z", "X"}
