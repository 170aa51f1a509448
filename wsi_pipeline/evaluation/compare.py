"""Two models on the same slides: do their figures differ, or is it chance?

Both models' figures are computed on the same resampled sets of patients, so what is hard about a
slide is hard for both and cancels. Everything is read from the two folders that `evaluate` wrote;
nothing else is needed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import read_json_object, write_json
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import (
    Resamples,
    draw_resamples,
    weighted_average_precision,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.delong import delong_p_value
from wsi_pipeline.evaluation.froc import (
    RATES,
    AtRate,
    Definition,
    Denominator,
    SlideHits,
    build_froc,
    collect_events,
    replicate_sensitivities,
)
from wsi_pipeline.evaluation.intervals import (
    Kinds,
    Undefined,
    by_class,
    compare_paired,
    no_comparison,
)
from wsi_pipeline.evaluation.patch import pair_counts, patch_kinds, replicate_patch_auc
from wsi_pipeline.evaluation.tables import parse_number, read_rows

DEFINITIONS: tuple[Definition, ...] = ("camelyon16", "patch")


@dataclass(frozen=True)
class _Slide:
    """What one model's tables say of one slide."""

    label: int
    patient: str
    score: float | None
    in_froc: bool
    patch_labels: NDArray[np.int64]  # (N,) 1 or 0, those that count
    patch_scores: NDArray[np.float64]  # (N,)
    hits: Mapping[str, SlideHits]  # by definition


@dataclass(frozen=True)
class _Figure:
    """A figure on the slides as they are, and on each replicate."""

    value: float | None
    replicates: NDArray[np.float64]  # (B,) NaN where undefined
    resamples: Resamples  # of the slides that it is computed on
    kinds: Kinds = field(default_factory=dict)  # what these slides must hold
    reason: str = ""


