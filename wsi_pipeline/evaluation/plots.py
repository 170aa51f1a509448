"""Plots of the metrics as PNG, from the same numbers as the tables."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tiling.files import write_aside
from tiling.wording import format_number, format_percent
from wsi_pipeline.contracts import FrocCurve
from wsi_pipeline.evaluation.froc import rate_name, read_sensitivity
from wsi_pipeline.evaluation.metrics import Confusion
from wsi_pipeline.evaluation.ranking import RankingCurves

_RATES_FROM, _RATES_TO = 0.125, 16.0  # the part of the FROC curve that the score looks at
_DEFINITION_TITLES = {"camelyon16": "CAMELYON16 lesions", "patch": "patches (lecture)"}


def draw_roc(
    path: Path,
    curves: Sequence[tuple[str, RankingCurves, float]],
    *,
    bands: Mapping[str, NDArray[np.float64]],
) -> None:
    """Draw ROC curves: name, curve and AUC of each; by name, bands (G, 3) of rate, low, high."""
    figure, axes = _start("false-positive rate", "true-positive rate")
    axes.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls=":")
    for name, curve, auc in curves:
        (line,) = axes.plot(
            curve.roc[:, 1], curve.roc[:, 2], label=f"{name}: AUC {format_number(auc)}"
        )
        if name in bands:
            axes.fill_between(*bands[name].T, color=line.get_color(), alpha=0.15, lw=0)
    _finish(path, figure, axes, empty=not curves)


def draw_precision_recall(path: Path, curves: Sequence[tuple[str, RankingCurves, float]]) -> None:
    """Draw precision-recall curves: name, curve and average precision of each."""
    figure, axes = _start("recall", "precision")
    for name, curve, average in curves:
        points = curve.precision_recall
        # Steps: a precision holds for the recall gained at its threshold (average precision's way).
        axes.step(
            points[:, 1], points[:, 2], where="pre", label=f"{name}: AP {format_number(average)}"
        )
    _finish(path, figure, axes, empty=not curves)


def draw_froc(path: Path, curves: Sequence[FrocCurve]) -> None:
    """Draw FROC curves over the rates that the score looks at, with the rates' values marked."""
    figure, axes = _start("mean number of false positives per slide", "lesion sensitivity")
    drawn = [curve for curve in curves if curve.score is not None]
    for curve in drawn:
        _draw_froc_curve(axes, curve)
    axes.set_xscale("log", base=2)
    axes.set_xlim(_RATES_FROM, _RATES_TO)
    ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16]
    axes.set_xticks(ticks, [rate_name(tick) for tick in ticks])
    _finish(path, figure, axes, empty=not drawn)


def _draw_froc_curve(axes: Axes, curve: FrocCurve) -> None:
    name = f"{_DEFINITION_TITLES[curve.definition]}: score {format_number(curve.score or 0.0)}"
    # Straight lines between points are bent on a log axis: read the curve densely, as the score is.
    x = np.geomspace(_RATES_FROM, _RATES_TO, 500)
    y = read_sensitivity(curve.avg_fps, curve.sensitivity, x.tolist(), at_rate=curve.at_rate)
    (line,) = axes.plot(x, y, label=name)
    # Markers are not clipped at the frame; rates beyond it would enlarge the picture.
    at = [
        (float(rate), value)
        for rate, value in curve.sensitivity_at.items()
        if value is not None and _RATES_FROM <= float(rate) <= _RATES_TO
    ]
    colour = line.get_color()
    axes.plot([r for r, _ in at], [v for _, v in at], "o", ms=4, color=colour, clip_on=False)
    if curve.band:
        ends = curve.band["low"], curve.band["high"]
        axes.fill_between(curve.band["avg_fps"], *ends, color=colour, alpha=0.15, lw=0)


def draw_confusion(
    path: Path, confusion: Confusion[int], *, threshold: float, title: str | None = None
) -> None:
    """Draw a confusion matrix as the lecture does: rows true, columns predicted, positive first."""
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    axes = figure.subplots()
    counts = np.array([[confusion.tp, confusion.fn], [confusion.fp, confusion.tn]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(2):
        for col in range(2):
            text = f"{counts[row, col]:,}\n{format_percent(shares[row, col], 1)} of the row"
            colour = "white" if shares[row, col] > 0.6 else "black"
            axes.text(col, row, text, ha="center", va="center", color=colour)
    axes.set_xticks([0, 1], ["positive", "negative"])
    axes.set_yticks([0, 1], ["positive", "negative"], rotation=90, va="center")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    title = title or f"patches, positive iff F(I) ≥ {threshold:g}"
    axes.set_title(title, y=-0.1, fontsize=10)
    save_figure(path, figure)


def _start(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(color="0.92")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _finish(path: Path, figure: Figure, axes: Axes, *, empty: bool) -> None:
    if empty:
        axes.text(0.5, 0.5, "undefined", ha="center", transform=axes.transAxes, color="0.4")
    else:
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Save a figure as PNG or SVG, by the name's ending; equal figures give equal bytes."""
    kind = path.suffix.removeprefix(".")
    # matplotlib writes the date into an SVG, and draws the ids of its parts by chance.
    metadata = {"Date": None} if kind == "svg" else {}
    with (
        write_aside(path) as scratch,
        matplotlib.rc_context({"svg.hashsalt": "wsi-pipeline", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name; it is drawn as a box
        figure.savefig(scratch, format=kind, dpi=130, metadata=metadata)
