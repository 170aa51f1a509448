"""The report of an image folder: one self-contained page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiling.files import write_text
from wsi_pipeline.cohort.image_folder import read_images
from wsi_pipeline.contracts import SPLITS
from wsi_pipeline.errors import ReportError
from wsi_pipeline.evaluation.metrics import titles_of
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.report.build import (
    EXPLANATIONS_CAPTION,
    LOCALISATION_FIGURES,
    SHEET_PX,
    compare_figures,
    find_section,
)
from wsi_pipeline.report.curves import epoch_seconds
from wsi_pipeline.report.gather import ModelFiles, read_json, read_rows, without_folders
from wsi_pipeline.report.page import render_page
from wsi_pipeline.report.pictures import embed_picture

_PICTURES = {
    "curves.png": ("models", "Loss and ROC AUC during training."),
    "roc.png": ("evaluation", "ROC curve over images."),
    "pr.png": ("evaluation", "Precision and recall over images."),
    "confusion.png": ("evaluation", "Predicted against true classes."),
    "overview.png": ("heatmaps", "Images and their maps: white indicates class 1."),
    "sheet.png": ("explanations", EXPLANATIONS_CAPTION),
}


def build_image_report(path: Path, *, models: Sequence[str]) -> Path:
    """Write ``report.html`` of a run on an image folder.

    Raises
    ------
    ReportError
        If a file that the report needs is broken.
    """
    run = RunFolder(path)
    entries = read_images(run.images)
    names = [e.split or "(none)" for e in entries]
    counts: dict[str, dict[str, int]] = {
        split: {} for split in (*SPLITS, "(none)") if split in names
    }
    for e in entries:
        split = counts[e.split or "(none)"]
        name = e.class_name or "(unknown)"
        split[name] = split.get(name, 0) + 1
    found = [_read_model(run, name) for name in models]
    evaluated = [ModelFiles(m["name"], metrics=m["metrics"]) for m in found if m["metrics"]]
    located = [m for m in evaluated if find_section(m, "localisation").get("n")]
    values = {
        "name": path.resolve().name,
        "n_images": len(entries),
        "n_patients": len({e.patient for e in entries}),
        "classes": sorted({name for split in counts.values() for name in split}),
        "counts": counts,
        "titles": {"loss": "loss", **titles_of("image")},
        "models": found,
        "evaluated": evaluated,
        "figures": compare_figures(evaluated, "patch", titles_of("image")),
        "located": located,
        "localisation_figures": compare_figures(located, "localisation", LOCALISATION_FIGURES),
        "settings": json.dumps(
            without_folders(read_json(run.path / "run.json") or {}), indent=2, sort_keys=True
        ),
    }
    write_text(run.report, render_page("images.html.j2", values))
    return run.report


def _read_model(run: RunFolder, name: str) -> dict[str, Any]:
    metrics = read_json(run.evaluation(name) / "metrics.json")
    if metrics is not None and "splits" not in metrics:
        raise ReportError(f"{name}: its metrics.json is not of images; run evaluate again")
    pictures = []
    for file, (folder, caption) in _PICTURES.items():
        picture = run.path / folder / name / file
        if picture.is_file():
            pictures.append((embed_picture(picture, longest_px=SHEET_PX), caption))
    history = read_rows(run.model(name) / "history.csv")
    checkpoint = read_json(run.model(name) / "config.json") or {}
    return {
        "name": name,
        "n_epochs": len(history),
        "kept_epoch": checkpoint.get("epoch"),
        "epoch_seconds": epoch_seconds(history),
        "metrics": metrics,
        "pictures": pictures,
        "methods": read_rows(run.explanations(name) / "methods.csv"),
    }
