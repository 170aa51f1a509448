"""One model's results on images, read from its score table and ``metrics.json``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tiling.files import read_json_object
from wsi_pipeline.contracts import Rule
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import Resamples
from wsi_pipeline.evaluation.compare import (
    Estimate,
    Evaluated,
    estimate_ranking,
    estimate_share,
)
from wsi_pipeline.evaluation.image_evaluation import labels_and_scores
from wsi_pipeline.evaluation.metrics import IMAGE, compared_rankings, compared_shares, decide_each
from wsi_pipeline.inference.image_scores import ScoredImage, read_scores


@dataclass(frozen=True)
class EvaluatedImages(Evaluated):
    """A model's decisions on the images it was evaluated on."""

    unit: ClassVar[str] = "image"
    agreed: ClassVar[str] = "class or patient"
    auc: ClassVar[str] = "roc_auc"

    name: str
    split: str  # that was evaluated
    rule: Rule
    images: Mapping[str, ScoredImage]  # readable ones with a class, by id

    def facts(self) -> Mapping[str, tuple[Any, ...]]:
        """Label and patient."""
        return {image_id: (i.label, i.patient) for image_id, i in self.images.items()}

    def scores(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """Return the images' scores: (S,)."""
        return labels_and_scores([self.images[i] for i in ids])[1]

    def estimate(self, ids: Sequence[str], resamples: Resamples) -> Iterator[tuple[str, Estimate]]:
        """Compute the figures that are compared."""
        labels, scores = labels_and_scores([self.images[i] for i in ids])
        rows = decide_each(labels, scores, self.rule)
        for share in compared_shares("image"):
            yield share.name, estimate_share(share, rows, resamples, IMAGE)
        for ranking in compared_rankings("image"):
            yield (
                ranking.name,
                estimate_ranking(
                    ranking,
                    labels,
                    scores,
                    resamples,
                    units=IMAGE.units,
                    one_class="the images are all of one class",
                ),
            )


def read_evaluated_images(evaluation: Path, scores: Path, name: str) -> EvaluatedImages:
    """Read what a model was evaluated on.

    Parameters
    ----------
    evaluation, scores : Path
        ``evaluation/<model>`` and ``scores/<model>``.
    name : str
        What the model is called.

    Raises
    ------
    EvaluationError
        If there is no evaluation, or it is damaged.
    ScoresError
        If there are no scores, or they are damaged.
    """
    try:
        metrics = read_json_object(evaluation / "metrics.json")
        split = metrics["evaluated"]
        rule = Rule(float(metrics["threshold"]), bool(metrics["strict"]))
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(
            f"{evaluation}/metrics.json: no evaluation of images ({error}); run evaluate again"
        ) from error
    chosen = {
        image.image_id: image
        for image in read_scores(scores)[0]
        if image.label >= 0 and not np.isnan(image.score) and split in (image.split, "all")
    }
    return EvaluatedImages(name, split, rule, chosen)
