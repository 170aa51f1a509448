"""Which curves the report shows, drawn from the run's own files."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from wsi_pipeline.evaluation.froc import AtRate, read_sensitivity
from wsi_pipeline.evaluation.patch import ranking_curves
from wsi_pipeline.report.charts import (
    Axis,
    Series,
    draw_lines,
    fitted_axis,
    sample_curve,
    share_axis,
)
from wsi_pipeline.report.gather import ModelFiles, Row

_FROC_RATES = Axis(
    "mean false positives per slide (logarithmic)",
    0.125,
    8.0,
    (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    "log",
)


def draw_patch_roc(models: Sequence[ModelFiles]) -> Markup | None:
    """ROC over all evaluated patches; None where no model has both classes."""
    return _draw_roc(models, _patch_labels_and_scores, "ROC curve over patches")


def draw_slide_roc(models: Sequence[ModelFiles]) -> Markup | None:
    """ROC over slides; None where no model has both classes."""
    return _draw_roc(models, _slide_labels_and_scores, "ROC curve over slides")


def _draw_roc(
    models: Sequence[ModelFiles],
    choose: Callable[[ModelFiles], tuple[NDArray[np.int64], NDArray[np.float64]]],
    title: str,
) -> Markup | None:
    series = []
    for colour, model in enumerate(models):
        ranking = ranking_curves(*choose(model))
        if ranking is not None:
            _, fpr, tpr = ranking.roc.T
            series.append(_model_series(model, fpr, tpr, colour))
    if not series:
        return None
    x, y = share_axis("1 - specificity"), share_axis("sensitivity")
    return draw_lines(series, x=x, y=y, title=title, diagonal=True)


def draw_precision_recall(models: Sequence[ModelFiles]) -> Markup | None:
    """Precision over recall of all evaluated patches; None where no model has both classes."""
    series = []
    for colour, model in enumerate(models):
        ranking = ranking_curves(*_patch_labels_and_scores(model))
        if ranking is not None:
            _, recall, precision = ranking.precision_recall.T
            series.append(_model_series(model, recall, precision, colour))
    if not series:
        return None
    x, y = share_axis("recall (sensitivity)"), share_axis("precision")
    return draw_lines(series, x=x, y=y, title="Precision and recall over patches")


def _model_series(
    model: ModelFiles, x: NDArray[np.float64], y: NDArray[np.float64], colour: int
) -> Series:
    # Every other line is dashed: seen where lines lie on each other, and without colours.
    return Series(model.name, x, y, colour, dashed=colour % 2 == 1)


def _patch_labels_and_scores(model: ModelFiles) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if model.patches is None:
        return np.empty(0, np.int64), np.empty(0)
    counted = (model.patches.label >= 0) & ~np.isnan(model.patches.score)
    return model.patches.label[counted].astype(np.int64), model.patches.score[counted]


def _slide_labels_and_scores(model: ModelFiles) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    known = [row for row in model.slides if row.get("label") and row.get("score")]
    label = np.array([int(row["label"]) for row in known], np.int64)
    return label, np.array([float(row["score"]) for row in known], np.float64)


def draw_froc(models: Sequence[ModelFiles], definition: str) -> Markup | None:
    """FROC curves by one definition, read between points as their results say."""
    series = []
    for colour, model in enumerate(models):
        result = model.froc.get(definition)
        if result is not None and result["curve"] and not _is_undefined(result):
            rates, sensitivity = sample_curve(_curve_function(result), _FROC_RATES)
            series.append(_model_series(model, rates, sensitivity, colour))
    if not series:
        return None
    y = share_axis("lesion sensitivity")
    return draw_lines(series, x=_FROC_RATES, y=y, title=f"FROC curve, definition {definition}")


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


def draw_history(model: ModelFiles) -> list[Markup]:
    """Losses, and ROC AUC on the validation patches, by epoch; empty without a history."""
    if not model.history:
        return []
    epoch = _column(model.history, "epoch")
    x = fitted_axis("epoch", epoch, whole=True)
    train, val = _column(model.history, "train_loss"), _column(model.history, "val_loss")
    auc = _column(model.history, "val_roc_auc")
    marked = len(epoch) <= 40
    losses = [
        Series("training loss", epoch, train, 0, dashed=True, marked=marked),
    ]
    if np.isnan(val).all():  # trained without validation
        y = fitted_axis("cross-entropy", np.append(train, 0.0))
        return [draw_lines(losses, x=x, y=y, title=f"{model.name}: loss by epoch")]
    losses.append(Series("validation loss", epoch, val, 1, marked=marked))
    y = fitted_axis("cross-entropy", np.concatenate([train, val, [0.0]]))
    return [
        draw_lines(losses, x=x, y=y, title=f"{model.name}: loss by epoch"),
        draw_lines(
            [Series("validation ROC AUC of patches", epoch, auc, 2, marked=marked)],
            x=x,
            y=share_axis("ROC AUC"),
            title=f"{model.name}: validation ROC AUC by epoch",
        ),
    ]


def _column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([float(row.get(name) or "nan") for row in rows], np.float64)
