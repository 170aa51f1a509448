"""State of the units in a run folder: finished and failed.

An output is finished if it matches its mark (`run.marks`). A mark is written last, under
``.state/``. Before an output is rebuilt, its mark becomes a list of the files it had, so that no
file of other settings is left next to the new ones. There is one mark per slide, so the shards of a
job array share a run folder without locks.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tiling.files import json_text, make_durable, read_json_object, update_text, write_json
from wsi_pipeline.csv_files import update_csv
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import JOB_ARRAYS
from wsi_pipeline.run.marks import (
    Problem,
    add_damage,
    find_problems,
    is_inside,
    make_mark,
    marked_file,
    read_mark,
    read_names,
    write_mark,
)

log = logging.getLogger(__name__)

State = Literal["missing", "stale", "damaged", "finished"]
SPLITS_FILE = "asked.json"
FAILURE_COLUMNS = ("slide_id", "stage", "error", "message")


@dataclass(frozen=True)
class Examined:
    """State of a unit's output."""

    state: State
    problems: tuple[str, ...] = ()  # sentences without full stop: files that are not as marked


def examine_unit(
    run: RunFolder,
    unit: Unit,
    fingerprint: str,
    *,
    earlier_fingerprint: Callable[[], str | None] = lambda: None,
) -> Examined:
    """Check whether a unit's output exists, is intact, and matches the current inputs.

    Parameters
    ----------
    run, unit
    fingerprint : str
        Of the current settings and inputs.
    earlier_fingerprint : function
        Returns the fingerprint as computed by earlier versions (None: the same); compared with
        marks without checksums.
    """
    path = unit.mark(run, "done")
    mark = read_mark(path)
    if mark is None:
        return Examined("missing")
    if mark.fingerprint != fingerprint:
        kept = not mark.sha256 and mark.fingerprint == earlier_fingerprint()
        if not kept:
            return Examined("stale")
    problems = find_problems(run.path, path, mark)
    if not problems:
        return Examined("finished")
    gone = all(problem.is_missing for problem in problems)
    return Examined("missing" if gone else "damaged", tuple(map(str, problems)))


def unit_state(run: RunFolder, unit: Unit, fingerprint: str) -> State:
    """Return the state of a unit; see `examine_unit`."""
    return examine_unit(run, unit, fingerprint).state


_seen: ContextVar[dict[tuple[Path, tuple[str, ...] | None], list[Problem]] | None] = ContextVar(
    "_seen", default=None
)


@contextmanager
def check_each_once() -> Iterator[None]:
    """Cache the results of `check_unit`, so that several models share them."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def check_unit(run: RunFolder, unit: Unit, names: Sequence[str] | None = None) -> list[Problem]:
    """List the problems of a finished unit's files, without regard to its fingerprint.

    Parameters
    ----------
    run, unit
    names : sequence of str
        Files of the mark to check; None: all, and the damage found by later stages.
    """
    path = unit.mark(run, "done")
    seen, key = _seen.get(), (path, None if names is None else tuple(names))
    if seen is not None and key in seen:
        return seen[key]
    mark = read_mark(path)
    problems = [] if mark is None else find_problems(run.path, path, mark, names)
    if seen is not None:
        seen[key] = problems
    return problems


def mark_finished(run: RunFolder, unit: Unit, fingerprint: str, files: Sequence[Path]) -> None:
    """Mark a unit as finished; remove its record of failure and its earlier files.

    The files are on the disk before their mark: a power loss leaves no mark without them.
    """
    mark, absent = make_mark(run.path, fingerprint, files)
    if absent:
        raise StageError(f"{unit.name}: {unit.stage} ended without writing {', '.join(absent)}")
    _remove_earlier(run, unit, list(mark.files))
    done = unit.mark(run, "done")
    make_durable(files, root=run.path)
    write_mark(done, mark)
    make_durable([done], root=run.path)
    forget_attempts(run, unit)


def forget_attempts(run: RunFolder, unit: Unit) -> None:
    """Remove what a finished unit's earlier attempts recorded: failure and list of files."""
    unit.mark(run, "failed").unlink(missing_ok=True)
    unit.mark(run, "earlier").unlink(missing_ok=True)


