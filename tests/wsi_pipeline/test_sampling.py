"""Three-step sampling against its definition (specs/models.md 1.10)."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from wsi_pipeline.errors import SamplingError
from wsi_pipeline.sampling import ThreeStepSampler

LABELS = [
    np.array([0, 0, 0, 0, 0, 0, 1], np.int8),  # both labels: in both lists
    np.array([1, 1, -1], np.int8),
    np.array([0], np.int8),
    np.array([-1, -1], np.int8),
    np.zeros(0, np.int8),
]

cohorts = st.lists(
    st.lists(st.sampled_from([-1, 0, 1]), max_size=8).map(lambda x: np.array(x, np.int8)),
    min_size=1,
    max_size=6,
).filter(lambda slides: {0, 1} <= {int(label) for s in slides for label in s})


def expected_probability(labels, slide, patch):
    """1/2 * 1/|S_y| * 1/n_{s,y}, read off one patch at a time."""
    y = labels[slide][patch]
    if y < 0:
        return 0.0
    having = [s for s in labels if (s == y).any()]
    return 1 / 2 / len(having) / int((labels[slide] == y).sum())


@given(labels=cohorts)
def test_probabilities_are_the_definition_and_sum_to_one(labels):
    sampler = ThreeStepSampler(labels, seed=0)
    found = {
        (s, p): sampler.probability(s, p) for s, of in enumerate(labels) for p in range(len(of))
    }
    assert sum(found.values()) == pytest.approx(1)
    for (slide, patch), probability in found.items():
        assert probability == pytest.approx(expected_probability(labels, slide, patch))


def test_draws_follow_the_probabilities():
    sampler = ThreeStepSampler(LABELS, seed=1)
    slide, patch, label = sampler.draw(100_000)
    assert all(
        LABELS[s][p] == y for s, p, y in zip(slide[:500], patch[:500], label[:500], strict=True)
    )
    cells = [(s, p) for s, of in enumerate(LABELS) for p in range(len(of)) if of[p] >= 0]
    counts = [int(((slide == s) & (patch == p)).sum()) for s, p in cells]
    expected = [100_000 * expected_probability(LABELS, s, p) for s, p in cells]
    assert sum(counts) == 100_000
    assert chisquare(counts, expected).pvalue > 1e-4


@settings(deadline=None)
@given(parts=st.lists(st.integers(0, 50), min_size=1, max_size=5), seed=st.integers(0, 2**60))
def test_a_draw_depends_on_its_number_alone(parts, seed):
    """However draws are batched, draw i is draw i."""
    whole = ThreeStepSampler(LABELS, seed=seed).draw(sum(parts))
    sampler = ThreeStepSampler(LABELS, seed=seed)
    pieces = [sampler.draw(n) for n in parts]
    for field in range(3):
        assert np.array_equal(np.concatenate([piece[field] for piece in pieces]), whole[field])


def test_every_patch_gets_its_exact_share_of_the_numbers(monkeypatch):
    """Numbers evenly spread over [0, 1) fall to each patch in proportion to its probability."""
    n = 2 * 2 * 2 * 6 * 2 * 5  # a multiple of every 1 / probability
    monkeypatch.setattr(
        ThreeStepSampler, "_uniform", lambda _, count: (np.arange(count) + 0.5) / count
    )
    slide, patch, _ = ThreeStepSampler(LABELS, seed=0).draw(n)
    for s, of in enumerate(LABELS):
        for p in range(len(of)):
            expected = n * expected_probability(LABELS, s, p)
            assert ((slide == s) & (patch == p)).sum() == pytest.approx(expected)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 7])
def test_the_largest_number_still_picks_a_patch(monkeypatch, n_classes):
    labels = [np.arange(n_classes, dtype=np.int8).repeat(s + 3) for s in range(11)]
    sampler = ThreeStepSampler(labels, seed=0, classes=range(n_classes))
    monkeypatch.setattr(sampler, "_uniform", lambda n: np.full(n, 1 - 2.0**-53))
    slide, patch, label = sampler.draw(1)
    assert (slide[0], patch[0], label[0]) == (10, len(labels[10]) - 1, n_classes - 1)


def test_the_index_of_the_lectures_data_set_is_small():
    """7,878,675 patches of 698 slides: at most 100 MB while it is made and after."""
    bounds = np.linspace(0, 7_878_675, 699).astype(int)
    labels = [np.zeros(n, np.int8) for n in np.diff(bounds)]
    for of_slide in labels[::2]:
        of_slide[::10] = 1
    tracemalloc.start()
    sampler = ThreeStepSampler(labels, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    slide, patch, label = sampler.draw(1000)
    assert all(labels[s][p] == y for s, p, y in zip(slide, patch, label, strict=True))


def test_drawing_nothing_changes_nothing():
    sampler = ThreeStepSampler(LABELS, seed=0)
    assert [len(found) for found in sampler.draw(0)] == [0, 0, 0]
    assert sampler.state() == {"seed": 0, "drawn": 0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**128}, r"below 2\^128"),
        ({"seed": 0, "classes": ()}, "distinct"),
        ({"seed": 0, "classes": (0, 0)}, "distinct"),
        ({"seed": 0, "classes": (-1, 1)}, "never drawn"),
        ({"seed": 0, "classes": (0, 2)}, "none of 5 slides has a patch of label 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, said):
    with pytest.raises(SamplingError, match=said):
        ThreeStepSampler(LABELS, **options)


def test_it_goes_on_from_a_saved_state():
    first = ThreeStepSampler(LABELS, seed=5)
    first.draw(37)
    state = json.loads(json.dumps(first.state()))
    second = ThreeStepSampler(LABELS, seed=5)
    second.set_state(state)
    for one, other in zip(first.draw(20), second.draw(20), strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(SamplingError, match="seed 6"):
        ThreeStepSampler(LABELS, seed=6).set_state(state)


def test_different_seeds_draw_differently():
    one, other = (ThreeStepSampler(LABELS, seed=s).draw(50)[1] for s in (0, 1))
    assert not np.array_equal(one, other)


def test_labels_come_equally_often_however_rare_they_are():
    labels = [np.zeros(10_000, np.int8), np.array([1], np.int8)]
    _, _, label = ThreeStepSampler(labels, seed=0).draw(20_000)
    assert abs(label.mean() - 0.5) < 0.02


def test_several_classes_are_drawn_equally_often():
    labels = [np.array([0, 1, 2, 2], np.int8), np.array([2], np.int8)]
    sampler = ThreeStepSampler(labels, seed=0, classes=(0, 1, 2))
    _, _, label = sampler.draw(30_000)
    assert np.bincount(label) == pytest.approx([10_000] * 3, rel=0.05)
    assert sampler.probability(1, 0) == pytest.approx(1 / 3 / 2)


@pytest.mark.parametrize(("present", "said"), [(0, "positive"), (1, "negative")])
def test_a_class_without_patches_is_named(present, said):
    with pytest.raises(SamplingError, match=said):
        ThreeStepSampler([np.full(3, present, np.int8), np.array([-1], np.int8)], seed=0)
