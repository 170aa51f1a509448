"""Counting labels, against loops over the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.annotation.audit import (
    GROUPS,
    N_BINS,
    LabelCounts,
    count_labels,
    count_shares,
    find_ambiguous,
    share_bins,
)

patches = st.lists(
    st.tuples(
        st.sampled_from([1, 0, -1]),
        st.one_of(st.sampled_from([0.0, 0.05, 0.15, 0.5, 0.95, 1.0]), st.floats(0, 1, width=32)),
        st.booleans(),
    ),
    max_size=60,
)


def arrays(rows):
    return (
        np.array([row[0] for row in rows], np.int8),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], bool),
    )


@given(rows=patches)
@settings(max_examples=50)
def test_counts_are_those_of_a_plain_loop(rows):
    label, tumour, unreadable = arrays(rows)
    found = count_labels(label, tumour, unreadable)
    assert found == LabelCounts(
        patches=len(rows),
        positive=sum(a == 1 for a, _, _ in rows),
        negative=sum(a == 0 for a, _, _ in rows),
        ignored=sum(a == -1 and b > 0 for a, b, _ in rows),
        unlabelled=sum(a == -1 and b == 0 for a, b, _ in rows),
        unreadable=sum(c for _, _, c in rows),
    )
    shares = count_shares(label, tumour)
    assert shares.shape == (3, N_BINS + 2)
    sums = dict(zip(GROUPS, shares.sum(axis=1).tolist(), strict=True))
    assert sums == {name: getattr(found, name) for name in GROUPS}


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, 0), (1e-9, 1), (0.05, 1), (0.0501, 2), (0.15, 3), (0.5, 10), (0.9999, 20), (1, 21)],
)
def test_a_share_falls_into_the_bin_whose_bounds_hold_it(share, expected):
    counts = count_shares(np.array([1], np.int8), np.array([share], np.float32))
    assert np.flatnonzero(counts[0]).tolist() == [expected]
    low, high = share_bins()
    assert low[expected] - 1e-6 <= share <= high[expected] + 1e-6


def grid(columns, rows, side=10):
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x.ravel(), y.ravel()], axis=1) * side


def find(tumour, label=None, *, unreadable=(), bounds=(0.0, 0.5), most=3, coords=None):
    tumour = np.asarray(tumour, np.float32)
    flags = np.zeros(tumour.size, bool)
    flags[list(unreadable)] = True
    return find_ambiguous(
        coords=grid(tumour.shape[1], tumour.shape[0]) if coords is None else coords,
        side_l0=(10, 10),
        label=(tumour.ravel() > 0).astype(np.int8) if label is None else np.array(label, np.int8),
        tumour=tumour.ravel(),
        unreadable=flags,
        bounds=bounds,
        most=most,
    )


class TestAmbiguous:
    SQUARE = ((0, 0, 0, 0), (0, 0.1, 1, 0), (0, 0.9, 0, 0), (0, 0, 0, 0))

    def test_positives_with_the_least_tumour_come_first_and_whole_ones_never(self):
        found = [at for at in find(self.SQUARE) if at.group == "positive"]
        assert [(at.row, round(at.share, 6)) for at in found] == [(5, 0.1), (9, 0.9)]

    def test_negatives_most_surrounded_by_tumour_come_first(self):
        found = [at for at in find(self.SQUARE, most=99) if at.group == "negative"]
        assert found[0].row == 10  # between the three
        assert found[0].neighbours == pytest.approx((0.1 + 1 + 0.9) / 8)
        assert 15 not in {at.row for at in find([[0] * 5] * 3 + [[0, 0, 0, 0, 1]])}

    def test_around_is_the_mean_of_the_eight_squares_around(self):
        rng = np.random.default_rng(0)
        tumour = rng.random((7, 9)) * (rng.random((7, 9)) < 0.4)
        padded = np.pad(tumour.astype(np.float32).astype(float), 1)
        around = sum(
            np.roll(padded, (dy, dx), (0, 1))[1:-1, 1:-1]
            for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy
        ) / 8  # fmt: skip
        for at in find(tumour, most=99):
            assert at.neighbours == pytest.approx(around.ravel()[at.row])

    def test_a_negative_with_tumour_in_it_comes_before_any_without(self):
        label = [0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
        assert next(at for at in find(self.SQUARE, label) if at.group == "negative").row == 5

    def test_ignored_patches_by_nearness_to_a_bound(self):
        found = find([[0.3, 0.05, 0.48]], [-1, -1, -1], bounds=(0.0, 0.5))
        assert [(at.group, at.row) for at in found] == [
            ("ignored", 2),
            ("ignored", 1),
            ("ignored", 0),
        ]

    def test_unreadable_patches_are_not_shown(self):
        assert 5 not in {at.row for at in find(self.SQUARE, unreadable=[5], most=99)}

    def test_an_unannotated_slide_has_none(self):
        assert find(np.zeros((3, 3)), [-1] * 9) == find(np.zeros((3, 3)), [0] * 9) == []
