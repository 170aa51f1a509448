"""Methods measured on the same images, and PatchNet's filters."""

import csv

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.explanations import (
    MeasuredMap,
    MeasuredMethod,
    judge_filters,
    localise_filters,
    measure_constants,
    write_methods,
)
from wsi_pipeline.evaluation.image_localisation import localise_image

MASKS = {
    "quarter": np.array([[1, 0], [0, 0]], bool),
    "empty": np.zeros((2, 2), bool),
    "full": np.ones((2, 2), bool),
}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def method_of(name, maps, **areas):
    return MeasuredMethod(
        name,
        tuple(
            MeasuredMap(i, localise_image(maps[i], MASKS[i], probability=False), **areas)
            for i in MASKS
        ),
    )


def test_rows_are_means_over_the_images_in_which_a_figure_is_defined(tmp_path):
    signed = np.array([[4.0, -1.0], [-4.0, 1.0]])  # stretched: 1, 0.375, 0, 0.625
    one = method_of("occlusion", dict.fromkeys(MASKS, signed), deletion_auc=0.25)
    table = write_methods(tmp_path, [one, *measure_constants(MASKS)])
    ours, nothing, everything = read(table)
    # called: (0, 0) and (1, 1); of the quarter 3 of 4 pixels agree, of empty and full 2
    assert float(ours["exact_match"]) == pytest.approx((3 / 4 + 2 / 4 + 2 / 4) / 3)
    assert float(ours["recall"]) == pytest.approx((1 + 2 / 4) / 2)
    assert (ours["n"], ours["recall_n"], ours["roc_auc_n"], ours["curves_n"]) == (
        "3",
        "2",
        "1",
        "3",
    )
    assert float(ours["roc_auc"]) == 1
    assert (ours["deletion_auc"], ours["insertion_auc"]) == ("0.25", "")
    assert float(nothing["exact_match"]) == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert (nothing["method"], nothing["recall"], nothing["roc_auc"]) == (
        "(no pixel)",
        "0.0",
        "0.5",
    )
    assert float(everything["exact_match"]) == pytest.approx((1 / 4 + 0 + 1) / 3)
    assert everything["recall"] == "1.0"
    rows = read(tmp_path / "methods_images.csv")
    assert [r["name"] for r in rows if r["method"] == "occlusion"] == list(MASKS)
    assert rows[1]["recall"] == rows[1]["roc_auc"] == ""  # undefined, not 0


def test_methods_of_other_images_are_not_put_into_one_table(tmp_path):
    both = method_of("lime", dict.fromkeys(MASKS, np.eye(2)))
    less = MeasuredMethod("cam", both.maps[:1])
    with pytest.raises(EvaluationError, match="on the same images"):
        write_methods(tmp_path, [both, less])


def draw_filters(seed, on_mask):
    """Five filters' maps of one image: `on_mask` follows the mask, with its sign; others noise."""
    random = np.random.default_rng(seed)
    mask = random.random((9, 7)) < 0.4
    raw = random.uniform(-1, 1, (5, 9, 7))
    for number, sign in on_mask.items():
        raw[number] = sign * (mask * 0.8 - 0.4) + random.uniform(-0.1, 0.1, mask.shape)
    raw[4] = 0.3  # constant
    return raw, mask


def test_the_best_filter_is_chosen_on_val_whatever_the_test_says(tmp_path):
    val = [localise_filters(*draw_filters(seed, {2: -1})) for seed in range(3)]
    test = [localise_filters(*draw_filters(seed, {0: 1})) for seed in range(3, 6)]
    judged = judge_filters(val, test)
    assert judged.chosen == (2, -1)
    assert judged.val[2, -1].roc_auc == 1
    assert judged.test[0, 1].roc_auc == 1  # better on test, and not chosen
    judged.write(tmp_path / "filters.csv")
    rows = read(tmp_path / "filters.csv")
    assert [(r["filter"], r["sign"]) for r in rows if r["chosen"] == "1"] == [("2", "-1")]
    assert len(rows) == 10
    raw, mask = draw_filters(3, {0: 1})
    by_sklearn = roc_auc_score(mask.ravel(), -raw[2].ravel())
    assert test[0][2, -1].roc_auc == pytest.approx(by_sklearn, abs=1e-6)


def test_signs_mirror_each_other_and_a_constant_filter_ranks_nothing():
    found = localise_filters(*draw_filters(0, {2: -1}))
    for number in range(4):
        assert found[number, 1].roc_auc + found[number, -1].roc_auc == pytest.approx(1)
    assert found[4, 1].roc_auc == found[4, -1].roc_auc == 0.5
    assert found[2, -1].exact_match == found[2, -1].recall == 1


def test_filters_need_images_of_two_splits_and_a_mask_with_both():
    one = localise_filters(*draw_filters(0, {}))
    with pytest.raises(EvaluationError, match="another's"):
        judge_filters([], [one])
    empty = localise_filters(draw_filters(0, {})[0], np.zeros((9, 7), bool))
    assert judge_filters([empty], [one]).chosen is None
