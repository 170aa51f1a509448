"""What an FROC leaves behind: lesion list, intervals, lines for the user, files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_json
from tiling.wording import pluralize
from wsi_pipeline.contracts import FrocCurve
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.froc import (
    FrocEvents,
    SlideHits,
    froc_to_json,
    number_or_none,
    rate_name,
    read_sensitivity,
    replicate_sensitivities,
)
from wsi_pipeline.evaluation.intervals import (
    Interval,
    Undefined,
    percentile_interval,
    replicated_share_interval,
)
from wsi_pipeline.evaluation.lesions import LesionReference
from wsi_pipeline.evaluation.plots import draw_froc
from wsi_pipeline.evaluation.tables import Cell

LESION_COLUMNS = (
    "slide_id",
    "lesion",
    "status",
    "best_score",
    "x",
    "y",
    "area_um2",
    "major_axis_um",
)


RATE_COLUMNS = ("rate", "threshold", "avg_fps", "sensitivity", "sensitivity_at_rate")
BAND_FROM = 0.125  # false positives per slide where the band begins; it ends at the largest rate
BAND_PER_OCTAVE = 4


@dataclass(frozen=True)
class LesionRow:
    """A lesion that counts, and whether it was found."""

    slide_id: str
    lesion: str  # number on its slide, or the id that was given
    best_score: float | None  # None: missed at every threshold
    x: float | None = None  # centre, level-0 px
    y: float | None = None
    area_um2: float | None = None  # growth included
    major_axis_um: float | None = None


def lesion_rows(slide_id: str, reference: LesionReference, hits: SlideHits) -> list[LesionRow]:
    """List a slide's lesions that count; their numbers leave gaps where there are ITC."""
    return [
        LesionRow(
            slide_id=slide_id,
            lesion=str(i + 1),
            best_score=number_or_none(float(best)),
            x=float(reference.centre[i, 0]),
            y=float(reference.centre[i, 1]),
            area_um2=float(reference.area_um2[i]),
            major_axis_um=float(reference.major_axis_um[i]),
        )
        for i, best in zip(np.flatnonzero(~reference.is_itc).tolist(), hits.best, strict=True)
    ]


def named_lesion_rows(slide_id: str, names: Sequence[str], hits: SlideHits) -> list[LesionRow]:
    """List a slide's lesions by the ids that were given."""
    return [
        LesionRow(slide_id, name, number_or_none(float(best)))
        for name, best in zip(names, hits.best, strict=True)
    ]


def add_intervals(
    curve: FrocCurve,
    events: FrocEvents,
    resamples: Resamples,
    *,
    seed: int,
    stratified: bool,
) -> FrocCurve:
    """Add intervals of the score and of the sensitivity at each rate, and a band.

    A sensitivity is a share of lesions, and has Wilson's interval; the score is a mean of several,
    and has the percentile interval of the resampled sets. The band is the sensitivity's interval
    at the rates of a grid.

    Parameters
    ----------
    resamples : Resamples
        Of the slides of `events`.
    seed, stratified
        How they were drawn; recorded.
    """
    rates = [float(name) for name in curve.sensitivity_at]
    grid = band_grid(max(rates))
    together = sorted({*rates, *grid})
    read = replicate_sensitivities(events, resamples.weights, rates=together, at_rate=curve.at_rate)
    by_rate = dict(zip(together, read.T, strict=True))
    score = percentile_interval(
        np.stack([by_rate[rate] for rate in rates]).mean(axis=0),
        resamples,
        kinds=events.kinds,
    )
    if curve.score is None:
        score = Undefined(curve.undefined["score"])
    shares = {
        rate: _rate_interval(curve, events, resamples, rate, by_rate[rate]) for rate in by_rate
    }
    undefined = dict(curve.undefined)
    if isinstance(score, Undefined):
        undefined["score_ci95"] = score.reason
    unknown = [i.reason for i in shares.values() if isinstance(i, Undefined)]
    if unknown:  # of all rates or of none: the lesions are the same
        undefined["sensitivity_at_ci95"] = unknown[0]
    at = {rate_name(rate): shares[rate] for rate in rates}
    methods = {i.method for i in at.values() if isinstance(i, Interval)}
    return replace(
        curve,
        score_ci95=(score.low, score.high) if isinstance(score, Interval) else None,
        undefined=undefined,
        band=None if unknown else _band({rate: shares[rate] for rate in grid}),
        bootstrap={
            "replicates": len(read),
            "skipped": int(np.isnan(read[:, 0]).sum()),
            "seed": seed,
            "unit": resamples.unit,
            "groups": resamples.n_groups,
            "stratified": stratified,
            "sensitivity_at_ci95": {
                name: [i.low, i.high] if isinstance(i, Interval) else None for name, i in at.items()
            },
            "method": {
                "score": score.method if isinstance(score, Interval) else None,
                "sensitivity_at": methods.pop() if methods else None,
            },
        },
    )