def compare_models(
    folders: Sequence[Path], *, out: Path, replicates: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare each pair of models, and write ``comparison.json``.

    Parameters
    ----------
    folders : sequence of Path
        ``evaluation/<model>`` of one run or of several.
    out : Path
        The JSON file.

    Returns
    -------
    comparisons : list of dict
        One for each pair, in order; see `compare_evaluations`.
    """
    pairs = [
        compare_evaluations(a, b, replicates=replicates, seed=seed)
        for a, b in combinations(folders, 2)
    ]
    write_json(out, pairs)
    return pairs


def compare_evaluations(
    a: Path, b: Path, *, replicates: int = 1000, seed: int = 0, stratified: bool = False
) -> dict[str, Any]:
    """Compare two models on the slides that both were evaluated on.

    Parameters
    ----------
    a, b : Path
        Folders ``evaluation/<model>``.
    replicates : int
        Resampled sets of patients.
    stratified : bool
        Resample patients with and without tumour apart.

    Returns
    -------
    comparison : dict
        ``first``, ``second`` (names), ``n_slides``, ``n_patients``, ``left_out`` (slides that only
        one of the two has), ``bootstrap`` and ``figures``: for each of ``patch.roc_auc``,
        ``slide.roc_auc``, ``slide.average_precision``, ``froc_camelyon16.score`` and
        ``froc_patch.score`` the keys ``first``, ``second``, ``difference`` (first - second),
        ``difference_ci95``, ``method``, ``p_value``, ``n_used``, ``n_skipped``; ``slide.roc_auc``
        has ``p_value_delong`` as well. What is undefined is None, with a reason under
        ``undefined``.

    Raises
    ------
    EvaluationError
        If a folder lacks a table, no slide is common to both, or they disagree on the reference.
    """
    first, second = _read(a), _read(b)
    common = sorted(set(first) & set(second))
    if not common:
        raise EvaluationError(
            f"{a.name} and {b.name} have no evaluated slide in common; compare models on one test "
            "set"
        )
    for slide_id in common:
        _check_same_reference(slide_id, first[slide_id], second[slide_id])
    resamples = draw_resamples(
        [first[s].patient for s in common],
        n_replicates=replicates,
        seed=seed,
        strata=[first[s].label == 1 for s in common] if stratified else None,
    )
    how = _froc_settings(a), _froc_settings(b)
    if how[0] != how[1]:
        raise EvaluationError(
            f"{a.name} and {b.name} read the FROC in different ways ({how[0]} and {how[1]}); "
            "evaluate both with the same settings"
        )
    ours, theirs = ([model[s] for s in common] for model in (first, second))
    figures: dict[str, dict[str, Any]] = {}
    undefined: dict[str, str] = {}
    pairs = zip(_figures(ours, resamples, how[0]), _figures(theirs, resamples, how[0]), strict=True)
    for (name, one), (_, other) in pairs:
        figures[name], reasons = _compare(one, other)
        undefined |= {f"{name}{key}": reason for key, reason in reasons.items()}
    p_value = _delong(ours, theirs)
    known = not isinstance(p_value, Undefined)
    figures["slide.roc_auc"]["p_value_delong"] = p_value if known else None
    if isinstance(p_value, Undefined):
        undefined["slide.roc_auc.p_value_delong"] = p_value.reason
    return {
        "first": a.name,
        "second": b.name,
        "n_slides": len(common),
        "n_patients": len({slide.patient for slide in ours}),
        "left_out": sorted(set(first) ^ set(second)),
        "bootstrap": {
            "replicates": replicates,
            "seed": seed,
            "unit": resamples.unit,
            "stratified": stratified,
        },
        "figures": figures,
        "undefined": undefined,
    }


def _compare(one: _Figure, other: _Figure) -> tuple[dict[str, Any], dict[str, str]]:
    """Compare a figure of two models; also, by suffix of its name, what is undefined and why."""
    result: dict[str, Any] = {"first": one.value, "second": other.value}
    if one.value is None or other.value is None:
        values, reasons = no_comparison(one.replicates.size, one.reason or other.reason)
        return result | values, reasons
    # What one model could not score, the other may: the fewer patients decide.
    fewer = min((one, other), key=lambda figure: figure.resamples.n_groups)
    paired = compare_paired(
        one.replicates,
        other.replicates,
        fewer.resamples,
        difference=one.value - other.value,
        kinds=fewer.kinds,
    )
    values, reasons = paired.to_json()
    return result | values, reasons


# ------------------------------------------------------------ figures


def _figures(
    slides: Sequence[_Slide], resamples: Resamples, froc: Mapping[str, Any]
) -> Iterator[tuple[str, _Figure]]:
    yield "patch.roc_auc", _patch_auc(slides, resamples)
    scored = np.array([slide.score is not None for slide in slides])
    labels = np.array([s.label for s in slides if s.score is not None], dtype=np.int64)
    scores = np.array([s.score for s in slides if s.score is not None], dtype=np.float64)
    as_is = np.ones((1, labels.size), dtype=np.int64)
    drawn = resamples.take(scored)
    kinds = by_class(labels, "slides")
    for name, figure in (
        ("roc_auc", weighted_roc_auc),
        ("average_precision", weighted_average_precision),
    ):
        if np.unique(labels).size < 2:
            yield f"slide.{name}", _nothing(drawn, "the scored slides are all of one class")
            continue
        value = float(figure(labels, scores, as_is)[0])
        replicates = figure(labels, scores, drawn.weights)
        yield f"slide.{name}", _Figure(value, replicates, drawn, kinds)
    for definition in DEFINITIONS:
        yield f"froc_{definition}.score", _froc_score(slides, resamples, definition, froc)


def _nothing(resamples: Resamples, reason: str) -> _Figure:
    return _Figure(None, np.full(len(resamples.weights), np.nan), resamples, reason=reason)


def _patch_auc(slides: Sequence[_Slide], resamples: Resamples) -> _Figure:
    counts = pair_counts([s.patch_labels for s in slides], [s.patch_scores for s in slides])
    as_is = np.ones((1, len(slides)), dtype=np.int64)
    value = float(replicate_patch_auc(counts, as_is)[0])
    if np.isnan(value):
        return _nothing(resamples, "the labelled patches are all of one class")
    replicates = replicate_patch_auc(counts, resamples.weights)
    return _Figure(value, replicates, resamples, patch_kinds(counts))


def _froc_score(
    slides: Sequence[_Slide],
    resamples: Resamples,
    definition: Definition,
    froc: Mapping[str, Any],
) -> _Figure:
    counted = np.array([slide.in_froc for slide in slides])
    if not counted.any():
        return _nothing(resamples, "no slide is normal or has annotated lesions")
    how = froc[definition]
    rates: list[float] = how["rates"]
    at_rate: AtRate = how["at_rate"]
    denominator: Denominator = how["fp_denominator"]
    events = collect_events(
        [slide.hits[definition] for slide in slides if slide.in_froc],
        definition=definition,
        fp_denominator=denominator,
    )
    curve = build_froc(events, rates=rates, at_rate=at_rate)
    if curve.score is None:
        return _nothing(resamples, curve.undefined["score"])
    drawn = resamples.take(counted)
    read = replicate_sensitivities(events, drawn.weights, rates=rates, at_rate=at_rate)
    return _Figure(curve.score, read.mean(axis=1), drawn, events.kinds)


def _delong(ours: Sequence[_Slide], theirs: Sequence[_Slide]) -> float | Undefined:
    both = [
        (one.label, one.score, other.score)
        for one, other in zip(ours, theirs, strict=True)
        if one.score is not None and other.score is not None
    ]
    labels = np.array([label for label, _, _ in both], dtype=np.int64)
    first = np.array([score for _, score, _ in both], dtype=np.float64)
    second = np.array([score for _, _, score in both], dtype=np.float64)
    return delong_p_value(labels, first, second)


# ------------------------------------------------------------ the tables of one model


def _check_same_reference(slide_id: str, one: _Slide, other: _Slide) -> None:
    facts = [
        (s.label, s.patient, s.in_froc, *(s.hits[d].best.size for d in DEFINITIONS))
        for s in (one, other)
    ]
    if facts[0] != facts[1]:
        raise EvaluationError(
            f"slide {slide_id}: the two evaluations have another label, patient or number of "
            f"lesions ({facts[0]} and {facts[1]}); evaluate both against the same reference"
        )


def _froc_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Tell how each FROC is read, from its JSON file."""
    settings: dict[str, dict[str, Any]] = {}
    for definition in DEFINITIONS:
        result = _read_json(folder / f"froc_{definition}.json")
        settings[definition] = {
            "rates": [float(rate) for rate in result.get("sensitivity_at", {})] or list(RATES),
            "at_rate": result.get("at_rate", "linear"),
            "fp_denominator": result.get("fp_denominator"),
        }
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}); run evaluate again") from error


