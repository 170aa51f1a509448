"""The stage ``predict``: patch stores, or images -> scores, by each checkpoint."""

import itertools
import logging
import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress
from tiling.threads import Stopped, check_stopped, in_background
from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.colours import find_far
from wsi_pipeline.cohort.image_folder import ALL, ImageEntry
from wsi_pipeline.cohort.kinds import ImageCohort, cohort_of, warn_of_unused
from wsi_pipeline.cohort.slides import digest_store, open_store
from wsi_pipeline.cohort.stain_view import normalise_patches, stain_method
from wsi_pipeline.config.checkpoint_header import require_temperature
from wsi_pipeline.config.extras import require
from wsi_pipeline.config.model_files import ExternalModel, fit_meta
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import PredictConfig, score_settings
from wsi_pipeline.contracts import Rule, SlideEntry
from wsi_pipeline.errors import ConfigError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.parts import (
    Part,
    merge_parts,
    part_path,
    run_in_parts,
    unit_of_part,
    write_part,
)
from wsi_pipeline.run.runner import (
    Options,
    StageResult,
    end_empty_shard,
    read_run_json,
    run_stage,
)
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.tasks import Done, Job, Task
from wsi_pipeline.stages.inputs import (
    check_device,
    check_model_names,
    slide_bytes,
    threads_per_slide,
)
from wsi_pipeline.stages.model_sources import (
    ModelSource,
    find_sources,
    load_model,
    needed_patches,
    warn_of_no_effect,
)
from wsi_pipeline.stages.tile import add_audit, prepare_tiling, tile

log = logging.getLogger(__name__)

AHEAD = 1  # slides that wait, tiled, to be scored
WAIT_S = 0.1  # between checks for an interrupt


@dataclass(frozen=True)
class PredictSlide(Task):
    """Score the patches of one slide with one checkpoint."""

    entry: SlideEntry
    model: str
    checkpoint: Path
    digest: str  # of the checkpoint's bytes
    config: PredictConfig
    device: str
    threads: int
    external: ExternalModel | None = None  # None: a checkpoint of this program

    @property
    def unit(self) -> Unit:
        """The slide, by the model."""
        return Unit("predict", self.entry.slide_id, self.model)

    @property
    def weight(self) -> int:
        """Size of the slide's file."""
        return slide_bytes(self.entry)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash store, checkpoint and the settings that change a score."""
        how = score_settings(self.config)
        return digest_settings(digest_store(run, self.entry), self.digest, *how)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the score file."""
        from wsi_pipeline.config.devices import resolve_device, resolve_precision
        from wsi_pipeline.inference import predict_store
        from wsi_pipeline.inference.scores import make_scores, write_scores
        from wsi_pipeline.models.external import with_classes
        from wsi_pipeline.run.cluster import worker_number

        entry, config = self.entry, self.config
        device = resolve_device(self.device, worker=worker_number())
        precision = resolve_precision(config.precision, device)
        loaded, meta = load_model(self.checkpoint, self.digest, self.external)
        temperature = require_temperature(meta, self.checkpoint) if config.calibrated else None
        model, classes, positive = with_classes(loaded)
        journal = job.run.journal(self.model, entry.slide_id)
        with open_store(job.run, entry) as store:
            meta = fit_meta(meta, store.kind)
            patches = normalise_patches(store, stain_method(model))
            scores, summary = predict_store(
                model,
                meta,
                patches,
                device=device,
                precision=precision,
                compiler=config.compiler,
                batch_size=config.batch_size,
                readers=config.readers or max(2, self.threads),
                temperature=temperature,
                columns=1 + len(classes) if classes else None,
                tolerance=config.tolerance,
                max_unreadable=store.tiling["max_unreadable"],
                journal=journal,
                key=f"{job.fingerprint} {device.type} {precision}",
                on_progress=on_progress,
            )
            if far := find_far(patches, meta.card):
                log.warning("%s: %s", self.unit.title, far)
            path = job.run.scores(self.model, entry.slide_id)
            check = summary.precision_check
            write_scores(
                path,
                make_scores(
                    store,
                    scores,
                    meta,
                    self.digest,
                    precision=precision,
                    precision_check=check.as_plain() if check else None,
                    fingerprint=job.fingerprint,
                    classes=classes,
                    positive=positive,
                    temperature=temperature,
                    far_from_training=far,
                ),
            )
        return [path], str(summary)

    def clean_up(self, run: RunFolder) -> None:
        """Remove the journal."""
        run.journal(self.model, self.entry.slide_id).unlink(missing_ok=True)


