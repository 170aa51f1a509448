"""Two models on the same slides or images: do their figures differ, or is it chance?

Both models' figures are computed on the same resampled sets of patients, so what is hard about a
slide is hard for both and cancels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tiling.files import write_json
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import Resamples, draw_resamples
from wsi_pipeline.evaluation.delong import delong_p_value
from wsi_pipeline.evaluation.intervals import (
    Kinds,
    Undefined,
    by_class,
    compare_paired,
    no_comparison,
)
from wsi_pipeline.evaluation.metrics import Level, Ranking, Rows, Share, add_up


@dataclass(frozen=True)
class Estimate:
    """A figure on the slides or images as they are, and on each replicate."""

    value: float | None
    replicates: NDArray[np.float64]  # (B,) NaN where undefined
    resamples: Resamples  # of the rows that it is computed on
    kinds: Kinds = field(default_factory=dict)  # what these rows must hold
    reason: str = ""


class Evaluated(ABC):
    """One model's results on slides, or on images."""

    unit: ClassVar[str]
    agreed: ClassVar[str]  # in words, the facts that two evaluations have to agree on
    auc: ClassVar[str]  # the figure to which DeLong's test belongs

    name: str

    @abstractmethod
    def facts(self) -> Mapping[str, tuple[Any, ...]]:
        """Return the facts of each unit's reference, by its id: label, patient, others."""

    @abstractmethod
    def scores(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """Return the units' scores: (S,), NaN where there is none."""

    @abstractmethod
    def estimate(self, ids: Sequence[str], resamples: Resamples) -> Iterator[tuple[str, Estimate]]:
        """Compute each figure that models are compared by, on some units."""

    def settings(self) -> Any:
        """Settings that two evaluations have to share."""
        return None

    def describe(self, left_out: Sequence[str]) -> dict[str, Any]:
        """Return the entries of ``comparison.json`` that differ between slides and images."""
        return {"left_out": len(left_out), "bootstrap": {}}


def compare_models(
    models: Sequence[Evaluated], *, out: Path, replicates: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare each pair of models, and write ``comparison.json``.

    Parameters
    ----------
    models : sequence of Evaluated
        All of slides, or all of images.
    out : Path
        The JSON file.

    Returns
    -------
    comparisons : list of dict
        One for each pair, in order; see `compare_pair`.
    """
    pairs = [
        compare_pair(a, b, replicates=replicates, seed=seed) for a, b in combinations(models, 2)
    ]
    write_json(out, pairs)
    return pairs


def compare_pair(
    a: Evaluated, b: Evaluated, *, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compare two models on the units (slides or images) that both were evaluated on.

    Parameters
    ----------
    a, b : Evaluated
    replicates : int
        Resampled sets of patients.

    Returns
    -------
    comparison : dict
        ``first``, ``second`` (names), ``n_slides`` or ``n_images``, ``n_patients``, ``left_out``
        (slides, or the number of images, that only one of the two has), ``bootstrap`` and
        ``figures``: for each metric of `metrics.SHARES` and `metrics.RANKINGS` that is compared
        (of slides ``patch.<metric>``, ``slide.<metric>``), and of slides
        ``froc_camelyon16.score`` and ``froc_patch.score``, the keys ``first``, ``second``,
        ``difference`` (first - second), ``difference_ci95``, ``method``, ``p_value``, ``n_used``,
        ``n_skipped``; the ROC AUC of slides or images has ``p_value_delong`` as well. What is
        undefined is None, with a reason under ``undefined``.

    Raises
    ------
    EvaluationError
        If no unit is common to both, or they disagree on the reference or on the settings of a
        figure.
    """
    facts = a.facts(), b.facts()
    common = sorted(facts[0].keys() & facts[1].keys())
    _check_same_reference(a, b, common)
    labels, patients = ([facts[0][i][place] for i in common] for place in (0, 1))
    resamples = draw_resamples(patients, n_replicates=replicates, seed=seed)
    figures: dict[str, dict[str, Any]] = {}
    undefined: dict[str, str] = {}
    estimates = zip(a.estimate(common, resamples), b.estimate(common, resamples), strict=True)
    for (name, one), (_, other) in estimates:
        figures[name], reasons = _compare(one, other)
        undefined |= {f"{name}{key}": reason for key, reason in reasons.items()}
    p_value = _delong(np.array(labels, np.int64), a.scores(common), b.scores(common))
    figures[a.auc]["p_value_delong"] = None if isinstance(p_value, Undefined) else p_value
    if isinstance(p_value, Undefined):
        undefined[f"{a.auc}.p_value_delong"] = p_value.reason
    described = a.describe(sorted(facts[0].keys() ^ facts[1].keys()))
    drawn = {"replicates": replicates, "seed": seed, "unit": resamples.unit}
    return {
        "first": a.name,
        "second": b.name,
        f"n_{a.unit}s": len(common),
        "n_patients": len(set(patients)),
        **described,
        "bootstrap": drawn | described["bootstrap"],
        "figures": figures,
        "undefined": undefined,
    }


def _check_same_reference(a: Evaluated, b: Evaluated, common: Sequence[str]) -> None:
    if not common:
        raise EvaluationError(
            f"{a.name} and {b.name} have no evaluated {a.unit} in common; compare models on one "
            "test set"
        )
    ours, theirs = a.facts(), b.facts()
    for unit_id in common:
        if ours[unit_id] != theirs[unit_id]:
            raise EvaluationError(
                f"{a.unit} {unit_id}: the two evaluations have another {a.agreed} "
                f"({ours[unit_id]} and {theirs[unit_id]}); evaluate both against the same reference"
            )
    how = a.settings(), b.settings()
    if how[0] != how[1]:
        raise EvaluationError(
            f"{a.name} and {b.name} read the FROC in different ways ({how[0]} and {how[1]}); "
            "evaluate both with the same settings"
        )


def _compare(one: Estimate, other: Estimate) -> tuple[dict[str, Any], dict[str, str]]:
    """Compare a figure of two models; also, by suffix of its name, what is undefined and why."""
    result: dict[str, Any] = {"first": one.value, "second": other.value}
    if one.value is None or other.value is None:
        values, reasons = no_comparison(one.replicates.size, one.reason or other.reason)
        return result | values, reasons
    # What one model could not score, the other may: the fewer patients decide.
    fewer = min((one, other), key=lambda figure: figure.resamples.n_groups)
    paired = compare_paired(
        one.replicates,
        other.replicates,
        fewer.resamples,
        difference=one.value - other.value,
        kinds=fewer.kinds,
    )
    values, reasons = paired.to_json()
    return result | values, reasons


def _delong(
    labels: NDArray[np.int64], ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> float | Undefined:
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    return delong_p_value(labels[both], ours[both], theirs[both])


# ------------------------------------------------------------ estimates


def no_estimate(resamples: Resamples, reason: str) -> Estimate:
    """Say why a figure is undefined."""
    return Estimate(None, np.full(len(resamples.weights), np.nan), resamples, reason=reason)


def estimate_share(share: Share, rows: Rows, resamples: Resamples, level: Level) -> Estimate:
    """Compute a share on some rows, and on each replicate of them."""
    value = share.compute(add_up(rows))
    if value is None:
        return no_estimate(resamples, share.explain(level))
    return Estimate(value, share.replicate(rows, resamples.weights), resamples)


def estimate_ranking(
    ranking: Ranking,
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    resamples: Resamples,
    *,
    units: str,
    one_class: str,
) -> Estimate:
    """Compute a ranking on some rows, and on each replicate of them.

    Parameters
    ----------
    units : str
        Plural of what a row is.
    one_class : str
        The reason where all are of one class.
    """
    if np.unique(labels).size < 2:
        return no_estimate(resamples, one_class)
    as_is = ranking.replicate(labels, scores, np.ones((1, labels.size), np.int64))
    replicates = ranking.replicate(labels, scores, resamples.weights)
    return Estimate(float(as_is[0]), replicates, resamples, by_class(labels, units))
