"""One page about several models of runs on image folders, side by side.

Everything is read from the score tables and figures of the runs. The same images are resampled for
both models of a pair, patient by patient, so that what is hard about an image cancels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_json, write_text
from wsi_pipeline.contracts import Rule
from wsi_pipeline.errors import EvaluationError, ReportError
from wsi_pipeline.evaluation.bootstrap import (
    Resamples,
    draw_resamples,
    weighted_average_precision,
    weighted_ratio,
    weighted_roc_auc,
)
from wsi_pipeline.evaluation.delong import delong_p_value
from wsi_pipeline.evaluation.image_evaluation import summarise
from wsi_pipeline.evaluation.intervals import (
    Kinds,
    Undefined,
    by_class,
    compare_paired,
    no_comparison,
)
from wsi_pipeline.inference.image_scores import ScoredImage, read_scores
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.report.gather import read_json
from wsi_pipeline.report.page import Figure, read_difference, read_figure, render_page

FIGURES = {
    "accuracy": "accuracy",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "precision": "precision",
    "recall": "recall (sensitivity)",
    "f1": "F1",
    "loss": "cross-entropy",
}
_PAIRED = ("accuracy", "roc_auc", "average_precision")


@dataclass(frozen=True)
class ImageModel:
    """A model's decisions on the images it was evaluated on."""

    run: str
    name: str  # as it is shown
    split: str  # that was evaluated
    rule: Rule
    images: Mapping[str, ScoredImage]  # readable ones with a class, by id


def build_image_comparison(
    runs: Sequence[tuple[str, Path]],
    out: Path,
    *,
    models: Sequence[str],
    replicates: int,
    seed: int,
) -> Path:
    """Write ``compare.html`` and ``comparison.json``.

    Parameters
    ----------
    runs : sequence of (name, Path)
        Run folders on images, and what they are called.
    out, models, replicates, seed
        As of `wsi_pipeline.report.comparison.build_comparison`.

    Raises
    ------
    EvaluationError
        If two models share no image, or disagree on a class.
    ReportError
        If there are not two models to compare, or a named one is not there.
    """
    chosen = _choose(runs, models)
    pairs = [
        compare_image_models(a, b, replicates=replicates, seed=seed)
        for a, b in combinations(chosen, 2)
    ]
    write_json(out / "comparison.json", pairs)
    figures = [_figures(model) for model in chosen]
    values = {
        "shown": chosen,
        "lines": [(text, [f[key] for f in figures]) for key, text in FIGURES.items()],
        "pairs": [{**pair, "lines": _lines(pair)} for pair in pairs],
        "same": len({frozenset(model.images) for model in chosen}) == 1,
    }
    page = out / "compare.html"
    write_text(page, render_page("compare_images.html.j2", values))
    return page


def _choose(runs: Sequence[tuple[str, Path]], models: Sequence[str]) -> list[ImageModel]:
    found = [
        _read(name, RunFolder(path), model)
        for name, path in runs
        for model in RunFolder(path).models_with("evaluation")
        if not models or model in models
    ]
    known = {model.name for model in found}
    unknown = [name for name in models if name not in known]
    where = ", ".join(name for name, _ in runs)
    if unknown:
        raise ReportError(f"no evaluated model {', '.join(unknown)} in {where}")
    if len(found) < 2:
        raise ReportError(
            f"{len(found)} evaluated model in {where}: nothing to compare; evaluate another one, "
            "or name another run folder"
        )
    if len(runs) == 1:
        return found
    return [ImageModel(m.run, f"{m.run}: {m.name}", m.split, m.rule, m.images) for m in found]


def _read(run_name: str, run: RunFolder, model: str) -> ImageModel:
    metrics = read_json(run.evaluation(model) / "metrics.json")
    if metrics is None or "evaluated" not in metrics:
        raise ReportError(f"{run_name}: {model} is not evaluated; run evaluate again")
    images, _ = read_scores(run.path / "scores" / model)
    split = metrics["evaluated"]
    chosen = {
        image.image_id: image
        for image in images
        if image.label >= 0 and not np.isnan(image.score) and split in (image.split, "all")
    }
    rule = Rule(float(metrics["threshold"]), bool(metrics["strict"]))
    return ImageModel(run_name, model, split, rule, chosen)