def _rate_interval(
    curve: FrocCurve,
    events: FrocEvents,
    resamples: Resamples,
    rate: float,
    replicates: NDArray[np.float64],
) -> Interval | Undefined:
    if curve.score is None:
        return Undefined(curve.undefined["sensitivity_at"])
    (share,) = read_sensitivity(curve.avg_fps, curve.sensitivity, [rate], at_rate=curve.at_rate)
    return replicated_share_interval(float(share), replicates, events.n_lesions, resamples)


def _band(shares: Mapping[float, Interval | Undefined]) -> dict[str, list[float]]:
    known = {rate: share for rate, share in shares.items() if isinstance(share, Interval)}
    return {
        "avg_fps": list(known),
        "low": [share.low for share in known.values()],
        "high": [share.high for share in known.values()],
    }


def band_grid(max_rate: float) -> list[float]:
    """Choose where the band is known: four places for each doubling, and the largest rate.

    Examples
    --------
    >>> band_grid(0.25)
    [0.125, 0.1487, 0.1768, 0.2102, 0.25]
    """
    steps = range(
        int(np.floor(BAND_PER_OCTAVE * np.log2(max(max_rate, BAND_FROM) / BAND_FROM))) + 1
    )
    grid = {round(BAND_FROM * 2 ** (k / BAND_PER_OCTAVE), 4) for k in steps} - {max_rate}
    return sorted(rate for rate in {*grid, max_rate} if rate <= max_rate)


def write_band(path: Path, curve: FrocCurve) -> None:
    """Write the band: ``avg_fps,low,high``; a header alone where there is none."""
    band = curve.band or {"avg_fps": [], "low": [], "high": []}
    rows = zip(band["avg_fps"], band["low"], band["high"], strict=True)
    write_csv(path, ("avg_fps", "low", "high"), rows)


def write_operating_points(path: Path, curve: FrocCurve) -> None:
    """Write one row for each rate; without a threshold where no detection may count."""
    rows = [
        [
            float(rate),
            number_or_none(point.threshold),
            point.avg_fps,
            point.sensitivity,
            curve.sensitivity_at[rate],
        ]
        for rate, point in curve.operating_points.items()
        if point is not None
    ]
    write_csv(path, RATE_COLUMNS, rows)


def describe_reference(hits: Sequence[SlideHits]) -> list[str]:
    """Count what the reference holds; printed before any score."""
    n_lesions = sum(h.best.size for h in hits)
    n_with = sum(h.best.size > 0 for h in hits)
    n_itc = sum(h.n_itc for h in hits)
    n_normal = sum(h.normal for h in hits)
    lines = [
        f"lesions in the reference: {n_lesions} on {pluralize(n_with, 'slide')}, "
        f"{n_itc} ITC left out",
        f"slides: {len(hits)}, {n_normal} of them normal",
    ]
    if not n_lesions:
        lines.append("the reference holds no lesion at all" + (" but ITC" if n_itc else ""))
    return lines


def describe_result(curve: FrocCurve) -> list[str]:
    """Report the figures, or why they are undefined."""
    lines = [
        f"{figure.removesuffix('_ci95').replace('_at', ' at a rate')}: no 95 % interval, {reason}"
        if figure.endswith("_ci95")
        else f"{figure}: undefined, {reason}"
        for figure, reason in curve.undefined.items()
    ]
    if curve.bootstrap and curve.bootstrap["skipped"]:
        lines.append(
            f"bootstrap: {curve.bootstrap['skipped']} of {curve.bootstrap['replicates']} "
            "resampled sets without a lesion or a slide to count on were skipped"
        )
    if curve.score is not None:
        at = ", ".join(f"{v:.4f} at {r}" for r, v in curve.sensitivity_at.items() if v is not None)
        lines.append(f"sensitivity: {at} false positives per slide")
        interval = curve.score_ci95
        spread = f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        lines.append(f"FROC score: {curve.score:.4f}{spread}")
    return lines


def write_froc(out: Path, curve: FrocCurve, lesions: Sequence[LesionRow]) -> None:
    """Write the curve, its band, the lesions, the picture and, last, ``froc.json``."""
    write_curve(out / "froc.csv", curve)
    write_band(out / "froc_band.csv", curve)
    write_operating_points(out / "froc_rates.csv", curve)
    write_lesions(out / "lesions.csv", lesions)
    draw_froc(out / "froc.png", [curve])
    write_json(out / "froc.json", froc_to_json(curve))


def write_curve(path: Path, curve: FrocCurve) -> None:
    """Write the curve's points; the first has no threshold."""
    points = zip(
        curve.thresholds.tolist(), curve.avg_fps.tolist(), curve.sensitivity.tolist(), strict=True
    )
    rows = ([number_or_none(value) for value in point] for point in points)
    write_csv(path, ("threshold", "avg_fps", "sensitivity"), rows)


def write_lesions(path: Path, lesions: Sequence[LesionRow]) -> None:
    """Write one row for each lesion that counts, ITC left out."""
    write_csv(path, LESION_COLUMNS, [_lesion_cells(row) for row in lesions])


def _lesion_cells(row: LesionRow) -> list[Cell]:
    status = "missed" if row.best_score is None else "hit"
    values = (row.best_score, row.x, row.y, row.area_um2, row.major_axis_um)
    return [row.slide_id, row.lesion, status, *values]
