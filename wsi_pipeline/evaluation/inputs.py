"""What the evaluation needs of one slide: scores, reference, and where both come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Annotation
from wsi_pipeline.contracts import Detections, Scores
from wsi_pipeline.evaluation.localisation import ImageLocalisation


@dataclass(frozen=True)
class ReviewOfSlide:
    """What the review of a slide changed."""

    digest: str  # of its file
    n_marks: int  # with a meaning
    n_without_truth: int  # which change nothing
    n_changed: int  # patches with another label, or without one


@dataclass(frozen=True)
class EvaluationSlide:
    """Everything that is known of one slide."""

    slide_id: str
    patient: str
    split: str | None  # train, val, test or None
    label: int | None  # 1 tumour, 0 normal, None: by the annotation
    scores: Scores
    patch_labels: NDArray[np.int8]  # (N,) 1, 0, -1
    lesion_pairs: NDArray[np.int64]  # (M, 2) patch, index into lesion_ids
    lesion_ids: Sequence[str]  # of all lesions, with a patch or without
    annotation: Annotation | None
    slide_mpp: tuple[float, float]  # (x, y) µm per level-0 px
    slide_size: tuple[int, int]  # (width, height), level-0 px
    detections: Detections
    localisation: ImageLocalisation | None = None  # None: there is no outline to lie on
    review: ReviewOfSlide | None = None  # None: there is none, or it is not used

    @property
    def truth(self) -> int | None:
        """Slide label, from the manifest or the annotation; None if there is neither."""
        if self.label is not None or self.annotation is None:
            return self.label
        return int(bool(self.annotation.lesions))

    @property
    def trained_on(self) -> Mapping[str, Any] | None:
        """Slides and patients the model was trained on; None if not recorded."""
        return self.scores.attributes.get("trained_on")

    def labelled(self) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Labels and scores of the patches that count."""
        scores = self.scores.scores.astype(np.float64)
        counts = ~np.isnan(scores) & (self.patch_labels >= 0)
        return self.patch_labels[counts], scores[counts]
