"""The ``plan`` command: what a run would do, found by the code that does it; nothing is written.

Patches, labels, files and bytes of the patch stores are counted as tiling counts them. Times come
from a short probe of this machine, and scores are not known yet, so score files and heatmaps are
estimates. Drawing the pictures takes longer than all else for a small slide: in a large cohort a
sample is drawn (`wsi_pipeline.planning.pictures`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiling.contracts import TileConfig
from tiling.errors import ExpectedError, SlideError
from tiling.urls import local_path
from tiling.wording import pluralize
from wsi_pipeline.cohort.splits import advise_missing_split
from wsi_pipeline.config.reading import Config, anchor_paths
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.planning.extra_files import plan_extra_files
from wsi_pipeline.planning.figures import (
    RunPlan,
    SlidePlan,
    find_problems,
    free_bytes,
    to_predict,
)
from wsi_pipeline.planning.images import plan_images
from wsi_pipeline.planning.models import plan_models
from wsi_pipeline.planning.pictures import Picture, add_pictures, choose_drawn
from wsi_pipeline.run.process_pool import map_in_processes
from wsi_pipeline.run.progress import StageProgress
from wsi_pipeline.run.shards import Shard, select_shard
from wsi_pipeline.run.slide_contents import TileInputs, old_tile_fingerprint, tile_inputs
from wsi_pipeline.run.state import State, unit_state
from wsi_pipeline.stages.inputs import slide_bytes
from wsi_pipeline.stages.label_audit import Audited, audit_slide
from wsi_pipeline.stages.tile import list_entries

if TYPE_CHECKING:
    from tiling.contracts import Slide
    from tiling.tile_plan import TilePlan

PROBE_PATCHES, PROBE_S = 8, 1.0  # per slide: read so many patches, no longer than that
UNSTORED_PATCHES = 3  # where tile stores coordinates only and reads none: can they be decoded?
# From the files of the demo: the frame of a score file and of a heatmap; the largest overlay.
SCORES_BYTES, BYTES_PER_SCORE, HEATMAP_BYTES, OVERLAY_BYTES = 9_000, 20, 2_300, 2_000_000
PYRAMID = 4 / 3  # a pyramid's levels together, of its first


@dataclass(frozen=True)
class PlanTask:
    """One slide to plan, with all that is needed."""

    entry: SlideEntry
    config: TileConfig
    run: Path | None
    draw: bool = True  # the picture, for its size


@dataclass(frozen=True)
class PlannedSlide:
    """What came of planning one slide."""

    plan: SlidePlan  # bytes and seconds without those of its picture
    audited: Audited | None = None  # None: it would fail
    picture: Picture | None = None  # None: not drawn


# --- one slide -------------------------------------------------------------------------------


def plan_slide(task: PlanTask) -> PlannedSlide:
    """Plan one slide, and look its labels over; why it would fail is part of the answer."""
    entry = task.entry
    try:
        return _plan_slide(task)
    except (ExpectedError, OSError) as error:
        problem = str(error)
    except Exception as error:  # a reader's bug must not lose the other slides
        problem = f"{entry.slide_id}: unexpected {type(error).__name__}: {error}"
    return PlannedSlide(SlidePlan(entry.slide_id, entry.split, problem=problem))


def _plan_slide(task: PlanTask) -> PlannedSlide:
    from tiling.footprint import picture_bytes, store_footprint
    from tiling.slide import open_slide
    from tiling.tile_plan import check_has_tiles, plan_tiles

    entry, started = task.entry, time.monotonic()
    known = tile_inputs(entry, task.config)
    state, fingerprint = _look_up(task, known)
    with open_slide(entry.path) as slide:
        plan = plan_tiles(slide, entry.path, **known)
        check_has_tiles(plan, task.config)
        takes = store_footprint(plan, task.config, fingerprint)
        seconds = time.monotonic() - started
        picture = None
        if task.draw:
            n_bytes = picture_bytes(slide, plan)
            picture = Picture(n_bytes, time.monotonic() - started - seconds)
        n_bad = 0
        if state != "finished":
            is_stored = task.config.store == "patches"
            most = PROBE_PATCHES if is_stored else UNSTORED_PATCHES
            each, n_bad, n_read = _probe(slide, plan, most)
            seconds += each * len(plan.table.coords) if is_stored else 0.0
            _check_probe(n_bad, n_read, task)
    audited = audit_slide(
        entry,
        plan.table,
        geometry=plan.geometry,
        n_lesions=len(plan.annotation.lesions) if plan.annotation else 0,
        label_rule=task.config.label_rule,
        bounds=(task.config.negative_fraction, task.config.positive_fraction),
    )
    counts = audited.counts
    planned = SlidePlan(
        slide_id=entry.slide_id,
        split=entry.split,
        state=state,
        patches=counts.patches,
        positive=counts.positive,
        negative=counts.negative,
        ignored=counts.ignored,
        unlabelled=counts.unlabelled,
        bytes=takes.bytes,
        files=takes.files,
        heatmap_bytes=_heatmap_bytes(plan),
        seconds=0.0 if state == "finished" else seconds,
        unreadable_probes=n_bad,
        notes=plan.notes,
    )
    return PlannedSlide(planned, audited, picture)


def _look_up(task: PlanTask, known: TileInputs) -> tuple[State, str]:
    """Look up what there is of a slide's store; the slide is read only where that decides."""
    from tiling.build import tile_fingerprint
    from tiling.listing.content import UNREAD, digest_content, find_digest

    entry, run = task.entry, None if task.run is None else RunFolder(task.run)
    unit = Unit("tile", entry.slide_id)
    if run is None or not unit.is_marked(run):
        return "missing", tile_fingerprint(entry.path, content=UNREAD, **known)
    content = find_digest(entry.path, cache=run.content(entry.slide_id))
    if content is None:
        content = digest_content(entry.path)  # kept in memory: nothing is written here
    fingerprint = tile_fingerprint(entry.path, content=content, **known)
    state = unit_state(run, unit, fingerprint)
    if state == "stale":  # the mark may be an earlier version's
        state = unit_state(run, unit, old_tile_fingerprint(entry, task.config))
    return state, fingerprint


