"""What a run has done, what it is doing and where, and when it will end; nothing is written.

`collect` checks the files; this only looks at the names of the marks and at the logs of the
processes (`run.activity`), so it is quick, and may be asked while other machines work on the run.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from tiling.wording import pluralize
from wsi_pipeline.cohort.image_folder import ALL
from wsi_pipeline.cohort.kinds import Cohort, ImageCohort, cohort_of
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.run.activity import Ended, Process, UnitKey, is_alive, read_logs
from wsi_pipeline.run.mark_index import MarkFolder, MarkIndex
from wsi_pipeline.run.runner import digest_recorded, read_run_json
from wsi_pipeline.run.state import missing_shards
from wsi_pipeline.stages.expected import Expected, index_stages, list_expected

State = Literal["done", "running", "failed", "missing", "out_of_date"]
Doing = Literal["running", "stopped"]

# Whose output a unit's own was made from: of the same slide, of the same model.
_MADE_FROM = {"predict": ("tile", "train"), "heatmap": ("predict",), "export": ("predict",)}


@dataclass(frozen=True)
class Progress:
    """A stage that has begun, by one model and of one variant; each unit is in one state."""

    expected: Expected
    ids: Mapping[State, Sequence[str]]  # names of the units
    parts: tuple[int, int] | None  # finished, of how many, of images that several tasks share
    seconds: float | None  # mean of a unit
    per_hour: float | None  # units, while at least one was being processed
    begun: float | None  # s since 1970, as the logs have it
    last: float | None  # end of the last unit
    end: float | None  # expected


@dataclass(frozen=True)
class Working:
    """A process that is at work, or has stopped without finishing."""

    process: Process
    doing: Doing
    units: Mapping[UnitKey, float]  # that it is, or was, working on, and since when
    n_units: int | None  # that it has been given; of a worker, None
    n_ended: int  # done, failed, or kept from before


@dataclass(frozen=True)
class JobArray:
    """The latest job array of a stage, until all of its tasks have ended."""

    stage: str
    count: int  # tasks
    n_ended: int
    running: Sequence[int]  # their numbers, from 0, as in --shard
    stopped: Sequence[int]
    not_begun: Sequence[int]  # or they left no log


@dataclass(frozen=True)
class Status:
    """What a run has done, and what it is doing."""

    time: float  # s since 1970
    cohort: str  # how much there is, in words
    stages: tuple[Progress, ...]
    arrays: tuple[JobArray, ...]
    processes: tuple[Working, ...]


def find_status(run: RunFolder, *, now: float | None = None) -> Status:
    """Find out what a run has done and is doing, without changing it.

    Parameters
    ----------
    run : RunFolder
    now : float, optional
        s since 1970. Default: by the clock of this machine.

    Raises
    ------
    StageError
        If this is no run folder.
    """
    cohort = cohort_of(run)
    processes = read_logs(run)  # before the marks: what ends in between is then done
    marks, recorded = index_stages(run), read_run_json(run)
    now = time.time() if now is None else now
    # The clock of another machine, or of the file server, may be ahead.
    latest = max([now, *(process.seen for process in processes)])
    at_work = _Activity.of(processes, latest)
    history = _History.of(processes, recorded)
    stages = [
        _find_progress(job, marks, history, at_work, now)
        for job in list_expected(run, cohort, recorded, marks)
    ]
    unfinished = {p.expected.stage for p in stages if len(p.ids["done"]) < len(p.expected.units)}
    shown = (*at_work.describe_running(), *at_work.describe_stopped(unfinished))
    arrays = tuple(_list_arrays(run, shown))
    return Status(now, _count(cohort, marks), tuple(stages), arrays, shown)


def _list_arrays(run: RunFolder, processes: Iterable[Working]) -> Iterator[JobArray]:
    found: dict[tuple[str, str, Doing], list[int]] = {}  # by stage, size and what they do
    for one in processes:
        if one.n_units is not None and one.process.shard:
            index, _, size = one.process.shard.partition("/")
            found.setdefault((one.process.stage, size, one.doing), []).append(int(index))
    for stage in STAGES:
        count, open_ = missing_shards(run, stage.name) if stage.is_shardable else (0, [])
        if not open_:
            continue
        running, stopped = (
            sorted(set(found.get((stage.name, str(count), doing), ())) & set(open_))
            for doing in get_args(Doing)
        )
        rest = sorted(set(open_).difference(running, stopped))
        yield JobArray(stage.name, count, count - len(open_), running, stopped, rest)


def _count(cohort: Cohort, marks: MarkIndex) -> str:
    if isinstance(cohort, ImageCohort):
        unreadable = marks.of("tile").failed - {ALL}
        return f"{pluralize(len(cohort.entries), 'image')}, {len(unreadable)} unreadable"
    return pluralize(len(cohort.slides), "slide")


@dataclass(frozen=True)
class _Activity:
    """The processes that have not ended, by what they are doing."""

    commands: Mapping[str, Process]  # all of them, by name
    workers: Mapping[str, Sequence[Process]]  # by the name of their command
    running: Sequence[Process]  # commands
    stopped: Sequence[Process]  # commands, unless a later one does their work

    @classmethod
    def of(cls, processes: Iterable[Process], now: float) -> "_Activity":
        commands: dict[str, Process] = {}
        workers: dict[str, list[Process]] = {}
        for process in processes:
            if process.command == process.name:
                commands[process.name] = process
            else:
                workers.setdefault(process.command, []).append(process)
        for name, theirs in workers.items():
            if name in commands:
                commands[name], *workers[name] = _without_lost([commands[name], *theirs])
        running: list[Process] = []
        stopped: list[Process] = []
        later: dict[str, set[str]] = {}  # by stage, the parts that later commands work on
        for command in reversed(commands.values()):
            seen = later.setdefault(command.stage, set())
            is_open = command.ending == ""
            if is_open and is_alive(command, now=now):
                running.append(command)
            elif command.ending != "end" and not _is_taken_over(command.shard, seen):
                stopped.append(command)
            seen.add(command.shard)
        alive = {
            name: [one for one in workers.get(name, ()) if is_alive(one, now=now)]
            for name in (command.name for command in running)
        }
        return cls(commands, {**workers, **alive}, running[::-1], stopped[::-1])

    def describe_running(self) -> Iterator[Working]:
        """Describe the commands at work, each with its workers."""
        for command in self.running:
            yield self._describe(command, "running", command.working)
            for worker in self.workers[command.name]:
                if worker.working:
                    yield Working(worker, "running", dict(worker.working), None, len(worker.ended))

    def describe_stopped(self, unfinished: Collection[str]) -> Iterator[Working]:
        """Describe the commands that stopped, of stages with unfinished units."""
        for command in self.stopped:
            if command.stage in unfinished:
                both = (command, *self.workers.get(command.name, ()))
                lost = {unit: at for process in both for unit, at in process.working.items()}
                last = replace(command, seen=max(process.seen for process in both))
                yield self._describe(last, "stopped", lost)

    def _describe(self, command: Process, doing: Doing, on: Mapping[UnitKey, float]) -> Working:
        both = (command, *self.workers.get(command.name, ()))
        n_ended = len({ended.unit for process in both for ended in process.ended})
        return Working(command, doing, on, command.n_units, n_ended + command.n_kept)

    @cached_property
    def units(self) -> set[UnitKey]:
        """The units that are being worked on."""
        both = (p for command in self.running for p in (command, *self.workers[command.name]))
        return {_whole(unit) for process in both for unit in process.working}


def _without_lost(processes: Sequence[Process]) -> list[Process]:
    """Leave out units that another process of a command has begun or ended since.

    Their worker was lost, on a machine that cannot be asked.
    """
    last: dict[UnitKey, float] = {}
    for process in processes:
        ends = ((ended.unit, ended.time) for ended in process.ended)
        for unit, at in (*ends, *process.working.items()):
            last[unit] = max(at, last.get(unit, at))
    return [
        replace(p, working={unit: at for unit, at in p.working.items() if at == last[unit]})
        for p in processes
    ]


def _is_taken_over(shard: str, later: Collection[str]) -> bool:
    """Whether later commands work on the same part: the same shard, all, or another division."""
    count = shard.partition("/")[2]
    return shard in later or any(other.partition("/")[2] != count for other in later)


_Group = tuple[str, str, str]  # stage, variant, model


@dataclass(frozen=True)
class _History:
    """How units ended, by the logs of all processes."""

    by_group: Mapping[_Group, Sequence[Ended]]  # in the order of their ends
    ended: Mapping[UnitKey, float]  # when a unit was last done or kept
    changed: Mapping[UnitKey, float]  # when its output last became another one
    stale: Mapping[UnitKey, float]  # when it was found out of date under the present settings

    @classmethod
    def of(cls, processes: Sequence[Process], recorded: Mapping[str, Any]) -> "_History":
        by_group: dict[_Group, list[Ended]] = {}
        ended: dict[UnitKey, float] = {}
        changed: dict[UnitKey, float] = {}
        made: dict[UnitKey, str] = {}
        found = (one for process in processes for one in process.ended)
        for one in sorted(found, key=lambda one: one.time):
            unit = one.unit
            if one.outcome != "kept":
                by_group.setdefault((unit.stage, unit.variant, unit.model), []).append(one)
            if one.outcome != "failed":
                ended[unit] = one.time
            if one.fingerprint and made.get(unit) != one.fingerprint:
                made[unit], changed[unit] = one.fingerprint, one.time
        digests = {
            stage: digest_recorded(about.get("config", {}), stage)
            for stage, about in recorded.items()
        }
        stale = {
            unit: process.begun
            for process in processes
            if process.about.get("settings") == digests.get(process.stage)
            for unit in process.stale
        }
        return cls(by_group, ended, changed, stale)

    def is_stale(self, unit: UnitKey) -> bool:
        """Whether a finished unit is out of date, or made from one that is, by the logs."""
        ended = self.ended.get(unit)
        if unit in self.stale and (ended is None or ended < self.stale[unit]):
            return True
        return ended is not None and any(
            self.changed.get(source, ended) > ended or self.is_stale(source)
            for stage in _MADE_FROM.get(unit.stage, ())
            for source in (
                UnitKey(stage, unit.slide_id, "", ""),
                UnitKey(stage, unit.slide_id, unit.model, ""),
                UnitKey(stage, "", unit.model, ""),
            )
        )


def _find_progress(
    job: Expected, marks: MarkIndex, history: _History, at_work: _Activity, now: float
) -> Progress:
    folder = marks.of(job.stage, job.variant, job.model)
    working = at_work.units
    ids: dict[State, list[str]] = {state: [] for state in get_args(State)}
    for unit in job.units:
        key = UnitKey(unit.stage, unit.slide_id, unit.model, unit.variant)
        state: State = "missing"
        if unit.name in folder.done:
            state = "done" if not history.is_stale(key) else "out_of_date"
        elif unit.name in folder.failed:
            state = "failed"
        ids["running" if state != "done" and key in working else state].append(unit.name)
    ended = history.by_group.get((job.stage, job.variant, job.model), ())
    commands = [command for command in at_work.running if command.stage == job.stage]
    parts = _count_parts(folder, commands) if job.is_one and not ids["done"] else None
    since = min((command.begun for command in commands), default=None)
    per_hour = end = None
    if since is None:
        busy = _time_at_work(ended)
        per_hour = 3600 * len(ended) / busy if busy > 0 else None
    else:
        recent = [one for one in ended if one.time >= since]
        per_hour = 3600 * len(recent) / (now - since) if recent and now > since else None
        tried = {one.unit.slide_id for one in recent if one.outcome == "failed"}
        left = len(job.units) - len(ids["done"]) - len(tried.intersection(ids["failed"]))
        left = parts[1] - parts[0] if parts else left
        end = now + 3600 * left / per_hour if per_hour and left else None
    return Progress(
        job,
        ids,
        parts,
        sum(one.seconds for one in ended) / len(ended) if ended else None,
        per_hour,
        min((one.time - one.seconds for one in ended), default=since),
        max((one.time for one in ended), default=None),
        end,
    )


_PART = re.compile(rf"{ALL}\.\d+-of-(\d+)")


def _whole(unit: UnitKey) -> UnitKey:
    """Return the unit that a part is one of (`run.parts`)."""
    return replace(unit, slide_id=ALL) if _PART.fullmatch(unit.slide_id) else unit


def _count_parts(folder: MarkFolder, commands: Iterable[Process]) -> tuple[int, int] | None:
    """Count the finished parts of all images, and of how many; None: it is not divided."""
    sizes = [int(found[1]) for name in folder.done if (found := _PART.fullmatch(name))]
    counts = Counter(sizes)
    wanted = [int(command.shard.partition("/")[2]) for command in commands if command.shard]
    for n in (*wanted[-1:], *(n for n, _ in counts.most_common(1))):
        return counts[n], n
    return None


def _time_at_work(ended: Iterable[Ended]) -> float:
    """Return the seconds in which at least one unit was being processed."""
    total, until = 0.0, -math.inf
    for begin, end in sorted((one.time - one.seconds, one.time) for one in ended):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
