"""Work off the units of a stage: keep what is finished, record what fails, go on with the rest."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tiling.errors import TilingError
from tiling.files import remove_leftovers, write_json
from wsi_pipeline.cluster import Shard, map_tasks, select_shard
from wsi_pipeline.config import Config, as_plain, digest_settings
from wsi_pipeline.errors import PipelineError, StageError
from wsi_pipeline.progress import StageProgress
from wsi_pipeline.runfolder import (
    RunFolder,
    Unit,
    forget_shards,
    mark_shard,
    unit_state,
    write_failures,
)
from wsi_pipeline.versions import versions
from wsi_pipeline.work import Outcome, Task, fail, perform


@dataclass(frozen=True)
class Options:
    """How to run stages; never changes what comes out."""

    workers: int = 1  # slides at a time
    device: str = "auto"
    shard: Shard | None = None
    dask: str | None = None
    overwrite: bool = False  # do finished units again
    quiet: bool = False


@dataclass(frozen=True)
class StageResult:
    """What a stage did."""

    stage: str
    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]
    notes: tuple[str, ...] = ()  # lines to say behind it

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some failed, 1 nothing could be done (contract 3)."""
        if not self.failed:
            return 0
        return 3 if self.done or self.kept else 1

    def __str__(self) -> str:
        parts = [f"{len(self.done)} done"]
        parts += [f"{len(self.kept)} kept from before"] if self.kept else []
        parts += [f"{len(self.failed)} failed ({', '.join(self.failed)})"] if self.failed else []
        return "\n".join((f"{self.stage}: " + ", ".join(parts), *self.notes))


@dataclass(frozen=True)
class Plan:
    """One unit, before it is known whether there is anything to do."""

    unit: Unit
    weight: int  # for the balance of shards
    # May fail like the work itself. Empty: only the worker can tell, and keeps what is finished.
    fingerprint: Callable[[], str]
    arguments: Mapping[str, Any]


def run_stage(
    stage: str, run: RunFolder, plans: Sequence[Plan], config: Config, options: Options
) -> StageResult:
    """Work off what is not finished; record what failed.

    Raises
    ------
    StageError
        If there is nothing the stage could work on.
    """
    if not plans:
        raise StageError(f"{run.path}: nothing to {stage}")
    shard = options.shard
    settings = digest_settings(getattr(config, stage, None), config.seed)
    if shard:
        mark_shard(run, stage, shard.index, shard.count, settings=settings, ended=False)
    else:  # other tasks of an array may be at work in these folders
        for folder in run.output_folders():
            remove_leftovers(folder)
    chosen = select_shard({plan.unit.name: plan.weight for plan in plans}, shard)
    plans = [plan for plan in plans if plan.unit.name in chosen]
    before = _read_record(run)
    _write_run_json(stage, run, config)
    with StageProgress(stage, len(plans), quiet=options.quiet) as progress:
        kept, tasks, failed = _sort_out(run, plans, options, progress)
        done, still, lost = _work_off(run, tasks, config, options, progress)
    write_failures(run)
    if shard:
        mark_shard(run, stage, shard.index, shard.count, settings=settings, ended=True)
    else:
        forget_shards(run, stage)
    result = StageResult(stage, tuple(done), tuple(kept + still), tuple(failed + lost))
    if result.exit_code == 1 and not shard:  # settings that nothing came of are not recalled
        write_json(run.path / "run.json", before)
    return result


def _sort_out(
    run: RunFolder, plans: Sequence[Plan], options: Options, progress: StageProgress
) -> tuple[list[str], list[Task], list[str]]:
    """Tell what is finished, what is to be done, and what cannot even be looked at."""
    kept: list[str] = []
    tasks: list[Task] = []
    failed: list[str] = []
    for plan in plans:
        name = plan.unit.title
        try:
            fingerprint = plan.fingerprint()
        except (TilingError, PipelineError, OSError) as error:
            outcome = fail(run, plan.unit, error)
            progress.end(name, outcome.line, failed=True)
            failed.append(name)
            continue
        state = unit_state(run, plan.unit, fingerprint) if fingerprint else "missing"
        if state == "finished" and not options.overwrite:
            kept.append(name)
            progress.end(name, "finished before, kept")
            continue
        if state == "stale":
            progress.line(f"{name}: out of date (settings or inputs changed); rebuilding")
        task = Task(run, plan.unit, fingerprint, plan.arguments, Path.cwd(), options.overwrite)
        tasks.append(task)
    return kept, tasks, failed


def _work_off(
    run: RunFolder,
    tasks: Sequence[Task],
    config: Config,
    options: Options,
    progress: StageProgress,
) -> tuple[list[str], list[str], list[str]]:
    done: list[str] = []
    kept: list[str] = []
    failed: list[str] = []
    in_process = options.dask is None and (options.workers == 1 or len(tasks) <= 1)
    work = partial(_perform_here, progress=progress) if in_process else perform
    if not in_process:
        progress.begin_all([task.unit.title for task in tasks])
    results = map_tasks(
        work, tasks, workers=options.workers, dask=options.dask, cluster_options=config.cluster
    )
    for number, result in results:
        unit = tasks[number].unit
        outcome = result if isinstance(result, Outcome) else fail(run, unit, result)
        progress.end(unit.title, outcome.line, failed=not outcome.ok)
        (kept if outcome.kept else done if outcome.ok else failed).append(unit.title)
    return done, kept, failed


def _perform_here(task: Task, *, progress: StageProgress) -> Outcome:
    progress.begin(task.unit.title)
    return perform(task, on_progress=progress.inside)


def _write_run_json(stage: str, run: RunFolder, config: Config) -> None:
    """Keep the settings and versions of each stage beside its results."""
    stages = read_run_json(run)
    stages.pop(stage, None)  # the one that was told last is the last in the file
    stages[stage] = {"config": as_plain(config), "versions": versions()}
    write_json(run.path / "run.json", {"seed": config.seed, "stages": stages})


def read_run_json(run: RunFolder) -> dict[str, Any]:
    """Read what each stage was told, from ``run.json``; empty before the first stage."""
    return dict(_read_record(run).get("stages", {}))


def _read_record(run: RunFolder) -> dict[str, Any]:
    try:
        found = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return dict(found)


# Sections of a config that belong to a stage of another name.
_OWNERS = {"splits": "tile", "images": "tile"}
_PER_COMMAND = ("input", "out", "stages")  # said anew with each command


def recall_settings(run: RunFolder, stage: str) -> dict[str, Any]:
    """Recall what a run was told, so that a stage need not be told again.

    Each section of the config is what its own stage was last told (heatmaps by ``heatmap``, also
    where ``evaluate`` lays them); of a stage that never ran, and of what belongs to none, what
    `stage` was told last, or else the latest of all.

    Returns
    -------
    told : dict
        A config as plain values, for `wsi_pipeline.config.read_config`; of paths the names alone.
        Empty before the first stage.
    """
    recorded = read_run_json(run).items()
    # What one export was told says nothing of the next one, to another tool.
    configs = {name: done.get("config", {}) for name, done in recorded if name != "export"}
    if not configs:
        return {}
    latest = configs.get(stage) or list(configs.values())[-1]
    told = {}
    for name in dict.fromkeys(key for config in (*configs.values(), latest) for key in config):
        own = configs.get(_OWNERS.get(name, name), {})
        source = own if name in own else latest
        if name in source and name not in _PER_COMMAND:
            told[name] = source[name]
    return told


def some(names: Sequence[str], most: int = 5) -> str:
    """List names, not too many of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
