"""The stages on a folder of images: the same commands and files, one unit per stage and model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import cpu_count
from pathlib import Path
from typing import Any

from tiling.files import digest_file
from wsi_pipeline.config import Config, as_plain, digest_settings, name_changes
from wsi_pipeline.errors import ConfigError, StageError
from wsi_pipeline.images.folder import (
    ALL,
    as_slides,
    describe_copies,
    list_images,
    read_images,
    split_images,
    write_images,
)
from wsi_pipeline.runfolder import (
    RunFolder,
    Unit,
    check_unit,
    forget_failures,
    iterate_failures,
    write_failures,
)
from wsi_pipeline.runner import Options, Plan, StageResult, run_stage
from wsi_pipeline.settings import TrainConfig, fill_in_sampling, result_settings
from wsi_pipeline.splits import assign_splits

log = logging.getLogger(__name__)

_EVALUATION = "wsi-pipeline/image-metrics/3"  # what metrics.json holds

# Settings that matter to single images; the others of these sections are of slides alone.
_USED: dict[str, tuple[str, ...]] = {
    "tile": (),
    "predict": ("batch_size", "precision", "tolerance", "readers", "splits"),
    "heatmap": ("maps_per_class",),
    "evaluate": ("split", "image_threshold", "bootstrap", "stratified", "seed"),
    "report": (),
}


def _warn_of_unused(config: Config, section: str) -> None:
    """Name settings that were changed and do nothing to single images."""
    changed = name_changes(as_plain(getattr(config, section)), section)
    names = dict.fromkeys(change.partition("=")[0] for change in changed)
    unused = [f"{section}.{name}" for name in names if name.split(".")[0] not in _USED[section]]
    if unused:
        log.warning("no effect on a folder of images: %s", ", ".join(unused))


def is_image_run(run: RunFolder) -> bool:
    """Tell whether a run folder is of images."""
    return run.images.is_file()


def tile(run: RunFolder, config: Config, options: Options) -> StageResult:
    """Image files -> one array."""
    if config.input is None or config.images is None:
        raise ConfigError("no input; give a folder of images")
    if run.manifest.is_file():
        raise ConfigError(f"{run.path}: is a run on slides; use another run folder for images")
    _warn_of_unused(config, "tile")
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
    if copies := describe_copies(config.input, entries):
        log.warning("%s", copies)
    from wsi_pipeline.images.store import images_fingerprint

    run.path.mkdir(parents=True, exist_ok=True)
    write_images(run.images, entries)
    plan = _plan(
        Unit("tile", ALL),
        partial(images_fingerprint, config.input, entries, config.images),
        folder=config.input,
        entries=entries,
        classes=classes,
        config=config.images,
        threads=max(1, cpu_count() or 1),
    )
    forget_failures(run, ("tile",), listed=[e.image_id for e in entries])
    before = list(iterate_failures(run))
    result = run_stage("tile", run, [plan], config, options)
    if result.done:  # what failed in an earlier run may be readable now
        _forget_mended(run, before)
    ids = {e.image_id for e in entries}
    lost = [row["slide_id"] for row in iterate_failures(run) if row["slide_id"] in ids]
    write_failures(run)
    return replace(result, failed=(*result.failed, *lost))


def _forget_mended(run: RunFolder, before: Sequence[Mapping[str, Any]]) -> None:
    from wsi_pipeline.images.store import read_about

    about = read_about(run.tiles)
    lost = {*about["unreadable"], *about["unreadable_masks"]}
    for row in before:
        if row["stage"] == "tile" and row["slide_id"] not in lost:
            Unit("tile", row["slide_id"]).mark(run, "failed").unlink(missing_ok=True)


def _plan(unit: Unit, fingerprint: Callable[[], str], **arguments: Any) -> Plan:
    return Plan(unit, weight=1, fingerprint=fingerprint, arguments={**arguments, "images": True})


def _data_fingerprint(run: RunFolder) -> str:
    """Hash the pixels' origin and the table of classes, patients and splits; verify the pixels."""
    from wsi_pipeline.images.store import read_about

    path = run.tiles / "images.json"
    if not path.is_file() or not Unit("tile", ALL).is_marked(run):
        raise StageError(
            f"{run.path}: its images are not prepared; run: wsi-pipeline tile FOLDER --out "
            f"{run.path}"
        )
    _require_sound(run, Unit("tile", ALL))
    return digest_settings(read_about(run.tiles), digest_file(run.images))


def _require_sound(run: RunFolder, unit: Unit) -> None:
    """Refuse files that are not as a stage wrote them."""
    if problems := check_unit(run, unit):
        raise StageError(f"{'; '.join(map(str, problems))}; run {unit.stage} again")


