"""What the stage ``evaluate`` does for one model: all slides' scores and reference -> figures.

Only the test split is scored (every labelled slide, where there are no splits); the validation
split is used only to choose the slide threshold. Every number can be recomputed from the tables.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_json
from tiling.wording import name_some, pluralize
from wsi_pipeline.config.settings import EvaluateConfig, EvaluatedSplit
from wsi_pipeline.contracts import DEFINITIONS, Rule
from wsi_pipeline.csv_files import write_csv, write_tables
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bands import roc_band
from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.cases import ERROR_COLUMNS, SlideCases, choose_errors, count_errors
from wsi_pipeline.evaluation.crops import ReadPatch, write_crops
from wsi_pipeline.evaluation.detections import write_detections
from wsi_pipeline.evaluation.figures import Figures, add_ranking, add_threshold_figures
from wsi_pipeline.evaluation.froc import froc_to_json
from wsi_pipeline.evaluation.inputs import EvaluationSlide, ReviewOfSlide
from wsi_pipeline.evaluation.intervals import find_shortage, percentile_interval
from wsi_pipeline.evaluation.leaks import Seen, refuse_leaks
from wsi_pipeline.evaluation.metrics import (
    PATCH,
    SLIDE,
    Confusion,
    add_up,
    count_confusion,
    ranking_figures,
    rankings_of,
    shares_of,
    stack,
)
from wsi_pipeline.evaluation.plots import (
    draw_confusion,
    draw_precision_recall,
    draw_roc,
)
from wsi_pipeline.evaluation.ranking import (
    RankingCurves,
    pair_counts,
    patch_kinds,
    ranking_curves,
)
from wsi_pipeline.evaluation.run_froc import count_froc, draw_patients, write_frocs
from wsi_pipeline.evaluation.sections import (
    calibration_section,
    flatten_undefined,
    localisation_section,
    metastasis_section,
    patient_section,
    write_cohort,
)
from wsi_pipeline.evaluation.slide import SlideThreshold, aggregate_scores, freeze_threshold
from wsi_pipeline.evaluation.sweep import sweep_columns, sweep_rows, sweep_thresholds
from wsi_pipeline.evaluation.tables import Cell
from wsi_pipeline.inference.scores import TEMPERATURE

log = logging.getLogger(__name__)

SLIDE_COLUMNS = ("slide_id", "label", "score", "predicted", "tp", "fp", "fn", "tn")
PATCH_COLUMNS = ("slide_id", "x", "y", "score", "label", "lesions")


def evaluate_run(
    slides: Sequence[EvaluationSlide],
    *,
    settings: EvaluateConfig,
    out: Path,
    model: str,
    read_patch: ReadPatch | None = None,
    left_out: Sequence[str] = (),
    elsewhere: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Compute and write one model's figures.

    Parameters
    ----------
    slides : sequence of EvaluationSlide
        Of the split that is evaluated (`settings.split`; test) and the validation split, or all
        where there are no splits. Those of other splits and without any reference are left out.
    settings : EvaluateConfig
    out : Path
        Gets ``metrics.json`` (last); tables, curves and pictures: see docs/evaluate.md.
    model : str
    read_patch : callable, optional
        Reads the pixels of a patch, (P, P, 3) uint8, given slide_id and its row in the store; for
        the crops of the error gallery. None: no crops.
    left_out : sequence of str
        Slides that belong here but could not be scored: they are named among the notes, since no
        denominator holds them.
    elsewhere : mapping, optional
        Outlined slides by split, where none that is evaluated is outlined.

    Returns
    -------
    metrics : dict
        The content of ``metrics.json``.

    Raises
    ------
    EvaluationError
        If there is nothing to evaluate, scores and reference contradict each other, or the model
        has seen a patient that it would be tested on.
    """
    test, val = _choose_slides(slides, settings.split)
    _refuse_mixtures({s.slide_id: s for s in (*test, *val)}.values(), model)
    notes = _choice_notes(slides, test, settings) + _guard(test, val, settings)
    reviews = None
    if settings.reviews:
        reviews = _sum_reviews({s.slide_id: s.review for s in (*test, *val)})
        notes.insert(0, _describe_reviews(reviews))
    if left_out:
        notes.insert(0, f"left out of every figure, since they failed: {', '.join(left_out)}")
    slide_scores = {s.slide_id: _slide_score(s, settings) for s in (*test, *val)}
    threshold = _freeze(val, slide_scores, settings)
    resamples = draw_patients(test, settings)
    if resamples is not None and (shortage := find_shortage(resamples)):
        notes.append(f"too few patients for intervals by bootstrap: {shortage}")
    patch, patch_curves = _patch_section(test, settings, resamples)
    slide, slide_curves = _slide_section(test, slide_scores, threshold, settings, resamples)
    frocs = {name: count_froc(test, name, settings, notes) for name in DEFINITIONS}
    kinds = write_cohort(out, test, frocs["camelyon16"].n_itc)
    sections = {
        "patch": patch,
        "slide": slide,
        "patient": patient_section(test, slide_scores, threshold, resamples, out),
        "metastasis": metastasis_section(test, slide_scores, kinds, threshold, resamples),
        "calibration": calibration_section(_pool(test), _pool(val), out),
        "localisation": localisation_section(test, out, elsewhere or {}, notes),
        "errors": _write_errors(out, test, settings, read_patch, notes),
    }
    primary = frocs[settings.froc_definition].curve
    named = {"froc": primary, **{f"froc_{name}": f.curve for name, f in frocs.items()}}
    undefined = {name: section.undefined for name, section in sections.items()}
    undefined |= {name: curve.undefined for name, curve in named.items()}
    metrics = {
        "model": model,
        "evaluated": settings.split or ("test" if any(s.split for s in test) else "all"),
        "threshold": settings.threshold,
        **({} if reviews is None else {"reviews": reviews}),
        **{name: section.values for name, section in sections.items()},
        **{name: froc_to_json(curve) for name, curve in named.items()},
        "undefined": flatten_undefined(undefined),
        "notes": notes,
    }
    _write_tables(out, test, val, slide_scores, threshold, settings)
    curves = [
        (name, curve, section.values)
        for name, curve, section in (
            ("patches", patch_curves, patch),
            ("slides", slide_curves, slide),
        )
        if curve is not None
    ]
    _write_ranking(out, curves, _roc_bands(test, slide_scores, resamples))
    write_frocs(out, frocs, settings.froc_definition)
    write_json(out / "metrics.json", metrics)
    return metrics


