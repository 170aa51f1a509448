"""Which curves the report shows, made from the run's own files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.contracts import DEFINITIONS, AtRate
from wsi_pipeline.evaluation.froc import read_sensitivity
from wsi_pipeline.evaluation.ranking import RankingCurves, ranking_curves
from wsi_pipeline.report.charts import (
    Axis,
    Chart,
    Series,
    fitted_axis,
    sample_curve,
    share_axis,
    thin_out,
)
from wsi_pipeline.report.gather import Band, ModelFiles, Row

_FROC_RATES = Axis(
    "mean false positives per slide (logarithmic)",
    0.125,
    8.0,
    (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    "log",
)


_SWEPT = {"precision": "precision", "recall": "recall", "f1": "F1", "specificity": "specificity"}


def chart_models(models: Sequence[ModelFiles]) -> dict[str, Chart]:
    """Draw the curves of models together, those that their files allow, by the name for a file."""
    found = {
        "roc_slides": chart_slide_roc(models),
        "roc_patches": chart_patch_roc(models),
        "pr_patches": chart_precision_recall(models),
        **{f"froc_{name}": chart_froc(models, name) for name in DEFINITIONS},
        "reliability": chart_reliability(models),
    }
    return {name: chart for name, chart in found.items() if chart is not None}


def chart_patch_roc(models: Sequence[ModelFiles]) -> Chart | None:
    """ROC over all evaluated patches; None where no model has both classes."""
    return _chart_roc(models, [model.patch_roc for model in models], "patches")


def chart_slide_roc(models: Sequence[ModelFiles], what: str = "slides") -> Chart | None:
    """ROC over slides (or images); None where no model has both classes."""
    rankings = list(map(_rank_slides, models))
    points = [None if ranking is None else ranking.roc[:, 1:] for ranking in rankings]
    return _chart_roc(models, points, what)


def _rank_slides(model: ModelFiles) -> RankingCurves | None:
    known = [row for row in model.slides if row.get("label") in ("0", "1") and row.get("score")]
    label = np.array([int(row["label"]) for row in known], np.int64)
    score = np.array([float(row["score"]) for row in known], np.float64)
    return ranking_curves(label, score)


def _chart_roc(
    models: Sequence[ModelFiles], curves: Sequence[NDArray[np.float64] | None], what: str
) -> Chart | None:
    series = [
        _model_series(model, curve, colour, model.roc_bands.get(what))
        for colour, (model, curve) in enumerate(zip(models, curves, strict=True))
        if curve is not None
    ]
    if not series:
        return None
    x, y = share_axis("1 - specificity"), share_axis("sensitivity")
    return Chart(f"ROC curve over {what}", x, y, tuple(series), diagonal=True)


def chart_precision_recall(models: Sequence[ModelFiles]) -> Chart | None:
    """Precision over recall of all evaluated patches; None where no model has both classes."""
    points = [model.patch_precision_recall for model in models]
    return _chart_precision_recall(models, points, "patches")


def chart_image_precision_recall(models: Sequence[ModelFiles]) -> Chart | None:
    """Precision over recall of all evaluated images; None where no model has both classes."""
    rankings = list(map(_rank_slides, models))
    points = [None if ranking is None else ranking.precision_recall[:, 1:] for ranking in rankings]
    return _chart_precision_recall(models, points, "images")


def _chart_precision_recall(
    models: Sequence[ModelFiles], points: Sequence[NDArray[np.float64] | None], what: str
) -> Chart | None:
    series = [
        _model_series(model, curve, colour)
        for colour, (model, curve) in enumerate(zip(models, points, strict=True))
        if curve is not None
    ]
    if not series:
        return None
    x, y = share_axis("recall (sensitivity)"), share_axis("precision")
    return Chart(f"Precision and recall over {what}", x, y, tuple(series))


def _model_series(
    model: ModelFiles, points: NDArray[np.float64], colour: int, band: Band | None = None
) -> Series:
    """Make a line through points (K, 2)."""
    x, y = thin_out(points).T
    # Every other line is dashed: seen where lines lie on each other, and without colours.
    line = Series(model.name, x, y, colour, dashed=colour % 2 == 1)
    return line if band is None else replace(line, band_x=band.x, low=band.low, high=band.high)


def chart_froc(models: Sequence[ModelFiles], definition: str) -> Chart | None:
    """FROC curves by one definition, interpolated as in their results."""
    series = []
    for colour, model in enumerate(models):
        result = model.froc.get(definition)
        if result is not None and result["curve"] and not _is_undefined(result):
            rates, sensitivity = sample_curve(_curve_function(result), _FROC_RATES)
            band = _band(result)
            points = np.column_stack([rates, sensitivity])
            series.append(_model_series(model, points, colour, band))
    if not series:
        return None
    y = share_axis("lesion sensitivity")
    return Chart(f"FROC curve, definition {definition}", _FROC_RATES, y, tuple(series))


def _band(result: dict[str, Any]) -> Band | None:
    """Return the band of the curve, or one through the intervals at the rates, if any."""
    known = result.get("band")
    if known:
        return Band(*(np.array(known[name], np.float64) for name in ("avg_fps", "low", "high")))
    intervals = (result.get("bootstrap") or {}).get("sensitivity_at_ci95") or {}
    ends = sorted((float(rate), *pair) for rate, pair in intervals.items() if pair)
    return Band(*np.array(ends, np.float64).T) if ends else None


def _is_undefined(result: dict[str, Any]) -> bool:
    return any(
        point["avg_fps"] is None or point["sensitivity"] is None for point in result["curve"]
    )


def _curve_function(
    result: dict[str, Any],
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    avg_fps = np.array([point["avg_fps"] for point in result["curve"]], np.float64)
    sensitivity = np.array([point["sensitivity"] for point in result["curve"]], np.float64)
    at_rate: AtRate = result.get("at_rate", "linear")
    return lambda rates: read_sensitivity(avg_fps, sensitivity, rates.tolist(), at_rate=at_rate)


def chart_reliability(models: Sequence[ModelFiles]) -> Chart | None:
    """Share of tumour over mean score, by bins of the score; None without ``calibration.csv``."""
    series = []
    for colour, model in enumerate(models):
        for prefix, name in (("", model.name), ("calibrated_", f"{model.name}, with temperature")):
            rows = [row for row in model.calibration if row.get(f"{prefix}positive_share")]
            if rows:
                score, share = (_column(rows, prefix + k) for k in ("mean_score", "positive_share"))
                dashed = bool(prefix)
                series.append(Series(name, score, share, colour, dashed=dashed, marked=True))
    if not series:
        return None
    x, y = share_axis("mean score of the bin"), share_axis("share of tumour patches")
    return Chart("Reliability of patch scores", x, y, tuple(series), diagonal=True)


def chart_sweep(model: ModelFiles) -> Chart | None:
    """Precision, recall and F1 over the threshold; None without ``sweep.csv``."""
    if not model.sweep:
        return None
    rows = sorted(model.sweep, key=lambda row: float(row["threshold"]))
    # Between two scores a threshold calls what the higher score calls: steps, not slopes.
    threshold = np.append(0.0, np.repeat(_column(rows, "threshold"), 2)[:-1])
    series = tuple(
        Series(name, threshold, np.repeat(_column(rows, key), 2), colour, dashed=colour == 1)
        for colour, (key, name) in enumerate(_SWEPT.items())
    )
    x, y = share_axis("threshold"), share_axis("share")
    return Chart(f"{model.name}: patches called by threshold", x, y, series)


def epoch_seconds(history: Sequence[Row]) -> float | None:
    """Median seconds of an epoch's training pass; None where they were not recorded."""
    known = [float(row["seconds"]) for row in history if row.get("seconds")]
    return float(np.median(known)) if known else None


def chart_history(model: ModelFiles, what: str = "patches") -> list[Chart]:
    """Losses, and ROC AUC on the validation data, by epoch; empty without a history."""
    if not model.history:
        return []
    epoch = _column(model.history, "epoch")
    x = fitted_axis("epoch", epoch, whole=True)
    train, val = _column(model.history, "train_loss"), _column(model.history, "val_loss")
    auc = _column(model.history, "val_roc_auc")
    marked = len(epoch) <= 40
    losses = [Series("training loss", epoch, train, 0, dashed=True, marked=marked)]
    validated = not np.isnan(val).all()
    if validated:
        losses.append(Series("validation loss", epoch, val, 1, marked=marked))
    y = fitted_axis("cross-entropy", np.concatenate([train, val, [0.0]]))
    charts = [Chart(f"{model.name}: loss by epoch", x, y, tuple(losses))]
    if validated:
        line = Series(f"validation ROC AUC of {what}", epoch, auc, 2, marked=marked)
        title = f"{model.name}: validation ROC AUC by epoch"
        charts.append(Chart(title, x, share_axis("ROC AUC"), (line,)))
    return charts


def _column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([float(row.get(name) or "nan") for row in rows], np.float64)
