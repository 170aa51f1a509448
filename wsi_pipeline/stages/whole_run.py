"""The commands that run several stages: ``run`` and ``apply``."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from wsi_pipeline.cohort.kinds import cohort_of
from wsi_pipeline.config.model_files import find_model
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.stages import STAGES, check_run_folder
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import check_layer, list_methods
from wsi_pipeline.exports import check_format, load_image_format
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.run.full_disk import describe_full, is_full
from wsi_pipeline.run.runner import Options, StageResult, end_empty_shard
from wsi_pipeline.run.shards import select_shard
from wsi_pipeline.stages import inputs as inputs_stage
from wsi_pipeline.stages import load_stage
from wsi_pipeline.stages import predict as predict_stage
from wsi_pipeline.stages import train as train_stage
from wsi_pipeline.stages.model_sources import model_name
from wsi_pipeline.stages.predict import keep_slides


def run_stages(run: RunFolder, config: Config, options: Options) -> list[StageResult]:
    """Run the stages that a config names, in order; stop where nothing could be done.

    Raises
    ------
    ConfigError
        If one shard of a job array is asked to do what needs all of them, an export of nothing, or
        a model or precision that cannot be.
    """
    _check(config, options)
    for name in config.stages:
        check_run_folder(name, run.path)
    results: list[StageResult] = []
    try:
        for result in _run(run, config, _divide(run, config, options)):
            results.append(result)
            if result.exit_code == 1:
                break
    except OSError as error:
        if not results or not is_full(error):
            raise
        results[-1] = replace(results[-1], unrecorded=describe_full(run.path))
    return results


def apply_models(
    run: RunFolder,
    config: Config,
    options: Options,
    *,
    slides: Path,
    checkpoints: Sequence[Path],
    formats: Sequence[str],
) -> list[StageResult]:
    """Slides -> scores, heatmaps and exports, by each checkpoint; stop where nothing could be done.

    Raises
    ------
    ConfigError, CheckpointError
        If a checkpoint is not one, or two have one name.
    """
    from wsi_pipeline.stages.export import check_export, export
    from wsi_pipeline.stages.heatmap import check_map_method, heatmap

    check_map_method(config)
    check_export(config.export)
    results = predict_stage.predict_slides(run, config, options, slides, checkpoints=checkpoints)
    options = keep_slides(run, config, options, results[0])
    if results[-1].exit_code == 1:
        return results
    if options.slides == frozenset():  # more shards than slides
        for stage in ("heatmap", "export"):
            end_empty_shard(run, stage, config, options)
        return results
    models = [model_name(find_model(path)) for path in checkpoints]
    results.append(heatmap(run, config, options, models=models))
    results += export(run, config, options, names=formats, models=models)
    return results


def _check(config: Config, options: Options) -> None:
    shared = [stage.name for stage in STAGES if stage.is_shardable]
    if config.images:  # one task puts them all into one array
        shared.remove("tile")
    whole = [name for name in config.stages if name not in shared]
    if options.shard and whole:
        raise ConfigError(
            f"--shard: {', '.join(whole)} need all {'images' if config.images else 'slides'}; run "
            f"the array with --set stages=[{shared[0]}] (or {', '.join(shared[1:])}), then "
            "collect, then the others once"
        )
    _check_computing(config, options)
    _check_split(config)
    _check_settings(config)
    check = load_image_format if config.images else check_format
    for name in config.export.formats:
        check(name)
    list_methods(config.explain.methods)
    if "export" not in config.stages:
        return
    if config.stages != Config().stages and not config.export.formats:
        raise ConfigError(
            "stages: export has nothing to do; set export.formats, e.g. [qupath], or leave it out"
        )


def _check_computing(config: Config, options: Options) -> None:
    """Refuse at once what a later stage would refuse after the hours of those before it."""
    trained = train_stage.models_to_train(config, ()) if "train" in config.stages else {}
    if trained and not config.images:
        from wsi_pipeline.models import check_image_size

        for settings in trained.values():
            check_image_size(settings.model, (config.tile.patch_px, config.tile.patch_px))
    precisions: list[str] = [settings.precision for settings in trained.values()]
    if "predict" in config.stages:
        precisions.append(config.predict.precision)
        blind = [name for name, settings in trained.items() if settings.monitor == "none"]
        if blind and config.predict.calibrated:
            raise ConfigError(
                f"predict.calibrated needs a temperature, which is fitted in validation, but "
                f"train.{blind[0]}.monitor is none; set it to loss or roc_auc, or set "
                "predict.calibrated=false"
            )
    if precisions:
        inputs_stage.check_device(options, *precisions)


def _check_settings(config: Config) -> None:
    """Refuse settings that only the last stages would refuse."""
    from wsi_pipeline.evaluation.froc import check_rates
    from wsi_pipeline.stages.export import check_export
    from wsi_pipeline.stages.heatmap import check_map_method

    if "heatmap" in config.stages:
        check_map_method(config)
    if "evaluate" in config.stages and not config.images:
        check_rates(config.evaluate.rates)
    if "explain" in config.stages and config.explain.methods:
        check_layer("explain.layer", config.explain.layer, list_methods(config.explain.methods))
    if "export" in config.stages:
        check_export(config.export)


def _check_split(config: Config) -> None:
    """Refuse to evaluate a split that predict is not to score."""
    split, scored = config.evaluate.split, config.predict.splits
    both = {"predict", "evaluate"} <= set(config.stages)
    if both and scored is not None and split not in (None, "all", *scored):
        raise ConfigError(
            f"evaluate.split is {split}, but predict.splits is [{', '.join(scored)}]; add {split} "
            "to predict.splits, or evaluate another split"
        )


def _divide(run: RunFolder, config: Config, options: Options) -> Options:
    """Choose the slides of a shard once for several stages, which cannot wait for other shards.

    If one of them is `tile`, its slides are those of the others (`keep_slides`).
    """
    if options.shard is None or config.images or len(config.stages) < 2 or "tile" in config.stages:
        return options
    wanted = config.predict.splits if "predict" in config.stages else None
    tiled = cohort_of(run).prepared(None if wanted is None else (*wanted, None)).slides
    weights = {entry.slide_id: inputs_stage.slide_bytes(entry) for entry in tiled}
    return replace(options, slides=frozenset(select_shard(weights, options.shard)))


def _run(run: RunFolder, config: Config, options: Options) -> Iterator[StageResult]:
    together = {"tile", "predict"} <= set(config.stages) and "train" not in config.stages
    if together:
        both = predict_stage.tile_and_predict(run, config, config, options)
        yield from both
        options = keep_slides(run, config, options, both[0])
    for stage in STAGES:
        if stage.name not in config.stages or (together and stage.name in ("tile", "predict")):
            continue
        variants = getattr(getattr(config, stage.name), stage.variants) if stage.variants else None
        if variants == ():
            continue
        if options.slides == frozenset():  # more shards than slides
            end_empty_shard(run, stage.name, config, options)
            continue
        named = {} if variants is None else {"names": variants}
        found = load_stage(stage.name)(run, config, options, **named)
        yield from found if isinstance(found, list) else [found]
        if stage.name == "tile" and isinstance(found, StageResult) and not config.images:
            options = keep_slides(run, config, options, found)
