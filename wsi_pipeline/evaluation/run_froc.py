"""FROC of a run: detections and patches compared with the lesions, by both definitions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tiling.files import write_json
from tiling.wording import pluralize
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import DEFINITIONS, Definition, FrocCurve
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import EvaluationError, ExtentError
from wsi_pipeline.evaluation.bootstrap import Resamples, draw_resamples
from wsi_pipeline.evaluation.detections import describe_outside, find_outside
from wsi_pipeline.evaluation.froc import (
    SlideHits,
    build_froc,
    collect_events,
    froc_to_json,
    match_detections,
    match_patches,
)
from wsi_pipeline.evaluation.froc_results import (
    LesionRow,
    add_intervals,
    describe_reference,
    lesion_rows,
    named_lesion_rows,
    write_band,
    write_curve,
    write_lesions,
    write_operating_points,
)
from wsi_pipeline.evaluation.inputs import EvaluationSlide
from wsi_pipeline.evaluation.lesions import LesionReference, label_polygons, no_lesions
from wsi_pipeline.evaluation.plots import draw_froc
from wsi_pipeline.evaluation.tables import Cell

log = logging.getLogger(__name__)

DETECTION_COLUMNS = ("slide_id", "prob", "x", "y", "outcome", "lesion")


@dataclass(frozen=True)
class RunFroc:
    """One FROC and what it was counted on."""

    curve: FrocCurve
    lesions: list[LesionRow]
    n_itc: dict[str, int]  # by slide_id, of the slides that count
    detections: list[list[Cell]]  # rows of detections.csv


def draw_patients(test: Sequence[EvaluationSlide], settings: EvaluateConfig) -> Resamples | None:
    """Resample patients as often as the settings ask for; None where they ask for nothing."""
    if not settings.bootstrap or not test:
        return None
    return draw_resamples(
        [slide.patient for slide in test],
        n_replicates=settings.bootstrap,
        seed=settings.seed,
        strata=[slide.truth == 1 for slide in test] if settings.stratified else None,
    )


def count_froc(
    test: Sequence[EvaluationSlide],
    definition: Definition,
    settings: EvaluateConfig,
    notes: list[str],
) -> RunFroc:
    """Compute the FROC of a run by one definition; skipped slides are listed in `notes`."""
    # A tumour slide of which only the label is known has lesions that were not counted.
    known = [s for s in test if s.truth == 0 or s.lesion_ids]
    if len(known) < len(test) and definition == DEFINITIONS[0]:
        left_out = [s.slide_id for s in test if s not in known]
        notes.append(
            f"FROC: {pluralize(len(left_out), 'tumour slide')} without annotated lesions left out: "
            + ", ".join(left_out)
        )
    match = _match_lesions if definition == "camelyon16" else _match_by_patch
    matched = [match(slide, settings) for slide in known]
    hits = [h for h, _, _ in matched]
    rows = [row for _, lesions, _ in matched for row in lesions]
    detections = [cells for _, _, found in matched for cells in found]
    n_itc = {slide.slide_id: h.n_itc for slide, h in zip(known, hits, strict=True)}
    if not known:
        return RunFroc(_no_froc(definition, settings), rows, n_itc, detections)
    for line in describe_reference(hits):
        log.info("%s: %s", definition, line)
    events = collect_events(hits, definition=definition)
    curve = build_froc(events, rates=settings.rates, at_rate=settings.at_rate)
    resamples = draw_patients(known, settings)
    if resamples is not None:
        curve = add_intervals(
            curve, events, resamples, seed=settings.seed, stratified=settings.stratified
        )
    return RunFroc(curve, rows, n_itc, detections)


def _no_froc(definition: Definition, settings: EvaluateConfig) -> FrocCurve:
    """State that no slide can be counted on."""
    nothing = SlideHits(np.zeros(0), np.zeros(0), normal=False)
    events = collect_events([nothing], definition=definition)
    curve = build_froc(events, rates=settings.rates, at_rate=settings.at_rate)
    reason = "no slide is normal or has annotated lesions"
    return replace(curve, n_slides=0, n_normal=0, undefined=dict.fromkeys(curve.undefined, reason))


def _match_lesions(
    slide: EvaluationSlide, settings: EvaluateConfig
) -> tuple[SlideHits, list[LesionRow], list[list[Cell]]]:
    outside = find_outside(slide.detections, slide.slide_size)
    if outside.size:
        what = describe_outside(slide.detections, int(outside[0]), slide.slide_size)
        raise EvaluationError(f"slide {slide.slide_id}: {what}")
    # The rules are in µm along any direction: one µm per pixel for both axes, their mean.
    mpp = (slide.slide_mpp[0] + slide.slide_mpp[1]) / 2
    downsample = settings.reference_downsample
    if slide.truth == 0 or slide.annotation is None:
        reference = no_lesions(mpp=mpp, downsample=downsample, size=slide.slide_size)
    else:
        try:
            reference = label_polygons(
                slide.annotation.tumour, mpp=mpp, downsample=downsample, slide_size=slide.slide_size
            )
        except ExtentError as error:
            raise EvaluationError(
                f"slide {slide.slide_id}: {error}; raise evaluate.reference_downsample"
            ) from error
    hits = match_detections(reference, slide.detections)
    rows = lesion_rows(slide.slide_id, reference, hits)
    return hits, rows, _detection_cells(slide, reference)


def _detection_cells(slide: EvaluationSlide, reference: LesionReference) -> list[list[Cell]]:
    found = slide.detections
    labels = reference.label_at(found.x, found.y).tolist()
    cells: list[list[Cell]] = []
    for label, score, x, y in zip(
        labels, found.scores.tolist(), found.x.tolist(), found.y.tolist(), strict=True
    ):
        outcome = "false_positive"
        if label:
            outcome = "itc" if reference.is_itc[label - 1] else "hit"
        cells.append([slide.slide_id, score, x, y, outcome, label or None])
    return cells


def _match_by_patch(
    slide: EvaluationSlide, settings: EvaluateConfig
) -> tuple[SlideHits, list[LesionRow], list[list[Cell]]]:
    hits = match_patches(
        slide.scores.scores,
        slide.lesion_pairs,
        n_lesions=len(slide.lesion_ids),
        normal=slide.truth == 0,
    )
    return hits, named_lesion_rows(slide.slide_id, slide.lesion_ids, hits), []


def write_frocs(
    out: Path,
    frocs: dict[Definition, RunFroc],
    primary: Definition,
) -> None:
    """Write both definitions' curves, lesions and detections; `primary` also as plain ``froc``."""
    for definition, froc in frocs.items():
        write_curve(out / f"froc_{definition}.csv", froc.curve)
        write_band(out / f"froc_{definition}_band.csv", froc.curve)
        write_operating_points(out / f"froc_{definition}_rates.csv", froc.curve)
        write_lesions(out / f"lesions_{definition}.csv", froc.lesions)
        write_json(out / f"froc_{definition}.json", froc_to_json(froc.curve))
    chosen = frocs[primary]
    write_curve(out / "froc.csv", chosen.curve)
    write_band(out / "froc_band.csv", chosen.curve)
    write_operating_points(out / "froc_rates.csv", chosen.curve)
    write_lesions(out / "lesions.csv", chosen.lesions)
    write_csv(out / "detections.csv", DETECTION_COLUMNS, frocs["camelyon16"].detections)
    draw_froc(out / "froc.png", [froc.curve for froc in frocs.values()])
    write_json(out / "froc.json", froc_to_json(chosen.curve))
