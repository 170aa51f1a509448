"""Which prototypes are kept, by their nearest training patches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.errors import TrainingError
from wsi_pipeline.training.pruning import Judged, choose_kept

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def near(*images):
    """Distances of eight images to a prototype: these images first, in this order."""
    order = [*images, *(i for i in range(8) if i not in images)]
    return np.argsort(order).astype(float)


@pytest.mark.parametrize(
    ("images", "own", "kept"),
    [
        ((4, 5, 6, 0, 1, 2), 3, True),
        ((0, 1, 2, 4, 5, 6), 3, True),  # the order within the six is nothing
        ((4, 5, 0, 1, 2, 3), 2, False),
        ((4, 5, 6, 7, 0, 1), 4, True),
    ],
)
def test_a_prototype_stays_with_three_of_its_six_nearest(images, own, kept):
    distances = np.stack([near(*images), near(4, 5, 6, 7, 0, 1)], axis=1)
    mask, judged = choose_kept(distances, LABELS, np.array([1, 1]))
    assert mask.tolist() == [kept, True]
    assert judged[0].of_its_class == own
    assert judged[0].farthest == 5.0
    reason = "only 2 of the 6 nearest training patches are of class 1"
    assert judged[0].reason == ("" if kept else reason)


def test_a_class_keeps_the_best_of_its_prototypes_where_all_would_go():
    distances = np.stack(
        [near(0, 1, 2, 3, 4, 5), near(4, 5, 6, 7, 0, 1), 2 * near(4, 5, 6, 7, 0, 1)], axis=1
    )
    mask, judged = choose_kept(distances, LABELS, np.array([1, 0, 0]))
    assert mask.tolist() == [True, True, False]
    for one, is_best in zip(judged[1:], (True, False), strict=True):
        assert one.reason.startswith("only 2 of the 6 nearest training patches are of class 0")
        assert one.reason.endswith("of which all would be dropped") == is_best


def test_fewer_images_than_asked_for_are_all_looked_at():
    mask, judged = choose_kept(np.zeros((4, 1)), np.array([0, 1, 1, 1]), np.array([1]))
    assert mask.tolist() == [True]
    assert (judged[0].nearest, judged[0].of_its_class) == (4, 3)


def test_of_equal_distances_the_earlier_image_is_nearer():
    mask, judged = choose_kept(np.zeros((8, 2)), LABELS, np.array([0, 1]))
    assert [one.of_its_class for one in judged] == [4, 2]
    assert mask.tolist() == [True, True]


def test_a_row_of_the_table_has_all_columns():
    _, judged = choose_kept(np.zeros((8, 1)), LABELS, np.array([0]))
    assert dict(zip(Judged.header(), judged[0].row(), strict=True)) == {
        "prototype": 0,
        "label": 0,
        "nearest": 6,
        "of_its_class": 4,
        "farthest": 0.0,
        "kept": 1,
        "reason": "",
    }


@given(seed=st.integers(0, 10**6), nearest=st.integers(1, 8), data=st.data())
def test_the_choice_follows_the_definition(seed, nearest, data):
    least = data.draw(st.integers(1, nearest))
    random = np.random.default_rng(seed)
    labels, classes = random.integers(0, 2, 9), random.integers(0, 2, 5)
    distances = random.integers(0, 5, (9, 5)).astype(float)  # with equal ones
    kept, _ = choose_kept(distances, labels, classes, nearest=nearest, least=least)
    by_rule = []
    for j in range(5):
        images = sorted(range(9), key=lambda i: (distances[i, j], i))[:nearest]
        by_rule.append(sum(labels[i] == classes[j] for i in images) >= least)
    assert set(classes[kept]) == set(classes)
    for label in set(classes):
        of_class = classes == label
        if np.array(by_rule)[of_class].any():
            assert kept[of_class].tolist() == np.array(by_rule)[of_class].tolist()
        else:
            assert kept[of_class].sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:7]}, r"got shapes \(8, 2\), \(7,\) and \(2,\)"),
        ({"distances": np.full((8, 2), np.inf)}, "16 of 16 distances to prototypes are not finite"),
        ({"least": 7}, "got least=7 of nearest=6"),
        ({"least": 0}, "got least=0 of nearest=6"),
        ({"distances": np.zeros((2, 2)), "labels": np.array([0, 1])}, "at least 3 training images"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, message):
    given_ = {
        "distances": np.zeros((8, 2)),
        "labels": LABELS,
        "prototype_class": np.array([0, 1]),
    } | change
    with pytest.raises(TrainingError, match=message):
        choose_kept(**given_)
