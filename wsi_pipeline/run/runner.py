"""Process the units of a stage: keep finished ones, record failures, continue with the rest."""

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tiling.files import json_text, read_json_object, remove_leftovers_below, update_text
from tiling.wording import name_some
from wsi_pipeline.config.reading import Config, as_plain, digest_settings
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.config.versions import versions
from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.run.activity import StageLog, log_lost, log_stage
from wsi_pipeline.run.cluster import map_tasks
from wsi_pipeline.run.full_disk import describe_full, is_full
from wsi_pipeline.run.progress import StageProgress
from wsi_pipeline.run.shards import Shard, select_shard
from wsi_pipeline.run.state import (
    Examined,
    check_each_once,
    clear_mark,
    examine_unit,
    forget_attempts,
    forget_shards,
    mark_shard,
    record_splits,
    write_failures,
)
from wsi_pipeline.run.tasks import Job, Outcome, Task, fail, perform

log = logging.getLogger(__name__)

READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # errors of writing to a read-only folder


@dataclass(frozen=True)
class Options:
    """How to run stages; does not affect their results."""

    workers: int = 1  # slides at a time
    device: str = "auto"
    shard: Shard | None = None
    dask: str | None = None
    overwrite: bool = False  # rebuild finished units
    quiet: bool = False
    # Slides of the shard, where one command runs several stages: no stage waits for other shards.
    slides: frozenset[str] | None = None


