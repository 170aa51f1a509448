"""Units of work and their execution in a worker.

A stage creates a `Task` for each of its units. A `Job` is a task as sent to a worker, which imports
what it needs, catches every error, and returns the outcome.
"""

import contextlib
import logging
import re
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from tiling.contracts import OnProgress
from tiling.errors import ExpectedError
from tiling.files import write_text
from wsi_pipeline.config.extras import explain_missing
from wsi_pipeline.config.reading import anchor_paths
from wsi_pipeline.contracts import PrintLine, Reporter
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import fit_file_name, printable
from wsi_pipeline.run.activity import Ending, Took, log_unit
from wsi_pipeline.run.full_disk import describe_full, is_full
from wsi_pipeline.run.state import (
    Examined,
    clear_mark,
    examine_unit,
    forget_attempts,
    mark_finished,
    record_damage,
    record_failure,
)

log = logging.getLogger(__name__)

Done = tuple[list[Path], str]  # files made, and a line on what was done


class Task(ABC):
    """Work of a stage on one unit: a frozen dataclass with everything the work needs.

    Tasks are sent to workers, so their fields must be picklable, and paths must be fields of the
    task or of dataclasses, lists and mappings in them.
    """

    noun: ClassVar[str] = "slide"  # what a unit is
    counted: ClassVar[str] = "patch"  # what its progress counts

    @property
    @abstractmethod
    def unit(self) -> Unit:
        """Unit that this task processes."""

    @property
    def weight(self) -> int:
        """Amount of work, to balance shards."""
        return 1

    @abstractmethod
    def fingerprint(self, run: RunFolder) -> str:
        """Hash the settings and inputs of the output.

        May raise like the work itself. Empty: the worker computes `full_fingerprint`.
        """

    def full_fingerprint(self, run: RunFolder) -> str:
        """Compute the fingerprint in the worker, reading large files if necessary."""
        return self.fingerprint(run)

    def made_fingerprint(self, run: RunFolder) -> str:
        """Return the fingerprint of the output that the work has just written."""
        return self.full_fingerprint(run)

    def earlier_fingerprint(self, run: RunFolder) -> str | None:
        """Fingerprint as computed by earlier versions; None if unchanged."""
        return None

    def clean_up(self, run: RunFolder) -> None:  # noqa: B027  # most tasks keep nothing
        """Remove what an interrupted task would continue from; the unit is marked finished."""

    @abstractmethod
    def __call__(self, job: "Job", on_progress: Reporter) -> Done:
        """Do the work.

        Returns
        -------
        files : list of Path
            Files that were written.
        line : str
            Summary of the work.
        """


@dataclass(frozen=True)
class Job:
    """A task with its run folder, as a worker gets it."""

    run: RunFolder
    task: Task
    fingerprint: str  # empty: the worker computes it
    folder: Path  # working folder of the command, where relative paths start
    overwrite: bool = False  # process it even if it is finished
    log: str = ""  # name of the command's log (`run.activity`); empty: none


@dataclass(frozen=True)
class Outcome:
    """Outcome of a unit."""

    ok: bool
    line: str
    kept: bool = False  # was finished before
    unrecorded: str = ""  # why its failure could not be recorded
    fingerprint: str = ""  # of what was made
    took: Took | None = None

    @property
    def name(self) -> Ending:
        """The outcome in a word, as in the logs."""
        return "kept" if self.kept else "done" if self.ok else "failed"


def perform(
    job: Job, *, on_progress: OnProgress | None = None, print_line: PrintLine | None = None
) -> Outcome:
    """Process a unit; mark it finished, or record its failure. Only interrupts propagate.

    Lines that the task reports are printed with its title in front.
    """
    job = anchor_paths(job, job.folder)
    with log_unit(job.run, job.task.unit, job.log) as end:
        outcome = _perform(job, on_progress, print_line)
        return replace(outcome, took=end(outcome.name, outcome.fingerprint))


def _perform(job: Job, on_progress: OnProgress | None, print_line: PrintLine | None) -> Outcome:
    run, unit = job.run, job.task.unit

    def print_titled(line: str) -> None:
        if print_line is not None:
            print_line(f"{unit.title}: {line}")

    found = Examined("missing")
    try:
        if not job.fingerprint and unit.is_marked(run):  # else there is nothing to compare with
            job, found = _examine(job)
        if found.state == "finished" and not job.overwrite:
            return Outcome(True, "finished before, kept", kept=True)
        clear_mark(run, unit)
        files, line = job.task(job, Reporter(on_progress or _silent, print_titled))
        fingerprint = job.fingerprint or job.task.made_fingerprint(run)
        mark_finished(run, unit, fingerprint, files)
    except Exception as error:
        return fail(run, unit, error, folder=job.folder)
    with contextlib.suppress(OSError):  # the next command tries again
        job.task.clean_up(run)
    reasons = "out of date" if found.state == "stale" else "; ".join(found.problems)
    line = f"{reasons}, rebuilt: {line}" if reasons else line
    return Outcome(True, line, fingerprint=fingerprint)


def _examine(job: Job) -> tuple[Job, Examined]:
    """Compute the fingerprint and state of a unit for which the command could not."""
    run, unit = job.run, job.task.unit
    try:
        fingerprint = job.task.full_fingerprint(run)
    except Exception:
        if job.overwrite:  # the earlier output is not wanted
            clear_mark(run, unit)
        raise
    found = examine_unit(run, unit, fingerprint)
    if found.state == "finished":
        with contextlib.suppress(OSError):  # it may have failed since
            forget_attempts(run, unit)
            job.task.clean_up(run)
    return replace(job, fingerprint=fingerprint), found


def _silent(done: int, total: int) -> None:
    return None


def fail(run: RunFolder, unit: Unit, error: Exception, *, folder: Path | None = None) -> Outcome:
    """Record a failure: a sentence in ``failures.csv``, the traceback under ``logs/``.

    Paths in `folder` are written as they were given, relative to it.
    """
    message = _sentence(unit, error)
    if isinstance(error, ExpectedError) and error.damaged is not None:
        record_damage(run, error.damaged, unit.stage, message)
    if folder is not None and folder.name:
        message = re.sub(rf"(?<![\w./-]){re.escape(str(folder))}/", "", message)
    message = "\n".join(map(printable, message.split("\n")))  # it may contain any file name
    trace = "".join(traceback.format_exception(error))
    unrecorded = ""
    try:
        record_failure(run, unit, type(error).__name__, message)
        stage = "-".join(filter(None, (unit.stage, unit.variant)))
        log_name = fit_file_name((stage, unit.model or "slide", unit.name), ".log")
        write_text(run.logs / log_name, trace)
    except OSError as second:  # for example a full disk
        unrecorded = f"{run.path}: failures could not be recorded ({second.strerror or second})"
        if is_full(second):
            unrecorded = describe_full(run.path)
    return Outcome(False, f"FAILED: {message}", unrecorded=unrecorded)


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch's exception for a GPU; on a CPU it has none of its own.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _sentence(unit: Unit, error: Exception) -> str:
    if is_full(error):
        return (
            f"{unit.name}: no space left on the device while {unit.stage} was writing; free some "
            "and run the same command again: finished slides are kept"
        )
    if _is_out_of_memory(error):
        return f"{unit.name}: not enough memory in {unit.stage}; lower --workers or the batch size"
    if isinstance(error, ExpectedError):
        return str(error)
    if message := explain_missing(error, unit.stage):
        return f"{unit.name}: {message}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{unit.name}: {error.filename}: {error.strerror} (in {unit.stage})"
    return f"{unit.name}: unexpected {type(error).__name__} in {unit.stage}: {error}"