# ------------------------------------------------------------ which slides


def _choose_slides(
    slides: Sequence[EvaluationSlide], split: EvaluatedSplit | None
) -> tuple[list[EvaluationSlide], list[EvaluationSlide]]:
    """Choose the slides that are evaluated and those of val, among those with a reference."""
    for slide in slides:
        _check_slide(slide)
    known = [slide for slide in slides if slide.truth is not None]
    val = [slide for slide in known if slide.split == "val"]
    test = known
    if split != "all" and (split is not None or any(slide.split for slide in slides)):
        test = [slide for slide in known if slide.split == (split or "test")]
    if not test:
        raise EvaluationError(
            f"none of {pluralize(len(slides), 'slide')} with a label or an annotation is in the "
            f"split {split or 'test'}; give slides that split in the manifest, or evaluate another "
            "one (evaluate.split)"
        )
    return test, val


def _check_slide(slide: EvaluationSlide) -> None:
    n = len(slide.scores.scores)
    if len(slide.patch_labels) != n:
        raise EvaluationError(
            f"slide {slide.slide_id}: {pluralize(n, 'score')} for "
            f"{pluralize(len(slide.patch_labels), 'patch')}; "
            "predict it again"
        )
    has_lesion = bool(slide.lesion_ids) or bool(slide.annotation and slide.annotation.lesions)
    if slide.label == 0 and has_lesion:
        raise EvaluationError(
            f"slide {slide.slide_id} has label 0 but its annotation holds a lesion; "
            "one of the two is wrong: correct the manifest or the annotation"
        )


def _refuse_mixtures(slides: Iterable[EvaluationSlide], model: str) -> None:
    """Refuse scores of which some are calibrated, or that several checkpoints have made."""
    kinds: dict[str, list[str]] = {}
    for slide in slides:
        about = slide.scores.attributes
        digest, temperature = str(about.get("checkpoint"))[:12], about.get(TEMPERATURE)
        kind = f"by checkpoint {digest}, "
        kind += "plain" if temperature is None else f"calibrated (temperature {temperature:.4g})"
        kinds.setdefault(kind, []).append(slide.slide_id)
    if len(kinds) > 1:
        found = "; ".join(f"{kind}: {name_some(ids)}" for kind, ids in kinds.items())
        raise EvaluationError(
            f"the scores of {model} are of {len(kinds)} kinds, so no threshold fits all of them: "
            f"{found}. Run predict again for all splits, with one checkpoint and one value of "
            "predict.calibrated"
        )


