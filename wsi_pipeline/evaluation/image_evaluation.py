"""Figures of an image folder: each split as the papers' tables have it, and the test in full."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_json
from wsi_pipeline.config.settings import EvaluateConfig, EvaluatedSplit
from wsi_pipeline.contracts import SPLITS, Rule, Split
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.figures import Figures, add_ranking_intervals
from wsi_pipeline.evaluation.image_localisation import localisation_of
from wsi_pipeline.evaluation.intervals import by_class, find_shortage
from wsi_pipeline.evaluation.leaks import Seen, refuse_leaks
from wsi_pipeline.evaluation.metrics import (
    IMAGE,
    count_confusion,
    decide_each,
    ranking_figures,
    shares_of,
)
from wsi_pipeline.evaluation.plots import draw_confusion, draw_precision_recall, draw_roc
from wsi_pipeline.evaluation.ranking import ranking_curves
from wsi_pipeline.evaluation.sections import flatten_undefined, write_localisation
from wsi_pipeline.evaluation.tables import Cell
from wsi_pipeline.inference.image_scores import ScoredImage
from wsi_pipeline.inference.scores import TRAINED_ON

_NO_SLIDES = "a folder of images has no slides"


def evaluate_images(
    images: Sequence[ScoredImage],
    about: dict[str, Any],
    *,
    rule: Rule,
    model: str,
    out: Path,
    settings: EvaluateConfig,
    masks: Mapping[str, NDArray[np.uint8]] | None = None,
    mask_splits: Mapping[str, Split | None] | None = None,
    maps: Path | None = None,
) -> dict[str, Any]:
    """Compute and write one model's figures.

    Parameters
    ----------
    images : sequence of ScoredImage
    about : dict
        Of the scores: what the model was trained on.
    rule : Rule
    model : str
    out : Path
        Gets ``metrics.json`` (last), ``images.csv``, ``confusion.csv``, ``roc.csv``,
        ``localisation.csv`` and pictures.
    settings : EvaluateConfig
        Of them `split`, `bootstrap`, `stratified` and `seed`.
    masks : mapping, optional
        By image_id, what its map is compared with: (H, W) uint8, 1 on the object.
    mask_splits : mapping, optional
        By image_id, the split of each image with a mask.
    maps : Path, optional
        Folder of the maps.

    Returns
    -------
    metrics : dict
        The content of ``metrics.json``: ``patch`` is at the level of images, of `settings.split`
        (not set: the test split, else val, else all); ``splits`` has every split.

    Raises
    ------
    EvaluationError
        If no labelled image of the split is scored, or the model has seen a patient it would be
        tested on.
    """
    known = [image for image in images if image.label >= 0]
    by_split = {split: [i for i in known if i.split == split] for split in SPLITS}
    name, notes = _choose_split(by_split, known, settings.split, model)
    chosen = [i for i in known if name in (i.split, "all")]
    seen = [Seen(i.image_id, i.patient, about.get(TRAINED_ON)) for i in chosen]
    asked = settings.split or ("val" if name == "val" else "test")  # without any split, all: a test
    notes += refuse_leaks(seen, evaluated=asked)
    section = summarise(chosen, rule)
    if settings.bootstrap:
        _add_intervals(section, chosen, rule, settings, notes)
    splits = {split: summarise(part, rule).values for split, part in by_split.items() if part}
    mapped = [i.image_id for i in images if name in (i.split, "all")]
    located, localisation, doubts = localisation_of(
        mapped,
        masks or {},
        maps or out,
        about.get("checkpoint", ""),
        elsewhere=_masks_elsewhere(masks or {}, mask_splits or {}, mapped),
    )
    of_slides = ["roc_auc", "roc_auc_ci95", "threshold", *(s.name for s in shares_of("slide"))]
    undefined = {
        "patch": section.undefined,
        "localisation": localisation.undefined,
        "slide": dict.fromkeys(of_slides, _NO_SLIDES),
    }
    metrics = {
        "model": model,
        "threshold": rule.threshold,
        "strict": rule.strict,
        "classes": about["classes"],
        "evaluated": name,
        "patch": section.values,
        "splits": splits,
        "localisation": localisation.values,
        "slide": {"aggregator": None, "n": 0, "n_positive": 0, **dict.fromkeys(of_slides)},
        "froc": None,
        "undefined": {**flatten_undefined(undefined), "froc": _NO_SLIDES},
        "notes": notes + doubts,
    }
    _write_tables(out, images, chosen, by_split, rule, section.values)
    write_localisation(out / "localisation.csv", "image_id", located)
    write_json(out / "metrics.json", metrics)
    return metrics


def _choose_split(
    by_split: Mapping[Split, Sequence[ScoredImage]],
    known: Sequence[ScoredImage],
    wanted: EvaluatedSplit | None,
    model: str,
) -> tuple[str, list[str]]:
    """Choose the split that is evaluated, with a note where it is not the test."""
    if wanted is None:
        name = next((s for s in ("test", "val") if by_split[s]), "all")
        if not known or (name == "all" and by_split["train"]):
            raise EvaluationError(
                f"{model}: no scored image with a class outside the split train; fill the split "
                "column (or set splits in the config) and predict again, or set evaluate.split"
            )
        note = f"no image in the split test: figures are of {name}"
        return name, [] if name == "test" else [note]
    if not (known if wanted == "all" else by_split[wanted]):
        there = ", ".join(f"{s} {len(part)}" for s, part in by_split.items() if part) or "none"
        raise EvaluationError(
            f"{model}: no scored image with a class in the split {wanted} (evaluate.split); scored "
            f"images with a class: {there}; score others by predict with predict.splits, or set "
            "evaluate.split"
        )
    note = f"figures are of the split {wanted} (evaluate.split)"
    return wanted, [] if wanted == "test" else [note]


def _masks_elsewhere(
    masks: Mapping[str, Any], splits: Mapping[str, Split | None], mapped: Sequence[str]
) -> dict[str, list[str]]:
    """List the images with a mask that are not evaluated, by split."""
    evaluated = set(mapped)
    found: dict[str, list[str]] = {}
    for image_id in masks:
        if image_id not in evaluated:
            found.setdefault(splits.get(image_id) or "(none)", []).append(image_id)
    return found


def summarise(images: Sequence[ScoredImage], rule: Rule) -> Figures:
    """Compute the figures of some labelled images, and why some are undefined.

    ``loss`` is the mean cross-entropy, from the logits.
    """
    readable = [i for i in images if not np.isnan(i.score)]
    labels, scores = labels_and_scores(readable)
    logits = np.array([i.logit for i in readable])
    confusion = count_confusion(labels, scores, rule)
    figures = Figures({"n": len(readable), "n_unreadable": len(images) - len(readable)})
    figures.values |= asdict(confusion)
    for share in shares_of("image"):
        figures.add_share(share, confusion, IMAGE)
    ranking, reasons = ranking_figures(IMAGE, labels, scores)
    if readable:
        loss = float(np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean())
        figures.add(ranking | {"loss": loss}, reasons)
    else:
        figures.add(ranking | {"loss": None}, {"loss": "no labelled image"} | reasons)
    return figures


def labels_and_scores(
    images: Sequence[ScoredImage],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and scores as arrays."""
    labels = np.array([image.label for image in images], np.int64)
    return labels, np.array([image.score for image in images], np.float64)


