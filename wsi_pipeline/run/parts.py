"""One unit done by several tasks of a job array: each writes a part, the last puts them together.

Parts are under ``.state/parts/``, apart from the results, each written whole or not
at all. They fit together if they say the same of how they were made.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tiling.files import parse_json, write_aside
from wsi_pipeline.config.reading import Config
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.state import (
    clear_mark,
    list_earlier,
    mark_finished,
    sort_by_time,
    unit_state,
)
from wsi_pipeline.run.tasks import Task

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """What one task found out."""

    count: int  # of the parts of the unit
    about: dict[str, Any]  # common to all parts, JSON; `fingerprint` of the unit, `data`: digest
    arrays: dict[str, NDArray[Any]]


def share_of(items: Sequence[Item], part: Shard | None) -> Sequence[Item]:
    """Choose a part's items: consecutive ones, as equally many as can be.

    Examples
    --------
    >>> [share_of("abcde", Shard(index, 3)) for index in range(3)]
    ['a', 'bc', 'de']
    """
    if part is None:
        return items
    first, end = (len(items) * k // part.count for k in (part.index, part.index + 1))
    return items[first:end]


def unit_of_part(unit: Unit, shard: Shard | None) -> Unit:
    """Give the unit of work of a task that does a part; without a shard, the whole."""
    if shard is None:
        return unit
    name = f"{unit.slide_id}.{shard.index}-of-{shard.count}"
    return Unit(unit.stage, name, unit.model, unit.variant)


def part_path(run: RunFolder, unit: Unit, shard: Shard) -> Path:
    """Give the file of a part."""
    name = unit_of_part(unit, shard).slide_id
    return run.path / ".state" / "parts" / unit.stage / unit.model / f"{name}.npz"


def write_part(
    path: Path, count: int, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write one of `count` parts, whole or not at all; `about` is the same in all of them."""
    values: dict[str, Any] = {"about": np.array(json.dumps(about)), "count": count, **arrays}
    with write_aside(path) as scratch, scratch.open("wb") as file:
        np.savez(file, **values)


def read_parts(run: RunFolder, unit: Unit) -> list[Part]:
    """Read the parts of a unit, in order; empty where one is missing or of other settings.

    The job array is that of the part that was written last.
    """
    folder = part_path(run, unit, Shard(0, 1)).parent
    paths = sort_by_time(folder.glob(f"{unit.slide_id}.*-of-*.npz"))
    found = {path.name: part for path in paths if (part := _read(path)) is not None}
    if not found:
        return []
    last = list(found.values())[-1]
    names = [part_path(run, unit, Shard(index, last.count)).name for index in range(last.count)]
    parts = [found[name] for name in names if name in found]
    whole = len(parts) == last.count
    same = all(part.about == last.about for part in parts)
    return parts if whole and same else []


def _read(path: Path) -> Part | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about, count = parse_json(str(arrays.pop("about"))), int(arrays.pop("count"))
        return Part(count, dict(about), arrays)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # damaged: its task does it again
        return None


def merge_parts(
    run: RunFolder,
    unit: Unit,
    write: Callable[[list[Part]], list[Path]],
    *,
    is_current: Callable[[str], bool],
) -> bool:
    """Put the parts of a unit together and mark it finished, if they are all there.

    Two tasks may do so at the same time: they write the same files, each as a whole.

    Parameters
    ----------
    run, unit
    write : function
        Writes the files of the unit from its parts, in order.
    is_current : function
        Whether the digest in `about["data"]` is that of the present data set.
    """
    parts = read_parts(run, unit)
    if not parts or not is_current(parts[0].about["data"]):
        return False
    clear_mark(run, unit)
    mark_finished(run, unit, parts[0].about["fingerprint"], write(parts))
    remove_parts(run, unit)
    return True


def remove_parts(run: RunFolder, unit: Unit) -> None:
    """Remove the parts of a unit and their marks."""
    folder = part_path(run, unit, Shard(0, 1)).parent
    for path in (*folder.glob(f"{unit.slide_id}.*-of-*.npz"), *_marks_of_parts(run, unit)):
        path.unlink(missing_ok=True)


def _marks_of_parts(run: RunFolder, unit: Unit) -> list[Path]:
    return list(unit.mark(run, "done").parent.glob(f"{unit.slide_id}.*-of-*.*.json"))


def run_in_parts(
    stage: str,
    run: RunFolder,
    tasks: Sequence[Task],
    config: Config,
    options: Options,
    *,
    merge: Callable[[RunFolder, str], bool],
) -> StageResult:
    """Run a stage whose units are too large for one task of a job array: each does a part of each.

    Parameters
    ----------
    tasks : sequence of Task
        Dataclasses with a field `part`, that do a whole unit where it is None.
    merge : function
        Of the run and a model: puts the parts together if they are all there, and marks the unit.
    """
    shard = options.shard
    if shard is None:
        with suppress(OSError):  # read-only: run_stage raises the error if it has to write
            for task in tasks:  # left by an array that did not end
                list_earlier(run, task.unit, _marks_of_parts(run, task.unit))
                remove_parts(run, task.unit)
        return run_stage(stage, run, tasks, config, options)
    todo: list[Any] = [t for t in tasks if options.overwrite or not _is_finished(run, t)]
    chosen = [*(t for t in tasks if t not in todo), *(replace(t, part=shard) for t in todo)]
    result = run_stage(stage, run, chosen, config, options, of_shard=True)
    merged = [task.unit.title for task in todo if merge(run, task.unit.model)]
    return replace(result, notes=tuple(f"{title}: all parts put together" for title in merged))


def _is_finished(run: RunFolder, task: Task) -> bool:
    return unit_state(run, task.unit, task.fingerprint(run)) == "finished"
