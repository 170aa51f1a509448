"""A small run folder with every file the report reads, made without running a stage."""

import csv
import json
from dataclasses import asdict

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from tiling.contracts import SlideInfo, TileGeometry
from tiling.store_files import TileTable, create_patches, finish_store, write_table
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.heatmaps.overlays import draw_overlay

SIZE, PATCH_L0, STRANGE = (6400, 4800), 200, "te_<script>alert(1)<"
SLIDES = [
    ("tr_1", "ann", 1, "train"),
    ("tr_2", "bob", 0, "train"),
    ("va_1", "cid", 1, "val"),
    ("va_2", "dee", 0, "val"),
    ("te_1", "eve", 1, "test"),
    ("te_2", "fay", 0, "test"),
    (STRANGE, "gus & co", 1, "test"),
]


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_tiles(label, rng):
    """Coordinates, labels and lesion of the patches of one slide."""
    x, y = (np.arange(0, side, PATCH_L0) for side in SIZE)
    coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.int64)
    centre = rng.uniform(0.3, 0.7, 2) * SIZE
    inside = np.hypot(*(coords + PATCH_L0 / 2 - centre).T) < 700
    return coords, (inside & (label == 1)).astype(np.int8)


def write_store(path, slide_id, slide_label, coords, label):
    create_patches(path, n_patches=len(coords), patch_px=1)
    zeros = np.zeros(len(coords), np.float32)
    table = TileTable(
        coords=coords,
        tissue=zeros + 1,
        label=label,
        tumour=label.astype(np.float32),
        unreadable=zeros > 0,
        lesion_pairs=np.zeros((0, 2), np.int64),
    )
    write_table(path, table)
    info = SlideInfo(
        slide_id,
        f"{slide_id}.tif",
        "generic-tiff",
        SIZE,
        (0.25, 0.25),
        (SIZE,),
        (1.0,),
        None,
        None,
        "f",
    )
    geometry = TileGeometry(
        1, 1, 50.0, PATCH_L0, PATCH_L0, PATCH_L0, PATCH_L0, (float(PATCH_L0), float(PATCH_L0))
    )
    tiling = {"store": "patches", **asdict(geometry)}
    lesions = [{"id": "1"}] if label.any() else []
    attributes = {
        "slide": asdict(info),
        "tiling": tiling,
        "fingerprint": "f",
        "slide_label": slide_label,
        "lesions": lesions,
    }
    finish_store(path, attributes, table)


def write_model(run, name, tiles, *, noise, rng, pictures, cohort):
    """History, checkpoint settings, evaluation and heatmaps of one model."""
    epochs = range(1, 9)
    history = [(e, 1e-4, 0.7 / e, 0.75 / e + 0.03, 1 - 0.4 / e) for e in epochs]
    header = ("epoch", "lr", "train_loss", "val_loss", "val_roc_auc")
    write_csv(run / "models" / name / "history.csv", header, history)
    meta = {
        "epoch": 8,
        "train_slides": ["tr_1", "tr_2"],
        "val_slides": ["va_1", "va_2"],
        "patch_px": 512,
        "target_mpp": 0.5,
    }
    write_json(run / "models" / name / "config.json", meta)
    (run / "models" / name / "checkpoint.safetensors").write_bytes(b"weights of " + name.encode())

    evaluation = run / "evaluation" / name
    slides, patches = [], []
    for slide_id, _, slide_label, split in cohort:
        if split != "test":
            continue
        coords, label = tiles[slide_id]
        score = np.clip(0.25 + 0.5 * label + rng.normal(0, noise, len(label)), 0, 1)
        called = score >= 0.75
        counts = [
            int((called & (label == 1)).sum()),
            int((called & (label == 0)).sum()),
            int((~called & (label == 1)).sum()),
            int((~called & (label == 0)).sum()),
        ]
        slides.append((slide_id, slide_label, float(score.max()), int(score.max() > 0.8), *counts))
        patches += [
            (slide_id, *xy, float(s), int(v), "1" if v else "")
            for xy, s, v in zip(coords.tolist(), score, label, strict=True)
        ]
        if pictures:
            write_overlay(run, name, slide_id, score, rng)
    header = ("slide_id", "label", "score", "predicted", "tp", "fp", "fn", "tn")
    write_csv(evaluation / "slides.csv", header, slides)
    write_csv(
        evaluation / "patches.csv", ("slide_id", "x", "y", "score", "label", "lesions"), patches
    )
    write_metrics(evaluation, name, slides, patches)
    write_curves(evaluation, [p[4] for p in patches], [p[3] for p in patches])
    return evaluation


