"""One model's results on slides, read from the tables that ``evaluate`` wrote; nothing else."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tiling.files import read_json_object
from wsi_pipeline.contracts import DEFINITIONS, AtRate, Definition, Denominator, Rule
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.compare import (
    Estimate,
    Evaluated,
    estimate_ranking,
    estimate_share,
    no_estimate,
)
from wsi_pipeline.evaluation.csv_columns import Layout, NotPlainError, read_columns
from wsi_pipeline.evaluation.froc import (
    RATES,
    SlideHits,
    build_froc,
    collect_events,
    replicate_sensitivities,
)
from wsi_pipeline.evaluation.metrics import (
    PATCH,
    SLIDE,
    Confusion,
    ReplicatePooled,
    compared_rankings,
    compared_shares,
    decide_each,
    stack,
)
from wsi_pipeline.evaluation.ranking import pair_counts, patch_kinds
from wsi_pipeline.evaluation.tables import parse_number, read_rows


@dataclass(frozen=True)
class _Slide:
    """One slide in the tables of one model."""

    label: int
    patient: str
    score: float  # NaN: none
    predicted: float  # 1 or 0; NaN: no score, or no threshold
    in_froc: bool
    decided: Confusion[int]  # of its patches
    patch_labels: NDArray[np.int64]  # (N,) 1 or 0, those that count
    patch_scores: NDArray[np.float64]  # (N,)
    hits: Mapping[str, SlideHits]  # by definition


@dataclass(frozen=True)
class EvaluatedSlides(Evaluated):
    """One model's results on slides, from the tables of ``evaluation/<model>``."""

    unit: ClassVar[str] = "slide"
    agreed: ClassVar[str] = "label, patient, number of lesions or review"
    auc: ClassVar[str] = "slide.roc_auc"

    name: str
    slides: Mapping[str, _Slide]
    froc: Mapping[str, Mapping[str, Any]]  # by definition, how it is read
    reviews: Mapping[str, str] = field(default_factory=dict)  # digests of those that were used

    def facts(self) -> Mapping[str, tuple[Any, ...]]:
        """Label, patient, whether it counts in the FROC, lesions by each definition, review."""
        return {
            slide_id: (
                s.label,
                s.patient,
                s.in_froc,
                *(s.hits[d].best.size for d in DEFINITIONS),
                self.reviews.get(slide_id, ""),
            )
            for slide_id, s in self.slides.items()
        }

    def settings(self) -> Any:
        """How each FROC is read."""
        return self.froc

    def scores(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """Return the slides' scores: (S,)."""
        return np.array([self.slides[i].score for i in ids], np.float64)

    def describe(self, left_out: Sequence[str]) -> dict[str, Any]:
        """Name the slides that only one of the two has."""
        return {"left_out": list(left_out), "bootstrap": {"stratified": False}}

    def estimate(self, ids: Sequence[str], resamples: Resamples) -> Iterator[tuple[str, Estimate]]:
        """Compute the figures of patches, of slides, and the FROC scores."""
        slides = [self.slides[i] for i in ids]
        decided = stack([slide.decided for slide in slides])
        for share in compared_shares("patch"):
            yield f"patch.{share.name}", estimate_share(share, decided, resamples, PATCH)
        for ranking in compared_rankings("patch"):
            if ranking.replicate_pooled:
                found = _rank_patches(ranking.replicate_pooled, slides, resamples)
                yield f"patch.{ranking.name}", found
        yield from _estimate_slides(slides, resamples)
        for definition in DEFINITIONS:
            score = _froc_score(slides, resamples, definition, self.froc[definition])
            yield f"froc_{definition}.score", score


def _estimate_slides(
    slides: Sequence[_Slide], resamples: Resamples
) -> Iterator[tuple[str, Estimate]]:
    labels = np.array([slide.label for slide in slides], np.int64)
    scores = np.array([slide.score for slide in slides], np.float64)
    predicted = np.array([slide.predicted for slide in slides], np.float64)
    scored, called = ~np.isnan(scores), ~np.isnan(predicted)
    rows, drawn = decide_each(labels[called], predicted[called], Rule(1.0)), resamples.take(called)
    for share in compared_shares("slide"):
        if called.any():
            yield f"slide.{share.name}", estimate_share(share, rows, drawn, SLIDE)
        else:
            yield f"slide.{share.name}", no_estimate(drawn, "no slide has a score and a threshold")
    for ranking in compared_rankings("slide"):
        yield (
            f"slide.{ranking.name}",
            estimate_ranking(
                ranking,
                labels[scored],
                scores[scored],
                resamples.take(scored),
                units=SLIDE.units,
                one_class="the scored slides are all of one class",
            ),
        )


def _rank_patches(
    replicate: ReplicatePooled, slides: Sequence[_Slide], resamples: Resamples
) -> Estimate:
    counts = pair_counts([s.patch_labels for s in slides], [s.patch_scores for s in slides])
    as_is = np.ones((1, len(slides)), dtype=np.int64)
    value = float(replicate(counts, as_is)[0])
    if np.isnan(value):
        return no_estimate(resamples, "the labelled patches are all of one class")
    replicates = replicate(counts, resamples.weights)
    return Estimate(value, replicates, resamples, patch_kinds(counts))


def _froc_score(
    slides: Sequence[_Slide],
    resamples: Resamples,
    definition: Definition,
    how: Mapping[str, Any],
) -> Estimate:
    counted = np.array([slide.in_froc for slide in slides])
    if not counted.any():
        return no_estimate(resamples, "no slide is normal or has annotated lesions")
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
        return no_estimate(resamples, curve.undefined["score"])
    drawn = resamples.take(counted)
    read = replicate_sensitivities(events, drawn.weights, rates=rates, at_rate=at_rate)
    return Estimate(curve.score, read.mean(axis=1), drawn, events.kinds)


# ------------------------------------------------------------ the tables


def _froc_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Read how each FROC is read between points, from its JSON file."""
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


def read_evaluated_slides(folder: Path) -> EvaluatedSlides:
    """Read the tables of one model.

    Parameters
    ----------
    folder : Path
        ``evaluation/<model>``; the model is called by its name.

    Raises
    ------
    EvaluationError
        If a table is not there, or damaged.
    """
    reviews = _read_json(folder / "metrics.json").get("reviews", {})
    return EvaluatedSlides(
        folder.name, _read_slides(folder), _froc_settings(folder), reviews.get("digests", {})
    )


def _read_slides(folder: Path) -> dict[str, _Slide]:
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
            score=_parse(row["score"]),
            predicted=_parse(row["predicted"]),
            in_froc=about["in_froc"] == "1",
            decided=Confusion(*(int(row[cell]) for cell in ("tp", "fp", "fn", "tn"))),
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
    try:
        return _read_plain_patches(path)
    except NotPlainError:
        return _read_patches_by_row(path)


def _find_layout(header: list[str]) -> Layout | None:
    try:
        slide, *numbers = (header.index(name) for name in ("slide_id", "label", "score"))
    except ValueError:
        return None
    return Layout(True, numbers=tuple(numbers), names=(slide,))


def _read_plain_patches(path: Path) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    found = read_columns(path, _find_layout)
    (labels, scores), codes, names = found.numbers, found.codes[0], found.names[0]
    known = ~np.isnan(scores)
    labels, scores, codes = labels[known], scores[known], codes[known]
    if "" in names or not np.isin(labels, (-1, 0, 1)).all():
        raise NotPlainError
    order = np.argsort(codes, kind="stable")
    cuts = np.searchsorted(codes[order], np.arange(len(names) + 1))
    own_labels, own_scores = labels[order].astype(np.int64), scores[order]
    return {
        name: (own_labels[start:end], own_scores[start:end])
        for name, start, end in zip(names, cuts[:-1], cuts[1:], strict=True)
        if end > start
    }


def _read_patches_by_row(path: Path) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
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
        best[row["slide_id"]].append(_parse(row["best_score"]))
    return best


def _parse(text: str) -> float:
    value = parse_number(text)
    return np.nan if value is None else value


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
