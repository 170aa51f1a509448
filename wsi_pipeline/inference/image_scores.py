"""The table of the scores of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import read_json_object, write_json
from wsi_pipeline.cohort.image_folder import ImageEntry
from wsi_pipeline.contracts import SPLITS, Rule, Split
from wsi_pipeline.csv_files import read_csv, write_csv
from wsi_pipeline.errors import ScoresError
from wsi_pipeline.inference.precision import sigmoid
from wsi_pipeline.inference.scores import TRAINED_ON

COLUMNS = ("image_id", "patient", "split", "class", "label", "score", "logit", "predicted")


@dataclass(frozen=True)
class ScoredImage:
    """One line of a score table."""

    image_id: str
    patient: str
    split: Split | None
    class_name: str
    label: int  # 0, 1, or -1: unknown
    score: float  # NaN: unreadable
    logit: float  # NaN: unreadable


def write_scores(
    folder: Path,
    entries: Sequence[ImageEntry],
    logits: NDArray[np.floating[Any]],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write ``images.csv``, and ``images.json`` with the origin of the scores and the rule.

    Parameters
    ----------
    logits : (N,)
        Calibrated, that is divided by it, where `about` has a temperature.
    """
    scores = sigmoid(logits)
    predicted = Rule(about["threshold"], about["strict"]).decide(scores)
    files = [folder / "images.csv", folder / "images.json"]
    rows = []
    for e, score, logit, positive in zip(entries, scores, logits, predicted, strict=True):
        known = None if e.label < 0 else e.label
        answer = (None,) * 3 if np.isnan(logit) else (float(score), float(logit), int(positive))
        rows.append((e.image_id, e.patient, e.split, e.class_name, known, *answer))
    write_csv(files[0], COLUMNS, rows)
    write_json(files[1], about)
    return files


def read_scores(folder: Path) -> tuple[list[ScoredImage], dict[str, Any]]:
    """Read what `write_scores` wrote.

    Raises
    ------
    ScoresError
        If it is not there, or damaged.
    """
    try:
        about = read_json_object(folder / "images.json")
        _check_about(about)
        images = [_parse(row) for row in read_csv(folder / "images.csv", error=ScoresError)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ScoresError(f"{folder}: no scores of images ({error}); run predict again") from error
    return images, about


def _check_about(about: Mapping[str, Any]) -> None:
    kinds: dict[str, type] = {"checkpoint": str, "classes": list, "strict": bool}
    for key, kind in kinds.items():
        if not isinstance(about[key], kind):
            raise ValueError(f"images.json: {key} is {about[key]!r}")
    if not isinstance(about["threshold"], int | float) or not isinstance(
        about.get(TRAINED_ON, {}), dict
    ):
        raise ValueError("images.json: threshold or trained_on are not what predict writes")


def _parse(row: Mapping[str, str]) -> ScoredImage:
    return ScoredImage(
        image_id=row["image_id"],
        patient=row["patient"],
        split=next((s for s in SPLITS if s == row["split"]), None),
        class_name=row["class"],
        label=int(row["label"] or -1),
        score=float(row["score"] or "nan"),
        logit=float(row["logit"] or "nan"),
    )