def train(
    run: RunFolder, config: Config, options: Options, *, chosen: Mapping[str, TrainConfig]
) -> StageResult:
    """Images -> checkpoints."""
    data = _data_fingerprint(run)
    if not any(e.split == "train" for e in read_images(run.images)):
        raise ConfigError(
            f"{run.path}: no image in the split train; tile again with splits in the config "
            "(--set splits.val_fraction=0.2), or with train/ and test/ folders, or a table's split"
        )
    plans = []
    for name, given in chosen.items():
        settings = fill_in_sampling(given, images=True)
        steps = settings.steps_per_epoch
        if settings.sampling == "shuffle" and steps != TrainConfig.steps_per_epoch:
            log.warning(
                "no effect: train.%s.steps_per_epoch=%d, since each epoch passes over all images "
                "once (sampling: shuffle); set sampling: balanced for draws",
                name,
                steps,
            )
        plans.append(
            _plan(
                Unit("train", model=name),
                partial(_train_fingerprint, data, settings),
                config=settings,
                device=options.device,
            )
        )
    return run_stage("train", run, plans, config, options)


def _train_fingerprint(data: str, settings: TrainConfig) -> str:
    weights = settings.model.weights
    return digest_settings(
        data, result_settings(settings), digest_file(weights) if weights else None
    )


def predict(
    run: RunFolder, config: Config, options: Options, *, checkpoints: Mapping[str, Path]
) -> StageResult:
    """Images -> scores, by each checkpoint (by the model's name)."""
    _warn_of_unused(config, "predict")
    data = _data_fingerprint(run)
    plans = [
        _plan(
            Unit("predict", ALL, model),
            partial(
                digest_settings,
                data,
                digest_file(path),
                config.predict.precision,
                config.predict.splits,
                config.predict.tolerance,
            ),
            checkpoint=path,
            config=config.predict,
            device=options.device,
        )
        for model, path in checkpoints.items()
    ]
    return run_stage("predict", run, plans, config, options)


def heatmap(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str]
) -> StageResult:
    """Checkpoints -> maps of some images, of the models that have any."""
    from wsi_pipeline.images.maps import MAPS_SCHEMA

    _warn_of_unused(config, "heatmap")
    data = _data_fingerprint(run)
    reasons = {model: _why_no_maps(run, model) for model in models}
    notes = tuple(f"no maps of {model}: {reason}" for model, reason in reasons.items() if reason)
    units = [Unit("heatmap", ALL, model) for model, reason in reasons.items() if not reason]
    if not units:
        return StageResult("heatmap", (), (), (), notes)
    split = config.evaluate.split
    plans = [
        _plan(
            unit,
            partial(
                digest_settings,
                data,
                digest_file(run.checkpoint(unit.model)),
                config.heatmap.maps_per_class,
                MAPS_SCHEMA,
                *([split] if split else []),
            ),
            checkpoint=run.checkpoint(unit.model),
            config=config.heatmap,
            split=split,
            device=options.device,
        )
        for unit in units
    ]
    return replace(run_stage("heatmap", run, plans, config, options), notes=notes)


def _why_no_maps(run: RunFolder, model: str) -> str:
    """Say why a model that has scores gets no maps; empty: it gets them."""
    from wsi_pipeline.checkpoint import read_meta
    from wsi_pipeline.images.maps import has_maps
    from wsi_pipeline.images.scoring import read_scores

    path = run.checkpoint(model)
    if not path.is_file():
        return (
            "its scores are by a checkpoint outside the run; copy that file to "
            f"models/{model}/{path.name} and run heatmap again"
        )
    name = read_meta(path).model
    if not has_maps(name):
        return f"nothing here shows where the architecture {name} looks"
    _, about = read_scores(run.path / "scores" / model)
    if about["checkpoint"] != digest_file(path):
        return f"its scores are by another checkpoint than models/{model}; run predict again"
    return ""


def evaluate(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str]
) -> StageResult:
    """Scores + classes -> figures."""
    _warn_of_unused(config, "evaluate")
    plans = [
        _plan(
            Unit("evaluate", model=model),
            partial(_evaluate_fingerprint, run, model, config),
            config=config.evaluate,
        )
        for model in models
    ]
    return run_stage("evaluate", run, plans, config, options)


def _evaluate_fingerprint(run: RunFolder, model: str, config: Config) -> str:
    _require_sound(run, Unit("predict", ALL, model))
    _require_sound(run, Unit("heatmap", ALL, model))  # compared with the masks
    folder = run.path / "scores" / model
    digests = [digest_file(folder / name) for name in ("images.csv", "images.json")]
    compared = [run.tiles / "masks.npy", run.path / "heatmaps" / model / "maps.json"]
    on_masks = [digest_file(path) for path in compared if path.is_file()]
    settings = {key: getattr(config.evaluate, key) for key in _USED["evaluate"]}
    return digest_settings(digests, settings, _EVALUATION, on_masks)


def report(
    run: RunFolder,
    config: Config,
    options: Options,
    *,
    models: Sequence[str],
    fingerprint: Callable[[], str],
) -> StageResult:
    """Everything in the run folder -> one HTML file."""
    _warn_of_unused(config, "report")
    plan = _plan(Unit("report"), fingerprint, models=tuple(models))
    return run_stage("report", run, [plan], config, options)