@dataclass(frozen=True)
class StageResult:
    """What a stage did."""

    stage: str
    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]
    notes: tuple[str, ...] = ()  # lines printed after it
    output: Path | None = None  # what was written
    unrecorded: str = ""  # why failures, or settings, could not be written

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some failed, 1 nothing could be done."""
        if not self.failed and not self.unrecorded:
            return 0
        return 3 if self.done or self.kept else 1

    def __str__(self) -> str:
        parts = [f"{len(self.done)} done"]
        parts += [f"{len(self.kept)} kept from before"] if self.kept else []
        parts += [f"{len(self.failed)} failed ({', '.join(self.failed)})"] if self.failed else []
        line = f"{self.stage}: {', '.join(parts)}"
        if self.output is not None and self.exit_code != 1:
            line += f"; output: {self.output}"
        return "\n".join((line, *self.notes))


def end_empty_shard(run: RunFolder, stage: str, config: Config, options: Options) -> None:
    """Record that a shard without slides has ended, since `collect` expects every shard."""
    if options.shard:
        _mark_shard(run, stage, config, options.shard, ended=True)


def run_stage(
    stage: str,
    run: RunFolder,
    tasks: Sequence[Task],
    config: Config,
    options: Options,
    *,
    of_shard: bool = False,
    arriving: Iterable[Task | None] | None = None,
    on_end: Callable[[str], None] | None = None,
) -> StageResult:
    """Process the units that are not finished; record failures.

    If everything is finished, the run folder may be read-only.

    Parameters
    ----------
    stage, run
    tasks : sequence of Task
        One per unit.
    config, options
    of_shard : bool
        The tasks are those of `options.shard` alone, as always with `options.slides`; otherwise
        they are of all shards.
    arriving : iterable of Task or None, optional
        The same tasks, each as soon as it can begin; None in place of one that never can.
    on_end : function, optional
        Called with the title of each unit that ends; the stage runs in the background, while
        another one shows its progress.

    Raises
    ------
    StageError
        If the stage has no units, or the run folder cannot be written to.
    """
    if not tasks:
        raise StageError(f"{run.path}: nothing to {stage}")
    groups = {(task.unit.variant, task.unit.model) for task in tasks}
    if not of_shard and options.slides is None:
        chosen = select_shard({task.unit.name: task.weight for task in tasks}, options.shard)
        tasks = [task for task in tasks if task.unit.name in chosen]
    before = _text_to_restore(run)
    jobs: list[Job] = []
    done: list[str] = []
    kept: list[str] = []
    failed: list[str] = []
    unrecorded = ""
    with (
        log_stage(
            run,
            stage,
            n_units=len(tasks),
            settings=digest_recorded(as_plain(config), stage),
            shard=options.shard,
        ) as logged,
        StageProgress(
            stage,
            len(tasks),
            noun=tasks[0].noun if tasks else "unit",
            quiet=options.quiet,
            in_background=on_end is not None,
            on_end=on_end,
        ) as progress,
    ):
        begun = False
        for part in [tasks] if arriving is None else ([one] if one else None for one in arriving):
            if part is None:
                progress.leave_out()
                continue
            with check_each_once():
                finished, new, unreadable = _sort_out(run, part, options, progress, logged)
            jobs += new
            if not begun:
                try:
                    with _writing(run, stage, new):
                        _begin(stage, run, config, options, groups)
                except OSError as error:
                    if not is_full(error):
                        raise
                    unrecorded = describe_full(run.path)
                    kept += finished
                    failed += [*unreadable, *(job.task.unit.title for job in new)]
                    break
                begun = True
            made, still, lost, why = _process_jobs(run, new, config, options, progress)
            unrecorded = unrecorded or why
            done += made
            kept += finished + still
            failed += unreadable + lost
    output = run.path / {known.name: known.output for known in STAGES}.get(stage, "")
    result = StageResult(stage, tuple(done), tuple(kept), tuple(failed), output=output)
    try:
        with _writing(run, stage, jobs):
            write_failures(run)
            if options.shard:
                _mark_shard(run, stage, config, options.shard, ended=True)
            else:
                forget_shards(run, stage)
            if result.exit_code == 1 and not options.shard and before is not None:
                update_text(run.path / "run.json", before)  # every unit failed with these settings
    except OSError as error:
        if not is_full(error):
            raise
        unrecorded = describe_full(run.path)
    return replace(result, unrecorded=unrecorded)


@contextmanager
def _writing(run: RunFolder, stage: str, jobs: Sequence[Job]) -> Iterator[None]:
    """Ignore a read-only run folder if there is nothing to do; else raise a clear error."""
    try:
        yield
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        certain = [job.task.unit.title for job in jobs if job.fingerprint or job.overwrite]
        if certain:
            names = name_some(certain)
            raise StageError(
                f"{run.path}: cannot be written to ({error.strerror}), but {stage} has to "
                f"process {names}; copy the run folder, or make it writable"
            ) from error
        log.debug("%s: nothing recorded, %s", run.path, error)


def _begin(
    stage: str,
    run: RunFolder,
    config: Config,
    options: Options,
    groups: Iterable[tuple[str, str]],
) -> None:
    """Record the settings of the stage that is about to run."""
    if options.shard:
        _mark_shard(run, stage, config, options.shard, ended=False)
    else:  # other tasks of an array may be at work in this run folder
        remove_leftovers_below(run.path)
    _write_run_json(stage, run, config)
    section: Any = getattr(config, stage, None)
    if hasattr(section, "splits"):
        for variant, model in groups:
            record_splits(run, stage, variant, model, section.splits)


def _mark_shard(run: RunFolder, stage: str, config: Config, shard: Shard, *, ended: bool) -> None:
    settings = digest_settings(getattr(config, stage, None), config.seed)
    mark_shard(run, stage, shard.index, shard.count, settings=settings, ended=ended)


def _sort_out(
    run: RunFolder,
    tasks: Sequence[Task],
    options: Options,
    progress: StageProgress,
    logged: StageLog,
) -> tuple[list[str], list[Job], list[str]]:
    """Separate finished units, units to process, and units whose inputs cannot be examined."""
    stale: list[Task] = []
    kept: list[str] = []
    jobs: list[Job] = []
    failed: list[str] = []
    for task in tasks:
        name = task.unit.title
        try:
            fingerprint = task.fingerprint(run)
            found = Examined("missing")
            if fingerprint:
                found = examine_unit(
                    run,
                    task.unit,
                    fingerprint,
                    earlier_fingerprint=partial(task.earlier_fingerprint, run),
                )
        except Exception as error:  # one bad input must not stop the others
            outcome = fail(run, task.unit, error)
            logged.write_unit(outcome.name, task.unit)
            if options.overwrite:  # the earlier output is not wanted
                with suppress(OSError):
                    clear_mark(run, task.unit)
            progress.end(name, outcome.line, failed=True)
            failed.append(name)
            continue
        if found.state == "finished" and not options.overwrite:
            # It may have failed since, for example on a damaged input; or the command that finished
            # it was killed before it removed these.
            with suppress(OSError):
                forget_attempts(run, task.unit)
                task.clean_up(run)
            kept.append(name)
            progress.end(name, "finished before, kept")
            continue
        if found.state == "stale":
            stale.append(task)
            progress.line(f"{name}: out of date (settings or inputs changed); rebuilding")
        if found.problems:
            progress.line(f"{name}: {'; '.join(found.problems)}; rebuilding")
        jobs.append(Job(run, task, fingerprint, Path.cwd(), options.overwrite, logged.name))
    logged.write_examined(new=len(jobs), kept=len(kept), stale=[task.unit for task in stale])
    return kept, jobs, failed


def _process_jobs(
    run: RunFolder,
    jobs: Sequence[Job],
    config: Config,
    options: Options,
    progress: StageProgress,
) -> tuple[list[str], list[str], list[str], str]:
    """Process units; return those done, kept and failed, and why a failure was not recorded."""
    done: list[str] = []
    kept: list[str] = []
    failed: list[str] = []
    unrecorded = ""
    in_process = options.dask is None and (options.workers == 1 or len(jobs) <= 1)
    work = partial(_perform_here, progress=progress) if in_process else perform
    if not in_process:
        progress.begin_all([job.task.unit.title for job in jobs])
    results = map_tasks(
        work,
        jobs,
        workers=options.workers,
        dask=options.dask,
        cluster_options=config.cluster,
        print_line=progress.line,
    )
    for number, result in results:
        unit = jobs[number].task.unit
        outcome = result if isinstance(result, Outcome) else fail(run, unit, result)
        if outcome.took is None:  # its worker was lost
            log_lost(unit, jobs[number].log)
        progress.end(unit.title, outcome.line, failed=not outcome.ok, took=outcome.took)
        (kept if outcome.kept else done if outcome.ok else failed).append(unit.title)
        unrecorded = unrecorded or outcome.unrecorded
    return done, kept, failed, unrecorded


def _perform_here(job: Job, *, progress: StageProgress, print_line: PrintLine) -> Outcome:
    progress.begin(job.task.unit.title, job.task.counted)
    return perform(job, on_progress=progress.inside, print_line=print_line)


def _write_run_json(stage: str, run: RunFolder, config: Config) -> None:
    """Record the settings and versions of each stage."""
    stages = read_run_json(run)
    stages.pop(stage, None)  # the stage that ran last is the last in the file
    stages[stage] = {"config": as_plain(config), "versions": versions()}
    update_text(run.path / "run.json", json_text({"seed": config.seed, "stages": stages}))


def digest_recorded(config: Mapping[str, Any], stage: str) -> str:
    """Hash the settings of a stage as ``run.json`` records them."""
    return digest_settings(config.get(stage), config.get("seed"))


def read_run_json(run: RunFolder) -> dict[str, Any]:
    """Read like `read_stages`; a damaged file is treated as missing, with a warning."""
    try:
        return read_stages(run)
    except StageError as error:
        log.warning("%s", error)
        return {}


def read_stages(run: RunFolder) -> dict[str, Any]:
    """Read the recorded settings of each stage; empty before the first stage.

    Raises
    ------
    StageError
        If ``run.json`` is damaged.
    """
    path = run.path / "run.json"
    try:
        stages = read_json_object(path).get("stages", {})
        if not isinstance(stages, dict) or not all(map(_is_stage, stages.values())):
            raise ValueError("its stages are not settings by stage")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StageError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise StageError(
            f"{path}: damaged ({error}), so the settings of this run cannot be recalled; give them "
            "with --config FILE"
        ) from error
    return stages


def _is_stage(value: Any) -> bool:
    config = value.get("config") if isinstance(value, dict) else None
    return isinstance(config, dict) and all(
        isinstance(config.get(stage.name, {}), dict | None) for stage in STAGES
    )


def _text_to_restore(run: RunFolder) -> str | None:
    """Read ``run.json`` as it is; None where it is damaged."""
    try:
        read_stages(run)
        return (run.path / "run.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return "{}\n"
    except StageError:
        return None


_PER_COMMAND = ("input", "out", "stages")  # never recalled


def recall_settings(run: RunFolder, stage: str) -> dict[str, tuple[Any, str]]:
    """Recall the settings of a run, so that they need not be given to each stage.

    Each section of the config is the one of the last run of its own stage (``heatmap`` for
    heatmaps, also those made by ``evaluate``). If that stage never ran, and for settings of no
    stage, it is the one of the last run of `stage`, or else the latest of all.

    Returns
    -------
    recalled : dict
        Plain values, with paths reduced to file names, and the stage that they were set by; by
        section of the config. Empty before the first stage.

    Raises
    ------
    StageError
        If ``run.json`` is damaged.
    """
    recorded = read_stages(run).items()  # a damaged file raises an error
    if not recorded and (run.path / ".state").is_dir():
        log.warning(
            "%s is missing; using default settings (--config FILE sets others)",
            run.path / "run.json",
        )
    owners = {section: stage.name for stage in STAGES for section in stage.sections}
    # The settings of one export do not apply to the next, for another tool.
    not_recalled = {stage.name for stage in STAGES if stage.variants}
    configs = {name: done.get("config", {}) for name, done in recorded if name not in not_recalled}
    if not configs:
        return {}
    latest = stage if configs.get(stage) else list(configs)[-1]
    recalled = {}
    for name in dict.fromkeys(key for config in configs.values() for key in config):
        own = owners.get(name, name)
        source = own if name in configs.get(own, {}) else latest
        if name in configs[source] and name not in _PER_COMMAND:
            recalled[name] = (configs[source][name], source)
    return recalled