def _add_intervals(
    section: Figures,
    images: Sequence[ScoredImage],
    rule: Rule,
    settings: EvaluateConfig,
    notes: list[str],
) -> None:
    """Add ``<figure>_ci95`` by patient, or the reason where there is none."""
    readable = [i for i in images if not np.isnan(i.score)]
    if not readable:
        return
    labels, scores = labels_and_scores(readable)
    resamples = draw_resamples(
        [i.patient for i in readable],
        n_replicates=settings.bootstrap,
        seed=settings.seed,
        strata=labels == 1 if settings.stratified else None,
    )
    if shortage := find_shortage(resamples):
        notes.append(f"too few patients for intervals by bootstrap: {shortage}")
    rows = decide_each(labels, scores, rule)
    for share in shares_of("image"):
        section.add_interval(share.name, share.interval(rows, resamples))
    kinds = by_class(labels, IMAGE.units)
    add_ranking_intervals(section, IMAGE, labels, scores, resamples, kinds)


def _write_tables(
    out: Path,
    images: Sequence[ScoredImage],
    chosen: Sequence[ScoredImage],
    by_split: dict[Any, list[ScoredImage]],
    rule: Rule,
    figures: Mapping[str, Any],
) -> None:
    decided = rule.decide(np.array([i.score for i in images]))
    write_csv(
        out / "images.csv",
        ("image_id", "split", "class", "label", "score", "predicted"),
        (_cells(image, bool(yes)) for image, yes in zip(images, decided, strict=True)),
    )
    counted = {
        split: count_confusion(*labels_and_scores(part), rule)
        for split, part in by_split.items()
        if part
    }
    write_csv(
        out / "confusion.csv",
        ("split", "tp", "fp", "fn", "tn"),
        ([split, c.tp, c.fp, c.fn, c.tn] for split, c in counted.items()),
    )
    labels, scores = labels_and_scores([i for i in chosen if not np.isnan(i.score)])
    curves = ranking_curves(labels, scores)
    points = curves.roc.tolist() if curves else []
    write_csv(
        out / "roc.csv",
        ("threshold", "fpr", "tpr"),
        ([t if np.isfinite(t) else None, x, y] for t, x, y in points),
    )
    drawn = [] if curves is None else [("images", curves)]
    draw_roc(out / "roc.png", [(*one, figures["roc_auc"]) for one in drawn], bands={})
    draw_precision_recall(out / "pr.png", [(*one, figures["average_precision"]) for one in drawn])
    draw_confusion(
        out / "confusion.png",
        count_confusion(*labels_and_scores(chosen), rule),
        threshold=rule.threshold,
        title=f"images, class 1 iff {rule}",
    )


def _cells(image: ScoredImage, predicted: bool) -> list[Cell]:
    unread = np.isnan(image.score)
    return [
        image.image_id,
        image.split or "",
        image.class_name,
        None if image.label < 0 else image.label,
        None if unread else image.score,
        None if unread else int(predicted),
    ]


def rule_of(about: dict[str, Any], threshold: float | None) -> Rule:
    """Take the model's own rule, or another threshold in it."""
    own = Rule(float(about["threshold"]), bool(about["strict"]))
    return own if threshold is None else replace(own, threshold=threshold)
