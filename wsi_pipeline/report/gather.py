"""What a run folder holds, read into plain values for the report.

Only files of the run folder are read. A missing part is empty, and the report names the stage that
creates it; a damaged part is an error with its file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.errors import StoreError
from tiling.files import digest_file, read_json_object
from tiling.store import PatchStore
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.contracts import DEFINITIONS, SlideEntry
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import ReportError
from wsi_pipeline.evaluation.csv_columns import Layout, NotPlainError, read_columns
from wsi_pipeline.explain.files import SHEET_ROWS
from wsi_pipeline.inference.scores import read_far_from_training, read_highest_score
from wsi_pipeline.layout import RunFolder

Row = dict[str, str]


@dataclass(frozen=True)
class CohortSlide:
    """A slide of the manifest, and what tiling made of it."""

    slide_id: str
    patient: str
    split: str  # train, val, test or empty
    label: int | None
    tiled: bool
    size: tuple[int, int] | None = None  # (width, height), level-0 px
    mpp: tuple[float, float] | None = None  # µm per level-0 px
    patch_l0: tuple[int, int] = (0, 0)  # (width, height) of a patch, level-0 px
    n_patches: int = 0
    n_positive: int = 0
    n_negative: int = 0
    n_ignored: int = 0
    n_unreadable: int = 0
    n_lesions: int = 0


@dataclass(frozen=True)
class Band:
    """Where a curve may lie: pointwise ends of its 95 % interval."""

    x: NDArray[np.float64]  # (M,)
    low: NDArray[np.float64]  # (M,)
    high: NDArray[np.float64]  # (M,)


@dataclass(frozen=True)
class ErrorCrop:
    """A patch that the model got most wrong."""

    row: Row  # of errors.csv
    picture: Path | None


@dataclass(frozen=True)
class ModelFiles:
    """What the run folder holds of one model; empty where it holds nothing."""

    name: str
    metrics: dict[str, Any] | None = None  # metrics.json
    slides: list[Row] = field(default_factory=list)  # evaluation/<model>/slides.csv
    validation: list[Row] = field(default_factory=list)  # evaluation/<model>/validation.csv
    # (K, 2) over patches: false-positive and true-positive rate, evaluation/<model>/roc.csv
    patch_roc: NDArray[np.float64] | None = None
    # (L, 2) over patches: recall and precision, evaluation/<model>/pr.csv
    patch_precision_recall: NDArray[np.float64] | None = None
    froc: dict[str, dict[str, Any]] = field(default_factory=dict)  # by definition
    lesions: dict[str, list[Row]] = field(default_factory=dict)  # by definition
    history: list[Row] = field(default_factory=list)  # models/<model>/history.csv
    checkpoint: dict[str, Any] | None = None  # models/<model>/config.json
    checkpoint_digest: str | None = None
    overlays: dict[str, Path] = field(default_factory=dict)  # by slide_id
    roc_bands: dict[str, Band] = field(default_factory=dict)  # of patches, of slides
    calibration: list[Row] = field(default_factory=list)  # evaluation/<model>/calibration.csv
    sweep: list[Row] = field(default_factory=list)  # evaluation/<model>/sweep.csv
    errors: list[ErrorCrop] = field(default_factory=list)  # evaluation/<model>/errors.csv, errors/
    explanations: Path | None = None  # explanations/<model>/sheet.png
    far: dict[str, str] = field(default_factory=dict)  # slides unlike the training's: in which way
    # patches of the sheet: slide_id, and the centre of what was explained (x, y), level-0 px
    explained: list[Row] = field(default_factory=list)
    methods_on_masks: list[Row] = field(default_factory=list)  # explanations/<model>/methods.csv
    # highest patch score by slide_id, of a model that is not evaluated
    highest: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """All that the report shows."""

    folder: Path
    name: str  # of the run folder
    cohort: list[CohortSlide]
    failures: list[Row]
    settings: dict[str, Any]  # run.json, without folders
    models: list[ModelFiles]
    label_audit: Path  # folder
    audited: list[Row]  # its slides.csv


def gather_run(folder: Path, *, models: Sequence[str] = ()) -> RunFiles:
    """Read a run folder.

    Parameters
    ----------
    folder : Path
    models : sequence of str
        Which models to show, in this order; empty: all there are.

    Raises
    ------
    ReportError
        If a model named is not there, or a file is broken.
    StageError
        If this is no run folder.
    """
    run = RunFolder(folder)
    entries = read_run_manifest(run)
    names = known_models(run)
    unknown = [name for name in models if name not in names]
    if unknown:
        raise ReportError(
            f"{folder.name}: no model {', '.join(unknown)} in this run; "
            f"there is {', '.join(names) or 'none'}"
        )
    return RunFiles(
        folder=folder,
        name=folder.resolve().name,
        cohort=[_read_cohort_slide(run, entry) for entry in entries],
        failures=read_rows(run.failures),
        settings=without_folders(read_json(run.path / "run.json") or {}),
        models=[read_model(run, name, entries) for name in models or names],
        label_audit=run.label_audit,
        audited=read_rows(run.label_audit / "slides.csv"),
    )


def known_models(run: RunFolder) -> list[str]:
    """Names of the models of which a run holds anything."""
    folders = ("models", "scores", "heatmaps", "evaluation")
    return sorted({name for folder in folders for name in run.models_with(folder)})


def _read_cohort_slide(run: RunFolder, entry: SlideEntry) -> CohortSlide:
    split, path = entry.split or "", run.store(entry.slide_id)
    untiled = CohortSlide(entry.slide_id, entry.patient, split, entry.label, tiled=False)
    if not path.is_dir():
        return untiled
    try:
        with PatchStore.open(path) as store:
            label = store.label
            return CohortSlide(
                slide_id=entry.slide_id,
                patient=entry.patient,
                split=split,
                label=store.slide_label,
                tiled=True,
                size=store.info.size,
                mpp=store.info.mpp,
                patch_l0=(store.geometry.patch_l0, store.geometry.patch_l0_y),
                n_patches=len(store),
                n_positive=int((label == 1).sum()),
                n_negative=int((label == 0).sum()),
                n_ignored=int((label == -1).sum()),
                n_unreadable=int(store.unreadable.sum()),
                n_lesions=len(store.lesion_ids),
            )
    except StoreError:
        return untiled  # unfinished or damaged: the tile stage names it and builds it again


def read_model(run: RunFolder, name: str, entries: Sequence[SlideEntry]) -> ModelFiles:
    """Read what a run holds of one model; overlays of the slides in `entries`.

    Raises
    ------
    ReportError
        If a file is broken.
    """
    evaluation, checkpoint = run.evaluation(name), run.checkpoint(name)
    metrics = read_json(evaluation / "metrics.json")
    overlays = {entry.slide_id: run.overlay(name, entry.slide_id) for entry in entries}
    sheet = run.explanations(name) / "sheet.png"
    scores = {entry.slide_id: run.scores(name, entry.slide_id) for entry in entries}
    far = {slide_id: read_far_from_training(path) for slide_id, path in scores.items()}
    found = {} if metrics else {name: read_highest_score(path) for name, path in scores.items()}
    return ModelFiles(
        name=name,
        metrics=metrics,
        slides=read_rows(evaluation / "slides.csv"),
        validation=read_rows(evaluation / "validation.csv"),
        patch_roc=_read_curve(evaluation / "roc.csv", "fpr", "tpr"),
        patch_precision_recall=_read_curve(evaluation / "pr.csv", "recall", "precision"),
        froc=_read_froc(evaluation, metrics or {}),
        lesions=_read_lesions(evaluation),
        history=read_rows(run.model(name) / "history.csv"),
        checkpoint=read_json(run.model(name) / "config.json"),
        checkpoint_digest=digest_file(checkpoint) if checkpoint.is_file() else None,
        overlays={slide_id: path for slide_id, path in overlays.items() if path.is_file()},
        roc_bands=_read_bands(evaluation / "roc_band.csv"),
        calibration=read_rows(evaluation / "calibration.csv"),
        sweep=read_rows(evaluation / "sweep.csv"),
        errors=_read_errors(evaluation),
        far={slide_id: warning for slide_id, warning in far.items() if warning},
        explanations=sheet if sheet.is_file() else None,
        explained=_read_explained(run.explanations(name)),
        methods_on_masks=read_rows(run.explanations(name) / "methods.csv"),
        highest={slide_id: score for slide_id, score in found.items() if score is not None},
    )


def _read_froc(folder: Path, metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """FROC results by definition, from ``froc*.json``, else from the metrics."""
    found = [read_json(path) for path in sorted(folder.glob("froc*.json"))]
    found += [value for key, value in metrics.items() if key.startswith("froc")]
    results: dict[str, dict[str, Any]] = {}
    for result in found:
        if isinstance(result, dict) and result.get("definition") in DEFINITIONS:
            results.setdefault(result["definition"], result)
    return {name: results[name] for name in DEFINITIONS if name in results}


def _read_lesions(folder: Path) -> dict[str, list[Row]]:
    """Lesion lists by definition."""
    return {name: read_rows(folder / f"lesions_{name}.csv") for name in DEFINITIONS}


def _read_bands(path: Path) -> dict[str, Band]:
    """Read the bands of the ROC curves, by what they are over."""
    rows_by_curve: dict[str, list[Row]] = {}
    for row in read_rows(path):
        rows_by_curve.setdefault(row.get("of", ""), []).append(row)
    try:
        return {
            name: Band(*np.array([[float(r[k]) for k in ("fpr", "low", "high")] for r in rows]).T)
            for name, rows in rows_by_curve.items()
        }
    except (KeyError, ValueError) as error:
        raise ReportError(
            f"{path.parent.name}/{path.name}: not of,fpr,low,high ({error}); run evaluate again"
        ) from error


def _read_explained(folder: Path) -> list[Row]:
    """Read which patches are on the sheet: the first ones of any method, as all explain the same.

    None where they were explained by a version that did not write down where they are.
    """
    for path in sorted(folder.glob("*/explain.json")):
        found = (read_json(path) or {}).get("explained", [])[:SHEET_ROWS]
        if all(one.get("place") for one in found):
            return [
                {
                    "slide_id": one["slide_id"],
                    "x": str(round(one["place"]["x_l0"] + one["place"]["width_l0"] / 2)),
                    "y": str(round(one["place"]["y_l0"] + one["place"]["height_l0"] / 2)),
                }
                for one in found
            ]
    return []


def _read_errors(folder: Path) -> list[ErrorCrop]:
    crops = []
    for row in read_rows(folder / "errors.csv"):
        name = row.get("picture", "")
        path = folder / name if name else None
        if path is not None and not path.resolve().is_relative_to(folder.resolve()):
            raise ReportError(f"{folder.name}/errors.csv: '{name}' is not in this folder")
        crops.append(ErrorCrop(row, path if path is not None and path.is_file() else None))
    return crops


def _read_curve(path: Path, x: str, y: str) -> NDArray[np.float64] | None:
    """Read the curve over patches: (K, 2); None where there is none."""

    def find_layout(header: list[str]) -> Layout | None:
        try:
            return Layout(True, (header.index(x), header.index(y)), (header.index("of"),))
        except ValueError:
            return None

    if not path.is_file():
        return None
    try:
        found = read_columns(path, find_layout)
    except NotPlainError as error:
        raise ReportError(
            f"{path.parent.name}/{path.name}: not of,threshold,{x},{y}; run evaluate again"
        ) from error
    points = np.column_stack(found.numbers)
    if np.isnan(points).any():
        raise ReportError(
            f"{path.parent.name}/{path.name}: {x} or {y} is empty; run evaluate again"
        )
    names = found.names[0]
    chosen = found.codes[0] == (names.index("patches") if "patches" in names else -1)
    return points[chosen] if chosen.any() else None


def read_rows(path: Path) -> list[Row]:
    """Read a CSV with header; empty where there is no such file."""
    if not path.is_file():
        return []
    return read_csv(path, error=ReportError)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ReportError(
            f"{path.parent.name}/{path.name}: damaged ({error}); run its stage again"
        ) from error


def without_folders(value: Any) -> Any:
    """Cut absolute paths anywhere in a JSON value to their last part: a report is passed on.

    Examples
    --------
    >>> without_folders({"input": "/home/ann/slides.csv", "steps": [1, "a/b"]})
    {'input': 'slides.csv', 'steps': [1, 'a/b']}
    """
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str):
        return _file_name(value)
    return value


def _file_name(text: str) -> str:
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return PureWindowsPath(text).name
    return PurePosixPath(text).name if text.startswith(("/", "~")) else text