def _choice_notes(
    slides: Sequence[EvaluationSlide], test: Sequence[EvaluationSlide], settings: EvaluateConfig
) -> list[str]:
    notes = []
    if settings.split not in (None, "test"):
        notes.append(f"figures are of the split {settings.split} (evaluate.split)")
    if settings.split in ("val", "all") and settings.slide_threshold is None:
        notes.append(
            "the slide threshold and the temperature are chosen on slides that are evaluated here, "
            "so metrics that depend on them are too optimistic"
        )
    unknown = [s.slide_id for s in slides if s.truth is None and s.split in ("test", None)]
    if unknown:
        notes.append(
            f"{pluralize(len(unknown), 'slide')} with neither label nor annotation left out: "
            + ", ".join(unknown)
        )
    if not any(slide.split for slide in slides):
        notes.append("no slide has a split: all of them are evaluated, and no threshold is chosen")
    n_unreadable = sum(int(np.isnan(s.scores.scores).sum()) for s in test)
    if n_unreadable:
        notes.append(f"{pluralize(n_unreadable, 'unreadable patch')} without a score left out")
    return notes


def _sum_reviews(reviews: Mapping[str, ReviewOfSlide | None]) -> dict[str, Any]:
    """Add up what the reviews of all slides changed."""
    found = {slide_id: review for slide_id, review in reviews.items() if review is not None}
    return {
        "n_marks": sum(review.n_marks for review in found.values()),
        "n_slides": sum(review.n_marks > 0 for review in found.values()),
        "n_without_truth": sum(review.n_without_truth for review in found.values()),
        "n_changed_patches": sum(review.n_changed for review in found.values()),
        "digests": {slide_id: review.digest for slide_id, review in sorted(found.items())},
    }


def _describe_reviews(reviews: Mapping[str, Any]) -> str:
    if not reviews["n_marks"]:
        line = "no review mark changes a label"
    else:
        line = (
            f"labels corrected by {pluralize(reviews['n_marks'], 'review mark')} on "
            f"{pluralize(reviews['n_slides'], 'slide')}: another label, or none, for "
            f"{pluralize(reviews['n_changed_patches'], 'patch')}"
        )
    if n := reviews["n_without_truth"]:
        line += f"; {pluralize(n, 'mark')} without a truth left out"
    return line


def _guard(
    test: Sequence[EvaluationSlide], val: Sequence[EvaluationSlide], settings: EvaluateConfig
) -> list[str]:
    """Refuse slides under test that the model has seen; note where validation is not one."""
    seen = [Seen(s.slide_id, s.patient, s.trained_on) for s in test]
    notes = refuse_leaks(seen, evaluated=settings.split or "test")
    known = [s.slide_id for s in val if s.slide_id in (s.trained_on or {}).get("train_slides", ())]
    if known:
        notes.append(
            f"the model was trained on {pluralize(len(known), 'validation slide')}, so the slide "
            "threshold and the temperature are too optimistic: " + ", ".join(known)
        )
    return notes


# ------------------------------------------------------------ patches


