"""The model card: what a checkpoint was trained on, what it is for, and what it is not for.

It is composed from the header of the checkpoint alone, holds no names of slides or patients, no
paths and no dates, and is the same text for the same checkpoint.

References
----------
.. [1] M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, arXiv 1810.03993.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from tiling.wording import pluralize
from wsi_pipeline.config.checkpoint_header import CheckpointMeta

NOT_RECORDED = "not recorded"
NOT_CLINICAL = (
    "Research software, not a medical device. Not for diagnosis, treatment or any other clinical "
    "use."
)
_METRICS = {
    "val_ece": "expected calibration error, validation",
    "val_ece_calibrated": "the same, with the temperature",
    "val_loss": "cross-entropy, validation",
    "val_loss_calibrated": "the same, with the temperature",
    "val_roc_auc": "ROC AUC, validation",
}
_SPLITS = {"train": "training", "val": "validation"}
_COUNTS = ("patients", "slides", "negative", "positive", "unlabelled", "unreadable")


def render_model_card(meta: CheckpointMeta) -> str:
    """Compose the model card of a checkpoint as Markdown.

    Parameters
    ----------
    meta : CheckpointMeta
        Of a checkpoint of any version: what an earlier version did not record is said to be so.
    """
    sections = [
        [f"# Model card: {_plain(meta.model)}", "", NOT_CLINICAL, ""],
        _table(("", ""), _describe_model(meta)),
        ["", "## Intended use", "", *_describe_use(meta)],
        ["", "## Data", "", *_describe_data(meta)],
        ["", "## Metrics", "", *_describe_metrics(meta)],
        ["", "## Settings of the training", "", "```yaml", _dump(meta.training), "```"],
    ]
    return "\n".join(line for section in sections for line in section) + "\n"


def _describe_model(meta: CheckpointMeta) -> list[tuple[str, str]]:
    rule = meta.card.get("positive_if")
    options = (
        ", ".join(f"{name}={value}" for name, value in sorted(meta.options.items())) or "default"
    )
    return [
        ("architecture", meta.model),
        ("options", options),
        ("input", _describe_input(meta)),
        (
            "output",
            f"score from 0 ({meta.class_names[0]}) to 1 ({meta.class_names[1]}), not a calibrated "
            "probability",
        ),
        ("temperature", _describe_temperature(meta)),
        *([("positive if", str(rule))] if rule else []),
        ("initial weights", _describe_weights(meta)),
        ("weights kept", f"of epoch {meta.epoch}"),
        ("software", ", ".join(f"{name} {v}" for name, v in sorted(meta.versions.items()))),
    ]


def _describe_input(meta: CheckpointMeta) -> str:
    height, width, channels = meta.kind.shape
    size = f"{width} x {height} px, {pluralize(channels, 'channel')}, 8 bits"
    if meta.image_shape is not None:
        return f"single images of {size}"
    return f"patches of slides, {size}, at {meta.target_mpp:g} µm per pixel"


def _describe_temperature(meta: CheckpointMeta) -> str:
    if meta.temperature is None:
        return NOT_RECORDED
    return (
        f"{meta.temperature:.4f}; with the setting predict.calibrated the score is sigmoid(logit / "
        "temperature), a probability where the classes are as frequent as in validation"
    )


def _describe_weights(meta: CheckpointMeta) -> str:
    if "weights" not in meta.card:
        return NOT_RECORDED
    weights = meta.card["weights"]
    if weights is None:
        return "random"
    source = weights.get("source") or "source not recorded in the file"
    licence = weights.get("licence") or "licence not recorded in the file, see its source"
    return f"{weights['file']}, {source}; {licence}; SHA-256 {weights['sha256']}"


def _describe_use(meta: CheckpointMeta) -> list[str]:
    what = "images" if meta.image_shape is not None else "patches of slides"
    lines = [
        f"Research on images like those it was trained on: it scores {what} for the class "
        f"'{_plain(meta.class_names[1])}'.",
        "Tissue, stain, scanner and resolution other than those of the training data have not been "
        "tested; measure the model on data of your own before relying on it.",
    ]
    return [" ".join(lines)]


def _describe_data(meta: CheckpointMeta) -> list[str]:
    splits = meta.card.get("splits")
    if not splits:
        counts = {"train": meta.train_slides, "val": meta.val_slides}
        lines = [f"{_SPLITS[name]}: {pluralize(len(ids), 'slide')}" for name, ids in counts.items()]
        return [*lines, "", f"Patches by class: {NOT_RECORDED}."]
    unit = "images" if meta.image_shape is not None else "patches"
    known = [name for name in _COUNTS if any(name in split for split in splits)]
    header = ["split", *(name if name in _COUNTS[:2] else f"{name} {unit}" for name in known)]
    rows = [
        (_SPLITS.get(split["split"], split["split"]), *(split.get(name, "") for name in known))
        for split in splits
    ]
    negative, positive = meta.class_names
    return [
        *_table(header, rows),
        "",
        *_describe_colours(meta),
        f"Negative is '{_plain(negative)}', positive '{_plain(positive)}'. No patient is in both "
        "splits. The licence of the data is not recorded here.",
    ]


def _describe_colours(meta: CheckpointMeta) -> list[str]:
    colours = meta.card.get("colours")
    if not colours:
        return []
    channels = zip(("L*", "a*", "b*"), *(colours[k] for k in ("low", "high")), strict=True)
    ranges = ", ".join(f"{name} {low:g} to {high:g}" for name, low, high in channels)
    slides = pluralize(colours["slides"], "training slide")
    return [f"Mean colour of the tissue of {slides}, CIELAB: {ranges}.", ""]


def _describe_metrics(meta: CheckpointMeta) -> list[str]:
    if not meta.metrics:
        return ["None: the training monitored no validation data."]
    rows = [
        (_METRICS.get(name, name), f"{value:.4f}") for name, value in sorted(meta.metrics.items())
    ]
    return [
        *_table(("metric", "value"), rows),
        "",
        "Of the split `val`, on which the epoch was chosen: too favourable for new data. Measure "
        "on the split `test` with `wsi-pipeline evaluate`.",
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines]


def _plain(cell: object) -> str:
    """Keep a text within its line, and within its cell of a table."""
    return " ".join(str(cell).split()).replace("|", "\\|")


def _dump(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=True, allow_unicode=True).rstrip()
