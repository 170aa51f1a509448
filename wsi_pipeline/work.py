"""What a stage does to one slide or one model.

`perform` is sent to workers: it takes plain values, imports what it needs, catches every error,
and returns what happened. Nothing here knows of other slides.
"""

import contextlib
import errno
import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.contracts import TileConfig
from tiling.errors import ExpectedError, GridError, PatchSizeError
from tiling.files import move_into, scratch_folder, write_text
from tiling.wording import format_number, pluralize
from wsi_pipeline.config import anchor_paths
from wsi_pipeline.contracts import Heatmap, Scores, SlideEntry
from wsi_pipeline.errors import CheckpointError, HeatmapError
from wsi_pipeline.names import fit_file_name, printable
from wsi_pipeline.runfolder import (
    Examined,
    RunFolder,
    Unit,
    clear_mark,
    examine_unit,
    mark_finished,
    record_damage,
    record_failure,
)
from wsi_pipeline.settings import EvaluateConfig, HeatmapConfig, PredictConfig, TrainConfig
from wsi_pipeline.slide_contents import compute_tile_fingerprint, tile_inputs

if TYPE_CHECKING:
    from tiling.store import PatchStore
    from wsi_pipeline.evaluation.inputs import EvaluationSlide
    from wsi_pipeline.heatmaps.dense_maps import DenseMap

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
Done = tuple[list[Path], str]  # files made, and a line on what was done


@dataclass(frozen=True)
class Task:
    """A unit of work with all it needs."""

    run: RunFolder
    unit: Unit
    fingerprint: str  # empty: the worker computes it
    arguments: Mapping[str, Any]
    folder: Path  # where the command was given: relative paths start there
    overwrite: bool = False  # do it also if the worker finds it finished


@dataclass(frozen=True)
class Outcome:
    """How a unit ended."""

    ok: bool
    line: str
    kept: bool = False  # was finished before


def perform(task: Task, *, on_progress: OnProgress | None = None) -> Outcome:
    """Do one unit; mark it finished, or record why it failed. Only an interrupt gets out."""
    task = anchor_paths(task, task.folder)
    found = Examined("missing")
    try:
        if not task.fingerprint:
            task, found = _examine(task)
        if found.state == "finished" and not task.overwrite:
            return Outcome(True, "finished before, kept", kept=True)
        clear_mark(task.run, task.unit)
        work = _on_images if task.arguments.get("images") else WORK[task.unit.stage]
        files, line = work(task, on_progress or _silent)
        mark_finished(task.run, task.unit, task.fingerprint, files)
    except Exception as error:
        return fail(task.run, task.unit, error, folder=task.folder)
    reasons = "out of date" if found.state == "stale" else "; ".join(found.problems)
    return Outcome(True, f"{reasons}, rebuilt: {line}" if reasons else line)


def _examine(task: Task) -> tuple[Task, Examined]:
    """Decide what a command left to the worker, as the slide has to be read for it."""
    entry: SlideEntry = task.arguments["entry"]
    try:
        fingerprint = compute_tile_fingerprint(task.run, entry, task.arguments["config"])
    except Exception:
        if task.overwrite:  # what was there before is not wanted
            clear_mark(task.run, task.unit)
        raise
    found = examine_unit(task.run, task.unit, fingerprint)
    if found.state == "finished":
        with contextlib.suppress(OSError):  # it may have failed since
            task.unit.mark(task.run, "failed").unlink(missing_ok=True)
    return replace(task, fingerprint=fingerprint), found


