"""FROC of detections in memory, as CAMELYON16 counts them."""

from collections.abc import Mapping, Sequence

import numpy as np

from tiling.contracts import StrPath
from tiling.urls import local_path
from tiling.wording import name_some, pluralize
from wsi_pipeline.contracts import AtRate, Denominator, Detections, FrocCurve
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.detections import describe_outside, find_outside
from wsi_pipeline.evaluation.froc import (
    RATES,
    SlideHits,
    build_froc,
    collect_events,
    match_detections,
)
from wsi_pipeline.evaluation.froc_results import add_intervals
from wsi_pipeline.evaluation.lesions import LesionReference, no_lesions
from wsi_pipeline.evaluation.reference import read_reference

_NOTHING = Detections(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def froc(
    reference: Mapping[str, StrPath | LesionReference | None],
    detections: Mapping[str, Detections],
    *,
    mpp: float | Mapping[str, float] | None = None,
    rates: Sequence[float] = RATES,
    fp_denominator: Denominator | None = None,
    at_rate: AtRate = "linear",
    bootstrap: int = 0,
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
) -> FrocCurve:
    """Score detections against the reference, by CAMELYON16's definition.

    Annotations closer than about 75 µm are one lesion; a lesion is found by a detection on it, and
    a detection on none is a false positive; isolated tumour cells count neither way.

    Parameters
    ----------
    reference : mapping from slide id
        Every slide that counts: its annotation (XML, GeoJSON or JSON) or mask (TIFF or PNG), str or
        path; lesions that were found before (`wsi_pipeline.evaluation.lesions`); or None, a normal
        slide.
    detections : mapping from slide id
        As `detect` returns them. A slide that is not here has none, and counts all the same.
    mpp : µm per level-0 px, or a mapping from slide id
        Needed where the reference of a slide is a file. CAMELYON16 takes 0.243 for every slide.
    rates : false positives per slide, >= 0
        Where the sensitivity is read; the score is its mean.
    fp_denominator : {"all", "normal"}, optional
        Slides that false positives are averaged over; default: all.
    at_rate : {"linear", "step"}
        How the curve is read between its points.
    bootstrap : int
        Resampled sets of patients for 95 % intervals; 0: no intervals.
    seed : int
        Of the resampling.
    patients : mapping from slide id, optional
        Slides of one patient are resampled together; default: each slide is its own patient.

    Returns
    -------
    curve : FrocCurve
        ``score``, ``sensitivity_at`` each rate, ``avg_fps`` and ``sensitivity`` (K,) float64.
        What is undefined is None, with the reason in ``undefined``.

    Raises
    ------
    EvaluationError
        If a slide has detections but no reference, a detection lies outside its slide, a file
        cannot be read, a resolution is missing, or a rate is none.

    Examples
    --------
    >>> spots = Detections(np.array([40, 90]), np.array([40, 10]), np.array([0.9, 0.6]))
    >>> froc({"normal_1": None}, {"normal_1": spots}).undefined["score"]
    'the reference holds no lesion at all'
    """
    if unknown := [slide for slide in detections if slide not in reference]:
        raise EvaluationError(
            f"{len(unknown)} of {pluralize(len(detections), 'slide')} have detections but no "
            f"reference: {name_some(unknown)}; add them to the reference (None: a normal slide)"
        )
    hits = [
        _match(slide, _find_lesions(slide, known, mpp), detections.get(slide, _NOTHING))
        for slide, known in reference.items()
    ]
    events = collect_events(hits, definition="camelyon16", fp_denominator=fp_denominator)
    curve = build_froc(events, rates=rates, at_rate=at_rate)
    if bootstrap < 0:
        raise EvaluationError(f"bootstrap must not be negative, got {bootstrap}")
    if not bootstrap:
        return curve
    resamples = draw_resamples(
        [slide if patients is None else patients.get(slide, slide) for slide in reference],
        n_replicates=bootstrap,
        seed=seed,
        unit="slide" if patients is None else "patient",
    )
    return add_intervals(curve, events, resamples, seed=seed, stratified=False)


def _find_lesions(
    slide: str,
    known: StrPath | LesionReference | None,
    mpp: float | Mapping[str, float] | None,
) -> LesionReference:
    if isinstance(known, LesionReference):
        return known
    if known is None:
        return no_lesions(mpp=1.0)  # no length is measured on a normal slide
    path = local_path(known, "references")
    slide_mpp = mpp.get(slide) if isinstance(mpp, Mapping) else mpp
    if slide_mpp is None:
        raise EvaluationError(
            f"{slide}: no µm per level-0 pixel for its reference {path.name}; give mpp "
            "(CAMELYON16 takes 0.243 for every slide)"
        )
    if not path.is_file():
        raise EvaluationError(
            f"{slide}: no reference file {path}; correct the path, or give None for a normal slide"
        )
    return read_reference(path, mpp=slide_mpp)[0]


def _match(slide: str, lesions: LesionReference, found: Detections) -> SlideHits:
    outside = find_outside(found, lesions.size)
    if outside.size:
        what = describe_outside(found, int(outside[0]), lesions.size)
        raise EvaluationError(f"slide {slide}: {what}")
    return match_detections(lesions, found)
