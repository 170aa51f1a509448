"""The plan of a run on single images: every one is decoded, as `tile` would, and none is kept."""

import time
from collections.abc import Sequence
from functools import partial

from tiling.contracts import Footprint
from tiling.files import json_text
from tiling.threads import map_in_threads
from wsi_pipeline.cohort.image_folder import ALL, ImageEntry
from wsi_pipeline.cohort.image_masks import load_mask
from wsi_pipeline.cohort.image_store import (
    check_size,
    describe_images,
    images_fingerprint,
    load_image,
    none_readable,
)
from wsi_pipeline.cohort.splits import advise_image_split
from wsi_pipeline.config.reading import Config
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.planning.extra_files import MARK_BYTES, NOTHING, ROW_BYTES, SETTINGS_BYTES
from wsi_pipeline.planning.figures import RunPlan, SlidePlan, find_problems, free_bytes, to_predict
from wsi_pipeline.planning.models import plan_models
from wsi_pipeline.run.progress import StageProgress
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.state import State, unit_state
from wsi_pipeline.stages.tile import PrepareImages, prepare_task

NPY_HEADER_BYTES = 128
FAILED_MARK_BYTES = 170
TABLE_BYTES, SCORE_ROW_BYTES = 700, 75  # of a score table: what made it; each row


def plan_images(
    config: Config, *, device: str, shard: Shard | None = None, quiet: bool = False
) -> RunPlan:
    """Plan every stage of a run on single images; writes nothing.

    Raises
    ------
    ConfigError, ManifestError
        If the images cannot be listed, none can be decoded, or they differ in size.
    """
    if shard is not None:
        raise ConfigError("plan: one task puts all images into one array; omit --shard")
    task = prepare_task(config)
    state = _look_up(task, config)
    started = time.monotonic()
    problems, shape = _decode(task, quiet=quiet)
    took = 0.0 if state == "finished" else time.monotonic() - started
    height, width, channels = shape
    n_bytes = height * width * (channels + any(e.mask for e in task.entries))
    rows = [
        _plan_image(e, problems.get(e.image_id, ""), state, n_bytes, took / len(task.entries))
        for e in task.entries
    ]
    return RunPlan(
        slides=tuple(rows),
        extra=NOTHING if state == "finished" else _plan_extra(task, problems, config, n_bytes),
        models=tuple(
            plan_models(rows, config, device, shape=shape, n_trained=_count_trained(rows, config))
        ),
        estimates=_estimate(to_predict(rows, config), config),
        free_bytes=free_bytes(config.out),
        problems=tuple(find_problems(rows, config, of="image", advise=advise_image_split)),
        of="image",
    )


def _estimate(scored: Sequence[SlidePlan], config: Config) -> dict[str, tuple[int, int]]:
    n_models = len(config.train)
    if "predict" not in config.stages or not n_models or not scored:
        return {}
    return {"predict": (2 * n_models, n_models * (TABLE_BYTES + SCORE_ROW_BYTES * len(scored)))}


def _count_trained(rows: Sequence[SlidePlan], config: Config) -> int:
    """Count the images of a pass; classes may be made equally large (`images.equal_classes`)."""
    inside = [s for s in rows if s.split == "train" and not s.problem]
    counts = [sum(s.negative for s in inside), sum(s.positive for s in inside)]
    equal = config.images.equal_classes if config.images else False
    return 2 * max(counts) if equal == "upsample" else 2 * min(counts) if equal else sum(counts)


def _plan_extra(
    task: PrepareImages, problems: dict[str, str], config: Config, n_bytes: int
) -> Footprint:
    """Count what holds the images together, and the place of those that cannot be decoded."""
    masked = any(e.mask for e in task.entries)
    about = describe_images(task.classes, task.config, "0" * 16, unreadable=problems, masks=())
    files, size = 4 + masked, NPY_HEADER_BYTES * (1 + masked) + len(json_text(about)) + MARK_BYTES
    run = config.out and RunFolder(config.out)
    if not run or not run.images.is_file():  # run.json, images.csv
        files, size = files + 2, size + SETTINGS_BYTES + len(task.entries) * ROW_BYTES
    n_lost = len(problems)
    return Footprint(files + n_lost, size + n_lost * (n_bytes + FAILED_MARK_BYTES))


def _look_up(task: PrepareImages, config: Config) -> State:
    """Look up whether the images are prepared; their bytes are read only where that decides."""
    run, unit = config.out and RunFolder(config.out), Unit("tile", ALL)
    if not run or not unit.is_marked(run):
        return "missing"
    return unit_state(run, unit, images_fingerprint(task.folder, task.entries, task.config))


def _decode(task: PrepareImages, *, quiet: bool) -> tuple[dict[str, str], tuple[int, int, int]]:
    """Decode all images and masks: why some cannot be, by image_id; the shape of the others."""
    folder, config, entries = task.folder, task.config, task.entries
    problems: dict[str, str] = {}
    first = ""
    shape: tuple[int, ...] = ()
    load = partial(load_image, folder, config)
    with StageProgress("plan", 1, noun="folder", quiet=quiet) as progress:
        progress.begin(ALL, "image")
        for row, (image, why) in enumerate(map_in_threads(load, entries, threads=task.threads)):
            if image is None:
                problems[entries[row].image_id] = why
            else:
                first, shape = (first, shape) if shape else (entries[row].file, image.shape)
                check_size(entries[row].file, image.shape, first, shape)
            progress.inside(row + 1, len(entries))
        if not shape:
            raise none_readable(folder, problems)
        masked = [e for e in entries if e.mask and e.image_id not in problems]
        drawn = map_in_threads(partial(load_mask, folder, config), masked, threads=task.threads)
        problems |= {e.image_id: why for e, (_, why) in zip(masked, drawn, strict=True) if why}
        progress.end(ALL, f"{len(problems)} would fail")
    height, width, channels = shape
    return problems, (height, width, channels)


def _plan_image(
    entry: ImageEntry, problem: str, state: State, n_bytes: int, seconds: float
) -> SlidePlan:
    return SlidePlan(
        slide_id=entry.image_id,
        split=entry.split,
        state=state,
        problem=problem,
        patches=1,
        positive=int(entry.label == 1),
        negative=int(entry.label == 0),
        unlabelled=int(entry.label < 0),
        bytes=n_bytes,
        seconds=seconds,
    )
