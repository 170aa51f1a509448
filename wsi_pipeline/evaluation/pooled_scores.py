"""Pool the held-out scores of several runs, each of which tested on other images.

Leave-one-slide-out makes a run per slide. A slide of one class has no ROC curve of its own; the
scores of all runs together have one, though models of different runs need not share a scale.

``python -m wsi_pipeline.evaluation.pooled_scores RUN RUN ...`` prints a line per model: the pooled
ROC AUC with its 95 % interval by patient, and the share of pairs of the same run that are in the
right order, for which the scale does not matter.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.wording import format_number
from wsi_pipeline.contracts import Rule, Split
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import draw_resamples, weighted_roc_auc
from wsi_pipeline.evaluation.intervals import Interval, by_class, percentile_interval
from wsi_pipeline.evaluation.metrics import IMAGE, count_confusion, ranking_figures, shares_of
from wsi_pipeline.names import check_name

HEADER = ("model", "images", "accuracy", "sensitivity", "specificity", "AUC", "95 %", "within runs")
REPLICATES = 1000  # resampled sets of patients


@dataclass(frozen=True)
class Pooled:
    """Held-out images of all runs."""

    labels: NDArray[np.bool_]  # (n,)
    scores: NDArray[np.float64]  # (n,) in [0, 1]
    predicted: NDArray[np.bool_]  # (n,) by the model's own rule
    patients: tuple[str, ...]  # (n,)
    runs: NDArray[np.int64]  # (n,) from 0


def pool_scores(runs: Sequence[Path], model: str, *, split: Split = "test") -> Pooled:
    """Gather the images of one split of all runs.

    Parameters
    ----------
    runs : sequence of Path
        Run folders of image folders, each with scores of `model`.
    model : str
        Name of its folder.
    split : str
        ``val`` compares settings without the test images.

    Returns
    -------
    pooled : Pooled
        Unreadable images and those of unknown class are left out.

    Raises
    ------
    EvaluationError
        If a run has no scores of the model, an image is in two runs' split, or there is no image.
    """
    check_name(model, "the model", error=EvaluationError)
    found: dict[str, tuple[bool, float, bool, str, int]] = {}
    for number, run in enumerate(runs):
        path = run / "scores" / model / "images.csv"
        if not path.is_file():
            raise EvaluationError(f"{path}: no such file; run predict for {model} on {run}")
        for row in read_csv(path, error=EvaluationError):
            if row["split"] != split or row["label"] not in ("0", "1") or not row["score"]:
                continue
            if row["image_id"] in found:
                what = "tested" if split == "test" else f"in split {split}"
                raise EvaluationError(f"{path}: {row['image_id']} is {what} in two runs")
            found[row["image_id"]] = (
                row["label"] == "1",
                float(row["score"]),
                row["predicted"] == "1",
                row["patient"],
                number,
            )
    if not found:
        names = ", ".join(map(str, runs))
        raise EvaluationError(f"no labelled image of {model} in split {split} of {names}")
    labels, scores, predicted, patients, number_of_run = zip(*found.values(), strict=True)
    return Pooled(
        np.array(labels), np.array(scores), np.array(predicted), patients, np.array(number_of_run)
    )


def figures_of(pooled: Pooled) -> dict[str, float | None]:
    """Compute accuracy, sensitivity, specificity and ROC AUC; None where undefined."""
    labels = pooled.labels.astype(np.int64)
    ranking, _ = ranking_figures(IMAGE, labels, pooled.scores)
    decided = count_confusion(labels, pooled.predicted.astype(np.float64), Rule(0.5))
    shares = {share.name: share.compute(decided) for share in shares_of("slide")}
    return {name: shares[name] for name in HEADER[2:5]} | {"AUC": ranking["roc_auc"]}


def auc_interval(pooled: Pooled, *, seed: int = 0) -> Interval | None:
    """Compute the pooled ROC AUC's 95 % interval by resampled patients; None if undefined."""
    labels = pooled.labels.astype(np.int64)
    resamples = draw_resamples(pooled.patients, n_replicates=REPLICATES, seed=seed)
    found = percentile_interval(
        weighted_roc_auc(labels, pooled.scores, resamples.weights),
        resamples,
        kinds=by_class(labels, "images"),
    )
    return found if isinstance(found, Interval) else None


def auc_within_runs(pooled: Pooled) -> float | None:
    """Return the share of pairs in the right order, of an image of each class in the same run.

    Ties count one half. None if no run has both classes.
    """
    won = n = 0.0
    for run in np.unique(pooled.runs):
        own = pooled.runs == run
        positive = pooled.scores[own & pooled.labels]
        negative = pooled.scores[own & ~pooled.labels]
        gaps = positive[:, None] - negative[None, :]
        won += np.count_nonzero(gaps > 0) + 0.5 * np.count_nonzero(gaps == 0)
        n += gaps.size
    return won / n if n else None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.evaluation.pooled_scores")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--model", action="append", help="may be repeated; default: all")
    parser.add_argument("--split", default="test", choices=("test", "val"))
    args = parser.parse_args(argv)
    runs: list[Path] = args.runs
    models = args.model or sorted(path.parent.name for path in runs[0].glob("scores/*/images.csv"))
    if not models:
        parser.error(f"{runs[0]}: no scores/*/images.csv; run predict first")
    width = max(16, *(len(name) + 1 for name in models))
    sys.stdout.write(f"{HEADER[0]:{width}}" + "".join(f"{name:>13}" for name in HEADER[1:]) + "\n")
    for model in models:
        try:
            pooled = pool_scores(runs, model, split=args.split)
        except EvaluationError as error:
            parser.error(str(error))
        figures = [*figures_of(pooled).values(), auc_within_runs(pooled)]
        cells = ["-" if value is None else format_number(value) for value in figures]
        interval = auc_interval(pooled)
        cells.insert(-1, f"{interval.low:.3f}-{interval.high:.3f}" if interval else "-")
        line = "".join(f"{cell:>13}" for cell in (str(pooled.labels.size), *cells))
        sys.stdout.write(f"{model:{width}}{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
