"""What is finished in a run folder, and what failed.

An output is finished when its mark (`run.marks`) agrees with it. A mark is written last,
under ``.state/``. Before an output is made again, its mark is turned into a list of what was made,
so that no file of other settings is left next to the new ones. Marks are one per slide, so shards
of a job array share a run folder without locks.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tiling.files import json_text, read_json_object, update_text, write_json
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
    """What is there of a unit."""

    state: State
    problems: tuple[str, ...] = ()  # sentences without full stop: files that are not as marked


def examine_unit(
    run: RunFolder,
    unit: Unit,
    fingerprint: str,
    *,
    earlier_fingerprint: Callable[[], str | None] = lambda: None,
) -> Examined:
    """Find out whether a unit's output is there, whole, and made from what there is now.

    Parameters
    ----------
    run, unit
    fingerprint : str
        Of the settings and inputs there are now.
    earlier_fingerprint : function
        Gives the same as an earlier version computed it (None: as now); compared with marks
        without checksums.
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
    """Give the state of a unit; see `examine_unit`."""
    return examine_unit(run, unit, fingerprint).state


_seen: ContextVar[dict[tuple[Path, tuple[str, ...] | None], list[Problem]] | None] = ContextVar(
    "_seen", default=None
)


@contextmanager
def check_each_once() -> Iterator[None]:
    """Within, `check_unit` reads the files of a unit once: several models share what it found."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def check_unit(run: RunFolder, unit: Unit, names: Sequence[str] | None = None) -> list[Problem]:
    """List what is wrong with a finished unit's files, whatever they were made from.

    Parameters
    ----------
    run, unit
    names : sequence of str
        Files of the mark to look at; None: all, and what later stages have found.
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
    """Mark a unit's files as whole; forget that it ever failed, and what it made before."""
    mark, absent = make_mark(run.path, fingerprint, files)
    if absent:
        raise StageError(f"{unit.name}: {unit.stage} ended without writing {', '.join(absent)}")
    _remove_earlier(run, unit, list(mark.files))
    write_mark(unit.mark(run, "done"), mark)
    unit.mark(run, "failed").unlink(missing_ok=True)
    unit.mark(run, "earlier").unlink(missing_ok=True)


def clear_mark(run: RunFolder, unit: Unit) -> None:
    """Forget that a unit was finished, before its output is touched; keep which files it made."""
    done, earlier = unit.mark(run, "done"), unit.mark(run, "earlier")
    made = {*read_names(done), *read_names(earlier)}
    if made:
        write_json(earlier, {"files": sorted(made)})
    done.unlink(missing_ok=True)


def _remove_earlier(run: RunFolder, unit: Unit, names: Sequence[str]) -> None:
    """Remove what a unit made under other settings and has not made again, next to what it made.

    Only in the run folder, and nothing that another unit has made since.
    """
    folders = {PurePosixPath(name).parent for name in names}
    deep = folders - {PurePosixPath()}  # below the run folder itself is everything
    left = [
        name
        for name in set(read_names(unit.mark(run, "earlier"))) - set(names)
        if is_inside(name)
        and (PurePosixPath(name).parent in folders or deep & {*PurePosixPath(name).parents})
        and marked_file(run.path, name).is_file()
    ]
    if not left:
        return
    marks = unit.mark(run, "done").parent.glob("*.done.json")
    others = {name for mark in marks for name in read_names(mark)}
    for name in left:
        if name not in others:
            log.debug("%s: removed %s, made under other settings", unit.title, name)
            marked_file(run.path, name).unlink(missing_ok=True)


def record_damage(run: RunFolder, path: Path, stage: str, message: str) -> None:
    """Record that `stage` found a file damaged, for the stage that made it to rebuild it."""
    unit = run.unit_of(path)
    if unit is not None:
        add_damage(unit.mark(run, "done"), f"was found damaged by {stage} ({message})")


def record_failure(run: RunFolder, unit: Unit, error: str, message: str) -> None:
    """Keep why a unit failed."""
    record = {"slide_id": unit.name, "stage": unit.stage, "error": error, "message": message}
    write_json(unit.mark(run, "failed"), record)