def clear_mark(run: RunFolder, unit: Unit) -> None:
    """Remove a unit's mark before its output is rebuilt; keep the list of its files."""
    done = unit.mark(run, "done")
    list_earlier(run, unit, [done])
    if done.exists():
        done.unlink(missing_ok=True)
        make_durable([done], root=run.path)  # it must not return to files of other settings


def list_earlier(run: RunFolder, unit: Unit, marks: Iterable[Path]) -> None:
    """List the files of marks as earlier ones of a unit, which go unless it writes them again."""
    earlier = unit.mark(run, "earlier")
    made = {name for path in (*marks, earlier) for name in read_names(path)}
    if made:
        write_json(earlier, {"files": sorted(made)})


def _remove_earlier(run: RunFolder, unit: Unit, names: Sequence[str]) -> None:
    """Remove files that a unit wrote under other settings and has not written again.

    Only files in the run folder, in the folders of the new files, and of no other unit.
    """
    folders = {PurePosixPath(name).parent for name in names}
    deep = folders - {PurePosixPath()}  # everything is below the run folder itself
    left = [
        name
        for name in set(read_names(unit.mark(run, "earlier"))) - set(names)
        if is_inside(name)
        and (PurePosixPath(name).parent in folders or deep & {*PurePosixPath(name).parents})
        and marked_file(run.path, name).is_file()
    ]
    for name in left:
        if not _is_marked_elsewhere(run, unit, name):
            log.debug("%s: removed %s, made under other settings", unit.title, name)
            marked_file(run.path, name).unlink(missing_ok=True)


def _is_marked_elsewhere(run: RunFolder, unit: Unit, name: str) -> bool:
    """Whether a file is that of another unit of the stage.

    A file's name, or that of a folder it is in, starts with its unit's. So a few marks are looked
    for; to read those of all slides for each slide would take hours in a large run.
    """
    folder = unit.mark(run, "done").parent
    starts = {part[:end] for part in PurePosixPath(name).parts for end in range(1, len(part) + 1)}
    return any(name in read_names(folder / f"{start}.done.json") for start in starts)


def record_damage(run: RunFolder, path: Path, stage: str, message: str) -> None:
    """Record that `stage` found a file damaged, for the stage that made it to rebuild it."""
    unit = run.unit_of(path)
    if unit is not None:
        add_damage(unit.mark(run, "done"), f"was found damaged by {stage} ({message})")


def record_failure(run: RunFolder, unit: Unit, error: str, message: str) -> None:
    """Record the failure of a unit."""
    record = {"slide_id": unit.name, "stage": unit.stage, "error": error, "message": message}
    write_json(unit.mark(run, "failed"), record)


def iterate_failures(run: RunFolder) -> Iterator[dict[str, str]]:
    """Yield the recorded failures, by stage and slide; a damaged record is a failure, too."""
    state = run.path / ".state"
    for path in sorted(state.rglob("*.failed.json")):
        try:
            found = read_json_object(path)
            row = {name: found[name] for name in FAILURE_COLUMNS}
            if not all(isinstance(value, str) for value in row.values()):
                raise ValueError("its values are not text")
        except FileNotFoundError:  # another process has just finished that unit
            continue
        except (OSError, ValueError, KeyError) as error:
            name = path.relative_to(run.path).as_posix()
            message = f"{name}: damaged record of a failure ({error}); run the stage again"
            stage = path.relative_to(state).parts[0]
            unit = path.name.removesuffix(".failed.json")
            row = dict(zip(FAILURE_COLUMNS, (unit, stage, "StageError", message), strict=True))
        yield row


