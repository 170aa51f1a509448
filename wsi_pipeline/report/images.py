"""The report of an image folder: one self-contained page, of the same parts as that of slides."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tiling.files import write_text
from wsi_pipeline.cohort.image_folder import ImageEntry, read_images
from wsi_pipeline.cohort.image_store import ImageArray, open_images
from wsi_pipeline.config.settings import ReportConfig
from wsi_pipeline.contracts import SPLITS
from wsi_pipeline.errors import ReportError
from wsi_pipeline.evaluation.metrics import titles_of
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.report import curves
from wsi_pipeline.report.build import (
    EXPLANATIONS_CAPTION,
    LOCALISATION_FIGURES,
    SHEET_PX,
    compare_figures,
    find_section,
    read_versions,
)
from wsi_pipeline.report.gather import ModelFiles, Row, read_json, read_rows, without_folders
from wsi_pipeline.report.headline import (
    ThresholdLine,
    count_calls,
    list_image_thresholds,
    name_split,
)
from wsi_pipeline.report.page import render_page
from wsi_pipeline.report.pictures import embed_image, embed_picture
from wsi_pipeline.report.slide_rows import SlideRow, rank_worst

_OVERVIEW = "Images and their maps: white indicates class 1."
_IMAGE_PX = 420  # longer side of an image on its card
_MOST_ROWS = 1000  # of the table of images; evaluation/<model>/images.csv has all


def build_image_report(
    path: Path, *, models: Sequence[str], n_pictures: int = ReportConfig.slide_pictures
) -> Path:
    """Write ``report.html`` of a run on an image folder.

    Parameters
    ----------
    path : Path
        The run folder.
    models : sequence of str
        Which models to show, in this order.
    n_pictures : int
        Images of each model that are shown: wrongly called ones first.

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
    evaluated = [model for model in found if model.metrics]
    located = [m for m in evaluated if find_section(m, "localisation").get("n")]
    settings = without_folders(read_json(run.path / "run.json") or {})
    thresholds = list_image_thresholds(evaluated, settings)
    pixels = _open_pixels(run, entries) if n_pictures else None
    rows = {
        model.name: _list_images(run, model, entries, pixels, n_pictures=n_pictures)
        for model in found
    }
    scored = {
        model.name: [float(row["score"]) for row in model.slides if row.get("score")]
        for model in ([] if evaluated else found)
    }
    values = {
        "scored": {name: scores for name, scores in scored.items() if scores},
        "name": path.resolve().name,
        "n_images": len(entries),
        "n_patients": len({e.patient for e in entries}),
        "classes": sorted({name for split in counts.values() for name in split}),
        "class_names": _name_classes(entries, evaluated),
        "counts": counts,
        "titles": {"loss": "loss", **titles_of("image")},
        "models": found,
        "evaluated": evaluated,
        "headlines": {m.name: compare_figures([m], "patch", titles_of("image")) for m in evaluated},
        "evaluated_on": {
            m.name: name_split([m.metrics["evaluated"]]) for m in evaluated if m.metrics
        },
        "calls": {model.name: count_calls(model.slides) for model in evaluated},
        "image_threshold": {m.name: _find_line(m, thresholds) for m in evaluated},
        "thresholds": thresholds,
        "rows": {name: listed[:_MOST_ROWS] for name, listed in rows.items()},
        "n_rows": {name: len(listed) for name, listed in rows.items()},
        "roc": curves.chart_slide_roc(evaluated, "images"),
        "precision_recall": curves.chart_image_precision_recall(evaluated),
        "histories": {m.name: curves.chart_history(m, "images") for m in found},
        "epoch_seconds": {m.name: curves.epoch_seconds(m.history) for m in found},
        "figures": compare_figures(evaluated, "patch", titles_of("image")),
        "located": located,
        "localisation_figures": compare_figures(located, "localisation", LOCALISATION_FIGURES),
        "overviews": {m.name: _embed_sheet(run.image_maps(m.name) / "overview.png") for m in found},
        "overview_caption": _OVERVIEW,
        "explanations": {
            m.name: embed_picture(m.explanations, longest_px=SHEET_PX)
            for m in found
            if m.explanations is not None
        },
        "explanations_caption": EXPLANATIONS_CAPTION,
        "failures": read_rows(run.failures),
        "settings": json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False),
        "versions": read_versions(settings),
    }
    write_text(run.report, render_page("images.html.j2", values))
    return run.report


