"""After a job array, or a purge of old files: what failed, what is missing, what is damaged.

A unit counts as done if its files are as its mark has them, which is what the stages check too:
sizes, and checksums of everything but pixels. With `verify`, pixels are read as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.kinds import cohort_of
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import find_name_problem
from wsi_pipeline.run.marks import Problem, find_problems, read_mark
from wsi_pipeline.run.runner import READ_ONLY, read_stages
from wsi_pipeline.run.state import (
    iterate_failures,
    missing_shards,
    record_damage,
    write_failures,
)
from wsi_pipeline.stages.expected import Expected, index_stages, list_expected
from wsi_pipeline.stages.image_maps import merge_maps
from wsi_pipeline.stages.predict import merge_images


@dataclass(frozen=True)
class Collected:
    """What a run folder holds and what it misses."""

    lines: tuple[str, ...]
    missing: int  # units that are missing or damaged, and shards that never ended
    failed: int


_State = Literal["done", "failed", "missing", "damaged"]  # in the order of a job's line


def collect(run: RunFolder, *, verify: bool = False) -> Collected:
    """Merge the failures of all shards; list what each stage and shard misses.

    For slides, the label audit is updated as well, since no shard sees all of them. A read-only run
    folder is not changed.

    Parameters
    ----------
    run : RunFolder
    verify : bool
        Read every patch of every store, too, and compare it with its checksum.
    """
    cohort = cohort_of(run)
    merged = _merge_parts(run)
    n_failed = _write_failures(run)
    if verify:
        _verify_pixels(run, cohort.slides)
    states = _UnitStates(run)
    lines, n_missing = merged, 0
    try:
        stages = read_stages(run)
    except StageError as error:
        stages = {}
        lines.append(str(error))
        n_missing += 1
    jobs = list_expected(run, cohort, stages, index_stages(run))
    for job in jobs:
        described, n = _describe(job, states)
        lines += described
        n_missing += n
    for stage in dict.fromkeys(job.stage for job in jobs):
        count, shards = missing_shards(run, stage)
        if shards:
            n_missing += len(shards)
            lines.append(
                f"{stage}: {pluralize(len(shards), 'shard')} of {count} never ended: "
                f"{', '.join(map(str, shards))}"
            )
    if any(Unit("tile", e.slide_id).is_marked(run) for e in cohort.slides):
        from wsi_pipeline.stages.label_audit import update_audit

        lines += [line] if (line := update_audit(run)) else []
    lines += cohort.describe()
    lines += [f"{pluralize(n_failed, 'failure')}, listed in {run.failures}"] if n_failed else []
    return Collected(tuple(lines), n_missing, n_failed)


def _merge_parts(run: RunFolder) -> list[str]:
    """Put together what the tasks of an array have left in parts."""
    merges = {"predict": merge_images, "heatmap": merge_maps}
    folders = [
        (stage, path.name)
        for stage in merges
        for path in sorted((run.path / ".state" / "parts" / stage).glob("*/"))
        if not find_name_problem(path.name)
    ]
    try:
        merged = [(stage, model) for stage, model in folders if merges[stage](run, model)]
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return []
    return [f"{stage} {model}: all parts put together" for stage, model in merged]


def _write_failures(run: RunFolder) -> int:
    try:
        return write_failures(run)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        return len(list(iterate_failures(run)))


def _verify_pixels(run: RunFolder, entries: Iterable[SlideEntry]) -> None:
    """Read the patches of every store; the stage tile rebuilds the damaged ones."""
    from tiling.store_files import find_damaged_pixels

    for entry in entries:
        path = run.store(entry.slide_id)
        damage = find_damaged_pixels(path) if path.is_dir() else None
        if damage is not None:
            record_damage(run, path, "collect", damage)


class _UnitStates:
    """The state of each unit, its mark and files read once."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._problems: dict[Unit, list[Problem] | None] = {}

    def problems(self, unit: Unit) -> list[Problem] | None:
        """List what is wrong with a unit's files; None: it has no mark, or a damaged one."""
        if unit not in self._problems:
            path = unit.mark(self._run, "done")
            mark = read_mark(path)
            found = None if mark is None else find_problems(self._run.path, path, mark)
            self._problems[unit] = found
        return self._problems[unit]

    def state(self, unit: Unit) -> _State:
        problems = self.problems(unit)
        if problems == []:
            return "done"
        if unit.mark(self._run, "failed").is_file():
            return "failed"
        return "missing" if all(p.is_missing for p in problems or ()) else "damaged"


def _describe(job: Expected, states: _UnitStates) -> tuple[list[str], int]:
    units: dict[_State, list[Unit]] = {state: [] for state in get_args(_State)}
    for unit in job.units:
        units[states.state(unit)].append(unit)
    bad = [*units["damaged"], *units["missing"]]
    why = [str(problem) for unit in bad for problem in states.problems(unit) or ()]
    lines = [f"{job.title}: {name_some(why, 20)}"] if why else []
    if job.is_one:
        return [f"{job.title}: {states.state(job.units[0])}", *lines], len(bad)
    line = f"{job.title}: {len(units['done'])} of {pluralize(len(job.units), 'slide')} done"
    for state, those in units.items():
        if those and state != "done":
            line += f", {len(those)} {state} ({name_some([u.name for u in those], 20)})"
    return [line, *lines], len(bad)
