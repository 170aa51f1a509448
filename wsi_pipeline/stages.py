"""What each command does, in order; resume; failures that never stop the other slides.

A stage is planned first: which units of work there are (slides, models), and what each would be
made from, as a fingerprint. Units that are finished are kept. The others of this shard are worked
off, one after another or on a cluster, and each ends in a mark or in a recorded failure.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tiling.errors import TilingError
from tiling.files import digest_file, remove_leftovers, write_json
from wsi_pipeline.cluster import Shard, map_tasks, select_shard
from wsi_pipeline.config import Config, Stage, as_plain, digest_settings
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ConfigError, PipelineError, StageError
from wsi_pipeline.manifest import read_input, with_splits, write_manifest
from wsi_pipeline.progress import StageProgress
from wsi_pipeline.runfolder import RunFolder, Unit, iterate_failures, unit_state, write_failures
from wsi_pipeline.splits import assign_splits
from wsi_pipeline.versions import versions
from wsi_pipeline.work import Outcome, Task, fail, perform

log = logging.getLogger(__name__)

PER_SLIDE: tuple[Stage, ...] = ("tile", "predict", "heatmap")


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

    stage: Stage
    done: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[str, ...]

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
        return f"{self.stage}: " + ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """One unit, before it is known whether there is anything to do."""

    unit: Unit
    weight: int  # for the balance of shards
    fingerprint: Callable[[], str]  # may fail like the work itself
    arguments: Mapping[str, Any]


def run_stage(
    stage: Stage, run: RunFolder, plans: Sequence[Plan], config: Config, options: Options
) -> StageResult:
    """Work off what is not finished; record what failed.

    Raises
    ------
    StageError
        If there is nothing the stage could work on.
    """
    if not plans:
        raise StageError(f"{run.path}: nothing to {stage}")
    chosen = select_shard({plan.unit.name: plan.weight for plan in plans}, options.shard)
    plans = [plan for plan in plans if plan.unit.name in chosen]
    _write_run_json(stage, run, config)
    with StageProgress(stage, len(plans), quiet=options.quiet) as progress:
        kept, tasks, failed = _sort_out(run, plans, options, progress)
        done, lost = _work_off(run, tasks, config, options, progress)
    write_failures(run)
    return StageResult(stage, tuple(done), tuple(kept), tuple(failed + lost))


def _sort_out(
    run: RunFolder, plans: Sequence[Plan], options: Options, progress: StageProgress
) -> tuple[list[str], list[Task], list[str]]:
    """Tell what is finished, what is to be done, and what cannot even be looked at."""
    kept: list[str] = []
    tasks: list[Task] = []
    failed: list[str] = []
    for plan in plans:
        name = plan.unit.name
        try:
            fingerprint = plan.fingerprint()
        except (TilingError, PipelineError, OSError) as error:
            outcome = fail(run, plan.unit, error)
            progress.end(name, outcome.line)
            failed.append(name)
            continue
        state = unit_state(run, plan.unit, fingerprint)
        if state == "finished" and not options.overwrite:
            kept.append(name)
            progress.end(name, "finished before, kept")
            continue
        if state == "stale":
            progress.line(f"{name}: stale (other settings or inputs made it), built again")
        tasks.append(Task(run, plan.unit, fingerprint, plan.arguments))
    return kept, tasks, failed


def _work_off(
    run: RunFolder,
    tasks: Sequence[Task],
    config: Config,
    options: Options,
    progress: StageProgress,
) -> tuple[list[str], list[str]]:
    done: list[str] = []
    failed: list[str] = []
    in_process = options.dask is None and (options.workers == 1 or len(tasks) <= 1)
    work = partial(_perform_here, progress=progress) if in_process else perform
    results = map_tasks(
        work, tasks, workers=options.workers, dask=options.dask, cluster_options=config.cluster
    )
    for number, result in results:
        unit = tasks[number].unit
        outcome = result if isinstance(result, Outcome) else fail(run, unit, result)
        progress.end(unit.name, outcome.line)
        (done if outcome.ok else failed).append(unit.name)
    return done, failed


def _perform_here(task: Task, *, progress: StageProgress) -> Outcome:
    progress.begin(task.unit.name)
    return perform(task, on_progress=progress.inside)


def _write_run_json(stage: Stage, run: RunFolder, config: Config) -> None:
    """Keep the settings and versions of each stage beside its results."""
    path = run.path / "run.json"
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
    except (FileNotFoundError, ValueError, KeyError):
        stages = {}
    stages[stage] = {"config": as_plain(config), "versions": versions()}
    write_json(path, {"seed": config.seed, "stages": stages})


# ---------------------------------------------------------------- the stages


def tile(run: RunFolder, config: Config, options: Options) -> StageResult:
    """Slides -> patch stores."""
    if config.input is None:
        raise ConfigError("no input; give a slide, a folder or a manifest")
    entries = read_input(config.input)
    if config.splits:
        entries = with_splits(
            entries,
            assign_splits(
                entries,
                val_fraction=config.splits.val_fraction,
                test_fraction=config.splits.test_fraction,
                seed=config.seed,
            ),
        )
    run.path.mkdir(parents=True, exist_ok=True)
    write_manifest(run.manifest, entries)
    plans = [
        Plan(
            Unit("tile", e.slide_id),
            weight=_slide_bytes(e),
            fingerprint=partial(_tile_fingerprint, e, config),
            arguments={"entry": e, "config": config.tile, "threads": _threads(options)},
        )
        for e in entries
    ]
    if options.shard is None:
        remove_leftovers(run.tiles)
    return run_stage("tile", run, plans, config, options)


def _slide_bytes(entry: SlideEntry) -> int:
    return entry.path.stat().st_size if entry.path.is_file() else 0


def _threads(options: Options) -> int:
    from os import cpu_count

    return max(1, (cpu_count() or 1) // options.workers)


def _tile_fingerprint(entry: SlideEntry, config: Config) -> str:
    from tiling.build import tile_fingerprint

    return tile_fingerprint(
        entry.path,
        slide_id=entry.slide_id,
        config=config.tile,
        annotation_path=entry.annotation,
        slide_label=entry.label,
        mpp=entry.mpp,
    )


def train(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Patch stores -> checkpoints."""
    entries = _finished_entries(run, ("train", "val"))
    chosen = _models_to_train(config, models)
    plans = [
        Plan(
            Unit("train", model=name),
            weight=1,
            fingerprint=partial(_train_fingerprint, run, entries, settings, config.seed),
            arguments={
                "entries": entries,
                "config": settings,
                "seed": config.seed,
                "device": options.device,
                "overwrite": options.overwrite,
            },
        )
        for name, settings in chosen.items()
    ]
    return run_stage("train", run, plans, config, options)