def _read_model(run: RunFolder, name: str) -> ModelFiles:
    metrics = read_json(run.evaluation(name) / "metrics.json")
    if metrics is not None and "splits" not in metrics:
        raise ReportError(f"{name}: its metrics.json is not of images; run evaluate again")
    rows = read_rows(run.evaluation(name) / "images.csv")
    if metrics is None:
        rows = read_rows(run.image_scores(name) / "images.csv")
    elif metrics["evaluated"] in SPLITS:
        rows = [row for row in rows if row.get("split") == metrics["evaluated"]]
    sheet = run.explanations(name) / "sheet.png"
    return ModelFiles(
        name,
        metrics=metrics,
        slides=[{**row, "slide_id": row.get("image_id", "")} for row in rows],
        history=read_rows(run.model(name) / "history.csv"),
        checkpoint=read_json(run.model(name) / "config.json"),
        explanations=sheet if sheet.is_file() else None,
        methods_on_masks=read_rows(run.explanations(name) / "methods.csv"),
    )


def _find_line(model: ModelFiles, thresholds: Sequence[ThresholdLine]) -> ThresholdLine:
    return next(line for line in thresholds if line.model == model.name)


def _name_classes(
    entries: Sequence[ImageEntry], evaluated: Sequence[ModelFiles]
) -> tuple[str, str]:
    """Names of class 0 and class 1."""
    for model in evaluated:
        return tuple((model.metrics or {})["classes"])
    by_label = {entry.label: entry.class_name for entry in entries}
    return by_label.get(0, "class 0"), by_label.get(1, "class 1")


def _embed_sheet(path: Path) -> str:
    return embed_picture(path, longest_px=SHEET_PX) if path.is_file() else ""


# ------------------------------------------------------------ pictures of single images


def _open_pixels(run: RunFolder, entries: Sequence[ImageEntry]) -> ImageArray | None:
    """Open the prepared images; None where the run folder was copied without them."""
    if not (run.tiles / "images.npy").is_file():
        return None
    return open_images(run.tiles, entries)


def _list_images(
    run: RunFolder,
    model: ModelFiles,
    entries: Sequence[ImageEntry],
    pixels: ImageArray | None,
    *,
    n_pictures: int,
) -> list[SlideRow]:
    """List the images that a model was evaluated on (or else has scored), worst first."""
    is_evaluated = model.metrics is not None
    blank = dict.fromkeys(("label", "score", "predicted"), "")
    # For the ranking an image is a slide whose patches were counted.
    rows = [{**blank, **row, "tp": "0" if is_evaluated else ""} for row in model.slides]
    order = rank_worst(rows, {}, (model.metrics or {}).get("threshold"))
    index = {entry.image_id: i for i, entry in enumerate(entries)}
    maps = read_json(run.image_maps(model.name) / "maps.json") or {}
    found: list[SlideRow] = []
    for place, i in enumerate(order):
        row = rows[i]
        at = index.get(row["slide_id"])
        listed = SlideRow(row, shown="as scored", evaluated=is_evaluated)
        if place < n_pictures and pixels is not None and at is not None:
            path = _find_map(run, model.name, row, maps)
            picture = _embed_pair(pixels.pixels[at], path)
            shown = "and its map" if path is not None else "as scored"
            listed = replace(listed, picture=picture, shown=shown)
        found.append(listed)
    return found


def _find_map(run: RunFolder, model: str, row: Row, maps: Mapping[str, Any]) -> Path | None:
    if row["slide_id"] not in maps.get("images", ()):
        return None
    path = run.image_maps(model) / f"{row['slide_id']}.{maps.get('method', '')}.png"
    return path if path.is_file() else None


def _embed_pair(pixels: Any, map_path: Path | None) -> str:
    """Embed an image and, right of it, its map."""
    image = Image.fromarray(np.squeeze(np.asarray(pixels, np.uint8))).convert("RGB")
    image.thumbnail((_IMAGE_PX, _IMAGE_PX), Image.Resampling.LANCZOS)
    if map_path is None:
        return embed_image(image)
    try:
        grey = Image.open(io.BytesIO(map_path.read_bytes())).convert("RGB")
    except OSError as error:
        raise ReportError(f"{map_path.name}: not a picture ({error}); run heatmap again") from error
    width = max(1, round(grey.width * image.height / grey.height))
    pair = Image.new("RGB", (image.width + 4 + width, image.height), "white")
    pair.paste(image, (0, 0))
    pair.paste(grey.resize((width, image.height), Image.Resampling.LANCZOS), (image.width + 4, 0))
    return embed_image(pair)
