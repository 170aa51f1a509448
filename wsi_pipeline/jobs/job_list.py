"""The jobs of a run and what each waits for. Pure: nothing is written or submitted.

A stage of slides is a job array of which each task has a shard. Where two of them have the same
number of tasks, task i has the same slides in both, and waits only for task i of the stage before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.stages import STAGES, find_stage
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.jobs.resources import Resources, choose_resources

# each: task i follows task i; done: all tasks succeeded; ended: all ended, in whatever way.
Wait = Literal["each", "done", "ended"]

# The first of these that the run has must have succeeded.
_NEEDS = {
    "tile": (),
    "train": ("collect_tile",),
    "predict": ("train", "tile"),
    "heatmap": ("predict",),
    "explain": ("predict", "train"),
    "evaluate": ("predict",),
    "export": ("predict", "tile"),
    "report": ("evaluate", "predict"),
}
AFTER_TILE = "collect_tile"  # merges what the tasks of tile recorded; its name is that of a file
AT_END = "collect"


@dataclass(frozen=True)
class Job:
    """One job, or job array."""

    name: str  # the stage; also of its script
    stage: str  # whose resources it has
    resources: Resources
    n_tasks: int = 1  # 1: no array
    models: tuple[str, ...] = ()  # task i works on model i; empty: tasks are shards
    waits: tuple[tuple[Wait, str], ...] = ()  # jobs before it in the list


def list_jobs(config: Config, *, n_slides: int | None) -> list[Job]:
    """List the jobs of a run in order; a job waits only for those before it.

    Parameters
    ----------
    config : Config
    n_slides : int or None
        None: a folder of images, which `tile` and `export` process in one piece.

    Raises
    ------
    ConfigError
        If the config names no work.
    """
    names = [stage.name for stage in STAGES if _has_work(stage.name, config)]
    if not names:
        raise ConfigError("stages: nothing to submit")
    if "tile" in names:
        names.insert(names.index("tile") + 1, AFTER_TILE)
    jobs: list[Job] = []
    for name in (*names, AT_END):
        stage = "collect" if name == AFTER_TILE else name
        resources = choose_resources(stage, config.cluster)
        models = tuple(config.train) if name == "train" else ()
        n_tasks = len(models) or _count_tasks(name, resources, n_slides)
        waits = _waits(name, n_tasks, jobs, by_slide=n_slides is not None)
        jobs.append(Job(name, stage, resources, n_tasks, models, tuple(waits)))
    return jobs


def _has_work(stage: str, config: Config) -> bool:
    if stage not in config.stages:
        return False
    variants = find_stage(stage).variants
    return not variants or bool(getattr(getattr(config, stage), variants))


def _count_tasks(name: str, resources: Resources, n_slides: int | None) -> int:
    if name in (AFTER_TILE, AT_END) or not find_stage(name).is_shardable:
        return 1
    if n_slides is None:
        return 1 if name in ("tile", "export") else resources.tasks
    return max(1, min(resources.tasks, n_slides))


def _waits(
    name: str, n_tasks: int, before: Sequence[Job], *, by_slide: bool
) -> list[tuple[Wait, str]]:
    known = {job.name: job for job in before}
    if name == AFTER_TILE:
        return [("done", "tile")]
    needed = next((job for job in _NEEDS.get(name, ()) if job in known), None)
    waits: list[tuple[Wait, str]] = []
    if needed is not None:
        other = known[needed]
        alike = n_tasks > 1 and n_tasks == other.n_tasks and by_slide
        shards = name != AT_END and find_stage(name).is_shardable and other.stage == needed
        each = alike and shards and find_stage(needed).is_shardable
        waits.append(("each" if each else "done", needed))
    if name in ("tile", "train", "predict", "heatmap"):
        return waits
    # Stages that process the run in one piece follow each other: each records its settings.
    implied = _all_before(needed, known) if needed is not None else set()
    for job in reversed(before):
        if job.name not in implied:
            waits.append(("ended", job.name))
            implied |= _all_before(job.name, known)
    return waits


def _all_before(name: str, known: Mapping[str, Job]) -> set[str]:
    """List a job and all jobs that have ended when it begins."""
    found = {name}
    for _, other in known[name].waits:
        found |= _all_before(other, known)
    return found