@dataclass(frozen=True)
class PredictImages(Task):
    """Score the images of a folder with one checkpoint; or the part of one task of a job array."""

    noun: ClassVar[str] = "model"
    counted: ClassVar[str] = "image"
    model: str
    cohort: ImageCohort
    checkpoint: Path
    digest: str  # of the checkpoint's bytes
    config: PredictConfig
    device: str
    part: Shard | None = None
    external: ExternalModel | None = None  # None: a checkpoint of this program

    @property
    def unit(self) -> Unit:
        """All images, by the model; or a part of them."""
        return unit_of_part(Unit("predict", ALL, self.model), self.part)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash images, checkpoint and what changes a score; of a part what decides on it, too."""
        return digest_settings(
            self.cohort.digest(),
            self.digest,
            self.config.precision,
            self.config.splits,
            self.config.tolerance,
            *(["calibrated"] if self.config.calibrated else []),
            *([self.part, self.config.batch_size] if self.part else []),
        )

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the table of scores, or what is needed of a part to write it."""
        from wsi_pipeline.cohort.image_store import ImageGroup
        from wsi_pipeline.config.devices import resolve_device, resolve_precision
        from wsi_pipeline.inference import predict_store
        from wsi_pipeline.inference.forward import batch_pixels
        from wsi_pipeline.inference.image_scores import write_scores
        from wsi_pipeline.inference.scores import TEMPERATURE, TRAINED_ON

        run, config, images = job.run, self.config, self.cohort.array()
        network, meta = load_model(self.checkpoint, self.digest, self.external)
        temperature = require_temperature(meta, self.checkpoint) if config.calibrated else None
        meta = fit_meta(meta, images.kind)
        rows, chosen = self._choose()
        device = resolve_device(self.device)
        precision = resolve_precision(config.precision, device)
        rule = Rule(network.threshold, network.strict)
        height, width, _ = images.kind.shape
        batch_size = config.batch_size or max(1, batch_pixels(device) // (height * width))
        labels = np.array([e.label for e in chosen], np.int8)
        journal = run.journal(self.model, self.unit.slide_id)
        logits, summary = predict_store(
            network,
            meta,
            ImageGroup(images, ALL, rows, labels, [e.image_id for e in chosen]),
            device=device,
            precision=precision,
            batch_size=batch_size,
            readers=config.readers or 1,  # from one array in memory or cache: more gain nothing
            output="logits",
            temperature=temperature,
            rule=rule,
            tolerance=config.tolerance,
            part=self.part,
            journal=journal,
            key=f"{job.fingerprint} {device.type} {precision}",
            on_progress=on_progress,
        )
        check = summary.precision_check
        about = {
            "model": meta.model,
            "checkpoint": self.digest,
            "precision": precision,
            "precision_check": check.as_plain() if check else None,
            "fingerprint": replace(self, part=None).fingerprint(run),
            "classes": list(meta.class_names),
            **({} if self.external else {TRAINED_ON: meta.provenance()}),
            **({} if temperature is None else {TEMPERATURE: temperature}),
            "threshold": rule.threshold,
            "strict": rule.strict,
        }
        n = summary.n_unreadable
        line = pluralize(len(rows), "image") + (f", {n} unreadable" if n else "")
        if self.part is None:
            files = write_scores(run.image_scores(self.model), chosen, logits, about)
        else:
            files = [part_path(run, replace(self, part=None).unit, self.part)]
            common = about | {"batch_size": batch_size, "data": self.cohort.digest()}
            write_part(files[0], self.part.count, common, {"logits": logits, "rows": rows})
            line = f"a part of {line}"
        return files, line

    def clean_up(self, run: RunFolder) -> None:
        """Remove the journal."""
        run.journal(self.model, self.unit.slide_id).unlink(missing_ok=True)

    def _choose(self) -> tuple[NDArray[np.int64], list[ImageEntry]]:
        """Choose the images of the splits that are to be scored: rows of the array, entries."""
        splits = self.config.splits
        chosen = [
            (row, e)
            for row, e in enumerate(self.cohort.entries)
            if splits is None or e.split in (*splits, None)
        ]
        if not chosen:
            raise StageError(
                f"{self.cohort.run.path}: no image in split {' or '.join(splits or ())}"
            )
        return np.array([row for row, _ in chosen], np.int64), [e for _, e in chosen]


def merge_images(run: RunFolder, model: str) -> bool:
    """Write the table of scores from the parts of a job array, if they are all there."""
    from wsi_pipeline.inference.image_scores import write_scores

    cohort = ImageCohort(run)

    def write(parts: list[Part]) -> list[Path]:
        about = {k: v for k, v in parts[0].about.items() if k not in ("batch_size", "data")}
        logits = np.fmax.reduce([part.arrays["logits"] for part in parts])  # NaN: of another part
        entries = cohort.entries
        chosen = [entries[row] for row in parts[0].arrays["rows"]]
        return write_scores(run.image_scores(model), chosen, logits, about)

    return merge_parts(run, Unit("predict", ALL, model), write, is_current=cohort.is_still)


def predict(
    run: RunFolder, config: Config, options: Options, *, checkpoints: Sequence[Path] = ()
) -> StageResult:
    """Patch stores, or single images -> scores, by each checkpoint."""
    check_device(options, config.predict.precision)
    by_name = _find_checkpoints(run, checkpoints, config)
    cohort, splits = cohort_of(run, options.slides), config.predict.splits
    cohort = cohort.prepared(None if splits is None else (*splits, None))
    _check_checkpoints(run, by_name, config.predict)
    if isinstance(cohort, ImageCohort):
        return _predict_images(cohort, config, options, checkpoints=by_name)
    tasks = _predict_tasks(cohort.entries, by_name, config, options)
    return run_stage("predict", run, tasks, config, options)


def _find_checkpoints(
    run: RunFolder, checkpoints: Sequence[Path], config: Config
) -> dict[str, ModelSource]:
    """Find the checkpoints by the models' names: those given, or the run's own."""
    own = [run.checkpoint(model) for model in run.models_with("models")]
    by_name = find_sources(checkpoints or own, config.predict)
    warn_of_no_effect(by_name.values(), config.predict)
    check_model_names(run, by_name)
    return by_name


def _check_choice_of_device(options: Options, config: Config) -> None:
    """Check device and precision where they may be wrong: importing torch for it takes seconds."""
    if options.device not in ("auto", "cpu") or config.predict.precision not in ("auto", "fp32"):
        check_device(options, config.predict.precision)


def _check_checkpoints(
    run: RunFolder, by_name: Mapping[str, ModelSource], config: PredictConfig
) -> None:
    """Report missing and invalid checkpoints before any slide is processed."""
    if not by_name:
        raise StageError(f"{run.path}: no checkpoint; train a model or use --checkpoint FILE")
    for source in by_name.values():
        source.check()
        if config.calibrated:
            require_temperature(source.meta, source.path)


def _predict_tasks(
    entries: Sequence[SlideEntry],
    by_name: Mapping[str, ModelSource],
    config: Config,
    options: Options,
) -> list[PredictSlide]:
    threads, how = threads_per_slide(options, len(entries)), config.predict
    return [
        PredictSlide(e, model, one.path, digest, how, options.device, threads, one.external)
        for model, one in by_name.items()
        for digest in [one.digest()]
        for e in entries
    ]


def _predict_images(
    cohort: ImageCohort, config: Config, options: Options, *, checkpoints: Mapping[str, ModelSource]
) -> StageResult:
    """Images -> scores, by each checkpoint (by the model's name), all of them or in parts."""
    warn_of_unused(config, "predict")
    tasks = [
        PredictImages(
            model,
            cohort,
            one.path,
            one.digest(),
            config.predict,
            options.device,
            external=one.external,
        )
        for model, one in checkpoints.items()
    ]
    return run_in_parts("predict", cohort.run, tasks, config, options, merge=merge_images)


def predict_slides(
    run: RunFolder, config: Config, options: Options, slides: Path, *, checkpoints: Sequence[Path]
) -> list[StageResult]:
    """Slides -> scores: their patches are cut as the checkpoints need them, and not stored.

    Raises
    ------
    ConfigError
        If there is no checkpoint, or they need different patches.
    StageError
        If the run holds patches with pixels, which this would replace.
    """
    require("torch")  # before any time is spent
    _check_choice_of_device(options, config)
    sources = find_sources(checkpoints, config.predict)
    otherwise = (config.tile.patch_px, config.tile.target_mpp)
    needs = needed_patches(sources, otherwise=otherwise)
    if len(needs) != 1:
        raise ConfigError(
            "--slides needs a --checkpoint, which determines the patches to cut"
            if not needs
            else f"--slides: the checkpoints need different patches ({name_some(_sizes(needs))}); "
            "predict with one at a time, each into a RUN of its own"
        )
    before = read_run_json(run).get("tile", {}).get("config", {}).get("tile", {})
    if before.get("store") == "patches" and any(run.tiles.glob("*.zarr")):
        raise StageError(
            f"{run.path} already contains patches written by tile; omit --slides to score "
            "those, or use another RUN"
        )
    [(patch_px, target_mpp)] = needs
    cut = replace(config.tile, patch_px=patch_px, target_mpp=target_mpp, store="coords")
    cutting = replace(config, input=slides, tile=cut)
    return tile_and_predict(run, cutting, config, options, checkpoints=checkpoints, fixed=True)


def tile_and_predict(
    run: RunFolder,
    cutting: Config,
    config: Config,
    options: Options,
    *,
    checkpoints: Sequence[Path] = (),
    fixed: bool = False,
) -> list[StageResult]:
    """Run the stages tile and predict; the next slide is tiled while one is scored.

    Several processes, or several models, are given all slides of a stage before the next begins.

    Parameters
    ----------
    cutting, config : Config
        For tile, and for predict.
    checkpoints : sequence of Path
        Those of the run if there are none.
    fixed : bool
        A checkpoint decides on size and resolution of the patches.
    """
    at_once = options.dask is not None or options.workers > 1 or options.shard is not None
    _check_choice_of_device(options, config)
    at_hand = not at_once and not cutting.images
    by_name = _find_checkpoints(run, checkpoints, config) if at_hand else {}
    if len(by_name) != 1:
        cut = tile(run, cutting, options, fixed=fixed)
        options = keep_slides(run, config, options, cut)
        if cut.exit_code == 1:
            return [cut]
        if options.slides == frozenset():
            end_empty_shard(run, "predict", config, options)
            return [cut]
        return [cut, predict(run, config, options, checkpoints=checkpoints)]
    _check_checkpoints(run, by_name, config.predict)
    tiling = prepare_tiling(run, cutting, options, fixed=fixed)
    splits = config.predict.splits
    chosen = [
        task.entry for task in tiling if splits is None or task.entry.split in (*splits, None)
    ]
    tasks = {task.entry.slide_id: task for task in _predict_tasks(chosen, by_name, config, options)}
    tiled = _Tiled()
    import_module("tiling.build")  # not in the thread, where it could meet other imports

    def tile_all() -> StageResult:
        try:
            return run_stage("tile", run, tiling, cutting, options, on_end=tiled.put)
        finally:
            tiled.close()

    with in_background(tile_all) as wait_for_tile:
        if wanted := [task for task in tasks.values() if not task.unit.is_marked(run)]:
            with suppress(Exception):  # raised again, and recorded, where a slide needs it
                first = wanted[0]
                load_model(first.checkpoint, first.digest, first.external)  # while it is tiled
        ready = (
            tasks[name] if Unit("tile", name).is_marked(run) else None
            for name in tiled
            if name in tasks
        )
        early: list[PredictSlide | None] = []
        for one in ready:
            early.append(one)
            if one is not None:
                break
        scored = []
        if any(early):
            arriving = itertools.chain(early, ready)
            all_tasks = list(tasks.values())
            scored.append(run_stage("predict", run, all_tasks, config, options, arriving=arriving))
        cut = wait_for_tile()
    cut = add_audit(run, cut, options)
    if not scored and cut.exit_code != 1:
        scored.append(predict(run, config, options, checkpoints=checkpoints))  # raises the reason
    return [cut, *scored]


def keep_slides(run: RunFolder, config: Config, options: Options, tiled: StageResult) -> Options:
    """Return the options of what follows `tile` in one command: a shard keeps the slides to score.

    Without shards they are the same.
    """
    if options.shard is None:
        return options
    own, splits = (*tiled.done, *tiled.kept, *tiled.failed), config.predict.splits
    slides = cohort_of(run, own).slides
    wanted = (e.slide_id for e in slides if splits is None or e.split in (*splits, None))
    return replace(options, slides=frozenset(wanted))


class _Tiled:
    """Slides in the order in which they are tiled, one ahead of those that are scored."""

    def __init__(self) -> None:
        self._queue: queue.Queue[str | None] = queue.Queue(AHEAD)

    def put(self, slide_id: str) -> None:
        """Wait until the slide is wanted."""
        self._put(slide_id)

    def close(self) -> None:
        """Report that there are no more."""
        with suppress(Stopped):
            self._put(None)

    def _put(self, item: str | None) -> None:
        while True:
            check_stopped()
            with suppress(queue.Full):
                self._queue.put(item, timeout=WAIT_S)
                return

    def __iter__(self) -> Iterator[str]:
        return iter(self._queue.get, None)


def _sizes(needs: Iterable[tuple[int, float]]) -> list[str]:
    return [f"{px} px at {mpp:g} µm/px" for px, mpp in sorted(needs)]
