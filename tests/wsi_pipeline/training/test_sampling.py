"""Three-step sampling against its definition (the lecture; docs/train.md)."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from wsi_pipeline.errors import SamplingError
from wsi_pipeline.training.sampling import ShuffledSampler, ThreeStepSampler

LABELS = [
    np.array([0, 0, 0, 0, 0, 0, 1], np.int8),  # both labels: in both lists
    np.array([1, 1, -1], np.int8),
    np.array([0], np.int8),
    np.array([-1, -1], np.int8),
    np.zeros(0, np.int8),
]

FIVE_CLASSES = [
    np.array([0, 3, 3, 1, 4, -1], np.int8),
    np.array([3, 3, 2], np.int8),
    np.array([4, 2, 2, 2, 2, 0], np.int8),
    np.array([1], np.int8),
]
UNEQUAL = [  # label 0 on four slides, label 1 on one
    np.array([0, 0, 0, 1, 1], np.int8),
    np.array([0], np.int8),
    np.array([0, 0, -1], np.int8),
    np.array([0, 0], np.int8),
]
CLASSES = [
    (LABELS, (0, 1)),
    (UNEQUAL, (0, 1)),
    (FIVE_CLASSES, (0, 1, 2, 3, 4)),
    (FIVE_CLASSES, (4, 0, 2)),
]


def cohorts(classes):
    """Slides of a few patches; every class on at least one."""
    of_slide = st.lists(st.sampled_from([-1, *classes]), max_size=8)
    slides = st.lists(of_slide.map(lambda x: np.array(x, np.int8)), min_size=1, max_size=6)
    return slides.filter(lambda found: set(classes) <= {int(y) for s in found for y in s})


def expected_probability(labels, slide, patch, classes=(0, 1)):
    """1/|classes| * 1/|S_y| * 1/n_{s,y}, read off one patch at a time."""
    y = labels[slide][patch]
    if y not in classes:
        return 0.0
    having = [s for s in labels if (s == y).any()]
    return 1 / len(classes) / len(having) / int((labels[slide] == y).sum())


@pytest.mark.parametrize("classes", [(0, 1), (2, 0, 1)], ids=["two", "three"])
@settings(max_examples=40)
@given(data=st.data())
def test_probabilities_are_the_definition_and_sum_to_one(classes, data):
    labels = data.draw(cohorts(classes))
    sampler = ThreeStepSampler(labels, seed=0, classes=classes)
    found = {
        (s, p): sampler.probability(s, p) for s, of in enumerate(labels) for p in range(len(of))
    }
    assert sum(found.values()) == pytest.approx(1)
    for (slide, patch), probability in found.items():
        assert probability == pytest.approx(expected_probability(labels, slide, patch, classes))


@pytest.mark.parametrize(
    ("labels", "classes"), CLASSES, ids=["two", "unequal", "five", "three-of-five"]
)
def test_draws_follow_the_probabilities(labels, classes):
    sampler = ThreeStepSampler(labels, seed=1, classes=classes)
    slide, patch, label = sampler.draw(100_000)
    assert all(
        labels[s][p] == y for s, p, y in zip(slide[:500], patch[:500], label[:500], strict=True)
    )
    cells = [(s, p) for s, of in enumerate(labels) for p in range(len(of)) if of[p] in classes]
    counts = [int(((slide == s) & (patch == p)).sum()) for s, p in cells]
    expected = [100_000 * expected_probability(labels, s, p, classes) for s, p in cells]
    assert sum(counts) == 100_000
    assert chisquare(counts, expected).pvalue > 1e-4


HARD = [of == 0 for of in LABELS]  # of label 0 all, of label 1 none
HARD[0] = np.array([True, False, False, True, False, False, False])


def expected_with_hard(labels, hard, share, slide, patch, classes=(0, 1)):
    """(1 - q) of the plain probability, and q for the hard ones alone; without any, the plain."""
    plain = expected_probability(labels, slide, patch, classes)
    same = labels[slide] == labels[slide][patch]
    n_hard = int((same & hard[slide]).sum())
    if not n_hard:
        return plain
    return (1 - share) * plain + share * plain * same.sum() / n_hard * bool(hard[slide][patch])


@settings(max_examples=40)
@given(data=st.data(), share=st.floats(0, 0.99))
def test_hard_patches_have_their_share_of_the_probability_of_slide_and_label(data, share):
    labels = data.draw(cohorts((0, 1)))
    hard = [np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
            for n in map(len, labels)]  # fmt: skip
    sampler = ThreeStepSampler(labels, seed=0, hard=hard, hard_share=share)
    found = {
        (s, p): sampler.probability(s, p) for s, of in enumerate(labels) for p in range(len(of))
    }
    assert sum(found.values()) == pytest.approx(1)
    for (slide, patch), probability in found.items():
        assert probability == pytest.approx(expected_with_hard(labels, hard, share, slide, patch))


def test_every_patch_gets_its_exact_share_of_the_numbers_with_hard_ones(monkeypatch):
    monkeypatch.setattr(
        ThreeStepSampler, "_uniform", lambda *given: (np.arange(given[-1]) + 0.5) / given[-1]
    )
    n = 2 * 2 * 2 * 4 * 6 * 2 * 2
    slide, patch, label = ThreeStepSampler(LABELS, seed=0, hard=HARD, hard_share=0.25).draw(n)
    assert all(LABELS[s][p] == y for s, p, y in zip(slide, patch, label, strict=True))
    for s, of in enumerate(LABELS):
        for p in range(len(of)):
            expected = n * expected_with_hard(LABELS, HARD, 0.25, s, p)
            assert ((slide == s) & (patch == p)).sum() == pytest.approx(expected, abs=1)


def test_draws_of_hard_patches_depend_on_their_number_alone():
    """And follow the probabilities, whatever the sizes of the batches."""
    options = {"hard": HARD, "hard_share": 0.7}
    whole = ThreeStepSampler(LABELS, seed=5, **options).draw(100_000)
    sampler = ThreeStepSampler(LABELS, seed=5, **options)
    pieces = [sampler.draw(n) for n in (3, 20_000, 79_997)]
    for field in range(3):
        assert np.array_equal(np.concatenate([piece[field] for piece in pieces]), whole[field])
    cells = [(s, p) for s, of in enumerate(LABELS) for p in range(len(of)) if of[p] >= 0]
    counts = [int(((whole[0] == s) & (whole[1] == p)).sum()) for s, p in cells]
    expected = [100_000 * expected_with_hard(LABELS, HARD, 0.7, s, p) for s, p in cells]
    assert chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"hard": HARD, "hard_share": 0.0},
        {"hard": [np.zeros(len(of), bool) for of in LABELS], "hard_share": 0.5},
    ],
    ids=["no-share", "no-hard-patch"],
)
def test_draws_without_hard_patches_are_those_of_before(options):
    found = ThreeStepSampler(LABELS, seed=3, **options).draw(500)
    plain = ThreeStepSampler(LABELS, seed=3).draw(500)
    assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("share", [1e-300, 1e-17, 1e-9, 0.1, 0.3, 0.5, 2 / 3, 1 - 2.0**-53])
@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-53])
def test_the_smallest_and_largest_number_still_pick_a_patch_among_hard_ones(
    monkeypatch, share, number
):
    sampler = ThreeStepSampler(LABELS, seed=0, hard=HARD, hard_share=share)
    monkeypatch.setattr(sampler, "_uniform", lambda _, n: np.full(n, number))
    [slide], [patch], [label] = sampler.draw(1)
    assert LABELS[slide][patch] == label


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_hard_patches_is_below_one(share):
    with pytest.raises(SamplingError, match="hard_share must be at least 0 and below 1"):
        ThreeStepSampler(LABELS, seed=0, hard=HARD, hard_share=share)


def test_draws_are_those_of_the_first_release():
    """Draw i is this function of the seed and i for good, else old trainings could not go on."""
    sampler = ThreeStepSampler(FIVE_CLASSES, seed=7, classes=range(5))
    sampler.draw(20_000)  # more than is computed at a time
    slide, patch, label = sampler.draw(12)
    assert slide.tolist() == [0, 0, 1, 0, 3, 2, 2, 0, 1, 3, 1, 0]
    assert patch.tolist() == [3, 1, 1, 2, 0, 0, 0, 2, 1, 0, 2, 4]
    assert label.tolist() == [1, 3, 3, 3, 1, 4, 4, 3, 3, 1, 2, 4]


def test_long_draws_equal_short_ones():
    """Draws are computed in parts; where the parts meet nothing is lost or doubled."""
    whole = ThreeStepSampler(LABELS, seed=3).draw(40_003)
    sampler = ThreeStepSampler(LABELS, seed=3)
    pieces = [sampler.draw(n) for n in (16_383, 3, 16_384, 7_233)]
    for field in range(3):
        assert np.array_equal(np.concatenate([piece[field] for piece in pieces]), whole[field])


@given(parts=st.lists(st.integers(0, 50), min_size=1, max_size=5), seed=st.integers(0, 2**60))
def test_a_draw_depends_on_its_number_alone(parts, seed):
    """However draws are batched, draw i is draw i."""
    whole = ThreeStepSampler(LABELS, seed=seed).draw(sum(parts))
    sampler = ThreeStepSampler(LABELS, seed=seed)
    pieces = [sampler.draw(n) for n in parts]
    for field in range(3):
        assert np.array_equal(np.concatenate([piece[field] for piece in pieces]), whole[field])


@pytest.mark.parametrize(
    ("labels", "classes"), CLASSES, ids=["two", "unequal", "five", "three-of-five"]
)
def test_every_patch_gets_its_exact_share_of_the_numbers(monkeypatch, labels, classes):
    """Numbers evenly spread over [0, 1) fall to each patch in proportion to its probability."""
    n = 2 * 2 * 2 * 3 * 2 * 5 * 2  # a multiple of every 1 / probability
    monkeypatch.setattr(
        ThreeStepSampler, "_uniform", lambda *given: (np.arange(given[-1]) + 0.5) / given[-1]
    )
    slide, patch, _ = ThreeStepSampler(labels, seed=0, classes=classes).draw(n)
    for s, of in enumerate(labels):
        for p in range(len(of)):
            expected = n * expected_probability(labels, s, p, classes)
            assert expected == pytest.approx(round(expected))
            assert ((slide == s) & (patch == p)).sum() == round(expected)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 7])
def test_the_largest_number_still_picks_a_patch(monkeypatch, n_classes):
    labels = [np.arange(n_classes, dtype=np.int8).repeat(s + 3) for s in range(11)]
    sampler = ThreeStepSampler(labels, seed=0, classes=range(n_classes))
    monkeypatch.setattr(sampler, "_uniform", lambda _, n: np.full(n, 1 - 2.0**-53))
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
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**128}, r"below 2\^128"),
        ({"seed": 0, "classes": ()}, "distinct"),
        ({"seed": 0, "classes": (0, 0)}, "distinct"),
        ({"seed": 0, "classes": (-1, 1)}, "never drawn"),
        ({"seed": 0, "classes": (0, 2)}, "none of 5 slides has a patch of label 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(SamplingError, match=message):
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


@pytest.mark.parametrize(("present", "message"), [(0, "positive"), (1, "negative")])
def test_a_class_without_patches_is_named(present, message):
    with pytest.raises(SamplingError, match=message):
        ThreeStepSampler([np.full(3, present, np.int8), np.array([-1], np.int8)], seed=0)


# ------------------------------------------------------------ passes over all patches


@given(labels=cohorts((0, 1)), seed=st.integers(0, 2**128 - 1), n_passes=st.integers(1, 3))
def test_each_pass_holds_every_labelled_patch_once(labels, seed, n_passes):
    sampler = ShuffledSampler(labels, seed=seed)
    rows = [(s, p, int(y)) for s, slide in enumerate(labels) for p, y in enumerate(slide)]
    wanted = sorted(row for row in rows if row[2] >= 0)
    assert len(sampler) == len(wanted)
    for _ in range(n_passes):
        found = zip(*(part.tolist() for part in sampler.draw(len(sampler))), strict=True)
        assert sorted(found) == wanted


@given(parts=st.lists(st.integers(0, 25), min_size=1, max_size=6))
def test_a_shuffled_draw_depends_on_its_number_alone(parts):
    once = ShuffledSampler(LABELS, seed=3)
    whole = np.array(once.draw(sum(parts)))
    sampler = ShuffledSampler(LABELS, seed=3)
    pieces = [np.array(sampler.draw(n)) for n in parts]
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)
    resumed = ShuffledSampler(LABELS, seed=3)
    resumed.set_state(json.loads(json.dumps(sampler.state())))
    assert np.array_equal(np.array(resumed.draw(5)), np.array(once.draw(5)))


def test_every_order_of_a_pass_is_equally_likely():
    """Place of the first patch among five, over many passes and over many seeds."""
    labels = [np.array([0, 1, 0], np.int8), np.array([1, 1], np.int8)]
    sampler = ShuffledSampler(labels, seed=1)
    passes = [np.array(sampler.draw(5)) for _ in range(4000)]
    passes += [np.array(ShuffledSampler(labels, seed=s).draw(5)) for s in range(4000)]
    places = [int(np.flatnonzero((p[0] == 0) & (p[1] == 0))[0]) for p in passes]
    assert chisquare(np.bincount(places[:4000], minlength=5)).pvalue > 1e-3
    assert chisquare(np.bincount(places[4000:], minlength=5)).pvalue > 1e-3


def test_what_cannot_be_shuffled_is_refused():
    with pytest.raises(SamplingError, match="none of 2 slides has a patch with a label"):
        ShuffledSampler([np.array([-1], np.int8), np.zeros(0, np.int8)], seed=0)
    with pytest.raises(SamplingError, match="seed must be"):
        ShuffledSampler(LABELS, seed=-1)
    other = ShuffledSampler(LABELS, seed=1).state()
    with pytest.raises(SamplingError, match="seed 2 cannot continue from one of seed 1"):
        ShuffledSampler(LABELS, seed=2).set_state(other)
