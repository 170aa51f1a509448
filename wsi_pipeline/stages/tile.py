"""The stage ``tile``: slides -> patch stores; a folder of images -> one array."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tiling.contracts import OnProgress, TileConfig
from tiling.errors import GridError, PatchSizeError
from tiling.geometry import check_tile_config
from tiling.threads import count_cores
from tiling.urls import local_path
from tiling.wording import pluralize
from wsi_pipeline.cohort.image_folder import (
    ALL,
    ImageEntry,
    as_slides,
    list_images,
    split_images,
    write_images,
)
from wsi_pipeline.cohort.image_folder import describe_copies as describe_image_copies
from wsi_pipeline.cohort.kinds import warn_of_unused
from wsi_pipeline.cohort.listing import check_copies, describe_copies, read_input
from wsi_pipeline.cohort.manifest import with_splits, write_manifest
from wsi_pipeline.cohort.splits import assign_splits
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.settings import OWN_METHOD, ImagesConfig, slide_map_method
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.slide_contents import (
    compute_tile_fingerprint,
    find_tile_fingerprint,
    tile_inputs,
)
from wsi_pipeline.run.state import forget_failures, iterate_failures, record_failure, write_failures
from wsi_pipeline.run.tasks import Done, Job, Task
from wsi_pipeline.stages.inputs import slide_bytes, threads_per_slide

log = logging.getLogger(__name__)


UNLABELLED = (
    "labels: no slide has a label or an annotation, so these can be scored, not trained on; "
    "`wsi-pipeline slides INPUT --annotations DIR --csv FILE` writes a manifest with labels"
)
UNCLASSED = (
    "labels: no image has a class, so these can be scored, not trained on; to train, sort them "
    "into class folders, or name the classes in images.table"
)


@dataclass(frozen=True)
class TileSlide(Task):
    """Cut one slide into patches."""

    entry: SlideEntry
    config: TileConfig
    threads: int
    fixed: bool  # a checkpoint decides on size and resolution

    @property
    def unit(self) -> Unit:
        """The slide."""
        return Unit("tile", self.entry.slide_id)

    @property
    def weight(self) -> int:
        """Size of the slide's file."""
        return slide_bytes(self.entry)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash slide, annotation and settings; empty where the slide has to be read for it."""
        return find_tile_fingerprint(run, self.entry, self.config)

    def full_fingerprint(self, run: RunFolder) -> str:
        """Hash the same; reads the slide unless the digest of its files is known."""
        return compute_tile_fingerprint(run, self.entry, self.config)

    def made_fingerprint(self, run: RunFolder) -> str:
        """Return the fingerprint in the store, for which the slide was read."""
        from tiling.store_files import stored_fingerprint

        made = stored_fingerprint(run.store(self.entry.slide_id))
        return self.full_fingerprint(run) if made is None else made

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the patch store and its picture."""
        from tiling.build import tile_slide

        entry = self.entry
        store, picture = job.run.store(entry.slide_id), job.run.qc(entry.slide_id)
        try:
            summary = tile_slide(
                entry.path,
                store,
                **tile_inputs(entry, self.config),
                qc_path=picture,
                content_cache=job.run.content(entry.slide_id),
                threads=self.threads,
                on_progress=on_progress,
            )
        except PatchSizeError as error:
            if not self.fixed:
                raise
            raise GridError(f"{error.fact}; {error.remedy_if_fixed}") from error
        return [store, picture], str(summary)


@dataclass(frozen=True)
class PrepareImages(Task):
    """Put the images of a folder into one array."""

    noun: ClassVar[str] = "folder"
    counted: ClassVar[str] = "image"
    folder: Path
    entries: Sequence[ImageEntry]
    classes: Sequence[str]
    config: ImagesConfig
    threads: int

    @property
    def unit(self) -> Unit:
        """All images."""
        return Unit("tile", ALL)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash files, table and settings."""
        from wsi_pipeline.cohort.image_store import images_fingerprint

        return images_fingerprint(self.folder, self.entries, self.config)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the array and what it holds."""
        from wsi_pipeline.cohort.image_store import prepare_images

        run = job.run
        problems = prepare_images(
            self.folder,
            self.entries,
            self.classes,
            self.config,
            out=run.tiles,
            fingerprint=job.fingerprint,
            threads=self.threads,
            on_progress=on_progress,
        )
        for image_id, problem in problems.items():
            record_failure(run, Unit("tile", image_id), "ManifestError", problem)
        lost = f", {len(problems)} unreadable" if problems else ""
        files = [run.tiles / "images.npy", run.tiles / "images.json"]
        files += [path for path in [run.tiles / "masks.npy"] if path.is_file()]
        return (
            files,
            f"{pluralize(len(self.entries), 'image')}{lost}, "
            f"{files[0].stat().st_size / 2**20:.1f} MiB",
        )


def list_entries(config: Config) -> list[SlideEntry]:
    """List the data set that a config names, each slide in its split."""
    if config.input is None:
        raise ConfigError("no input; give a slide, a folder or a manifest")
    check_tile_config(config.tile)  # reported once, before any slide is processed
    listing = read_input(config.input)
    entries = list(listing.entries)
    if config.splits:
        entries = with_splits(
            entries,
            assign_splits(
                entries,
                val_fraction=config.splits.val_fraction,
                test_fraction=config.splits.test_fraction,
                seed=config.seed,
                folds=config.splits.folds,
                fold=config.splits.fold,
            ),
        )
        check_copies(listing, entries)
    check_map_names(config, entries)
    for note in (*listing.notes, *describe_copies(listing)):
        log.warning("%s", note)
    return entries


