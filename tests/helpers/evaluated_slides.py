"""Slides with scores, labels and detections, as `evaluate_run` takes them."""

from dataclasses import replace

import numpy as np
import shapely

from tiling.contracts import Annotation
from wsi_pipeline.contracts import Detections, Heatmap, Scores
from wsi_pipeline.evaluation.inputs import EvaluationSlide
from wsi_pipeline.evaluation.localisation import draw_mask, localise

TRAINED_ON = {
    "train_slides": ["x0", "x1"], "val_slides": ["v0", "v1", "v2", "v3"],
    "train_patients": ["x0", "x1"], "val_patients": ["v0", "v1", "v2", "v3"],
}  # fmt: skip


def make_slide(slide_id, *, tumour, split="test", seed=0, patient=None):
    """A slide of 10 x 10 patches of 512 px; tumour: two large squares, one out of any patch."""
    random = np.random.default_rng([seed, *slide_id.encode()])
    x, y = np.meshgrid(np.arange(10) * 512, np.arange(10) * 512)
    coords = np.stack([x.ravel(), y.ravel()], axis=1)
    label = np.zeros(100, np.int8)
    pairs = np.zeros((0, 2), np.int64)
    squares = ()
    if tumour:
        squares = (shapely.box(0, 0, 2048, 2048), shapely.box(5200, 5200, 6400, 6400))
        rows = np.flatnonzero((coords < 2048).all(axis=1))
        label[rows] = 1
        pairs = np.stack([rows, np.zeros_like(rows)], axis=1)
    label[55] = -1
    scores = np.clip(random.normal(0.3 + 0.5 * (label == 1), 0.2), 0, 1).astype(np.float32)
    scores[77] = np.nan
    hot = np.flatnonzero(scores > 0.7)
    heatmap = Heatmap(scores.reshape(10, 10), (512, 512), (5120, 5120))
    return EvaluationSlide(
        slide_id=slide_id,
        patient=patient or slide_id,
        split=split,
        label=int(tumour),
        scores=Scores(coords, scores, {"trained_on": TRAINED_ON}, {}),
        patch_labels=label,
        lesion_pairs=pairs,
        lesion_ids=["1", "2"][: len(squares)],
        annotation=Annotation(shapely.MultiPolygon(squares), tuple(squares)),
        slide_mpp=(0.25, 0.25),
        slide_size=(6500, 6500),
        detections=Detections(
            coords[hot, 0] + 256, coords[hot, 1] + 256, scores[hot].astype(np.float64)
        ),
        localisation=localise(heatmap.values, draw_mask(shapely.MultiPolygon(squares), heatmap)),
    )


def cohort(n=8, **changes):
    """`n` test slides, four of validation and two of training, each second one with tumour."""
    slides = [make_slide(f"t{i}", tumour=bool(i % 2)) for i in range(n)]
    slides += [make_slide(f"v{i}", tumour=bool(i % 2), split="val") for i in range(4)]
    slides += [make_slide(f"x{i}", tumour=bool(i % 2), split="train") for i in range(2)]
    return [replace(s, **changes) for s in slides]


def seen(slides, **lists):
    """The slides with scores of a model that was trained on these slides or patients as well."""
    given = {**TRAINED_ON, **lists}
    return [replace(s, scores=replace(s.scores, attributes={"trained_on": given})) for s in slides]
