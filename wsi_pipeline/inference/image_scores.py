"""Score the images of a run with a model, and keep the scores as a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiling.files import read_json_object, write_json
from tiling.threads import map_in_threads
from wsi_pipeline.cohort.data import same_patches, to_unit_range
from wsi_pipeline.cohort.image_folder import UNNAMED, ImageEntry
from wsi_pipeline.cohort.image_store import ImageArray
from wsi_pipeline.contracts import SPLITS, Rule, Split
from wsi_pipeline.csv_files import read_csv, write_csv
from wsi_pipeline.errors import InferenceError, ScoresError
from wsi_pipeline.inference.forward import cure_no_score
from wsi_pipeline.inference.precision import N_COMPARED, PrecisionCheck
from wsi_pipeline.inference.scores import TRAINED_ON
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.models.checkpoint import CheckpointMeta
from wsi_pipeline.models.devices import Precision, compute_in, place_model

COLUMNS = ("image_id", "patient", "split", "class", "label", "score", "logit", "predicted")

# Pixels that a batch holds where no size is given.
CPU_BATCH_PIXELS = 2**20
GPU_BATCH_PIXELS = 2**24


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


def check_shape(meta: CheckpointMeta, images: ImageArray) -> None:
    """Refuse images of another shape, or resolution, than the model was trained on.

    Raises
    ------
    InferenceError
        Saying both sides' values and what to do.
    """
    height, width, channels = images.shape
    if meta.image_shape is not None:
        fits = tuple(meta.image_shape) == images.shape and same_patches(
            height, images.mpp, height, meta.target_mpp
        )
        wanted = " x ".join(map(str, meta.image_shape))
    else:
        fits = (height, width, channels) == (meta.patch_px, meta.patch_px, 3) and same_patches(
            height, images.mpp, meta.patch_px, meta.target_mpp
        )
        wanted = f"{meta.patch_px} x {meta.patch_px} x 3"
    if not fits:
        raise InferenceError(
            f"the images are {height} x {width} x {channels} at {images.mpp:g} µm/px (0: unknown), "
            f"but the checkpoint of {meta.model} was trained on {wanted} at {meta.target_mpp:g}; "
            "tile with images.size, images.channels and images.mpp to match, or give another "
            "checkpoint"
        )


def check_classes(meta: CheckpointMeta, images: ImageArray) -> str:
    """See that class 1 of the images is class 1 of the model.

    Returns
    -------
    doubt : str
        What is worth a warning: other names than the model was trained with. Empty: nothing.

    Raises
    ------
    InferenceError
        If the names are the same and their order is not.
    """
    own, theirs = tuple(meta.class_names), tuple(images.classes)
    if own == theirs or theirs == UNNAMED:
        return ""
    if set(own) == set(theirs):
        raise InferenceError(
            f"the images' classes are {theirs[0]} (0) and {theirs[1]} (1), the checkpoint's "
            f"{own[0]} (0) and {own[1]} (1); tile again with images.classes: [{own[0]}, {own[1]}]"
        )
    return (
        f"the checkpoint of {meta.model} tells {own[0]} (0) from {own[1]} (1); the images are "
        f"{theirs[0]} (0) and {theirs[1]} (1): make sure that these mean the same"
    )


def score_images(
    model: PatchClassifier,
    images: ImageArray,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    readers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Give the logit of each image: (n,), NaN where it is unreadable.

    Raises
    ------
    InferenceError
        If the model gives no finite logit for a readable image.
    """
    height, width = images.shape[:2]
    pixels = GPU_BATCH_PIXELS if device.type == "cuda" else CPU_BATCH_PIXELS
    size = batch_size or max(1, pixels // (height * width))
    readable = rows[~images.unreadable[rows]]
    batches = [readable[start : start + size] for start in range(0, len(readable), size)]
    place_model(model, device).eval()
    logits = np.full(len(images.pixels), np.nan)

    def load(batch: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.array(images.pixels[batch]))

    done = 0
    for batch, loaded in zip(batches, map_in_threads(load, batches, threads=readers), strict=True):
        with torch.inference_mode(), compute_in(precision, device):
            logits[batch] = model(to_unit_range(loaded, device)).double().cpu().numpy()
        done += len(batch)
        if on_progress:
            on_progress(done, len(readable))
    if not np.isfinite(logits[readable]).all():
        raise InferenceError(
            f"the model gave no finite score for some images in {precision}; "
            f"{cure_no_score(precision)}"
        )
    return logits[rows]


def check_precision(
    model: PatchClassifier,
    images: ImageArray,
    rows: NDArray[np.int64],
    logits: NDArray[np.float64],
    *,
    device: torch.device,
    tolerance: float,
) -> PrecisionCheck:
    """Compare what a faster precision gave with fp32 on the first readable images.

    Parameters
    ----------
    model, images, rows, device
        As of `score_images`.
    logits : (n,)
        What that gave; NaN: unreadable.
    tolerance : float
        Largest difference of scores that is not remarked on.
    """
    first = np.flatnonzero(~np.isnan(logits))[:N_COMPARED]
    exact = sigmoid(score_images(model, images, rows[first], device=device))
    fast = sigmoid(logits[first])
    rule = Rule(model.threshold, model.strict)
    return PrecisionCheck(
        n_patches=len(first),
        largest_difference=float(np.abs(fast - exact).max(initial=0)),
        n_flipped=int((rule.decide(fast) != rule.decide(exact)).sum()),
        threshold=model.threshold,
        tolerance=tolerance,
    )


def write_scores(
    folder: Path,
    entries: Sequence[ImageEntry],
    logits: NDArray[np.float64],
    rule: Rule,
    attributes: Mapping[str, Any],
) -> list[Path]:
    """Write ``images.csv`` and, beside it, ``images.json``: what made the scores."""
    scores = sigmoid(logits)
    predicted = rule.decide(scores)
    table, about = folder / "images.csv", folder / "images.json"
    rows = []
    for e, score, logit, positive in zip(entries, scores, logits, predicted, strict=True):
        known = None if e.label < 0 else e.label
        answer = (None,) * 3 if np.isnan(logit) else (float(score), float(logit), int(positive))
        rows.append((e.image_id, e.patient, e.split, e.class_name, known, *answer))
    write_csv(table, COLUMNS, rows)
    write_json(about, {**attributes, "threshold": rule.threshold, "strict": rule.strict})
    return [table, about]


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


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn logits into scores without overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)))