def check_map_names(config: Config, entries: Sequence[SlideEntry]) -> None:
    """Refuse slides one of which has the name of the other's map by the model itself."""
    method = slide_map_method(config.heatmap)
    if method is None:
        return
    from wsi_pipeline.explain import METHODS

    ids = {e.slide_id for e in entries}
    names = list(METHODS) if method == OWN_METHOD else [method]
    names += [f"patchnet.filter_{number}" for number in config.heatmap.filters]
    twice = sorted((s, f"{s}.{name}") for s in ids for name in names if f"{s}.{name}" in ids)
    if twice:
        one, other = twice[0]
        raise ConfigError(
            f"heatmap.method: the model's own map of the slide '{one}' and the heatmap of the "
            f"slide '{other}' would be one file; give one of them another id in the manifest's "
            "slide_id column, or set heatmap.method=null and heatmap.dense_step_px=null"
        )


def tile(run: RunFolder, config: Config, options: Options, *, fixed: bool = False) -> StageResult:
    """Slides -> patch stores; a folder of images -> one array.

    `fixed`: a checkpoint decides on size and resolution of the patches, so no message advises
    to change them.
    """
    from wsi_pipeline.stages.label_audit import has_labels

    if config.images is not None:
        return _tile_images(run, config, options)
    tasks = prepare_tiling(run, config, options, fixed=fixed)
    result = run_stage("tile", run, tasks, config, options)
    if options.shard:  # the others are at work: collect makes the audit
        return result
    result = add_audit(run, result, options)
    if fixed or result.exit_code == 1 or has_labels(task.entry for task in tasks):
        return result
    return replace(result, notes=(*result.notes, UNLABELLED))


def prepare_tiling(
    run: RunFolder, config: Config, options: Options, *, fixed: bool = False
) -> list[TileSlide]:
    """List the slides of a config in the run folder; return what is to be done, as `tile` does."""
    if run.images.is_file():
        raise ConfigError(f"{run.path}: is a run on images; use another run folder for slides")
    entries = list_entries(config)
    run.path.mkdir(parents=True, exist_ok=True)
    write_manifest(run.manifest, entries)
    forget_failures(
        run, [s.name for s in STAGES if s.is_shardable], listed=[e.slide_id for e in entries]
    )
    threads = threads_per_slide(options, len(entries))
    return [TileSlide(e, e.tile_config(config.tile), threads, fixed) for e in entries]


def add_audit(run: RunFolder, result: StageResult, options: Options) -> StageResult:
    """Bring the label audit up to date, and add its line to a result."""
    from wsi_pipeline.stages.label_audit import update_audit

    summary = update_audit(run, overwrite=options.overwrite)
    return replace(result, notes=(summary,) if summary else ())


def _tile_images(run: RunFolder, config: Config, options: Options) -> StageResult:
    """Image files -> one array."""
    local_path(run.path, "the run folder of single images")
    if run.manifest.is_file():
        raise ConfigError(f"{run.path}: is a run on slides; use another run folder for images")
    warn_of_unused(config, "tile")
    task = prepare_task(config)
    entries = task.entries
    run.path.mkdir(parents=True, exist_ok=True)
    write_images(run.images, entries)
    forget_failures(run, ("tile",), listed=[e.image_id for e in entries])
    before = list(iterate_failures(run))
    result = run_stage("tile", run, [task], config, options)
    if result.done:  # what failed in an earlier run may be readable now
        _forget_mended(run, before)
    ids = {e.image_id for e in entries}
    lost = [row["slide_id"] for row in iterate_failures(run) if row["slide_id"] in ids]
    write_failures(run)
    notes = result.notes if any(e.label >= 0 for e in entries) else (*result.notes, UNCLASSED)
    return replace(result, failed=(*result.failed, *lost), notes=notes)


def prepare_task(config: Config) -> PrepareImages:
    """List the images that a config names, each in its split, and what is to be done to them."""
    if config.input is None or config.images is None:
        raise ConfigError("no input; give a folder of images")
    entries, classes = list_images(config.input, config.images)
    if config.splits:
        found = assign_splits(
            as_slides(config.input, entries),
            val_fraction=config.splits.val_fraction,
            test_fraction=config.splits.test_fraction,
            seed=config.seed,
            folds=config.splits.folds,
            fold=config.splits.fold,
        )
        entries = split_images(entries, found)
    if copies := describe_image_copies(config.input, entries):
        log.warning("%s", copies)
    return PrepareImages(config.input, entries, classes, config.images, count_cores())


def _forget_mended(run: RunFolder, before: Sequence[Mapping[str, Any]]) -> None:
    from wsi_pipeline.cohort.image_store import read_about

    about = read_about(run.tiles)
    lost = {*about["unreadable"], *about["unreadable_masks"]}
    for row in before:
        if row["stage"] == "tile" and row["slide_id"] not in lost:
            Unit("tile", row["slide_id"]).mark(run, "failed").unlink(missing_ok=True)
