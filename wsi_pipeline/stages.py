"""What each command does, in order.

Each stage lists its units of work (slides, or models) and says what each would be made from; the
runner does the rest.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from os import cpu_count
from pathlib import Path

from tiling.errors import StoreError, of_damage
from tiling.files import digest_file, json_text, read_json_object
from tiling.geometry import check_tile_config
from tiling.wording import name_some, pluralize
from wsi_pipeline import image_stages
from wsi_pipeline.config import Config, Stage, digest_settings
from wsi_pipeline.contracts import SlideEntry, Split
from wsi_pipeline.errors import ConfigError, ReportError, ScoresError, StageError
from wsi_pipeline.listing import check_copies, describe_copies, read_input
from wsi_pipeline.manifest import with_splits, write_manifest
from wsi_pipeline.marks import find_problems, read_mark
from wsi_pipeline.names import check_model_name, check_twins
from wsi_pipeline.runfolder import (
    SPLITS_FILE,
    RunFolder,
    Unit,
    check_unit,
    forget_failures,
    iterate_failures,
)
from wsi_pipeline.runner import Options, Plan, StageResult, read_run_json, run_stage
from wsi_pipeline.settings import (
    EvaluatedSplit,
    TrainConfig,
    evaluation_settings,
    fill_in_sampling,
    result_settings,
)
from wsi_pipeline.slide_contents import find_tile_fingerprint
from wsi_pipeline.splits import advise_missing_split, assign_splits

log = logging.getLogger(__name__)

NOT_REPORTED = (".ome.tif", ".h5", ".npy")  # files that a report is not made from
PER_SLIDE: tuple[Stage, ...] = ("tile", "predict", "heatmap", "export")


def list_entries(config: Config) -> list[SlideEntry]:
    """List the data set that a config names, each slide in its split."""
    if config.input is None:
        raise ConfigError("no input; give a slide, a folder or a manifest")
    check_tile_config(config.tile)  # said once, before any slide is touched
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
    _check_map_names(config, entries)
    for note in (*listing.notes, *describe_copies(listing)):
        log.warning("%s", note)
    return entries


def _check_map_names(config: Config, entries: Sequence[SlideEntry]) -> None:
    """Refuse slides one of which has the name of the other's dense map."""
    ids = {e.slide_id for e in entries}
    twice = sorted(s for s in ids if f"{s}.dense" in ids)
    if twice and config.heatmap.dense_step_px is not None:
        raise ConfigError(
            f"heatmap.dense_step_px: the dense map of the slide '{twice[0]}' and the heatmap of "
            f"the slide '{twice[0]}.dense' would be one file; give one of them another id in the "
            "manifest's slide_id column, or set heatmap.dense_step_px=null"
        )


def tile(run: RunFolder, config: Config, options: Options, *, fixed: bool = False) -> StageResult:
    """Slides -> patch stores; a folder of images -> one array.

    `fixed`: a checkpoint decides on size and resolution of the patches, so no message advises
    to change them.
    """
    if config.images is not None:
        return image_stages.tile(run, config, options)
    if image_stages.is_image_run(run):
        raise ConfigError(f"{run.path}: is a run on images; use another run folder for slides")
    entries = list_entries(config)
    run.path.mkdir(parents=True, exist_ok=True)
    write_manifest(run.manifest, entries)
    forget_failures(run, PER_SLIDE, listed=[e.slide_id for e in entries])
    plans = [
        Plan(
            Unit("tile", e.slide_id),
            weight=slide_bytes(e),
            fingerprint=partial(find_tile_fingerprint, run, e, e.tile_config(config.tile)),
            arguments={
                "entry": e,
                "config": e.tile_config(config.tile),
                "threads": _threads(options, len(entries)),
                "fixed": fixed,
            },
        )
        for e in entries
    ]
    result = run_stage("tile", run, plans, config, options)
    if options.shard:  # the others are at work: collect makes the audit
        return result
    from wsi_pipeline.label_audit import update_audit

    said = update_audit(run, overwrite=options.overwrite)
    return replace(result, notes=(said,) if said else ())