def _models_to_train(config: Config, names: Sequence[str]) -> dict[str, Any]:
    from wsi_pipeline.models import MODELS
    from wsi_pipeline.settings import ModelConfig, TrainConfig

    if not names and not config.train:
        raise ConfigError(
            f"no model named; say --model NAME, one of {', '.join(sorted(MODELS))}, "
            "or name models in the config under train"
        )
    chosen = {}
    for name in names or config.train:
        if name in config.train:
            chosen[name] = config.train[name]
        elif name in MODELS:
            chosen[name] = TrainConfig(model=ModelConfig(name=name))
        else:
            known = sorted({*MODELS, *config.train})
            raise ConfigError(f"--model {name}: no such model; known: {', '.join(known)}")
    return chosen


def _finished_entries(
    run: RunFolder, splits: Sequence[str | None] | None = None
) -> list[SlideEntry]:
    """List the slides that have a patch store and are in one of `splits` (None: in any)."""
    entries = [e for e in run.read_manifest() if splits is None or e.split in splits]
    tiled = [e for e in entries if Unit("tile", e.slide_id).mark(run, "done").is_file()]
    failed = {row["slide_id"] for row in iterate_failures(run) if row["stage"] == "tile"}
    waiting = [e.slide_id for e in entries if e not in tiled and e.slide_id not in failed]
    if waiting:
        raise StageError(
            f"{len(waiting)} of {len(entries)} slides are not tiled yet: {_some(waiting)}; "
            f"run: wsi-pipeline tile INPUT --out {run.path} (see also: wsi-pipeline collect)"
        )
    if not tiled:
        where = f" in split {' or '.join(str(s) for s in splits)}" if splits else ""
        raise StageError(
            f"{run.path}: no tiled slide{where}; fill the split column of the manifest (or set "
            "splits in the config) and run tile again"
        )
    return tiled


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _store_fingerprint(run: RunFolder, entry: SlideEntry) -> str:
    from tiling.store import PatchStore

    return PatchStore.open(run.store(entry.slide_id)).fingerprint


def _train_fingerprint(
    run: RunFolder, entries: Sequence[SlideEntry], settings: Any, seed: int
) -> str:
    data = [(e.slide_id, e.patient, e.split, _store_fingerprint(run, e)) for e in entries]
    weights = settings.model.weights
    return digest_settings(data, settings, seed, digest_file(weights) if weights else None)


def predict(
    run: RunFolder, config: Config, options: Options, *, checkpoints: Sequence[Path] = ()
) -> StageResult:
    """Patch stores -> scores, by each checkpoint."""
    found = list(checkpoints) or [run.checkpoint(m) for m in run.models_with("models")]
    if not found:
        raise StageError(f"{run.path}: no checkpoint; train a model or say --checkpoint FILE")
    wanted = None if config.predict.splits is None else (*config.predict.splits, None)
    entries = _finished_entries(run, wanted)
    plans = []
    for checkpoint in found:
        if not checkpoint.is_file():
            raise StageError(f"{checkpoint}: no such checkpoint; train a model first")
        model, digest = model_name(checkpoint), digest_file(checkpoint)
        for e in entries:
            plans.append(
                Plan(
                    Unit("predict", e.slide_id, model),
                    weight=_slide_bytes(e),
                    fingerprint=partial(_predict_fingerprint, run, e, digest, config),
                    arguments={
                        "entry": e,
                        "checkpoint": checkpoint,
                        "config": config.predict,
                        "device": options.device,
                    },
                )
            )
    return run_stage("predict", run, plans, config, options)


def model_name(checkpoint: Path) -> str:
    """Name a model by the folder that train made for it, or by the file where it was renamed.

    Examples
    --------
    >>> model_name(Path("run/models/vgg16/checkpoint.safetensors"))
    'vgg16'
    >>> model_name(Path("lymph_node_v2.safetensors"))
    'lymph_node_v2'
    """
    if checkpoint.name == "checkpoint.safetensors" and checkpoint.resolve().parent.name:
        return checkpoint.resolve().parent.name
    return checkpoint.stem


def _predict_fingerprint(run: RunFolder, entry: SlideEntry, digest: str, config: Config) -> str:
    return digest_settings(_store_fingerprint(run, entry), digest, config.predict.precision)