def compare_image_models(
    a: ImageModel, b: ImageModel, *, replicates: int, seed: int
) -> dict[str, Any]:
    """Compare two models on the images that both were evaluated on.

    Returns
    -------
    comparison : dict
        ``first``, ``second``, ``n_images``, ``n_patients``, ``left_out`` (how many only one has),
        ``bootstrap``, and ``figures``: for ``accuracy``, ``roc_auc`` and ``average_precision`` the
        keys ``first``, ``second``, ``difference``, ``difference_ci95``, ``method``, ``p_value``,
        ``n_used``, ``n_skipped``; ``roc_auc`` has ``p_value_delong`` as well. What is undefined is
        None, with a reason under ``undefined``.

    Raises
    ------
    EvaluationError
        If they share no image, or disagree on the class or patient of one.
    """
    common = sorted(set(a.images) & set(b.images))
    if not common:
        raise EvaluationError(
            f"{a.name} and {b.name} have no evaluated image in common; compare models on one test "
            "set"
        )
    ours, theirs = ([model.images[i] for i in common] for model in (a, b))
    for one, other in zip(ours, theirs, strict=True):
        if (one.label, one.patient) != (other.label, other.patient):
            raise EvaluationError(
                f"image {one.image_id}: the two runs have another class or patient "
                f"({one.label}, {one.patient} and {other.label}, {other.patient}); evaluate both "
                "on the same table"
            )
    patients = [image.patient for image in ours]
    resamples = draw_resamples(patients, n_replicates=replicates, seed=seed)
    labels = np.array([image.label for image in ours], np.int64)
    scores = [np.array([i.score for i in images], np.float64) for images in (ours, theirs)]
    rules = (a.rule, b.rule)
    figures: dict[str, dict[str, Any]] = {}
    undefined: dict[str, str] = {}
    for name in _PAIRED:
        first, second = (
            _weigh(name, labels, s, rule, resamples.weights)
            for s, rule in zip(scores, rules, strict=True)
        )
        kinds = {} if name == "accuracy" else by_class(labels, "images")
        figures[name], reasons = _pair(first, second, resamples, kinds)
        undefined |= {f"{name}{key}": reason for key, reason in reasons.items()}
    p_value = delong_p_value(labels, *scores)
    figures["roc_auc"]["p_value_delong"] = None if isinstance(p_value, Undefined) else p_value
    if isinstance(p_value, Undefined):
        undefined["roc_auc.p_value_delong"] = p_value.reason
    return {
        "first": a.name,
        "second": b.name,
        "n_images": len(common),
        "n_patients": len(set(patients)),
        "left_out": len(set(a.images) ^ set(b.images)),
        "bootstrap": {"replicates": replicates, "seed": seed, "unit": resamples.unit},
        "figures": figures,
        "undefined": undefined,
    }


def _weigh(
    name: str,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    rule: Rule,
    weights: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Give a figure on the images as they are, and behind it on each replicate; NaN: undefined."""
    drawn = np.concatenate([np.ones((1, len(labels)), np.int64), weights])
    if name == "accuracy":
        right = (rule.decide(scores) == (labels == 1)).astype(np.int64)
        return weighted_ratio(right, np.ones_like(right), drawn)
    if np.unique(labels).size < 2:
        return np.full(len(drawn), np.nan)
    ranked: Callable[..., NDArray[np.float64]] = (
        weighted_roc_auc if name == "roc_auc" else weighted_average_precision
    )
    return ranked(labels, scores, drawn)


def _pair(
    one: NDArray[np.float64], other: NDArray[np.float64], resamples: Resamples, kinds: Kinds
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compare a figure of two models; also, by suffix of its name, what is undefined and why."""
    values = {
        "first": None if np.isnan(one[0]) else float(one[0]),
        "second": None if np.isnan(other[0]) else float(other[0]),
    }
    if np.isnan(one[0] + other[0]):
        found, reasons = no_comparison(len(one) - 1, "the images are all of one class")
        return values | found, reasons
    difference = float(one[0] - other[0])
    paired = compare_paired(one[1:], other[1:], resamples, difference=difference, kinds=kinds)
    found, reasons = paired.to_json()
    return values | found, reasons


def _figures(model: ImageModel) -> dict[str, Figure]:
    values, reasons = summarise(list(model.images.values()), model.rule)
    return {key: read_figure(values, key, reasons) for key in FIGURES}


def _lines(pair: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": FIGURES[key], **figure, "difference": read_difference(pair, key)}
        for key, figure in pair["figures"].items()
    ]