def forget_failures(run: RunFolder, stages: Sequence[str], *, listed: Sequence[str]) -> None:
    """Remove the failures of slides that are no longer in the manifest."""
    ids = set(listed)
    for stage in stages:
        for path in (run.path / ".state" / stage).rglob("*.failed.json"):
            if path.name.removesuffix(".failed.json") not in ids:
                path.unlink(missing_ok=True)


def write_failures(run: RunFolder) -> int:
    """Write ``failures.csv`` from all recorded failures; return their number."""
    rows = list(iterate_failures(run))
    update_csv(
        run.failures, FAILURE_COLUMNS, ([row[name] for name in FAILURE_COLUMNS] for row in rows)
    )
    run.logs.mkdir(exist_ok=True)  # tracebacks of the failures
    return len(rows)


def _splits_file(run: RunFolder, stage: str, variant: str, model: str) -> Path:
    return run.path / ".state" / stage / variant / model / SPLITS_FILE


def record_splits(
    run: RunFolder, stage: str, variant: str, model: str, splits: Sequence[str] | None
) -> None:
    """Record the splits that a stage was asked to process, for `collect`; None: all."""
    value = {"splits": None if splits is None else list(splits)}
    update_text(_splits_file(run, stage, variant, model), json_text(value))


def read_splits(
    run: RunFolder, stage: str, variant: str, model: str, default: Sequence[str] | None
) -> Sequence[str] | None:
    """Read the splits that a stage was last asked to process; None: all."""
    path = _splits_file(run, stage, variant, model)
    try:
        splits = read_json_object(path)["splits"]
        if splits is not None and not (
            isinstance(splits, list) and all(isinstance(name, str) for name in splits)
        ):
            raise ValueError("its splits are not a list of names")
    except FileNotFoundError:
        return default
    except (OSError, ValueError, KeyError) as error:
        name = path.relative_to(run.path).as_posix()
        log.warning("%s: damaged (%s); using the splits of run.json", name, error)
        return default
    return None if splits is None else list(splits)


def _shards_folder(run: RunFolder, stage: str) -> Path:
    return run.path / ".state" / stage / JOB_ARRAYS


def mark_shard(
    run: RunFolder, stage: str, index: int, count: int, *, settings: str, ended: bool
) -> None:
    """Record that a task of a job array has begun or ended."""
    path = _shards_folder(run, stage) / f"{index}-of-{count}.json"
    write_json(path, {"index": index, "count": count, "settings": settings, "ended": ended})


def forget_shards(run: RunFolder, stage: str) -> None:
    """Remove the records of earlier job arrays, after the whole stage has run in one piece."""
    for path in _shards_folder(run, stage).glob("*-of-*.json"):
        path.unlink(missing_ok=True)


def sort_by_time(paths: Iterable[Path]) -> list[Path]:
    """Sort files by modification time, oldest first; files removed by another task are left out."""
    times = []
    for path in paths:
        with suppress(FileNotFoundError):
            times.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(times)]


def missing_shards(run: RunFolder, stage: str) -> tuple[int, list[int]]:
    """Return the size of the latest job array of a stage and its tasks that never ended.

    The latest array is that of the last recorded task; tasks of another size or of other settings
    belong to an earlier array.
    """
    paths = sort_by_time(_shards_folder(run, stage).glob("*-of-*.json"))
    shards = [shard for shard in map(_read_shard, paths) if shard is not None]
    if not shards:
        return 0, []
    _, count, settings, _ = shards[-1]
    ended = {index for index, n, of, done in shards if done and (n, of) == (count, settings)}
    return count, [index for index in range(count) if index not in ended]


def _read_shard(path: Path) -> tuple[int, int, str, bool] | None:
    """Read the record of a task: index, count, settings, ended; None if it is damaged."""
    try:
        found = read_json_object(path)
        index, count, settings = found["index"], found["count"], found["settings"]
        if path.name != f"{index}-of-{count}.json" or not isinstance(settings, str):
            raise ValueError("not the record of this task")
        return int(index), int(count), settings, found["ended"] is True
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: damaged record of a shard (%s); treated as missing", path.name, error)
        return None