def iterate_failures(run: RunFolder) -> Iterator[dict[str, str]]:
    """Yield the recorded failures, ordered by stage and slide; a damaged record is one, too."""
    state = run.path / ".state"
    for path in sorted(state.rglob("*.failed.json")):
        try:
            found = read_json_object(path)
            row = {name: found[name] for name in FAILURE_COLUMNS}
            if not all(isinstance(value, str) for value in row.values()):
                raise ValueError("its values are not text")
        except FileNotFoundError:  # another process has just done that unit
            continue
        except (OSError, ValueError, KeyError) as error:
            name = path.relative_to(run.path).as_posix()
            message = f"{name}: damaged record of a failure ({error}); run the stage again"
            stage = path.relative_to(state).parts[0]
            unit = path.name.removesuffix(".failed.json")
            row = dict(zip(FAILURE_COLUMNS, (unit, stage, "StageError", message), strict=True))
        yield row


def forget_failures(run: RunFolder, stages: Sequence[str], *, listed: Sequence[str]) -> None:
    """Forget the failures of slides that the manifest no longer lists."""
    for stage in stages:
        for path in (run.path / ".state" / stage).rglob("*.failed.json"):
            if path.name.removesuffix(".failed.json") not in listed:
                path.unlink(missing_ok=True)


def write_failures(run: RunFolder) -> int:
    """Write ``failures.csv`` from all recorded failures; returns how many there are."""
    rows = list(iterate_failures(run))
    update_csv(
        run.failures, FAILURE_COLUMNS, ([row[name] for name in FAILURE_COLUMNS] for row in rows)
    )
    run.logs.mkdir(exist_ok=True)  # where failures.csv sends its readers
    return len(rows)


def _splits_file(run: RunFolder, stage: str, variant: str, model: str) -> Path:
    return run.path / ".state" / stage / variant / model / SPLITS_FILE


def record_splits(
    run: RunFolder, stage: str, variant: str, model: str, splits: Sequence[str] | None
) -> None:
    """Record which splits a stage was asked to work on, for `collect`; None: all."""
    value = {"splits": None if splits is None else list(splits)}
    update_text(_splits_file(run, stage, variant, model), json_text(value))


def read_splits(
    run: RunFolder, stage: str, variant: str, model: str, default: Sequence[str] | None
) -> Sequence[str] | None:
    """Read which splits a stage was asked to work on last; None: all."""
    path = _splits_file(run, stage, variant, model)
    try:
        splits = read_json_object(path)["splits"]
        if splits is not None and not (
            isinstance(splits, list) and all(isinstance(name, str) for name in splits)
        ):
            raise ValueError("its splits are no list of names")
    except FileNotFoundError:
        return default
    except (OSError, ValueError, KeyError) as error:
        name = path.relative_to(run.path).as_posix()
        log.warning("%s: damaged (%s); the splits of run.json are taken", name, error)
        return default
    return None if splits is None else list(splits)


def _shards_folder(run: RunFolder, stage: str) -> Path:
    return run.path / ".state" / stage / JOB_ARRAYS


def mark_shard(
    run: RunFolder, stage: str, index: int, count: int, *, settings: str, ended: bool
) -> None:
    """Keep that one task of a job array has begun, or has come to its end, under some settings."""
    path = _shards_folder(run, stage) / f"{index}-of-{count}.json"
    write_json(path, {"index": index, "count": count, "settings": settings, "ended": ended})


def forget_shards(run: RunFolder, stage: str) -> None:
    """Forget earlier job arrays: the whole stage has been run in one piece."""
    for path in _shards_folder(run, stage).glob("*-of-*.json"):
        path.unlink(missing_ok=True)


def missing_shards(run: RunFolder, stage: str) -> tuple[int, list[int]]:
    """Give the size of the latest job array of a stage, and which of its tasks never ended.

    The latest is that of the task that was marked last; tasks of another size or of other
    settings belong to an earlier one.
    """
    paths = sorted(
        _shards_folder(run, stage).glob("*-of-*.json"),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
    )
    shards = [shard for shard in map(_read_shard, paths) if shard is not None]
    if not shards:
        return 0, []
    _, count, settings, _ = shards[-1]
    ended = {index for index, n, of, done in shards if done and (n, of) == (count, settings)}
    return count, [index for index in range(count) if index not in ended]


def _read_shard(path: Path) -> tuple[int, int, str, bool] | None:
    """Read the mark of a task: index, count, settings, ended; None where it is damaged."""
    try:
        found = read_json_object(path)
        index, count, settings = found["index"], found["count"], found["settings"]
        if path.name != f"{index}-of-{count}.json" or not isinstance(settings, str):
            raise ValueError("not the mark of this task")
        return int(index), int(count), settings, found["ended"] is True
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: damaged mark of a shard (%s); treated as missing", path.name, error)
        return None
