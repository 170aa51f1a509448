"""The FROC curve against the definition read off one threshold at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.contracts import Detections
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.froc import (
    RATES,
    SlideHits,
    build_froc,
    collect_events,
    froc_to_json,
    match_detections,
    match_patches,
    rate_name,
    read_sensitivity,
    replicate_sensitivities,
)
from wsi_pipeline.evaluation.lesions import label_mask, no_lesions

# Few values, so that there are ties, and two that only float64 distinguishes.
scores = st.sampled_from([0.0, 0.1, 0.1 + 1e-12, 0.25, 0.5, 0.7, 0.9, 1.0])


@st.composite
def slide_hits(draw):
    normal = draw(st.booleans())
    fps = draw(st.lists(scores, max_size=12))
    best = [] if normal else draw(st.lists(st.none() | scores, max_size=4))
    return SlideHits(
        np.array(fps, dtype=np.float64),
        np.array([math.nan if b is None else b for b in best], dtype=np.float64),
        normal,
    )


def plain(hits):
    return [
        (
            h.false_positives.tolist(),
            {i: None if math.isnan(b) else b for i, b in enumerate(h.best.tolist())},
            h.normal,
        )
        for h in hits
    ]


@settings(max_examples=150)
@given(
    hits=st.lists(slide_hits(), min_size=1, max_size=6),
    denominator=st.sampled_from(["all", "normal"]),
    at_rate=st.sampled_from(["linear", "step"]),
)
def test_curve_and_score_equal_the_definition(hits, denominator, at_rate, oracle):
    events = collect_events(hits, definition="camelyon16", fp_denominator=denominator)
    curve = build_froc(events, at_rate=at_rate)
    points = oracle.curve(plain(hits), denominator=denominator)
    result = froc_to_json(curve)
    got = [(p["threshold"], p["avg_fps"], p["sensitivity"]) for p in result["curve"]]
    assert got == oracle.corners(points)
    if any(None in point[1:] for point in points):
        assert result["score"] is None
        assert set(result["sensitivity_at"].values()) == {None}
        assert set(result["operating_points"].values()) == {None}
        assert result["undefined"]["score"]
    else:
        expected = [oracle.read(points, rate, at_rate) for rate in RATES]
        assert list(result["sensitivity_at"].values()) == pytest.approx(expected, abs=1e-12)
        assert result["score"] == pytest.approx(sum(expected) / 6, abs=1e-12)
        for rate, point in zip(RATES, result["operating_points"].values(), strict=True):
            allowed = [p for p in points if p[1] <= rate]
            most = max(p[1:] for p in allowed)
            first = next(p for p in allowed if p[1:] == most)  # thresholds descend
            assert tuple(point.values()) == first
            if at_rate == "step":
                assert point["sensitivity"] == result["sensitivity_at"][rate_name(rate)]
        assert result["undefined"] == {}


def test_a_curve_is_as_short_as_it_has_lesions():
    """Evaluating two million patches wrote 1.3 GB of points on horizontal lines."""
    rng = np.random.default_rng(0)
    hits = [SlideHits(rng.random(2_000), rng.random(5), False)]
    curve = build_froc(collect_events(hits, definition="camelyon16"))
    assert len(curve.thresholds) <= 2 * 5 + 2
    every = np.sort(np.concatenate([hits[0].false_positives, hits[0].best]))[::-1]
    fps = [(hits[0].false_positives >= t).sum() for t in every]
    found = [(hits[0].best >= t).sum() / 5 for t in every]
    rates = rng.uniform(0, 2_000, 50)
    for at_rate in ("linear", "step"):
        whole = read_sensitivity(np.array([0, *fps]), np.array([0, *found]), rates, at_rate=at_rate)
        short = read_sensitivity(curve.avg_fps, curve.sensitivity, rates, at_rate=at_rate)
        np.testing.assert_allclose(short, whole, atol=1e-12)


def test_a_perfect_detector_with_all_scores_one_gets_one():
    """The circulating script drops the smallest threshold, and gives 0."""
    hits = [SlideHits(np.zeros(0), np.ones(3), False), SlideHits(np.zeros(0), np.zeros(0), True)]
    assert build_froc(collect_events(hits, definition="camelyon16")).score == 1.0


def test_scores_that_float32_would_split_stay_tied():
    """Hits in float32 and false positives in float64 make points that no threshold has."""
    p = 0.1  # float32(0.1) != 0.1
    hits = [SlideHits(np.array([p]), np.array([p]), False)]
    curve = build_froc(collect_events(hits, definition="camelyon16"))
    assert curve.thresholds.tolist() == [math.inf, p]
    assert curve.avg_fps.tolist() == [0, 1]
    assert curve.sensitivity.tolist() == [0, 1]


def test_rates_are_named_as_in_the_contract():
    hits = [SlideHits(np.zeros(0), np.ones(1), False)]
    curve = build_froc(collect_events(hits, definition="camelyon16"))
    assert list(curve.sensitivity_at) == ["0.25", "0.5", "1", "2", "4", "8"]


def test_linear_reads_vertical_steps_as_worded():
    x, y = np.array([0, 1.0, 1.0, 1.0, 3.0]), np.array([0, 0.1, 0.4, 0.6, 1.0])
    read = read_sensitivity(x, y, [0, 0.5, 1, 2, 3, 99], at_rate="linear")
    assert read.tolist() == pytest.approx([0, 0.05, 0.6, 0.8, 1.0, 1.0])
    assert read.tolist() == pytest.approx(np.interp([0, 0.5, 1, 2, 3, 99], x, y).tolist())


def test_linear_starts_from_the_highest_point_at_no_false_positive():
    x, y = np.array([0, 0, 0, 1.0]), np.array([0, 0.2, 0.5, 0.7])
    assert read_sensitivity(x, y, [0, 0.5], at_rate="linear").tolist() == [0.5, 0.6]


@settings(max_examples=80)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12),
    rates=st.lists(st.floats(0, 12), min_size=1, max_size=6),
)
def test_linear_is_numpys_interp(steps, rates):
    points = np.cumsum([(0, 0), *steps], axis=0) / [4, 36]
    expected = np.interp(rates, points[:, 0], points[:, 1])
    got = read_sensitivity(points[:, 0], points[:, 1], rates, at_rate="linear")
    assert got == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("normal", "kept"), [(True, 2), (False, 2)])
def test_no_lesion_gives_no_score_but_a_reason(normal, kept):
    hits = [SlideHits(np.array([0.5, 0.6]), np.zeros(0), normal, n_itc=0 if normal else 3)]
    result = froc_to_json(build_froc(collect_events(hits, definition="camelyon16")))
    assert result["score"] is None
    assert "no lesion" in result["undefined"]["score"]
    assert ("3 ITC" in result["undefined"]["score"]) == (not normal)
    assert [p["avg_fps"] for p in result["curve"]] == [0, 2]
    assert {p["sensitivity"] for p in result["curve"]} == {None}


def test_no_normal_slide_gives_no_patch_score_but_a_reason():
    hits = [SlideHits(np.zeros(0), np.array([0.5]), False)]
    result = froc_to_json(build_froc(collect_events(hits, definition="patch")))
    assert result["score"] is None
    assert "no normal slide" in result["undefined"]["score"]
    assert [p["sensitivity"] for p in result["curve"]] == [0, 1]


def test_without_slides_there_is_nothing_to_evaluate():
    with pytest.raises(EvaluationError, match="no slides"):
        build_froc(collect_events([], definition="camelyon16"))


@pytest.mark.parametrize("rates", [[], [-1], [math.nan], [math.inf], [1, 1.0]])
def test_rates_that_are_none_are_refused(rates):
    hits = [SlideHits(np.zeros(0), np.ones(1), False)]
    with pytest.raises(EvaluationError, match="rate"):
        build_froc(collect_events(hits, definition="camelyon16"), rates=rates)


# ------------------------------------------------------------ matching


def detections(*rows):
    p, x, y = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(np.array(x, np.int64), np.array(y, np.int64), np.array(p, np.float64))


@pytest.fixture(scope="module")
def two_lesions_and_an_itc():
    mask = np.zeros((150, 150), bool)
    mask[10:60, 10:60] = True  # lesion 1
    mask[100:103, 20:23] = True  # ITC, label 2... numbered by its first pixel
    mask[90:150, 90:150] = True  # a lesion up to the last pixel
    return label_mask(mask, downsample=32, mpp=0.243)


def test_a_lesion_keeps_the_best_of_its_hits(two_lesions_and_an_itc):
    found = match_detections(
        two_lesions_and_an_itc,
        detections((0.4, 640, 640), (0.9, 700, 700), (0.6, 1600, 1600), (0.3, 4000, 100)),
    )
    assert found.best.tolist()[0] == 0.9
    assert np.isnan(found.best[1])
    assert found.false_positives.tolist() == [0.3]
    assert not found.normal


def test_a_detection_on_an_itc_counts_as_nothing(two_lesions_and_an_itc):
    found = match_detections(two_lesions_and_an_itc, detections((0.9, 21 * 32, 101 * 32)))
    assert found.false_positives.size == 0
    assert np.isnan(found.best).all()
    assert found.n_itc == 1


def test_a_detection_on_the_last_pixel_hits(two_lesions_and_an_itc):
    found = match_detections(two_lesions_and_an_itc, detections((0.9, 150 * 32 - 1, 150 * 32 - 1)))
    assert np.nanmax(found.best) == 0.9


def test_on_a_normal_slide_every_detection_is_false():
    found = match_detections(no_lesions(mpp=0.243), detections((0.9, 5, 5), (0.2, 6, 6)))
    assert found.normal
    assert found.false_positives.tolist() == [0.9, 0.2]


def test_a_slide_of_itc_only_is_a_tumour_slide():
    mask = np.zeros((60, 60), bool)
    mask[30, 30] = True
    reference = label_mask(mask, downsample=32, mpp=0.243)
    hits = [match_detections(reference, detections((0.9, 960, 960), (0.5, 10, 10)))]
    curve = build_froc(collect_events(hits, definition="camelyon16"))
    assert (curve.n_normal, curve.n_lesions, curve.n_itc) == (0, 0, 1)
    assert curve.avg_fps.tolist() == [0, 1]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_matching_equals_the_definition(seed, oracle):
    random = np.random.default_rng(seed)
    mask = random.random((10, 12)) < 0.04
    labels, itc = oracle.lesions(mask.tolist(), 100, 0.243)
    rows = [
        (float(random.integers(0, 5)) / 4, int(random.integers(0, 1200)), int(y))
        for y in random.integers(0, 1000, 15)
    ]
    found = match_detections(label_mask(mask, downsample=100, mpp=0.243), detections(*rows))
    fps, best = oracle.match(labels, itc, 100, rows)
    assert found.false_positives.tolist() == fps
    assert [None if math.isnan(b) else b for b in found.best.tolist()] == list(best.values())


def test_patches_belong_to_every_tumour_they_touch_and_unreadable_ones_to_none():
    scores = np.array([0.2, 0.8, np.nan, 0.9], np.float32)
    pairs = np.array([[0, 0], [1, 0], [1, 1], [2, 2]])
    found = match_patches(scores, pairs, n_lesions=4, normal=False)
    assert found.best[:2].tolist() == [float(np.float32(0.8))] * 2
    assert np.isnan(found.best[2:]).all()  # an unreadable patch, and no patch at all
    assert found.false_positives.size == 0  # false patches on cancer slides never count


def test_patch_false_positives_are_counted_on_normal_slides_only():
    empty = np.zeros((0, 2), np.int64)
    hits = [
        match_patches(np.array([0.9, 0.1]), empty, n_lesions=0, normal=True),
        match_patches(np.array([0.9, 0.8]), np.array([[1, 0]]), n_lesions=1, normal=False),
    ]
    curve = build_froc(collect_events(hits, definition="patch"))
    assert curve.avg_fps.tolist() == [0, 1, 1, 2]
    assert curve.sensitivity.tolist() == [0, 0, 1, 1]
    with_all = build_froc(collect_events(hits, definition="patch", fp_denominator="all"))
    assert with_all.avg_fps.tolist() == [0, 0.5, 0.5, 1]


def test_the_curve_depends_on_the_order_of_scores_only():
    random = np.random.default_rng(1)
    hits = [SlideHits(random.random(9), random.random(2), False) for _ in range(4)]
    bent = [SlideHits(h.false_positives**3, h.best**3, False) for h in hits]
    a, b = (build_froc(collect_events(h, definition="camelyon16")) for h in (hits, bent))
    assert a.avg_fps.tolist() == b.avg_fps.tolist()
    assert a.sensitivity.tolist() == b.sensitivity.tolist()
    assert (np.diff(a.avg_fps) >= 0).all()
    assert (np.diff(a.sensitivity) >= 0).all()


# ------------------------------------------------------------ resampled slides


@settings(max_examples=30)
@given(
    hits=st.lists(slide_hits(), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    denominator=st.sampled_from(["all", "normal"]),
    at_rate=st.sampled_from(["linear", "step"]),
)
def test_a_replicate_is_the_curve_of_its_slides(hits, seed, denominator, at_rate):
    weights = draw_resamples([str(i) for i in range(len(hits))], n_replicates=8, seed=seed).weights
    events = collect_events(hits, definition="camelyon16", fp_denominator=denominator)
    got = replicate_sensitivities(events, weights, at_rate=at_rate)
    for row, values in zip(weights, got, strict=True):
        drawn = [h for h, times in zip(hits, row, strict=True) for _ in range(times)]
        again = collect_events(drawn, definition="camelyon16", fp_denominator=denominator)
        curve = build_froc(again, at_rate=at_rate)
        if curve.score is None:
            assert np.isnan(values).all()
        else:
            assert values == pytest.approx(list(curve.sensitivity_at.values()), abs=1e-12)


def test_replicates_read_far_events_only_if_they_need_them():
    """More false positives than are counted first, on one slide that some replicates lack."""
    random = np.random.default_rng(0)
    hits = [SlideHits(random.random(9000), np.array([0.3]), False)]
    hits += [SlideHits(random.random(3) * 0.1, random.random(2) * 0.1, False) for _ in range(3)]
    weights = draw_resamples(["a", "b", "c", "d"], n_replicates=30, seed=1).weights
    got = replicate_sensitivities(collect_events(hits, definition="camelyon16"), weights)
    for row, values in zip(weights, got, strict=True):
        drawn = [h for h, times in zip(hits, row, strict=True) for _ in range(times)]
        curve = build_froc(collect_events(drawn, definition="camelyon16"))
        assert values == pytest.approx(list(curve.sensitivity_at.values()), abs=1e-12)