def slide_bytes(entry: SlideEntry) -> int:
    """Weigh a slide by its file, for the balance of shards."""
    return entry.path.stat().st_size if entry.path.is_file() else 0


def _threads(options: Options, n_slides: int) -> int:
    """Cores for each of the slides that are worked on at a time."""
    return max(1, (cpu_count() or 1) // max(1, min(options.workers, n_slides)))


def train(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Patch stores -> checkpoints."""
    if image_stages.is_image_run(run):
        chosen = models_to_train(config, models)
        check_model_names(run, chosen)
        check_device(options, *(settings.precision for settings in chosen.values()))
        return image_stages.train(run, config, options, chosen=chosen)
    listed = run.read_manifest()
    chosen = {
        name: fill_in_sampling(settings, images=False)
        for name, settings in models_to_train(config, models).items()
    }
    check_model_names(run, chosen)
    _check_splits(run, listed, config, chosen)
    entries = _finished_entries(run, ("train", "val"))
    check_device(options, *(settings.precision for settings in chosen.values()))
    digest_of = verify_stores_once(run)
    plans = [
        Plan(
            Unit("train", model=name),
            weight=1,
            fingerprint=partial(_train_fingerprint, entries, settings, digest_of),
            arguments={
                "entries": entries,
                "config": settings,
                "device": options.device,
            },
        )
        for name, settings in chosen.items()
    ]
    return run_stage("train", run, plans, config, options)


def _check_splits(
    run: RunFolder,
    entries: Sequence[SlideEntry],
    config: Config,
    chosen: Mapping[str, TrainConfig],
) -> None:
    """Refuse to train where a split that is needed has no slide at all."""
    needed: list[Split] = ["train"]
    needed += ["val"] if any(s.monitor != "none" for s in chosen.values()) else []
    for split in needed:
        if not any(e.split == split for e in entries):
            advice = advise_missing_split(entries, split, made=config.splits)
            raise StageError(f"{run.path}: no slide in split {split}: {advice}")


def check_model_names(run: RunFolder, models: Iterable[str]) -> None:
    """Refuse models whose folders some file systems would take for those of others in the run.

    Raises
    ------
    ConfigError
        Naming both.
    """
    there = (name for folder in ("models", "scores") for name in run.models_with(folder))
    check_twins(
        dict.fromkeys((*there, *models)), f"{run.path}: the models", remedy="use one spelling"
    )


def check_device(options: Options, *precisions: str) -> None:
    """Say once that a device is not there, or cannot compute in a precision.

    Workers elsewhere know better what they have.
    """
    from wsi_pipeline.devices import resolve_device, resolve_precision

    if options.dask is None:
        device = resolve_device(options.device)
        for precision in precisions:
            resolve_precision(precision, device)


def models_to_train(config: Config, names: Sequence[str]) -> dict[str, TrainConfig]:
    """Choose the models named, or all of the config, with their settings.

    Raises
    ------
    ConfigError, ModelError
        If there is none, or no architecture or file of weights of that name.
    """
    from wsi_pipeline.models import MODELS
    from wsi_pipeline.models.pretrained import check_weights_file

    if not names and not config.train:
        raise ConfigError(
            f"no model named; use --model NAME, one of {', '.join(sorted(MODELS))}, "
            "or name models in the config under train"
        )
    chosen = {
        name: replace(config.train[name], seed=config.seed)
        if config.train[name].seed is None
        else config.train[name]
        for name in names or config.train
    }
    for settings in chosen.values():
        if settings.model.name not in MODELS:
            known = ", ".join(sorted(MODELS))
            raise ConfigError(f"no model is called '{settings.model.name}'; known: {known}")
        if settings.model.weights:
            check_weights_file(settings.model.weights)
    return chosen


def _finished_entries(
    run: RunFolder, splits: Sequence[str | None] | None = None
) -> list[SlideEntry]:
    """List the slides that have a patch store and are in one of `splits` (None: in any)."""
    entries = [e for e in run.read_manifest() if splits is None or e.split in splits]
    tiled = [e for e in entries if Unit("tile", e.slide_id).is_marked(run)]
    failed = {row["slide_id"] for row in iterate_failures(run) if row["stage"] == "tile"}
    waiting = [e.slide_id for e in entries if e not in tiled and e.slide_id not in failed]
    if waiting:
        raise StageError(
            f"not tiled yet: {len(waiting)} of {pluralize(len(entries), 'slide')}: "
            f"{name_some(waiting)}; run: wsi-pipeline tile INPUT --out {run.path} "
            "(see also: wsi-pipeline collect)"
        )
    if not tiled:
        where = f" in split {' or '.join(s or '(none)' for s in splits)}" if splits else ""
        raise StageError(
            f"{run.path}: no tiled slide{where}; fill the split column of the manifest (or set "
            "splits in the config) and run tile again"
        )
    return tiled


def digest_store(run: RunFolder, entry: SlideEntry) -> str:
    """Give the digest of what a slide's patch store was made from, once its files are verified.

    Raises
    ------
    StoreError
        If the store is missing, unfinished, or not as the stage tile wrote it.
    """
    from tiling.store import PatchStore, stored_fingerprint

    path = run.store(entry.slide_id)
    store = path.relative_to(run.path).as_posix()
    if problems := check_unit(run, Unit("tile", entry.slide_id), [store]):
        raise StoreError(f"{'; '.join(map(str, problems))}; run tile again")
    # Of a store that is not whole, opening it says what is wrong.
    return stored_fingerprint(path) or PatchStore.open(path).fingerprint


DigestStore = Callable[[SlideEntry], str]


def verify_stores_once(run: RunFolder) -> DigestStore:
    """Give `digest_store` for one command: several models share what is read of a store."""
    return cache(partial(digest_store, run))


def _train_fingerprint(
    entries: Sequence[SlideEntry], settings: TrainConfig, digest_of: DigestStore
) -> str:
    data = [(e.slide_id, e.patient, e.split, digest_of(e)) for e in entries]
    weights = settings.model.weights
    return digest_settings(
        data, result_settings(settings), digest_file(weights) if weights else None
    )


def predict(
    run: RunFolder, config: Config, options: Options, *, checkpoints: Sequence[Path] = ()
) -> StageResult:
    """Patch stores -> scores, by each checkpoint."""
    from wsi_pipeline.checkpoint import read_meta

    check_device(options, config.predict.precision)
    found = list(checkpoints) or [run.checkpoint(m) for m in run.models_with("models")]
    by_name = _by_model(found)
    check_model_names(run, by_name)
    if image_stages.is_image_run(run) and found:
        return image_stages.predict(run, config, options, checkpoints=by_name)
    wanted = None if config.predict.splits is None else (*config.predict.splits, None)
    entries = _finished_entries(run, wanted)
    if not found:
        raise StageError(f"{run.path}: no checkpoint; train a model or use --checkpoint FILE")
    plans = []
    digest_of = verify_stores_once(run)
    for model, checkpoint in by_name.items():
        read_meta(checkpoint)  # what is no checkpoint is said once, before any slide is touched
        digest = digest_file(checkpoint)
        for e in entries:
            plans.append(
                Plan(
                    Unit("predict", e.slide_id, model),
                    weight=slide_bytes(e),
                    fingerprint=partial(_predict_fingerprint, e, digest, config, digest_of),
                    arguments={
                        "entry": e,
                        "checkpoint": checkpoint,
                        "digest": digest,
                        "config": config.predict,
                        "device": options.device,
                        "threads": _threads(options, len(entries)),
                    },
                )
            )
    return run_stage("predict", run, plans, config, options)


def cut_for(
    run: RunFolder, config: Config, options: Options, slides: Path, *, checkpoints: Sequence[Path]
) -> StageResult:
    """Slides -> where their patches lie, as the checkpoints need them; no pixels are stored.

    Raises
    ------
    ConfigError
        If there is no checkpoint, they need different patches, or only a shard is asked for.
    StageError
        If the run holds patches with pixels, which this would replace.
    """
    from wsi_pipeline.checkpoint import read_meta

    check_device(options, config.predict.precision)  # before any time is spent
    _by_model(checkpoints)
    needs = {(m.patch_px, m.target_mpp) for m in map(read_meta, checkpoints)}
    if len(needs) != 1:
        raise ConfigError(
            "--slides needs a --checkpoint: it says which patches to cut"
            if not needs
            else f"--slides: the checkpoints need different patches ({name_some(_sizes(needs))}); "
            "predict with one at a time, each into a RUN of its own"
        )
    if options.shard:
        raise ConfigError(
            "--slides cannot be combined with --shard; in a job array run tile first "
            "(--set tile.store=coords), then predict"
        )
    before = read_run_json(run).get("tile", {}).get("config", {}).get("tile", {})
    if before.get("store") == "patches" and any(run.tiles.glob("*.zarr")):
        raise StageError(
            f"{run.path} already contains patches written by tile; omit --slides to score "
            "those, or use another RUN"
        )
    [(patch_px, target_mpp)] = needs
    cut = replace(config.tile, patch_px=patch_px, target_mpp=target_mpp, store="coords")
    return tile(run, replace(config, input=slides, tile=cut), options, fixed=True)


def _sizes(needs: Iterable[tuple[int, float]]) -> list[str]:
    return [f"{px} px at {mpp:g} µm/px" for px, mpp in sorted(needs)]


def _by_model(checkpoints: Iterable[Path]) -> dict[str, Path]:
    """Sort checkpoints by the models' names; two with one name would overwrite each other."""
    found: dict[str, Path] = {}
    for path in checkpoints:
        remedy = "rename the file (a checkpoint.safetensors: its folder), which names its scores"
        check_model_name(model_name(path), f"--checkpoint {path}: the model's name", remedy=remedy)
        other = found.setdefault(model_name(path), path)
        if other.resolve() != path.resolve():
            raise ConfigError(
                f"--checkpoint: {other} and {path} both are the model '{model_name(path)}'; rename "
                "one of the files (a checkpoint.safetensors: its folder), which names its scores"
            )
    return found


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


def _predict_fingerprint(
    entry: SlideEntry, checkpoint: str, config: Config, digest_of: DigestStore
) -> str:
    # Batches and threads change no score; what is left does, or stands in the score file.
    how = (config.predict.precision, config.predict.compiler, config.predict.tolerance)
    return digest_settings(digest_of(entry), checkpoint, *how)


def heatmap(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Scores -> heatmaps; of images, maps of those models that have any."""
    if image_stages.is_image_run(run):
        named = choose_scored_models(run, models)
        return image_stages.heatmap(run, config, options, models=named)
    entries = run.read_manifest()
    _check_map_names(config, entries)
    by_id = {e.slide_id: e for e in entries}
    chosen = choose_scored_models(run, models)
    plans = [
        Plan(
            Unit("heatmap", slide_id, model),
            weight=slide_bytes(by_id[slide_id]),
            fingerprint=(compute := partial(_heatmap_fingerprint, run, model, slide_id, config)),
            fingerprint_of_old=partial(compute, digest=digest_scores_by_origin),
            arguments={
                "entry": by_id[slide_id],
                "config": config.heatmap,
                "device": options.device,
            },
        )
        for model in chosen
        for slide_id in scored(run, model, by_id)
    ]
    if not plans:
        raise StageError(f"{run.path}: nothing to heatmap: {why_unscored(run, chosen, by_id)}")
    result = run_stage("heatmap", run, plans, config, options)
    return replace(result, notes=name_unscored(run, chosen, by_id))


def choose_scored_models(run: RunFolder, names: Sequence[str]) -> list[str]:
    """Choose the models named, or all that have scores."""
    found = run.models_with("scores")
    unknown = [name for name in names if name not in found]
    if unknown or not found:
        raise StageError(
            f"{run.path}: no scores of {', '.join(unknown) or 'any model'}; "
            f"run: wsi-pipeline predict {run.path}"
        )
    return list(names) or found


def scored(run: RunFolder, model: str, slide_ids: Iterable[str]) -> list[str]:
    """Choose the slides that a model has scored and whose patch store is finished."""
    return [
        s
        for s in slide_ids
        if Unit("predict", s, model).is_marked(run) and Unit("tile", s).is_marked(run)
    ]


def name_unscored(
    run: RunFolder, models: Sequence[str], slide_ids: Iterable[str]
) -> tuple[str, ...]:
    """Name the slides that are not among the scored ones since their prediction failed."""
    slide_ids = list(slide_ids)

    def is_lost(unit: Unit) -> bool:
        return unit.mark(run, "failed").is_file() and not unit.is_marked(run)

    lost = {model: [s for s in slide_ids if is_lost(Unit("predict", s, model))] for model in models}
    return tuple(
        f"skipped {name_some(slides)}: prediction with {model} failed"
        for model, slides in lost.items()
        if slides
    )


def why_unscored(run: RunFolder, models: Sequence[str], slide_ids: Iterable[str]) -> str:
    """Explain why no slide is scored, though there are score files, and what to do."""
    slide_ids = list(slide_ids)
    again = f"run: wsi-pipeline predict {run.path}, with the same --checkpoint if it had one"
    failed = name_unscored(run, models, slide_ids)
    if failed:
        return f"{failed[0].removeprefix('skipped ')} (see {run.failures}); then {again}"
    untiled = [s for s in slide_ids if not Unit("tile", s).is_marked(run)]
    if len(untiled) == len(slide_ids):
        return f"no slide's patches are whole ({name_some(untiled)}); run tile again, then predict"
    if not any(run.scores(model, s).is_file() for model in models for s in slide_ids):
        none = f"no scores of {name_some(models)} for {name_some(slide_ids)}"
        return f"{none} (predict.splits chooses the slides); {again}"
    return f"the scores of {name_some(models)} were not finished; {again}"


def digest_scores(run: RunFolder, model: str, slide_id: str) -> str:
    """Hash the content of a slide's score file.

    Raises
    ------
    ScoresError
        If the file is missing or damaged. One that was edited by other programs is used, with a
        line in the log.
    """
    from wsi_pipeline.scores import find_damage

    path, unit = run.scores(model, slide_id), Unit("predict", slide_id, model)
    mark = read_mark(unit.mark(run, "done"))
    if not path.is_file():
        raise ScoresError(f"{path}: no such score file; run predict first")
    if mark is not None and mark.damaged:
        raise ScoresError(f"{path} {'; '.join(mark.damaged)}; run predict again")
    found = digest_file(path)
    written = mark.sha256.get(path.relative_to(run.path).as_posix()) if mark is not None else None
    if written is not None and found != written:
        if damage := find_damage(path):
            raise of_damage(ScoresError(damage), path)
        log.warning("%s: not as predict wrote it, but consistent: used as an edited file", path)
    return found


def digest_scores_by_origin(run: RunFolder, model: str, slide_id: str) -> str:
    """Give the digest of what a slide's scores were made from, which earlier versions used."""
    from wsi_pipeline.scores import read_scores

    return str(read_scores(run.scores(model, slide_id)).attributes.get("fingerprint"))


DigestScores = Callable[[RunFolder, str, str], str]


def _heatmap_fingerprint(
    run: RunFolder,
    model: str,
    slide_id: str,
    config: Config,
    *,
    digest: DigestScores = digest_scores,
) -> str:
    return digest_settings(digest(run, model, slide_id), config.heatmap)


def evaluate(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Scores + reference -> figures, for each model."""
    from wsi_pipeline.evaluation.froc import check_rates

    if image_stages.is_image_run(run):
        named = choose_scored_models(run, models)
        return image_stages.evaluate(run, config, options, models=named)
    check_rates(config.evaluate.rates)
    entries = run.read_manifest()
    plans = []
    digest_of = verify_stores_once(run)
    for model in choose_scored_models(run, models):
        chosen, left_out = _to_evaluate(run, model, entries, config)
        elsewhere = _outlined_elsewhere(entries, chosen, config.evaluate.split)
        plans.append(
            Plan(
                Unit("evaluate", model=model),
                weight=1,
                fingerprint=(
                    compute := partial(
                        _evaluate_fingerprint,
                        run,
                        model,
                        chosen,
                        left_out,
                        elsewhere,
                        config,
                        digest_of,
                    )
                ),
                fingerprint_of_old=partial(compute, digest=digest_scores_by_origin),
                arguments={
                    "entries": chosen,
                    "left_out": left_out,
                    "elsewhere": elsewhere,
                    "config": config.evaluate,
                    "heatmap": config.heatmap,
                },
            )
        )
    return run_stage("evaluate", run, plans, config, options)


def _to_evaluate(
    run: RunFolder, model: str, entries: Sequence[SlideEntry], config: Config
) -> tuple[tuple[SlideEntry, ...], tuple[str, ...]]:
    """Choose what figures are made of: the split that is evaluated, and val for the threshold.

    Without any split, all slides with a reference. A slide that could not be tiled or scored is
    left out and said so in the figures; one that was merely not predicted yet is an error, since
    figures of half a test set look like figures of the whole.

    Returns
    -------
    chosen : slides
    left_out : slide ids
    """
    split = config.evaluate.split
    has_splits = any(e.split in {"val", "test"} for e in entries)
    everything = split == "all" or (split is None and not has_splits)
    named = {"val", split or "test"}
    wanted = [
        e
        for e in entries
        if (everything or e.split in named) and (e.label is not None or e.annotation is not None)
    ]
    if not wanted:
        among = "in the manifest" if everything else f"in the splits {' and '.join(sorted(named))}"
        raise StageError(
            f"{run.path}: nothing to compare the scores of {model} with: no slide {among} has a "
            "label or an annotation; fill these columns in and run tile again (heatmap, export and "
            "report need none)"
        )
    done = set(scored(run, model, [e.slide_id for e in wanted]))
    units = {
        e.slide_id: (Unit("tile", e.slide_id), Unit("predict", e.slide_id, model)) for e in wanted
    }
    failed = {s for s, both in units.items() if any(u.mark(run, "failed").is_file() for u in both)}
    waiting = [e for e in wanted if e.slide_id not in done | failed]
    if waiting:
        raise StageError(
            f"no scores of {model} yet for {len(waiting)} of {pluralize(len(wanted), 'slide')}: "
            f"{name_some([e.slide_id for e in waiting])}; run: wsi-pipeline predict {run.path}"
            f"{_also_splits(waiting, config.predict.splits)}"
        )
    left_out = tuple(e.slide_id for e in wanted if e.slide_id in failed - done)
    return tuple(e for e in wanted if e.slide_id in done), left_out


def _also_splits(waiting: Sequence[SlideEntry], splits: Sequence[str] | None) -> str:
    """Write the option by which predict scores slides that its setting leaves out."""
    missing = {e.split for e in waiting if e.split} - set(splits or ())
    if splits is None or not missing:
        return ""
    return f" --set 'predict.splits=[{', '.join([*splits, *sorted(missing)])}]'"


def _outlined_elsewhere(
    entries: Sequence[SlideEntry], chosen: Sequence[SlideEntry], split: EvaluatedSplit | None
) -> dict[str, list[str]]:
    """List outlined slides by their split, where none of those evaluated is outlined.

    Their outlines are what heatmaps would be compared with.
    """
    has_splits = any(e.split for e in chosen)
    tested = {
        e.slide_id
        for e in chosen
        if split == "all" or not has_splits or e.split == (split or "test")
    }
    outlined = [e for e in entries if e.annotation is not None]
    if any(e.slide_id in tested for e in outlined):
        return {}
    found: dict[str, list[str]] = {}
    for e in outlined:
        found.setdefault(e.split or "(none)", []).append(e.slide_id)
    return found


def _evaluate_fingerprint(
    run: RunFolder,
    model: str,
    chosen: Sequence[SlideEntry],
    left_out: Sequence[str],
    elsewhere: Mapping[str, Sequence[str]],
    config: Config,
    digest_of: DigestStore,
    *,
    digest: DigestScores = digest_scores,
) -> str:
    data = [
        (
            e.slide_id,
            e.patient,
            e.split,
            e.label,
            digest_file(e.annotation) if e.annotation else None,
            digest(run, model, e.slide_id),
            digest_of(e),
        )
        for e in chosen
    ]
    settings = evaluation_settings(config.evaluate)
    more = [elsewhere] if elsewhere else []
    return digest_settings(data, left_out, settings, config.heatmap.overlap, *more)


def report(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Everything in the run folder -> one HTML file."""
    of_images = image_stages.is_image_run(run)
    if not of_images:
        run.read_manifest()
    found = list(dict.fromkeys(run.models_with("models") + run.models_with("scores")))
    unknown = [name for name in models if name not in found]
    if unknown:
        raise StageError(f"{run.path}: no files of the model {', '.join(unknown)} to report on")
    chosen = tuple(models) or tuple(found)
    if of_images:
        fingerprint = partial(_report_fingerprint, run, chosen, config)
        return image_stages.report(run, config, options, models=chosen, fingerprint=fingerprint)
    plan = Plan(
        Unit("report"),
        weight=1,
        fingerprint=partial(_report_fingerprint, run, chosen, config),
        arguments={"models": chosen, "context": config.report.context},
    )
    return run_stage("report", run, [plan], config, options)


def _report_fingerprint(run: RunFolder, models: Sequence[str], config: Config) -> str:
    """Hash the marks of all stages that a report shows; it covers the whole run folder."""
    _check_reported(run, models)
    state = run.path / ".state"
    found = {path.relative_to(state): path for path in sorted(state.rglob("*.json"))}
    marks = {
        name.as_posix(): _read_plain(path)
        for name, path in found.items()
        if name.parts[0] not in ("report", "export")
        and not name.match("*.earlier.json")
        and name.name != SPLITS_FILE
    }
    return digest_settings(marks, list(models), config.report)


def _read_plain(path: Path) -> str:
    """Give the text of a mark as its stage wrote it; empty where it is damaged."""
    try:
        value = read_json_object(path)
    except (OSError, ValueError):
        return ""
    value.pop("damaged", None)
    return json_text(value)


def _check_reported(run: RunFolder, models: Sequence[str]) -> None:
    """Refuse to report on damaged files; parts that are missing are named in the report.

    Raises
    ------
    ReportError
        Naming a file and its stage.
    """
    state = run.path / ".state"
    shown = [*state.glob("tile/*.done.json"), *state.glob("label_audit/*.done.json")]
    for stage in ("train", "predict", "heatmap", "evaluate"):
        shown += [mark for model in models for mark in (state / stage / model).glob("*.done.json")]
    for path in sorted(shown):
        mark = read_mark(path)
        if mark is None:
            continue
        names = [name for name in mark.files if not name.endswith(NOT_REPORTED)]
        for problem in find_problems(run.path, path, replace(mark, damaged=()), names):
            if not problem.is_missing:
                stage = path.relative_to(state).parts[0]
                command = "tile" if stage == "label_audit" else stage
                raise ReportError(f"{problem}; run {command} again")
