"""Outputs of a training: checkpoint, settings, model card, history, record of draws, curves."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_json, write_text
from wsi_pipeline.cohort.colours import describe_training_colours
from wsi_pipeline.cohort.data import Patches
from wsi_pipeline.config.model_card import render_model_card
from wsi_pipeline.config.reading import as_plain
from wsi_pipeline.config.settings import TrainConfig
from wsi_pipeline.config.versions import versions
from wsi_pipeline.contracts import Rule
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.models.checkpoint import CheckpointMeta, save_checkpoint
from wsi_pipeline.models.weights_source import describe_weights
from wsi_pipeline.training.curves import draw_curves
from wsi_pipeline.training.history import EpochRecord, write_history

CHECKPOINT_FILE = "checkpoint.safetensors"
CARD_FILE = "model_card.md"
OUTPUTS = (CHECKPOINT_FILE, "config.json", CARD_FILE, "history.csv", "draws.csv", "curves.png")
PROTOTYPES_FILE = "prototypes.json"
PRUNING_FILE = "pruning.csv"
FURTHER = (PROTOTYPES_FILE, PRUNING_FILE)  # of some architectures
UNREADABLE = -2
_METRICS = ("val_loss", "val_loss_calibrated", "val_roc_auc", "val_ece", "val_ece_calibrated")


def describe_training(
    config: TrainConfig,
    *,
    best: EpochRecord,
    model: PatchClassifier,
    train: Sequence[Patches],
    val: Sequence[Patches],
    patients: Mapping[str, str],
    fingerprint: str,
) -> CheckpointMeta:
    """Compose the metadata of a checkpoint."""
    ids = [tuple(s.slide_id for s in split) for split in (train, val)]
    groups = [tuple(sorted({patients[i] for i in split})) for split in ids]
    kind = train[0].kind
    return CheckpointMeta(
        model=config.model.name,
        options=model.options,
        patch_px=kind.shape[0],
        target_mpp=kind.mpp,
        class_names=kind.class_names,
        image_shape=kind.shape if kind.single else None,
        training=as_plain(config),
        fingerprint=fingerprint,
        versions=versions(),
        train_slides=ids[0],
        val_slides=ids[1],
        train_patients=groups[0],
        val_patients=groups[1],
        epoch=best.epoch,
        metrics={name: value for name in _METRICS if (value := getattr(best, name)) is not None},
        card={
            "splits": [
                _count(name, stores, groups[i])
                for i, (name, stores) in enumerate((("train", train), ("val", val)))
                if stores
            ],
            "colours": None if kind.single else describe_training_colours(train),
            "weights": describe_weights(config.model.weights) if config.model.weights else None,
            "temperature": best.val_temperature,
            # Of patches, `evaluate` has a threshold of its own.
            **({"positive_if": str(Rule(model.threshold, model.strict))} if kind.single else {}),
        },
    )


def _count(split: str, stores: Sequence[Patches], patients: Sequence[str]) -> dict[str, Any]:
    """Count the patches of a split for the model card; unreadable ones are of no class."""
    counts = {"split": split, "patients": len(patients)}
    if not stores[0].kind.single:
        counts["slides"] = len(stores)
    labels = np.concatenate([np.where(s.unreadable, UNREADABLE, s.label) for s in stores])
    kinds = {"negative": 0, "positive": 1, "unlabelled": -1, "unreadable": UNREADABLE}
    return counts | {name: int(np.count_nonzero(labels == n)) for name, n in kinds.items()}


def write_outputs(
    out: Path,
    config: TrainConfig,
    meta: CheckpointMeta,
    *,
    model: PatchClassifier,
    history: Sequence[EpochRecord],
    best: EpochRecord,
) -> None:
    """Write the outputs of every training; the checkpoint last, to mark it as finished."""
    write_history(out / "history.csv", history)
    write_json(out / "config.json", dataclasses.asdict(meta))
    write_text(out / CARD_FILE, render_model_card(meta))
    draw_curves(out / "curves.png", history, title=config.model.name, best=best.epoch)
    save_checkpoint(out / CHECKPOINT_FILE, model, meta)


def write_ledger(
    path: Path, drawn: NDArray[np.int64], stores: Sequence[Patches], patients: Mapping[str, str]
) -> None:
    """Write ``draws.csv``: how many patches of each label training drew from each slide so far.

    Parameters
    ----------
    drawn : (n_slides, n_labels)
    stores : patch stores
        In the order of `drawn`.
    patients : patient by slide_id
    """
    ids = [store.slide_id for store in stores]
    rows = (
        (slide_id, patients[slide_id], label, n)
        for slide_id, counts in zip(ids, drawn.tolist(), strict=True)
        for label, n in enumerate(counts)
    )
    write_csv(path, ("slide_id", "patient", "label", "drawn"), rows)
