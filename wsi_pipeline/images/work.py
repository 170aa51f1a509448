"""What each stage does to an image folder: as `wsi_pipeline.work` does to slides, but all at once.

Each function takes the run, the model's name, the fingerprint, its arguments and a progress
callback, and gives the files it made and a line on what was done.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiling.files import move_into, scratch_folder, write_json
from tiling.wording import format_number, pluralize
from wsi_pipeline.contracts import Split
from wsi_pipeline.errors import StageError
from wsi_pipeline.images.folder import ImageEntry, read_images
from wsi_pipeline.runfolder import RunFolder, Unit, record_failure
from wsi_pipeline.settings import (
    EvaluateConfig,
    EvaluatedSplit,
    HeatmapConfig,
    ImagesConfig,
    PredictConfig,
    TrainConfig,
)

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
Done = tuple[list[Path], str]


def _prepare(
    run: RunFolder, model: str, fingerprint: str, arguments: Mapping[str, Any], tell: OnProgress
) -> Done:
    from wsi_pipeline.images.store import prepare_images

    entries: Sequence[ImageEntry] = arguments["entries"]
    config: ImagesConfig = arguments["config"]
    problems = prepare_images(
        arguments["folder"],
        entries,
        arguments["classes"],
        config,
        out=run.tiles,
        fingerprint=fingerprint,
        threads=arguments["threads"],
        on_progress=tell,
    )
    for image_id, problem in problems.items():
        record_failure(run, Unit("tile", image_id), "ManifestError", problem)
    lost = f", {len(problems)} unreadable" if problems else ""
    files = [run.tiles / "images.npy", run.tiles / "images.json"]
    files += [path for path in [run.tiles / "masks.npy"] if path.is_file()]
    return (
        files,
        f"{pluralize(len(entries), 'image')}{lost}, {files[0].stat().st_size / 2**20:.1f} MiB",
    )


def _train(
    run: RunFolder, model: str, fingerprint: str, arguments: Mapping[str, Any], tell: OnProgress
) -> Done:
    from wsi_pipeline.training.processes import in_processes

    config: TrainConfig = arguments["config"]
    return in_processes(
        _train_here,
        run,
        model,
        fingerprint,
        arguments,
        processes=config.processes,
        device=arguments["device"],
        on_progress=tell,
    )


def _train_here(
    run: RunFolder, model: str, fingerprint: str, arguments: Mapping[str, Any], tell: OnProgress
) -> Done:
    from wsi_pipeline.devices import resolve_device
    from wsi_pipeline.training import train_model
    from wsi_pipeline.training.outputs import OUTPUTS
    from wsi_pipeline.training.processes import rank

    config: TrainConfig = arguments["config"]
    train, val = (_groups(run, s, config.seed or 0) for s in ("train", "val"))
    summary = train_model(
        config,
        train=train,
        val=val,
        patients={group.info.slide_id: group.info.slide_id for group in (*train, *val)},
        out=run.model(model),
        device=resolve_device(arguments["device"], worker=rank()),
        readers=config.readers,
        fingerprint=fingerprint,
        on_progress=lambda done, total, _: tell(done, total),
    )
    return [run.model(model) / name for name in OUTPUTS], str(summary)


def _groups(run: RunFolder, split: Split, seed: int) -> list[Any]:
    """Make the groups of a split; for training of equally many images where that is asked for."""
    from wsi_pipeline.images.store import (
        choose_equal,
        group_by_patient,
        open_images,
        raise_to_parity,
        read_about,
    )

    entries = read_images(run.images)
    images = open_images(run.tiles, entries)
    rows = [row for row, e in enumerate(entries) if e.split == split and e.label >= 0]
    balance = read_about(run.tiles)["settings"]["equal_classes"]
    if split == "train" and balance:
        labels = np.array([entries[row].label for row in rows], np.int8)
        labels[images.unreadable[rows]] = -1
        choose = raise_to_parity if balance == "upsample" else choose_equal
        rows = [rows[place] for place in choose(labels, seed=seed)]
    return group_by_patient(images, entries, rows)


def _predict(
    run: RunFolder, model: str, fingerprint: str, arguments: Mapping[str, Any], tell: OnProgress
) -> Done:
    from wsi_pipeline.checkpoint import digest, load_checkpoint
    from wsi_pipeline.devices import resolve_device, resolve_precision
    from wsi_pipeline.images.scoring import (
        Rule,
        check_classes,
        check_precision,
        check_shape,
        score_images,
        write_scores,
    )
    from wsi_pipeline.images.store import open_images
    from wsi_pipeline.scores import TRAINED_ON

    config: PredictConfig = arguments["config"]
    entries = read_images(run.images)
    images = open_images(run.tiles, entries)
    network, meta = load_checkpoint(arguments["checkpoint"])
    check_shape(meta, images)
    if doubt := check_classes(meta, images):
        log.warning("%s", doubt)
    wanted = None if config.splits is None else (*config.splits, None)
    rows = [row for row, e in enumerate(entries) if wanted is None or e.split in wanted]
    if not rows:
        raise StageError(f"{run.path}: no image in split {' or '.join(config.splits or ())}")
    device = resolve_device(arguments["device"])
    precision = resolve_precision(config.precision, device)
    places = np.array(rows, np.int64)
    logits = score_images(
        network,
        images,
        places,
        device=device,
        precision=precision,
        batch_size=config.batch_size,
        readers=config.readers or 1,  # from one array in memory or cache: more gain nothing
        on_progress=tell,
    )
    check = None
    if precision != "fp32":
        check = check_precision(
            network, images, places, logits, device=device, tolerance=config.tolerance
        )
        if not check.within:
            log.warning(
                "%s: %s, above the tolerance of %g; use --set predict.precision=fp32",
                model, check, config.tolerance,
            )  # fmt: skip
    attributes = {
        "model": meta.model,
        "checkpoint": digest(arguments["checkpoint"]),
        "precision": precision,
        "precision_check": check.as_plain() if check else None,
        "fingerprint": fingerprint,
        "classes": list(meta.class_names),
        TRAINED_ON: meta.provenance(),
    }
    rule = Rule(network.threshold, network.strict)
    chosen = [entries[row] for row in rows]
    files = write_scores(run.path / "scores" / model, chosen, logits, rule, attributes)
    lost = int(np.isnan(logits).sum())
    return files, pluralize(len(rows), "image") + (f", {lost} unreadable" if lost else "")


def _heatmap(
    run: RunFolder, model: str, fingerprint: str, arguments: Mapping[str, Any], tell: OnProgress
) -> Done:
    import torch

    from wsi_pipeline.checkpoint import digest, load_checkpoint
    from wsi_pipeline.devices import resolve_device
    from wsi_pipeline.images.maps import (
        MAPS_SCHEMA,
        draw_overview,
        is_probability,
        write_image_maps,
    )
    from wsi_pipeline.images.store import open_images

    config: HeatmapConfig = arguments["config"]
    entries = read_images(run.images)
    images = open_images(run.tiles, entries)
    network, meta = load_checkpoint(arguments["checkpoint"])
    device = resolve_device(arguments["device"])
    network = network.to(device)
    rows = choose_shown(entries, images.unreadable, config.maps_per_class, split=arguments["split"])
    folder = run.path / "heatmaps" / model
    about_maps = folder / "maps.json"
    about_maps.unlink(missing_ok=True)  # it speaks of maps that are about to go
    files: list[Path] = []
    shown = []
    try:
        for number, row in enumerate(rows):
            pixels = torch.from_numpy(np.array(images.pixels[row])).to(device)
            image = pixels.permute(2, 0, 1).float() / 255
            made, picture, grey = write_image_maps(folder, entries[row].image_id, network, image)
            files += made
            shown.append((entries[row], picture, grey))
            tell(number + 1, len(rows))
    except BaseException:  # no mark will list them
        _remove(files)
        raise
    files.append(draw_overview(folder / "overview.png", shown))
    about = {
        "schema": MAPS_SCHEMA,
        "checkpoint": digest(arguments["checkpoint"]),
        "probability": is_probability(meta.model),
        "images": [entries[row].image_id for row in rows],
    }
    write_json(about_maps, about)
    return [*files, about_maps], f"maps of {pluralize(len(rows), 'image')}"


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def choose_shown(
    entries: Sequence[ImageEntry],
    unreadable: Any,
    most: int | None,
    *,
    split: EvaluatedSplit | None = None,
) -> list[int]:
    """Choose the first `most` readable images of each class, of the split that is evaluated.

    Not set: of the test split where there is one, else of val, else of all.
    """
    splits = {e.split for e in entries}
    name = split or next((s for s in ("test", "val") if s in splits), "all")
    rows = [
        row for row, e in enumerate(entries) if name in (e.split, "all") and not unreadable[row]
    ]
    chosen: list[int] = []
    for label in (0, 1, -1):
        of_class = [row for row in rows if entries[row].label == label]
        chosen += of_class if most is None else of_class[:most]
    return chosen


def _evaluate(
    run: RunFolder, model: str, fingerprint: str, arguments: Mapping[str, Any], tell: OnProgress
) -> Done:
    from wsi_pipeline.images.evaluation import evaluate_images, rule_of
    from wsi_pipeline.images.masks import read_masks
    from wsi_pipeline.images.scoring import read_scores

    config: EvaluateConfig = arguments["config"]
    entries = read_images(run.images)
    images, about = read_scores(run.path / "scores" / model)
    out = run.evaluation(model)
    rule = rule_of(about, config.image_threshold)
    (out / "metrics.json").unlink(missing_ok=True)
    with scratch_folder(out) as scratch:
        metrics = evaluate_images(
            images,
            about,
            rule=rule,
            model=model,
            out=scratch,
            settings=config,
            masks=read_masks(run.tiles, entries),
            mask_splits={e.image_id: e.split for e in entries},
            maps=run.path / "heatmaps" / model,
        )
        files = move_into(scratch, out, last="metrics.json")
    figures = {"accuracy": "accuracy", "ROC AUC": "roc_auc", "loss": "loss"}
    found = {name: metrics["patch"][key] for name, key in figures.items()}
    said = [f"{name} {'undefined' if v is None else format_number(v)}" for name, v in found.items()]
    if n := metrics["localisation"]["n"]:
        said.append(f"maps compared with {pluralize(n, 'mask')}")
    return files, f"{metrics['evaluated']}: " + ", ".join(said)


def _report(
    run: RunFolder, model: str, fingerprint: str, arguments: Mapping[str, Any], tell: OnProgress
) -> Done:
    from wsi_pipeline.report.images import build_image_report

    path = build_image_report(run.path, models=arguments["models"])
    return [path], f"{path.stat().st_size / 2**20:.1f} MiB"


# What a stage does to the images of a run.
WORK: dict[str, Callable[[RunFolder, str, str, Mapping[str, Any], OnProgress], Done]] = {
    "tile": _prepare,
    "train": _train,
    "predict": _predict,
    "heatmap": _heatmap,
    "evaluate": _evaluate,
    "report": _report,
}
