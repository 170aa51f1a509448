"""Figures for papers: each as SVG, PNG and the CSV of what it shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.evaluation.metrics import Confusion
from wsi_pipeline.evaluation.plots import draw_confusion, save_figure
from wsi_pipeline.evaluation.tables import Cell
from wsi_pipeline.report import curves
from wsi_pipeline.report.charts import Chart, Series
from wsi_pipeline.report.gather import ModelFiles

# Distinguishable for colour-blind readers (Okabe and Ito), and on white paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#4a4f5c")


def write_figures(folder: Path, model: ModelFiles) -> list[Path]:
    """Write a model's figures, those that its files allow.

    Parameters
    ----------
    folder : Path
        Gets ``<figure>.svg``, ``.png`` and ``.csv``; no file holds a date, and equal files of the
        run give equal bytes.
    model : ModelFiles

    Returns
    -------
    paths : list of Path
    """
    paths = []
    for name, chart in paper_charts(model).items():
        paths += write_chart(folder / name, chart)
    metrics = model.metrics or {}
    patch = metrics.get("patch") or {}
    if all(isinstance(patch.get(name), int) for name in ("tp", "fp", "fn", "tn")):
        confusion = Confusion(patch["tp"], patch["fp"], patch["fn"], patch["tn"])
        paths += _write_confusion(folder / "confusion", confusion, float(metrics["threshold"]))
    return paths


def paper_charts(model: ModelFiles) -> Mapping[str, Chart]:
    """Return the charts of one model, by the name of their files."""
    history = zip(("training_loss", "training_auc"), curves.chart_history(model), strict=False)
    sweep = curves.chart_sweep(model)
    return {
        **curves.chart_models([model]),
        **({} if sweep is None else {"sweep": sweep}),
        **dict(history),
    }


def write_chart(stem: Path, chart: Chart) -> list[Path]:
    """Write ``stem.svg``, ``stem.png`` and ``stem.csv``."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png", "csv")]
    for path in paths[:2]:
        save_figure(path, _draw(chart))
    rows = [row for line in chart.series for row in _rows(line)]
    write_csv(paths[2], ("series", "part", chart.x.label, chart.y.label, "low", "high"), rows)
    return paths


def _rows(line: Series) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = [
        (line.name, "line", x, y, None, None)
        for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)
    ]
    if line.band_x is not None and line.low is not None and line.high is not None:
        ends = zip(line.band_x.tolist(), line.low.tolist(), line.high.tolist(), strict=True)
        rows += [(line.name, "band", x, None, low, high) for x, low, high in ends]
    return rows


def _draw(chart: Chart) -> Figure:
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.subplots()
    if chart.diagonal:
        axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=":")
    for line in chart.series:
        colour = _COLOURS[line.colour % len(_COLOURS)]
        if line.band_x is not None and line.low is not None and line.high is not None:
            axes.fill_between(line.band_x, line.low, line.high, color=colour, alpha=0.15, lw=0)
        axes.plot(
            line.x,
            line.y,
            color=colour,
            ls="--" if line.dashed else "-",
            marker="o" if line.marked or len(line.x) == 1 else "",
            ms=3.5,
            label=_literal(line.name),
        )
    if chart.x.scale == "log":
        axes.set_xscale("log", base=2)
    axes.set_xticks(chart.x.ticks, [f"{tick:g}" for tick in chart.x.ticks])
    axes.set_xlim(chart.x.low, chart.x.high)
    axes.set_ylim(chart.y.low, chart.y.high + 0.02 * (chart.y.high - chart.y.low))
    axes.set_xlabel(chart.x.label)
    axes.set_ylabel(chart.y.label)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _literal(name: str) -> str:
    """Keep matplotlib from reading a name as a formula, or leaving one with '_' out of a legend."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _write_confusion(stem: Path, confusion: Confusion[int], threshold: float) -> list[Path]:
    paths = [stem.with_suffix(f".{kind}") for kind in ("svg", "png", "csv")]
    for path in paths[:2]:
        draw_confusion(path, confusion, threshold=threshold)
    rows = (
        ("positive", confusion.tp, confusion.fn),
        ("negative", confusion.fp, confusion.tn),
    )
    write_csv(paths[2], ("true", "predicted_positive", "predicted_negative"), rows)
    return paths