def _pool(slides: Sequence[EvaluationSlide]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Labels and scores of all slides' patches that count."""
    parts = [slide.labelled() for slide in slides]
    labels = np.concatenate([np.zeros(0, np.int8), *(label for label, _ in parts)])
    return labels, np.concatenate([np.zeros(0), *(score for _, score in parts)])


def _count_patches(
    test: Sequence[EvaluationSlide], settings: EvaluateConfig
) -> list[Confusion[int]]:
    """Count the decisions on each slide's patches."""
    rule = Rule(settings.threshold)
    return [count_confusion(s.patch_labels, s.scores.scores, rule) for s in test]


def _patch_section(
    test: Sequence[EvaluationSlide], settings: EvaluateConfig, resamples: Resamples | None
) -> tuple[Figures, RankingCurves | None]:
    counted = [slide.labelled() for slide in test]
    labels, scores = _pool(test)
    order = np.argsort(-scores, kind="stable")  # each of the rankings sorts again: in no time
    labels, scores = labels[order], scores[order]
    rows = stack(_count_patches(test, settings))
    total = add_up(rows)
    section = Figures(
        {
            "n": int(labels.size),
            "n_ignored": sum(int((s.patch_labels < 0).sum()) for s in test),
            "n_unreadable": sum(int(np.isnan(s.scores.scores).sum()) for s in test),
            **asdict(total),
        }
    )
    shares = shares_of("patch")
    for share in shares:
        section.add_share(share, total, PATCH)
    section.add(*ranking_figures(PATCH, labels, scores))
    if resamples is not None:
        for share in shares:
            section.add_interval(share.name, share.interval(rows, resamples))
        pairs = pair_counts([a for a, _ in counted], [b for _, b in counted])
        for ranking in rankings_of("patch"):
            if ranking.replicate_pooled is not None:
                values = ranking.replicate_pooled(pairs, resamples.weights)
                interval = percentile_interval(values, resamples, kinds=patch_kinds(pairs))
                section.add_interval(ranking.name, interval)
    return section, ranking_curves(labels, scores)


# ------------------------------------------------------------ slides


def _slide_score(slide: EvaluationSlide, settings: EvaluateConfig) -> float | None:
    return aggregate_scores(
        slide.scores.scores,
        slide.scores.coords,
        how=settings.aggregator,
        top_k=settings.top_k,
    )


def _freeze(
    val: Sequence[EvaluationSlide], scores: dict[str, float | None], settings: EvaluateConfig
) -> SlideThreshold | None:
    known = [(s.truth, scores[s.slide_id]) for s in val if scores[s.slide_id] is not None]
    return freeze_threshold(
        [cast(int, label) for label, _ in known],
        [cast(float, score) for _, score in known],
        fixed=settings.slide_threshold,
        # Only these aggregators give something on the scale of a patch's score.
        fallback=settings.threshold if settings.aggregator != "span" else None,
    )


def _slide_section(
    test: Sequence[EvaluationSlide],
    slide_scores: dict[str, float | None],
    threshold: SlideThreshold | None,
    settings: EvaluateConfig,
    resamples: Resamples | None,
) -> tuple[Figures, RankingCurves | None]:
    scored = np.array([slide_scores[s.slide_id] is not None for s in test])
    known = [s for s in test if slide_scores[s.slide_id] is not None]
    labels = np.array([s.truth for s in known], dtype=np.int64)
    scores = np.array([slide_scores[s.slide_id] for s in known], dtype=np.float64)
    section = Figures(
        {
            "aggregator": settings.aggregator,
            "n": len(known),
            "n_positive": int((labels == 1).sum()),
            "n_unscored": len(test) - len(known),
        }
    )
    drawn = None if resamples is None else resamples.take(scored)
    add_ranking(section, SLIDE, labels, scores, drawn)
    add_threshold_figures(section, SLIDE, labels, scores, threshold, drawn)
    section.values["bootstrap"] = settings.bootstrap
    section.values["bootstrap_unit"] = "patient"
    return section, ranking_curves(labels, scores)


# ------------------------------------------------------------ errors


def _write_errors(
    out: Path,
    test: Sequence[EvaluationSlide],
    settings: EvaluateConfig,
    read_patch: ReadPatch | None,
    notes: list[str],
) -> Figures:
    """Write ``errors.csv`` and, where pixels can be read, the crops it names."""
    slides = [
        SlideCases(
            s.slide_id,
            s.scores.coords,
            s.scores.scores,
            s.patch_labels,
            s.lesion_pairs,
            s.lesion_ids,
        )
        for s in test
    ]
    cases = choose_errors(slides, threshold=settings.threshold)
    n_false, n_missed = count_errors(slides, threshold=settings.threshold)
    crops = {} if read_patch is None else write_crops(out / "errors", cases, read_patch, notes)
    write_csv(
        out / "errors.csv",
        ERROR_COLUMNS,
        [
            (c.kind, c.rank, c.slide_id, c.x, c.y, c.score, c.lesion, crops.get(c, ""))
            for c in cases
        ],
    )
    return Figures(
        {
            "n_false_positives": n_false,
            "n_missed_lesions": n_missed,
            "n_shown": len(cases),
            "threshold": settings.threshold,
        }
    )


# ------------------------------------------------------------ files


def _write_tables(
    out: Path,
    test: Sequence[EvaluationSlide],
    val: Sequence[EvaluationSlide],
    slide_scores: dict[str, float | None],
    threshold: SlideThreshold | None,
    settings: EvaluateConfig,
) -> None:
    counted = _count_patches(test, settings)
    confusions = {s.slide_id: c for s, c in zip(test, counted, strict=True)}
    write_csv(
        out / "slides.csv",
        SLIDE_COLUMNS,
        [
            _slide_cells(s, slide_scores[s.slide_id], threshold, confusions[s.slide_id])
            for s in test
        ],
    )
    write_csv(
        out / "validation.csv",
        ("slide_id", "label", "score"),
        [(s.slide_id, s.truth, slide_scores[s.slide_id]) for s in val],
    )
    write_tables(out / "patches.csv", PATCH_COLUMNS, map(_patch_columns, test))
    write_tables(out / "validation_patches.csv", PATCH_COLUMNS, map(_patch_columns, val))
    _write_detections(out / "detections", test)
    labels, scores = _pool(test)
    thresholds = sweep_thresholds(labels, scores, including=[settings.threshold])
    write_csv(out / "sweep.csv", sweep_columns(), sweep_rows(labels, scores, thresholds))
    confusions["all"] = total = add_up(stack(counted))
    write_csv(
        out / "confusion.csv",
        ("slide_id", "true", "predicted_positive", "predicted_negative"),
        [row for slide_id, c in confusions.items() for row in _confusion_cells(slide_id, c)],
    )
    draw_confusion(out / "confusion.png", total, threshold=settings.threshold)


def _write_detections(folder: Path, test: Sequence[EvaluationSlide]) -> None:
    """Write the slides' detections as the command ``froc`` reads them."""
    for slide in test:
        write_detections(folder / f"{slide.slide_id}.csv", slide.detections)


def _slide_cells(
    slide: EvaluationSlide,
    score: float | None,
    threshold: SlideThreshold | None,
    c: Confusion[int],
) -> list[Cell]:
    predicted = None if score is None or threshold is None else int(threshold.decide(score))
    return [slide.slide_id, slide.truth, score, predicted, c.tp, c.fp, c.fn, c.tn]


def _patch_columns(slide: EvaluationSlide) -> list[Sequence[Any] | NDArray[Any]]:
    """Return a slide's `PATCH_COLUMNS`."""
    lesions = [""] * len(slide.patch_labels)
    for patch, lesion in slide.lesion_pairs.tolist():
        name = slide.lesion_ids[lesion]
        lesions[patch] = f"{lesions[patch]};{name}" if lesions[patch] else name
    x, y = slide.scores.coords.T
    scores = slide.scores.scores.astype(np.float64)
    names = [slide.slide_id] * len(lesions)
    return [names, x, y, scores, slide.patch_labels, lesions]


def _confusion_cells(slide_id: str, confusion: Confusion[int]) -> list[list[Cell]]:
    """Format a confusion matrix like the lecture: rows true, columns predicted, positive first."""
    return [
        [slide_id, "positive", confusion.tp, confusion.fn],
        [slide_id, "negative", confusion.fp, confusion.tn],
    ]


def _roc_bands(
    test: Sequence[EvaluationSlide],
    slide_scores: dict[str, float | None],
    resamples: Resamples | None,
) -> dict[str, NDArray[np.float64]]:
    """Bootstrap the ROC curves of patches and of slides, where they are defined."""
    if resamples is None:
        return {}
    patches = [slide.labelled() for slide in test]
    slides = [
        (np.array([s.truth] * known), np.array([slide_scores[s.slide_id]] * known, np.float64))
        for s in test
        for known in [int(slide_scores[s.slide_id] is not None)]
    ]
    found = {}
    for name, parts in (("patches", patches), ("slides", slides)):
        band = roc_band([a for a, _ in parts], [b for _, b in parts], resamples)
        if band is not None:
            found[name] = band
    return found


def _write_ranking(
    out: Path,
    curves: list[tuple[str, RankingCurves, dict[str, Any]]],
    bands: dict[str, NDArray[np.float64]],
) -> None:
    roc = [_curve_columns(name, curve.roc) for name, curve, _ in curves]
    precision_recall = [_curve_columns(name, curve.precision_recall) for name, curve, _ in curves]
    write_tables(out / "roc.csv", ("of", "threshold", "fpr", "tpr"), roc)
    write_tables(out / "pr.csv", ("of", "threshold", "recall", "precision"), precision_recall)
    write_csv(
        out / "roc_band.csv",
        ("of", "fpr", "low", "high"),
        ([name, *point] for name, band in bands.items() for point in band.tolist()),
    )
    drawn = [(name, c, values["roc_auc"]) for name, c, values in curves]
    draw_roc(out / "roc.png", drawn, bands=bands)
    draw_precision_recall(
        out / "pr.png", [(name, c, values["average_precision"]) for name, c, values in curves]
    )


def _curve_columns(name: str, points: NDArray[np.float64]) -> list[Sequence[str] | NDArray[Any]]:
    threshold, x, y = points.T
    return [[name] * len(points), np.where(np.isfinite(threshold), threshold, np.nan), x, y]