def _probe(slide: "Slide", plan: "TilePlan", most: int) -> tuple[float, int, int]:
    """Read some patches; returns seconds per patch, how many were unreadable, how many read."""
    import numpy as np

    from tiling.patches import read_patch

    n_patches = len(plan.table.coords)
    rows = np.unique(np.linspace(0, n_patches - 1, min(most, n_patches)).astype(int))
    started, n_bad, n_read = time.monotonic(), 0, 0
    for row in rows:
        x, y = plan.table.coords[row].tolist()
        try:
            read_patch(slide, (x, y), geometry=plan.geometry)
        except SlideError:
            n_bad += 1
        n_read += 1
        if time.monotonic() - started > PROBE_S:
            break
    return (time.monotonic() - started) / n_read, n_bad, n_read


def _check_probe(n_bad: int, n_read: int, task: PlanTask) -> None:
    if n_bad == n_read and task.config.max_unreadable < 1:
        raise SlideError(
            f"{task.entry.path.name}: none of {pluralize(n_read, 'sampled patch')} can be decoded; "
            "copy the file again from its source"
        )


def _heatmap_bytes(plan: "TilePlan") -> int:
    """Uncompressed values and pyramid: scores of a trained model hardly compress."""
    width, height = plan.info.size
    columns = -(-width // plan.geometry.stride_l0)
    rows = -(-height // plan.geometry.stride_l0_y)
    scored = min(columns * rows, len(plan.table.coords))  # NaN takes next to nothing
    return HEATMAP_BYTES + int(4 * scored * PYRAMID)


# --- the whole run ---------------------------------------------------------------------------


def plan_run(
    config: Config,
    *,
    workers: int,
    device: str = "auto",
    shard: Shard | None = None,
    quiet: bool = False,
) -> RunPlan:
    """Plan every stage that a config names; writes nothing.

    Raises
    ------
    ConfigError, ManifestError
        If not even the list of slides can be made.
    """
    if config.out is not None:
        local_path(config.out, "the run folder of a plan")
    if config.images is not None:
        return plan_images(config, device=device, shard=shard, quiet=quiet)
    entries = list_entries(config)
    weights = {entry.slide_id: slide_bytes(entry) for entry in entries}
    chosen = select_shard(weights, shard)
    mine = [entry for entry in entries if entry.slide_id in chosen]
    slides, audited, picture_error = _plan_slides(mine, config, workers=workers, quiet=quiet)
    side = config.tile.patch_px
    n_trained = sum(s.positive + s.negative for s in slides if s.split == "train")
    models = (
        []
        if shard
        else plan_models(slides, config, device, shape=(side, side, 3), n_trained=n_trained)
    )
    return RunPlan(
        slides=tuple(slides),
        extra=plan_extra_files(slides, audited, config, entries, workers=workers),
        models=tuple(models),
        estimates=_estimate(slides, config),
        free_bytes=free_bytes(config.out),
        problems=()
        if shard
        else tuple(
            find_problems(
                slides,
                config,
                of="slide",
                advise=lambda split: advise_missing_split(entries, split, made=config.splits),
            )
        ),
        shard_bytes=_shard_bytes(weights, shard),
        workers=max(1, min(workers, len(mine))),
        picture_error=picture_error,
    )


def _shard_bytes(weights: dict[str, int], shard: Shard | None) -> tuple[int, ...]:
    if shard is None:
        return ()
    parts = [select_shard(weights, Shard(index, shard.count)) for index in range(shard.count)]
    return tuple(sum(weights[slide_id] for slide_id in part) for part in parts)


def _plan_slides(
    entries: Sequence[SlideEntry], config: Config, *, workers: int, quiet: bool
) -> tuple[list[SlidePlan], list[Audited], int]:
    near, run = anchor_paths((list(entries), config.out), Path.cwd())
    drawn = choose_drawn(len(near))
    tasks = [
        PlanTask(entry, entry.tile_config(config.tile), run, draw=number in drawn)
        for number, entry in enumerate(near)
    ]
    found: dict[int, PlannedSlide] = {}
    with StageProgress("plan", len(tasks), quiet=quiet) as progress:
        for number, result in map_in_processes(plan_slide, tasks, workers=workers):
            entry = entries[number]
            if isinstance(result, StageError):
                problem = f"{entry.path.name}: {result}"
                result = PlannedSlide(SlidePlan(entry.slide_id, entry.split, problem=problem))
            found[number] = result
            progress.end(entry.slide_id, "would fail" if result.plan.problem else "planned")
    if all(one.picture is None for one in found.values()):  # every one drawn would fail
        good = [number for number, one in found.items() if not one.plan.problem]
        chosen = [good[place] for place in sorted(choose_drawn(len(good)))]
        again = [replace(tasks[number], draw=True) for number in chosen]
        for place, result in map_in_processes(plan_slide, again, workers=workers):
            if not isinstance(result, StageError):
                found[chosen[place]] = result
    planned = [found[number] for number in range(len(tasks))]
    plans, error = add_pictures([one.plan for one in planned], [one.picture for one in planned])
    return plans, [one.audited for one in planned if one.audited is not None], error


def _estimate(slides: Sequence[SlidePlan], config: Config) -> dict[str, tuple[int, int]]:
    """Estimate files and bytes of the models' outputs, whose scores are unknown."""
    scored = to_predict(slides, config)
    n_models = len(config.train)
    n_files = n_models * len(scored)
    found = {}
    if "predict" in config.stages and n_files:
        n_scores = sum(s.patches for s in scored)
        found["predict"] = (n_files, n_models * BYTES_PER_SCORE * n_scores + n_files * SCORES_BYTES)
    if "heatmap" in config.stages and n_files:
        values = n_models * sum(s.heatmap_bytes for s in scored)
        found["heatmap"] = (2 * n_files, values + n_files * OVERLAY_BYTES)
    return found
