"""What each process is working on, and how its units of work ended: ``logs/*.jsonl``.

Each process that works on a stage appends to a file of its own, one JSON object per line: when it
begins and ends, and when each unit begins and ends (docs/formats.md). So nothing has to be locked,
and the log needs no second record of what is running: a process that has not ended, and is still
alive, is at work. On the same machine that is asked of the system (the process id and when it was
started); on another machine, the file's modification time says it, which is renewed every minute.

The log never decides what is finished: that is what the marks are for (`run.marks`). A log that
cannot be written does not stop a stage. It contains the names of units and of the machine, but no
path and no message.
"""

import json
import logging
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tiling.files import parse_json, read_bytes
from tiling.processes import has_ended, read_start
from tiling.urls import is_url
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.shards import ARRAYS, Shard

log = logging.getLogger(__name__)

BEAT_S = 60.0  # a file is touched this often while its process works
SILENT_S = 5 * BEAT_S  # a process of another machine is taken for dead after so long
MOST_WORKER_LOGS = 16  # that a worker which outlives its commands remembers

Ending = Literal["done", "kept", "failed"]

# A job and, in an array, all of its tasks: sbatch(1), qsub(1) of Grid Engine, bsub(1), qsub(1B).
JOB_IDS = ("SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


@dataclass(frozen=True)
class UnitKey:
    """Names of a unit of work, as in the lines of a log."""

    stage: str
    slide_id: str
    model: str
    variant: str


@dataclass(frozen=True)
class Ended:
    """A unit that a process has worked on."""

    unit: UnitKey
    outcome: str  # see `Ending`
    time: float  # of its end, s since 1970
    seconds: float
    fingerprint: str  # of what was made; empty: nothing, or not recorded


@dataclass
class Process:
    """One process that worked on a stage, as its log describes it."""

    name: str  # of its file
    stage: str
    host: str
    pid: int
    begun: float  # s since 1970
    seen: float  # when it last gave a sign of life, s since 1970
    about: Mapping[str, Any]  # its first line
    ending: str = ""  # "end"; "stopped": by an interrupt or an error; empty: none was written
    n_kept: int = 0  # units that it found finished when it began
    stale: set[UnitKey] = field(default_factory=set)  # units that it found out of date
    working: dict[UnitKey, float] = field(default_factory=dict)  # units that began, and when
    ended: list[Ended] = field(default_factory=list)

    @property
    def command(self) -> str:
        """Log of the command that it belongs to: its own, or of a worker that of another one."""
        return str(self.about.get("worker_of") or self.name)

    @property
    def shard(self) -> str:
        """Its part of the data set, for example ``3/16``; empty: all of it."""
        return str(self.about.get("shard") or "")

    @property
    def n_units(self) -> int | None:
        """Units that the command was given; None of a worker."""
        n = self.about.get("units")
        return n if isinstance(n, int) else None


class StageLog:
    """The log of this process's work on a stage.

    Parameters
    ----------
    run, stage
    shard : Shard, optional
        The part of the data set that the command works on.
    worker_of : str
        Log of the command that this process is a worker of; empty: this is the command.
    more : dict
        Further entries of the first line.
    """

    def __init__(
        self,
        run: RunFolder,
        stage: str,
        *,
        shard: str = "",
        worker_of: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> None:
        host = re.sub(r"[^\w-]+", "-", platform.node(), flags=re.ASCII)[:40]
        part = f".{shard.replace('/', '-of-')}" if shard else ""
        who = f"{host or 'host'}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.name = f"{stage}{part}.{who}.jsonl"
        self._path = (run.logs / self.name).absolute()
        self._is_kept = not is_url(self._path)  # object stores do not append
        self._stage = stage
        self._lock = threading.Lock()
        self._is_torn = False  # the last line may be there in part
        self._has_work = bool(worker_of)
        about = {"stage": stage, **describe_process(), "shard": shard or None}
        self.write("begin", **about, worker_of=worker_of or None, **(more or {}))

    def write(self, event: str, **values: Any) -> None:
        """Append a line, if that is possible."""
        if not self._is_kept:
            return
        line = json.dumps({"event": event, "time": _now(), **values})
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:  # closed: NFS shows it then
                    file.write(f"{chr(10) * self._is_torn}{line}\n")
                self._is_torn = False
            except OSError as error:  # for example a full disk, or a read-only folder
                self._is_torn = True
                log.debug("%s: a line of the log was not written (%s)", self._path, error)

    def write_unit(self, event: str, unit: Unit, **values: Any) -> None:
        """Append a line on a unit."""
        self._has_work = True
        self.write(event, **_name(unit), **values)

    def write_examined(self, *, new: int, kept: int, stale: Sequence[Unit]) -> None:
        """Append what was found before the work began: units to process, `stale` among them."""
        self._has_work |= new > 0  # perhaps by workers
        if kept or stale:
            self.write("examined", kept=kept, stale=[_name(unit) for unit in stale])

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Touch the file regularly, so that other machines see that this process is alive."""
        stop = threading.Event()

        def beat() -> None:
            while self._is_kept and not stop.wait(BEAT_S):
                with suppress(OSError):
                    os.utime(self._path)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def close(self, event: str) -> None:
        """Write the last line; a process that had nothing to do leaves no log."""
        if self._has_work or not self._is_kept:
            self.write(event)
            return
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _name(unit: Unit) -> dict[str, str]:
    """Write the names of a unit, without those that it does not have."""
    names = {"slide_id": unit.slide_id, "model": unit.model, "variant": unit.variant}
    return {"stage": unit.stage, **{key: name for key, name in names.items() if name}}


_open: dict[str, StageLog] = {}  # logs that this process writes, by that of their command


@contextmanager
def log_stage(
    run: RunFolder, stage: str, *, n_units: int, settings: str, shard: Shard | None = None
) -> Iterator[StageLog]:
    """Log the work of this process on a stage.

    Parameters
    ----------
    run, stage
    n_units : int
        Units of the stage, or of its shard.
    settings : str
        Digest of the settings of the stage.
    shard : Shard, optional

    Yields
    ------
    log : StageLog
        Its name is to be passed to `log_unit`.
    """
    part = f"{shard.index}/{shard.count}" if shard else ""
    written = StageLog(run, stage, shard=part, more={"units": n_units, "settings": settings})
    _open[written.name] = written
    try:
        with written.beating():
            yield written
    except BaseException:
        written.close("stopped")
        raise
    else:
        written.close("end")
    finally:
        del _open[written.name]


@dataclass(frozen=True)
class Took:
    """How long a unit took, and where."""

    seconds: float
    host: str
    at: str  # time of its end, UTC


@contextmanager
def log_unit(run: RunFolder, unit: Unit, command: str) -> Iterator[Callable[[Ending, str], Took]]:
    """Log the work on a unit, in the process that does it.

    Parameters
    ----------
    command : str
        Name of the log of the command, perhaps of another process; empty: there is none.

    Yields
    ------
    end : function
        To be called with the outcome, and the fingerprint of what was made, if anything was.
    """
    begun = time.monotonic()

    def took() -> Took:
        return Took(round(time.monotonic() - begun, 3), platform.node(), _now())

    if not command:
        yield lambda outcome, fingerprint: took()
        return
    here = _open.get(command)
    own = here if here is not None else _open_as_worker(run, unit.stage, command)
    own.write_unit("start", unit)

    def end(outcome: Ending, fingerprint: str) -> Took:
        found = took()
        made = {"fingerprint": fingerprint} if fingerprint else {}
        own.write_unit(outcome, unit, seconds=found.seconds, host=found.host, **made)
        return found

    if here is not None:  # whose file is touched by `log_stage`
        yield end
        return
    with own.beating():
        yield end


def log_lost(unit: Unit, command: str) -> None:
    """Log in the command's process that the worker of a unit was lost."""
    if command in _open:
        _open[command].write_unit("failed", unit)


def _open_as_worker(run: RunFolder, stage: str, command: str) -> StageLog:
    """Open the log of a worker: the same one for all units of a command."""
    if len(_open) >= MOST_WORKER_LOGS:
        _open.pop(next(iter(_open)))
    # "predict.3-of-16.host-1-ab.jsonl": names of stages have no dot
    found = re.match(r"[^.]+\.(\d+)-of-(\d+)\.", command)
    shard = f"{found[1]}/{found[2]}" if found else ""
    _open[command] = StageLog(run, stage, shard=shard, worker_of=command)
    return _open[command]


def describe_process(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Describe this process: where it runs, and as which job of a scheduler."""
    job = next((environ[name] for name in JOB_IDS if environ.get(name)), None)
    task = next(
        (environ[a.index] for a in ARRAYS if environ.get(a.index, "") not in {"", a.outside}), None
    )
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "pids": _pid_namespace(),
        "started": read_start(os.getpid()),
        "job": job,
        "array_task": task,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _pid_namespace() -> str:
    """Name what process ids refer to: a container may have its own; empty where unknown."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def is_alive(process: Process, *, now: float) -> bool:
    """Whether a process that has not ended its log is still at work.

    Parameters
    ----------
    process : Process
    now : float
        s since 1970, by the clock of the file system.
    """
    about = process.about
    here = (about.get("host"), about.get("pids")) == (platform.node(), _pid_namespace())
    if not here:
        return now - process.seen <= SILENT_S
    started = about.get("started")
    if started is not None:
        return bool(read_start(process.pid) == started)
    return not has_ended(process.pid)


def read_logs(run: RunFolder) -> list[Process]:
    """Read the logs of all processes, in the order in which they began."""
    found = []
    try:
        with os.scandir(run.logs) as entries:
            paths = [Path(e.path) for e in entries if e.name.endswith(".jsonl")]
    except FileNotFoundError:
        return []
    for path in paths:
        with suppress(OSError):  # removed at this moment: it had nothing to do
            process = _parse(path.name, path.stat().st_mtime, read_bytes(path))
            found += [] if process is None else [process]
    return sorted(found, key=lambda process: (process.begun, process.name))


def _parse(name: str, seen: float, data: bytes) -> Process | None:
    """Read a log; None if its first line is missing. Damaged lines are left out."""
    process: Process | None = None
    for line in data.splitlines():
        try:
            found = parse_json(line)
            event, at = found["event"], datetime.fromisoformat(found["time"]).timestamp()
            if process is not None:
                _add(process, event, at, found)
            elif event == "begin":
                pid = int(found["pid"])
                process = Process(name, found["stage"], found["host"], pid, at, seen, found)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return process


def _add(process: Process, event: str, at: float, found: dict[str, Any]) -> None:
    if event in {"end", "stopped"}:
        process.ending = event
    elif event == "examined":
        process.n_kept += int(found["kept"])
        process.stale |= {_key(one) for one in found["stale"]}
    elif event == "start":
        process.working[_key(found)] = at
    else:
        unit = _key(found)
        process.working.pop(unit, None)
        seconds, made = float(found.get("seconds") or 0), str(found.get("fingerprint", ""))
        process.ended.append(Ended(unit, event, at, seconds, made))


def _key(found: Mapping[str, Any]) -> UnitKey:
    names = (found["stage"], *(found.get(name, "") for name in ("slide_id", "model", "variant")))
    return UnitKey(*map(str, names))
