"""What an FROC leaves behind: lesion list, intervals, words for the user, files."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from tiling.files import write_json, write_text
from wsi_pipeline import __version__
from wsi_pipeline.contracts import FrocCurve
from wsi_pipeline.evaluation.bootstrap import percentile_interval
from wsi_pipeline.evaluation.froc import (
    FrocEvents,
    SlideHits,
    froc_to_json,
    number_or_none,
    rate_name,
    replicate_sensitivities,
)
from wsi_pipeline.evaluation.lesions import LesionReference
from wsi_pipeline.evaluation.plots import draw_froc
from wsi_pipeline.evaluation.tables import Cell, write_rows

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


def add_interval(
    curve: FrocCurve,
    events: FrocEvents,
    weights: NDArray[np.int64],
    *,
    seed: int,
    unit: str,
    stratified: bool,
) -> FrocCurve:
    """Add percentile intervals of the score and of the sensitivity at each rate.

    Parameters
    ----------
    weights : (B, S)
        See `draw_weights`.
    seed, unit, stratified
        How they were drawn; written down.
    """
    rates = [float(name) for name in curve.sensitivity_at]
    values = replicate_sensitivities(events, weights, rates=rates, at_rate=curve.at_rate)
    score = percentile_interval(values.mean(axis=1))
    by_rate = [percentile_interval(column) for column in values.T]
    undefined = dict(curve.undefined)
    if score is None:
        undefined["score_ci95"] = curve.undefined.get(
            "score", "no replicate has both a lesion and a slide to count false positives on"
        )
    return replace(
        curve,
        score_ci95=(score.low, score.high) if score else None,
        undefined=undefined,
        bootstrap={
            "replicates": len(weights),
            "skipped": score.n_skipped if score else len(weights),
            "seed": seed,
            "unit": unit,
            "stratified": stratified,
            "sensitivity_at_ci95": {
                rate_name(rate): [interval.low, interval.high] if interval else None
                for rate, interval in zip(rates, by_rate, strict=True)
            },
        },
    )


def describe_found(hits: Sequence[SlideHits]) -> list[str]:
    """Say what there is to find, before any score."""
    n_lesions = sum(h.best.size for h in hits)
    n_with = sum(h.best.size > 0 for h in hits)
    n_itc = sum(h.n_itc for h in hits)
    n_normal = sum(h.normal for h in hits)
    lines = [
        f"lesions found: {n_lesions} on {n_with} slides, {n_itc} ITC left out",
        f"slides: {len(hits)}, {n_normal} of them normal",
    ]
    if not n_lesions:
        lines.append("the reference holds no lesion at all" + (" but ITC" if n_itc else ""))
    return lines


def describe_result(curve: FrocCurve) -> list[str]:
    """Say what came out, or why nothing did."""
    lines = [f"{figure}: undefined, {reason}" for figure, reason in curve.undefined.items()]
    if curve.bootstrap and curve.bootstrap["skipped"]:
        lines.append(
            f"bootstrap: {curve.bootstrap['skipped']} of {curve.bootstrap['replicates']} "
            "replicates without a lesion or a slide to count on were skipped"
        )
    if curve.score is not None:
        at = ", ".join(f"{v:.4f} at {r}" for r, v in curve.sensitivity_at.items() if v is not None)
        lines.append(f"sensitivity: {at} false positives per slide")
        interval = curve.score_ci95
        spread = f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        lines.append(f"FROC score: {curve.score:.4f}{spread}")
    return lines


def write_froc(
    out: Path, curve: FrocCurve, lesions: Sequence[LesionRow], *, notes: Sequence[str] = ()
) -> None:
    """Write ``froc.csv``, ``lesions.csv``, ``froc.png``, ``froc.html`` and, last, ``froc.json``."""
    write_curve(out / "froc.csv", curve)
    write_lesions(out / "lesions.csv", lesions)
    draw_froc(out / "froc.png", [curve])
    write_text(
        out / "froc.html",
        _render_page(curve, lesions, notes=notes, picture=(out / "froc.png").read_bytes()),
    )
    write_json(out / "froc.json", froc_to_json(curve))


def write_curve(path: Path, curve: FrocCurve) -> None:
    """Write the curve's points; the first has no threshold."""
    points = zip(
        curve.thresholds.tolist(), curve.avg_fps.tolist(), curve.sensitivity.tolist(), strict=True
    )
    rows = ([number_or_none(value) for value in point] for point in points)
    write_rows(path, ("threshold", "avg_fps", "sensitivity"), rows)


def write_lesions(path: Path, lesions: Sequence[LesionRow]) -> None:
    """Write one row for each lesion that counts, ITC left out."""
    write_rows(path, LESION_COLUMNS, [_lesion_cells(row) for row in lesions])


def _lesion_cells(row: LesionRow) -> list[Cell]:
    status = "missed" if row.best_score is None else "hit"
    values = (row.best_score, row.x, row.y, row.area_um2, row.major_axis_um)
    return [row.slide_id, row.lesion, status, *values]


def _render_page(
    curve: FrocCurve, lesions: Sequence[LesionRow], *, notes: Sequence[str], picture: bytes
) -> str:
    environment = Environment(
        loader=PackageLoader("wsi_pipeline.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {
        "curve": curve,
        "intervals": (curve.bootstrap or {}).get("sensitivity_at_ci95", {}),
        "lesions": lesions,
        "n_hit": sum(row.best_score is not None for row in lesions),
        "notes": notes,
        "picture": base64.b64encode(picture).decode("ascii"),
        "version": __version__,
    }
    return environment.get_template("froc_page.html.j2").render(values)
