"""MONAI as a second oracle, where its definition of the lesion FROC is ours.

It is for tumour slides on which a lesion is missed: MONAI always drops the lowest threshold, which
is the 0 that it gives to missed lesions, and the lowest real one where none is missed. It keeps
hits in float32, so the scores here are 64ths.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsi_pipeline.contracts import Detections
from wsi_pipeline.evaluation.froc import build_froc, collect_events, match_detections
from wsi_pipeline.evaluation.lesions import label_mask

froc = pytest.importorskip("monai.metrics.froc", reason="monai is not installed")

DOWNSAMPLE, MPP = 32.0, 0.5


def label_image(reference, shape):
    row, col = np.indices(shape)
    flat = reference.label_at((col.ravel() * 32 + 5), (row.ravel() * 32 + 5))
    return flat.reshape(shape).astype(np.int64)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_monai_agrees(oracle, seed):
    random = np.random.default_rng(seed)
    shape = (60, 70)
    hits, false, true, n_targets = [], [], [], 0
    n_slides = int(random.integers(1, 4))
    for _ in range(n_slides):
        mask = np.zeros(shape, bool)
        for _ in range(int(random.integers(1, 5))):
            r, c = random.integers(0, 50), random.integers(0, 60)
            mask[r : r + random.integers(2, 25), c : c + random.integers(2, 25)] = True
        n = int(random.integers(0, 12))
        found = Detections(
            random.integers(0, shape[1] * 32, n),
            random.integers(0, shape[0] * 32, n),
            random.integers(1, 65, n) / 64,
        )
        reference = label_mask(mask, downsample=DOWNSAMPLE, mpp=MPP)
        hits.append(match_detections(reference, found))
        fp, tp, targets = froc.compute_fp_tp_probs(
            probs=found.scores,
            y_coord=found.y,
            x_coord=found.x,
            evaluation_mask=label_image(reference, shape),
            labels_to_exclude=(np.flatnonzero(reference.is_itc) + 1).tolist(),
            resolution_level=5,
        )
        np.testing.assert_array_equal(np.sort(fp), np.sort(hits[-1].false_positives))
        np.testing.assert_array_equal(tp[~reference.is_itc], np.nan_to_num(hits[-1].best))
        false.append(fp)
        true.append(tp)
        n_targets += targets
    tp, fp = np.concatenate(true), np.concatenate(false)
    curve = build_froc(collect_events(hits, definition="camelyon16"))
    assert curve.n_lesions == n_targets
    assume(n_targets and (tp == 0).any())
    rates, sensitivity = froc.compute_froc_curve_data(fp, tp, n_targets, n_slides)
    points = list(zip(range(len(rates)), rates[::-1], sensitivity[::-1], strict=True))
    _, expected_fps, expected_sensitivity = zip(*oracle.corners(points), strict=True)
    np.testing.assert_allclose(expected_fps, curve.avg_fps)
    np.testing.assert_allclose(expected_sensitivity, curve.sensitivity)
    assert froc.compute_froc_score(rates, sensitivity) == pytest.approx(curve.score)
