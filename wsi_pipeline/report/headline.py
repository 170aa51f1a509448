"""What a report answers first: how the calls turned out, and by which thresholds they were made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi_pipeline.report.gather import ModelFiles, Row

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test", "": "no split"}
_VERDICTS = {
    ("1", "1"): "true positive",
    ("1", "0"): "false negative",
    ("0", "1"): "false positive",
    ("0", "0"): "true negative",
}
_SETTING = "no data: a setting"


@dataclass(frozen=True)
class Calls:
    """Calls of slides or images that were compared with their labels."""

    tp: int
    fn: int
    fp: int
    tn: int

    @property
    def n(self) -> int:
        """How many were called."""
        return self.tp + self.fn + self.fp + self.tn

    @property
    def n_right(self) -> int:
        """How many calls agree with the label."""
        return self.tp + self.tn


@dataclass(frozen=True)
class ThresholdLine:
    """One line of the table of thresholds."""

    model: str
    what: str  # what it decides
    value: float | None
    why: str  # this value; or why there is none
    chosen_on: str
    strict: bool = False  # the score has to be above it


def read_verdict(row: Row) -> str:
    """Compare the call of a slide or image with its label; empty where one of them is missing.

    Examples
    --------
    >>> read_verdict({"label": "0", "predicted": "1"}), read_verdict({"label": "", "predicted": ""})
    ('false positive', '')
    """
    return _VERDICTS.get((row.get("label", ""), row.get("predicted", "")), "")


def count_calls(rows: Iterable[Row]) -> Calls | None:
    """Count the calls by their verdict; None where there is no call to compare."""
    found = [verdict for row in rows if (verdict := read_verdict(row))]
    names = ("true positive", "false negative", "false positive", "true negative")
    return Calls(*(found.count(name) for name in names)) if found else None


def name_split(splits: Iterable[str]) -> str:
    """Name the split that results are of, with a space behind; empty where they are of several.

    Examples
    --------
    >>> name_split(["test", "test"]), name_split(["val", "test"]), name_split([""])
    ('test ', '', '')
    """
    distinct = set(splits)
    (only,) = distinct if len(distinct) == 1 else {""}
    return f"{SPLIT_NAMES[only]} " if only in ("train", "val", "test") else ""


def list_slide_thresholds(
    models: Sequence[ModelFiles], settings: Mapping[str, Any]
) -> list[ThresholdLine]:
    """List the thresholds behind the results of slides.

    Parameters
    ----------
    models : sequence of ModelFiles
        With metrics.
    settings : mapping
        Of ``run.json``.
    """
    lines = []
    for model in models:
        metrics = model.metrics or {}
        slide = metrics.get("slide") or {}
        if slide.get("n"):
            why, chosen_on = _explain(slide.get("threshold_source") or "")
            if slide.get("threshold") is None:
                why = (metrics.get("undefined") or {}).get("slide.threshold", "not computed")
                chosen_on = "–"
            what = "a slide is called positive, and a patient by the most suspicious slide"
            if not metrics.get("patient"):
                what = "a slide is called positive"
            lines.append(ThresholdLine(model.name, what, slide.get("threshold"), why, chosen_on))
        if metrics.get("threshold") is not None:
            why = "evaluate.threshold; counts of patches, lesions found, worst errors"
            value = float(metrics["threshold"])
            lines.append(
                ThresholdLine(model.name, "a patch is called positive", value, why, _SETTING)
            )
        detection = read_setting(settings, "detection_threshold")
        if isinstance(detection, int | float) and model.froc.get("camelyon16"):
            what = "a peak of the heatmap is a detection (CAMELYON16 definition)"
            why = "evaluate.detection_threshold; the FROC curve begins with these detections"
            lines.append(ThresholdLine(model.name, what, detection, why, _SETTING, strict=True))
        located = metrics.get("localisation") or {}
        if located.get("n"):
            what = "a pixel of the heatmap is called tumour (outlines)"
            why = "fixed: the middle of the scale"
            lines.append(ThresholdLine(model.name, what, located["threshold"], why, "no data"))
    return lines


def list_image_thresholds(
    models: Sequence[ModelFiles], settings: Mapping[str, Any]
) -> list[ThresholdLine]:
    """List the thresholds behind the results of an image folder; see `list_slide_thresholds`."""
    lines = []
    for model in models:
        metrics = model.metrics or {}
        own = read_setting(settings, "image_threshold") is None
        why = "the rule that the model was trained with" if own else "evaluate.image_threshold"
        what = f"an image is called class 1 ({metrics['classes'][1]})"
        chosen_on = "no data: part of the model" if own else _SETTING
        value, strict = float(metrics["threshold"]), bool(metrics["strict"])
        lines.append(ThresholdLine(model.name, what, value, why, chosen_on, strict))
        if (metrics.get("localisation") or {}).get("n"):
            what = "a pixel of the map is called object"
            why = "fixed: the middle of the scale"
            value = metrics["localisation"]["threshold"]
            lines.append(ThresholdLine(model.name, what, value, why, "no data"))
    return lines


def _explain(source: str) -> tuple[str, str]:
    """Split the sentence on a slide threshold's source into why, and on what it was chosen.

    Examples
    --------
    >>> _explain("largest sensitivity + specificity on 4 validation slides")
    ('largest sensitivity + specificity', '4 validation slides')
    >>> _explain("given in the settings")
    ('evaluate.slide_threshold', 'no data: a setting')
    """
    why, _, chosen_on = source.partition(" on ")
    if chosen_on:
        return why, chosen_on
    if source == "given in the settings":
        return "evaluate.slide_threshold", _SETTING
    return source or "not recorded", "no data" if source else "not recorded"


def read_setting(settings: Mapping[str, Any], name: str) -> Any:
    """Read a setting of ``evaluate`` from ``run.json``; None where it is not there."""
    found: Any = settings
    for key in ("stages", "evaluate", "config", "evaluate", name):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