def write_overlay(run, model, slide_id, score=None, rng=None):
    """Draw the heatmap of a slide."""
    rng = rng or np.random.default_rng(0)
    shape = (SIZE[1] // PATCH_L0, SIZE[0] // PATCH_L0)
    values = np.full(shape, 0.5) if score is None else score.reshape(shape)
    values = values.astype(np.float32)
    values[:4] = np.nan
    thumbnail = rng.integers(200, 240, (240, 320, 3)).astype(np.uint8)
    draw_overlay(
        run / "heatmaps" / model / f"{slide_id}.png",
        Heatmap(values, (PATCH_L0, PATCH_L0), SIZE),
        thumbnail,
        title=slide_id,
        mpp=(0.25, 0.25),
        outlines=[np.array([[1000.0, 1500], [3000, 1500], [2000, 3500]])],
    )


def write_curves(evaluation, label, score):
    for name, columns, (x, y, _) in (
        ("roc", ("fpr", "tpr"), roc_curve(label, score)),
        ("pr", ("recall", "precision"), precision_recall_curve(label, score)),
    ):
        points = zip(x, y, strict=True) if name == "roc" else zip(y[::-1], x[::-1], strict=True)
        rows = [("patches", "", float(a), float(b)) for a, b in points]
        write_csv(evaluation / f"{name}.csv", ("of", "threshold", *columns), rows)


def write_metrics(evaluation, name, slides, patches):
    label, score = [p[4] for p in patches], [p[3] for p in patches]
    tp, fp, fn, tn = (sum(row[i] for row in slides) for i in range(4, 8))
    metrics = {
        "model": name,
        "threshold": 0.75,
        "patch": {
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "tn": tn,
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "roc_auc_ci95": [0.87654, 0.99123],
            "f1": None,
            "roc_auc": roc_auc_score(label, score),
            "average_precision": average_precision_score(label, score),
        },
        "slide": {
            "aggregator": "max",
            "n": 3,
            "n_positive": 2,
            "roc_auc": roc_auc_score([r[1] for r in slides], [r[2] for r in slides]),
            "roc_auc_ci95": [0.512345, 1.0],
            "n_unscored": 0,
            "roc_auc_delong_ci95": [0.0123, 0.9876],
            "threshold": 0.8123456,
            "threshold_source": "largest sensitivity + specificity on 2 validation slides",
            "accuracy": 2 / 3,
            "sensitivity": 1.0,
            "specificity": None,
        },
        "undefined": {
            "patch.f1": "left out of this test on purpose",
            "slide.specificity": "no normal slide & no more",
        },
    }
    froc = {
        "definition": "patch",
        "fp_denominator": "normal",
        "at_rate": "linear",
        "n_slides": 3,
        "n_normal": 1,
        "n_lesions": 2,
        "n_itc": 0,
        "curve": [
            {"threshold": None, "avg_fps": 0.0, "sensitivity": 0.0},
            {"threshold": 0.91, "avg_fps": 0.0, "sensitivity": 0.5},
            {"threshold": 0.62, "avg_fps": 2.0, "sensitivity": 0.5},
            {"threshold": 0.61, "avg_fps": 2.0, "sensitivity": 1.0},
        ],
        "sensitivity_at": {"0.25": 0.5, "0.5": 0.5, "1": 0.5, "2": 1.0, "4": 1.0, "8": 1.0},
        "score": 0.75,
        "score_ci95": [0.417, 0.983],
        "bootstrap": {"sensitivity_at_ci95": {"0.25": [0.0, 0.7654], "1": None}},
        "undefined": {},
    }
    camelyon = {
        **froc,
        "definition": "camelyon16",
        "fp_denominator": "all",
        "n_itc": 1,
        "curve": [
            {"threshold": None, "avg_fps": 0.0, "sensitivity": 0.0},
            {"threshold": 0.9, "avg_fps": 0.0, "sensitivity": 0.5},
            {"threshold": 0.8, "avg_fps": 1 / 3, "sensitivity": 0.5},
            {"threshold": 0.7, "avg_fps": 2 / 3, "sensitivity": 1.0},
        ],
        "sensitivity_at": {"0.25": 0.5, "0.5": 0.75, "1": 1.0, "2": 1.0, "4": 1.0, "8": 1.0},
        "score": 5.25 / 6,
        "score_ci95": None,
    }
    metrics["notes"] = ["3 <unreadable> patches have no score and count nowhere"]
    metrics |= {"froc_camelyon16": camelyon, "froc_patch": froc}
    write_json(evaluation / "metrics.json", metrics)
    write_json(evaluation / "froc_camelyon16.json", camelyon)
    write_json(evaluation / "froc_patch.json", froc)
    write_csv(
        evaluation / "lesions_camelyon16.csv",
        ("slide_id", "lesion", "status", "best_score", "x", "y", "area_um2", "major_axis_um"),
        [
            ("te_1", "1", "hit", 0.91, 3210, 2200, 96_211.5, 351.4),
            (STRANGE, "1", "missed", "", 1800, 2900, 91_004.0, 344.9),
        ],
    )


def make_run(folder, models=("patchnet", "vgg16"), *, pictures=True, slides=SLIDES):
    """Make the run folder; the same each time."""
    rng = np.random.default_rng(0)
    manifest = [(f"slides/{s[0]}.tif", *s) for s in slides]
    write_csv(folder / "slides.csv", ("slide", "slide_id", "patient", "label", "split"), manifest)
    tiles = {}
    for slide_id, _, slide_label, _ in slides:
        tiles[slide_id] = make_tiles(slide_label, rng)
        write_store(folder / "tiles" / f"{slide_id}.zarr", slide_id, slide_label, *tiles[slide_id])
    for index, model in enumerate(models):
        noise = 0.16 + 0.1 * index
        write_model(folder, model, tiles, noise=noise, rng=rng, pictures=pictures, cohort=slides)
    versions = {"wsi-pipeline": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0"}
    stage = {"config": {"input": "/home/ann/cohort/slides.csv", "seed": 7}, "versions": versions}
    write_json(folder / "run.json", {"seed": 7, "stages": {"tile": stage, "evaluate": stage}})
    write_csv(
        folder / "failures.csv",
        ("slide_id", "stage", "error", "message"),
        [("te_9", "tile", "SlideError", "te_9.svs: <not> a slide")],
    )
    return folder