def _on_images(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.images.work import WORK as ON_IMAGES

    work = ON_IMAGES[task.unit.stage]
    return work(task.run, task.unit.model, task.fingerprint, task.arguments, on_progress)


def _silent(done: int, total: int) -> None:
    return None


def fail(run: RunFolder, unit: Unit, error: Exception, *, folder: Path | None = None) -> Outcome:
    """Record a failure: a sentence in ``failures.csv``, the traceback under ``logs/``.

    Paths in `folder` are written as they were given, relative to it.
    """
    message = _sentence(unit, error)
    if isinstance(error, ExpectedError) and error.damaged is not None:
        record_damage(run, error.damaged, unit.stage, message)
    if folder is not None and folder.name:
        message = re.sub(rf"(?<![\w./-]){re.escape(str(folder))}/", "", message)
    message = "\n".join(map(printable, message.split("\n")))  # it may hold any file's name
    trace = "".join(traceback.format_exception(error))
    try:
        record_failure(run, unit, type(error).__name__, message)
        stage = "-".join(filter(None, (unit.stage, unit.variant)))
        log_name = fit_file_name((stage, unit.model or "slide", unit.name), ".log")
        write_text(run.logs / log_name, trace)
    except OSError as second:  # a full disk cannot even take the record
        log.warning("%s: the failure could not be recorded (%s)", unit.name, second)
    return Outcome(False, f"FAILED: {message}")


def _sentence(unit: Unit, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"{unit.name}: no space left on the device while {unit.stage} was writing; free some "
            "and run the same command again: finished slides are kept"
        )
    if isinstance(error, MemoryError):
        return f"{unit.name}: not enough memory in {unit.stage}; lower --workers or the batch size"
    if isinstance(error, ExpectedError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{unit.name}: {error.filename}: {error.strerror} (in {unit.stage})"
    return f"{unit.name}: unexpected {type(error).__name__} in {unit.stage}: {error}"


# ---------------------------------------------------------------- tile


def _tile(task: Task, on_progress: OnProgress) -> Done:
    from tiling.build import tile_slide

    entry: SlideEntry = task.arguments["entry"]
    config: TileConfig = task.arguments["config"]
    store, picture = task.run.store(entry.slide_id), task.run.qc(entry.slide_id)
    try:
        summary = tile_slide(
            entry.path,
            store,
            **tile_inputs(entry, config),
            qc_path=picture,
            content_cache=task.run.content(entry.slide_id),
            threads=task.arguments["threads"],
            on_progress=on_progress,
        )
    except PatchSizeError as error:
        if not task.arguments["fixed"]:
            raise
        raise GridError(f"{error.fact}; {error.remedy_if_fixed}") from error
    return [store, picture], str(summary)


# ---------------------------------------------------------------- train


def _train(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.training.processes import in_processes

    config: TrainConfig = task.arguments["config"]
    return in_processes(
        _train_here,
        task,
        processes=config.processes,
        device=task.arguments["device"],
        on_progress=on_progress,
    )


def _train_here(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.devices import resolve_device
    from wsi_pipeline.training import train_model
    from wsi_pipeline.training.processes import rank

    config: TrainConfig = task.arguments["config"]
    entries: Sequence[SlideEntry] = task.arguments["entries"]
    folder = task.run.model(task.unit.model)
    with contextlib.ExitStack() as opened:
        stores = {
            split: [
                opened.enter_context(open_store(task.run, e)) for e in entries if e.split == split
            ]
            for split in ("train", "val")
        }
        summary = train_model(
            config,
            train=stores["train"],
            val=stores["val"],
            patients={e.slide_id: e.patient for e in entries},
            out=folder,
            device=resolve_device(task.arguments["device"], worker=rank()),
            readers=config.readers,
            fingerprint=task.fingerprint,
            on_progress=lambda done, total, _: on_progress(done, total),
        )
    return trained_files(folder), str(summary)


def trained_files(folder: Path) -> list[Path]:
    """List what a finished training leaves in its folder, the checkpoint first."""
    from wsi_pipeline.training.outputs import OUTPUTS

    return [folder / name for name in OUTPUTS]


def open_store(run: RunFolder, entry: SlideEntry) -> "PatchStore":
    """Open a slide's patch store; where it keeps no pixels, they come from the slide."""
    from tiling.store import PatchStore

    return PatchStore.open(
        run.store(entry.slide_id),
        slide_path=entry.path,
        content_cache=run.content(entry.slide_id),
    )


# ---------------------------------------------------------------- predict


def _predict(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.cluster import worker_number
    from wsi_pipeline.devices import resolve_device, resolve_precision
    from wsi_pipeline.inference import predict_store
    from wsi_pipeline.scores import make_scores, write_scores

    entry: SlideEntry = task.arguments["entry"]
    config: PredictConfig = task.arguments["config"]
    device = resolve_device(task.arguments["device"], worker=worker_number())
    precision = resolve_precision(config.precision, device)
    digest: str = task.arguments["digest"]
    model, meta = _load_model(task.arguments["checkpoint"], digest)
    journal = task.run.journal(task.unit.model, entry.slide_id)
    with open_store(task.run, entry) as store:
        scores, summary = predict_store(
            model,
            meta,
            store,
            device=device,
            precision=precision,
            compiler=config.compiler,
            batch_size=config.batch_size,
            readers=config.readers or max(2, task.arguments["threads"]),
            tolerance=config.tolerance,
            max_unreadable=store.tiling["max_unreadable"],
            journal=journal,
            key=f"{task.fingerprint} {device.type} {precision}",
            on_progress=lambda done, total, _: on_progress(done, total),
        )
        path = task.run.scores(task.unit.model, entry.slide_id)
        check = summary.precision_check
        write_scores(
            path,
            make_scores(
                store,
                scores,
                meta,
                digest,
                precision=precision,
                precision_check=check.as_plain() if check else None,
                fingerprint=task.fingerprint,
            ),
        )
    journal.unlink(missing_ok=True)
    return [path], str(summary)


@lru_cache(maxsize=1)
def _load_model(checkpoint: Path, digest: str) -> tuple[Any, Any]:
    """Load the checkpoint whose bytes have this digest: a worker may outlive the file it read.

    Kept between the slides of one process; a process works on one model at a time.
    """
    from wsi_pipeline import checkpoint as checkpoints

    model, meta = checkpoints.load_checkpoint(checkpoint)
    found = checkpoints.digest(checkpoint)
    if found != digest:
        raise CheckpointError(
            f"{checkpoint}: another file than when this command began (SHA-256 {found[:12]}..., "
            f"then {digest[:12]}...); let what writes it end, then run the same command again"
        )
    return model, meta


# ---------------------------------------------------------------- heatmap


def _heatmap(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.heatmaps.files import write_heatmap
    from wsi_pipeline.heatmaps.overlays import draw_overlay
    from wsi_pipeline.scores import read_scores

    entry: SlideEntry = task.arguments["entry"]
    config: HeatmapConfig = task.arguments["config"]
    model = task.unit.model
    scores = read_scores(task.run.scores(model, entry.slide_id))
    values = task.run.heatmap(model, entry.slide_id)
    picture = task.run.overlay(model, entry.slide_id)
    with open_store(task.run, entry) as store:
        heatmap = _lay_out(scores, store, config)
        about: dict[str, Any] = {"mpp": store.info.mpp, "outlines": _outlines(entry, store)}
        thumbnail = _thumbnail(entry, store.info.mpp, config.thumbnail_px)
        write_heatmap(values, heatmap, mpp=store.info.mpp, name=entry.slide_id)
        draw_overlay(picture, heatmap, thumbnail, title=f"{entry.slide_id}, {model}", **about)
        height, width = heatmap.values.shape
        files = [values, picture]
        line = f"{width} x {height} px, highest score {_hottest(scores.scores)}"
        if config.dense_step_px is None:
            return files, line
        dense = _map_densely(task, store, scores, on_progress)
        values = task.run.dense_map(model, entry.slide_id)
        picture = task.run.dense_overlay(model, entry.slide_id)
        write_heatmap(values, dense.heatmap, mpp=store.info.mpp, name=entry.slide_id)
        title = f"{entry.slide_id}, {model}, Q of each patch"
        draw_overlay(picture, dense.heatmap, thumbnail, title=title, **about)
    lost = f", {dense.n_unreadable} unreadable" if dense.n_unreadable else ""
    line += f"; own map of {pluralize(dense.n_mapped, 'patch')}{lost}"
    return [*files, values, picture], line


def _map_densely(
    task: Task, store: "PatchStore", scores: Scores, on_progress: OnProgress
) -> "DenseMap":
    from tiling.slide import open_slide
    from wsi_pipeline.checkpoint import digest
    from wsi_pipeline.cluster import worker_number
    from wsi_pipeline.devices import resolve_device
    from wsi_pipeline.heatmaps.dense_maps import check_mappable, map_slide

    entry: SlideEntry = task.arguments["entry"]
    config: HeatmapConfig = task.arguments["config"]
    checkpoint = task.run.checkpoint(task.unit.model)
    if not checkpoint.is_file():
        raise HeatmapError(
            f"{entry.slide_id}: the map of {task.unit.model} itself (dense_step_px) needs its "
            f"checkpoint in the run; copy the one that predict was given to {checkpoint}"
        )
    found = digest(checkpoint)
    if found != scores.attributes.get("checkpoint"):
        raise HeatmapError(
            f"{entry.slide_id}: its scores were made with another checkpoint than {checkpoint}; "
            "run predict again"
        )
    model, _ = _load_model(checkpoint, found)
    with open_slide(entry.path) as slide:
        return map_slide(
            check_mappable(model),
            slide,
            store.coords,
            geometry=store.geometry,
            step_px=config.dense_step_px or 1,
            device=resolve_device(task.arguments["device"], worker=worker_number()),
            on_progress=on_progress,
        )


def _lay_out(scores: Scores, store: "PatchStore", config: HeatmapConfig) -> Heatmap:
    from wsi_pipeline.heatmaps.rasters import build_heatmap

    tile = store.geometry
    return build_heatmap(
        scores.coords,
        scores.scores,
        slide_size=store.info.size,
        patch_l0=(tile.patch_l0, tile.patch_l0_y),
        stride_l0=(tile.stride_l0, tile.stride_l0_y),
        overlap=config.overlap,
    )


def _hottest(scores: Any) -> str:
    import numpy as np

    return format_number(np.nanmax(scores)) if np.isfinite(scores).any() else "not scored"


def _thumbnail(entry: SlideEntry, mpp: tuple[float, float], longest_px: int) -> Any:
    from tiling.slide import open_slide, read_thumbnail

    with open_slide(entry.path) as slide:
        longest_um = max(side * axis for side, axis in zip(slide.size, mpp, strict=True))
        thumbnail, _ = read_thumbnail(slide, mpp=mpp, target_mpp=longest_um / longest_px)
    return thumbnail


def _outlines(entry: SlideEntry, store: "PatchStore") -> list[Any]:
    """Rings of the annotated tumour, (n, 2) level-0 px each."""
    import numpy as np
    from shapely import get_parts

    from tiling.slide_annotation import read_annotation_of_store

    if entry.annotation is None:
        return []
    parts = get_parts(read_annotation_of_store(entry.annotation, store).tumour)
    rings = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    return [np.asarray(ring.coords) for ring in rings]


# ---------------------------------------------------------------- evaluate, report


def _evaluate(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.evaluation.run_evaluation import evaluate_run

    entries: Sequence[SlideEntry] = task.arguments["entries"]
    config: EvaluateConfig = task.arguments["config"]
    out = task.run.evaluation(task.unit.model)
    # Metrics of an earlier evaluation must not remain where this one is refused or interrupted.
    (out / "metrics.json").unlink(missing_ok=True)
    slides = []
    for number, entry in enumerate(entries):
        slides.append(_evaluation_slide(task, entry))
        on_progress(number + 1, len(entries))
    by_id = {entry.slide_id: entry for entry in entries}

    def read_patch(slide_id: str, patch: int) -> Any:
        with open_store(task.run, by_id[slide_id]) as store:
            return store.read([patch])[0]

    left_out: Sequence[str] = task.arguments["left_out"]
    with scratch_folder(out) as scratch:
        metrics = evaluate_run(
            slides,
            settings=config,
            out=scratch,
            model=task.unit.model,
            read_patch=read_patch,
            left_out=left_out,
            elsewhere=task.arguments["elsewhere"],
        )
        files = move_into(scratch, out, last="metrics.json")
    lost = f"; WITHOUT {', '.join(left_out)}, which failed in an earlier stage" if left_out else ""
    return files, _headline(metrics) + lost


def _evaluation_slide(task: Task, entry: SlideEntry) -> "EvaluationSlide":
    """Put a slide's scores and reference together.

    The heatmap is laid out of the scores at hand, not read from its file, which may be older.
    """
    from tiling.slide_annotation import read_annotation_of_store
    from wsi_pipeline.evaluation.inputs import EvaluationSlide
    from wsi_pipeline.heatmaps.nms import detect, radius_in_px
    from wsi_pipeline.scores import read_scores

    config: EvaluateConfig = task.arguments["config"]
    store = open_store(task.run, entry)
    scores = read_scores(task.run.scores(task.unit.model, entry.slide_id))
    heatmap = _lay_out(scores, store, task.arguments["heatmap"])
    radius_px = radius_in_px(config.detection_radius_um, heatmap, store.info.mpp)
    drawn = entry.annotation
    annotation = None if drawn is None else read_annotation_of_store(drawn, store)
    return EvaluationSlide(
        slide_id=entry.slide_id,
        patient=entry.patient,
        split=entry.split,
        label=entry.label,
        scores=scores,
        patch_labels=store.label,
        lesion_pairs=store.lesion_pairs,
        lesion_ids=store.lesion_ids,
        annotation=annotation,
        slide_mpp=store.info.mpp,
        slide_size=store.info.size,
        detections=detect(heatmap, threshold=config.detection_threshold, radius_px=radius_px),
        localisation=_localise(heatmap, annotation, entry.label),
    )


def _localise(heatmap: Any, annotation: Any, label: int | None) -> Any:
    """Compare a heatmap with the outlines; None where a tumour slide has none."""
    from shapely import MultiPolygon

    from wsi_pipeline.evaluation.localisation import draw_mask, localise

    outlined = annotation is not None and (annotation.lesions or label != 1)
    if not outlined and label != 0:
        return None
    tumour = MultiPolygon() if annotation is None else annotation.tumour
    return localise(heatmap.values, draw_mask(tumour, heatmap))


def _headline(metrics: Mapping[str, Any]) -> str:
    figures = {
        "patch ROC AUC": metrics["patch"]["roc_auc"],
        "slide ROC AUC": metrics["slide"]["roc_auc"],
        "FROC score": metrics["froc"]["score"],
    }
    said = [
        f"{name} {'undefined' if v is None else format_number(v)}" for name, v in figures.items()
    ]
    return ", ".join(said)


def _report(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.report.build import build_report

    figures: list[Path] = []
    path = build_report(
        task.run.path,
        models=task.arguments["models"],
        context=task.arguments["context"],
        figures=figures,
    )
    size = f"{path.stat().st_size / 2**20:.1f} MiB"
    return [path, *figures], f"{size}, {pluralize(len(figures), 'figure file')}"


def _export(task: Task, on_progress: OnProgress) -> Done:
    from wsi_pipeline.exports import load_format
    from wsi_pipeline.exports.base import ExportJob, ExportSlide, leave_unscored
    from wsi_pipeline.scores import read_scores

    entry: SlideEntry = task.arguments["entry"]
    model = task.unit.model
    with open_store(task.run, entry) as store:
        if model:
            scores = read_scores(task.run.scores(model, entry.slide_id))
        else:
            scores = leave_unscored(store.coords)
        slide = ExportSlide(store.info, store.geometry, model, scores)
    job = ExportJob(slide, task.arguments["config"])
    return load_format(task.unit.variant)(job, task.arguments["out"])


# What a stage does to one unit.
WORK: dict[str, Callable[[Task, OnProgress], Done]] = {
    "tile": _tile,
    "train": _train,
    "predict": _predict,
    "heatmap": _heatmap,
    "evaluate": _evaluate,
    "report": _report,
    "export": _export,
}