def _read(folder: Path) -> dict[str, _Slide]:
    """Read one model's tables: slide_id -> what they say."""
    cohort = {row["slide_id"]: row for row in _rows(folder / "cohort.csv")}
    patches = _read_patches(folder / "patches.csv")
    best = {definition: _read_lesions(folder, definition) for definition in DEFINITIONS}
    detected: dict[str, list[float]] = defaultdict(list)
    for row in _rows(folder / "detections.csv"):
        if row["outcome"] == "false_positive":
            detected[row["slide_id"]].append(float(row["prob"]))
    slides = {}
    for row in _rows(folder / "slides.csv"):
        slide_id = row["slide_id"]
        about = cohort.get(slide_id)
        if about is None:
            raise EvaluationError(f"{folder}/cohort.csv lacks slide {slide_id}; run evaluate again")
        labels, scores = patches.get(slide_id, (np.zeros(0, np.int64), np.zeros(0)))
        normal = row["label"] == "0"
        known = labels >= 0
        found = {d: np.array(best[d].get(slide_id, []), np.float64) for d in DEFINITIONS}
        slides[slide_id] = _Slide(
            label=int(row["label"]),
            patient=about["patient"],
            score=parse_number(row["score"]),
            in_froc=about["in_froc"] == "1",
            patch_labels=labels[known],
            patch_scores=scores[known],
            hits={
                "camelyon16": SlideHits(
                    np.array(detected[slide_id], np.float64),
                    found["camelyon16"],
                    normal=not found["camelyon16"].size and about["n_itc"] in ("", "0"),
                ),
                "patch": SlideHits(
                    scores if normal else np.zeros(0), found["patch"], normal=normal
                ),
            },
        )
    return slides


def _read_patches(path: Path) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Read labels (-1 among them) and scores by slide; unreadable patches left out."""
    labels: dict[str, list[int]] = defaultdict(list)
    scores: dict[str, list[float]] = defaultdict(list)
    for row in _rows(path):
        if row["score"]:
            labels[row["slide_id"]].append(int(row["label"]))
            scores[row["slide_id"]].append(float(row["score"]))
    return {s: (np.array(labels[s], np.int64), np.array(scores[s], np.float64)) for s in labels}


def _read_lesions(folder: Path, definition: Definition) -> dict[str, list[float]]:
    """Read the best score of each lesion by slide; NaN where it is missed."""
    best: dict[str, list[float]] = defaultdict(list)
    for row in _rows(folder / f"lesions_{definition}.csv"):
        score = parse_number(row["best_score"])
        best[row["slide_id"]].append(np.nan if score is None else score)
    return best


def _rows(path: Path) -> Iterator[dict[str, str]]:
    rows = read_rows(path)
    header = next(rows, None)
    if header is None:
        raise EvaluationError(f"{path}: empty; run evaluate again")
    for line, fields in rows:
        if len(fields) != len(header[1]):
            raise EvaluationError(
                f"{path}, line {line}: {len(fields)} fields, expected {len(header[1])}; "
                "run evaluate again"
            )
        yield dict(zip(header[1], fields, strict=True))
