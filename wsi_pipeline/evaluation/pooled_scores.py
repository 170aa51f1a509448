"""Pool the held-out scores of several runs, each of which tested on other images.

Leave-one-slide-out makes a run per slide. A slide of one class has no ROC curve of its own; the
scores of all runs together have one, though models of different runs need not share a scale.

``python -m wsi_pipeline.evaluation.pooled_scores RUN RUN ...`` prints a line per model.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.wording import format_number
from wsi_pipeline.contracts import Rule
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.metrics import IMAGE, count_confusion, ranking_figures, shares_of
from wsi_pipeline.names import check_name

HEADER = ("model", "images", "accuracy", "sensitivity", "specificity", "AUC")


@dataclass(frozen=True)
class Pooled:
    """Test images of all runs."""

    labels: NDArray[np.bool_]  # (n,)
    scores: NDArray[np.float64]  # (n,) in [0, 1]
    predicted: NDArray[np.bool_]  # (n,) by the model's own rule


def pool_scores(runs: Sequence[Path], model: str) -> Pooled:
    """Gather the test images of all runs.

    Parameters
    ----------
    runs : sequence of Path
        Run folders of image folders, each with scores of `model`.
    model : str
        Name of its folder.

    Returns
    -------
    pooled : Pooled
        Unreadable images and those of unknown class are left out.

    Raises
    ------
    EvaluationError
        If a run has no scores of the model, an image is tested twice, or there is no image.
    """
    check_name(model, "the model", error=EvaluationError)
    found: dict[str, tuple[bool, float, bool]] = {}
    for run in runs:
        path = run / "scores" / model / "images.csv"
        if not path.is_file():
            raise EvaluationError(f"{path}: no such file; run predict for {model} on {run}")
        for row in read_csv(path, error=EvaluationError):
            if row["split"] != "test" or row["label"] not in ("0", "1") or not row["score"]:
                continue
            if row["image_id"] in found:
                raise EvaluationError(f"{path}: {row['image_id']} is tested in two runs")
            found[row["image_id"]] = (
                row["label"] == "1",
                float(row["score"]),
                row["predicted"] == "1",
            )
    if not found:
        raise EvaluationError(f"no labelled test image of {model} in {', '.join(map(str, runs))}")
    labels, scores, predicted = zip(*found.values(), strict=True)
    return Pooled(np.array(labels), np.array(scores), np.array(predicted))


def figures_of(pooled: Pooled) -> dict[str, float | None]:
    """Compute accuracy, sensitivity, specificity and ROC AUC; None where undefined."""
    labels = pooled.labels.astype(np.int64)
    ranking, _ = ranking_figures(IMAGE, labels, pooled.scores)
    decided = count_confusion(labels, pooled.predicted.astype(np.float64), Rule(0.5))
    shares = {share.name: share.compute(decided) for share in shares_of("slide")}
    return {name: shares[name] for name in HEADER[2:-1]} | {"AUC": ranking["roc_auc"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.evaluation.pooled_scores")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--model", action="append", help="may be repeated; default: all")
    args = parser.parse_args(argv)
    runs: list[Path] = args.runs
    models = args.model or sorted(path.parent.name for path in runs[0].glob("scores/*/images.csv"))
    if not models:
        parser.error(f"{runs[0]}: no scores/*/images.csv; run predict first")
    sys.stdout.write(f"{HEADER[0]:16}" + "".join(f"{name:>13}" for name in HEADER[1:]) + "\n")
    for model in models:
        try:
            pooled = pool_scores(runs, model)
        except EvaluationError as error:
            parser.error(str(error))
        cells = [
            "-" if value is None else format_number(value) for value in figures_of(pooled).values()
        ]
        line = "".join(f"{cell:>13}" for cell in (str(pooled.labels.size), *cells))
        sys.stdout.write(f"{model:16}{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
