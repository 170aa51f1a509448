"""Lesions from masks and polygons: growth, merging, holes, 8-connectivity, ITC, windows."""

import json
import tracemalloc

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tests.helpers.real_data import real_data
from tiling.annotation.reading import read_annotation
from wsi_pipeline.errors import EvaluationError, ExtentError
from wsi_pipeline.evaluation.lesions import (
    fill_holes,
    grow,
    label_mask,
    label_polygons,
    no_lesions,
)


def whole_image(reference, shape):
    """Put the windows back on one label image."""
    image = np.zeros(shape, int)
    for window in reference.windows:
        height, width = window.labels.shape
        image[window.row : window.row + height, window.col : window.col + width] = window.labels
    return image


def blobs(seed, shape, n):
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(n):
        row, col = random.integers(0, shape[0]), random.integers(0, shape[1])
        height, width = random.integers(1, 30, 2)
        mask[row : row + height, col : col + width] = True
        if random.random() < 0.3:
            mask[row + 2 : row + height - 2, col + 2 : col + width - 2] = False
    return mask


@settings(max_examples=60)
@given(mask=arrays(bool, (12, 15), elements=st.booleans()), radius=st.floats(0.1, 9))
def test_growth_equals_the_distance_transform(mask, radius):
    distance = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    assert np.array_equal(grow(mask, radius), distance < radius)


@pytest.mark.parametrize("radius", [1.0, 2.0, 5.0, np.sqrt(2), np.sqrt(5), 5.000000001])
def test_growth_is_strict_at_whole_distances(radius):
    mask = np.zeros((15, 15), bool)
    mask[7, 7] = True
    assert np.array_equal(grow(mask, radius), ndimage.distance_transform_edt(~mask) < radius)


@settings(max_examples=60)
@given(mask=arrays(bool, (9, 11), elements=st.booleans()))
def test_filled_holes_equal_scipys(mask):
    assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


@settings(max_examples=25)
@given(
    mask=arrays(bool, (10, 13), elements=st.sampled_from([False] * 9 + [True])),
    downsample=st.sampled_from([32.0, 60.0, 110.0]),
)
def test_lesions_equal_the_definition_in_plain_python(mask, downsample, oracle):
    labels, itc = oracle.lesions(mask.tolist(), downsample, 0.243)
    found = label_mask(mask, downsample=downsample, mpp=0.243)
    assert whole_image(found, mask.shape).tolist() == labels
    assert set((np.flatnonzero(found.is_itc) + 1).tolist()) == itc


@pytest.mark.parametrize("seed", range(12))
def test_windows_give_the_published_answer_for_the_whole_mask(seed, oracle):
    """Label for label, ITC for ITC, at the borders too."""
    mask = blobs(seed, (420, 530), 3 + 4 * seed)
    labels, itc = oracle.published_lesions(mask, 32, 0.243)
    found = label_mask(mask, downsample=32, mpp=0.243)
    assert np.array_equal(whole_image(found, mask.shape), labels)
    assert np.array_equal(found.is_itc, itc)


def test_a_lesion_inside_a_ring_is_filled_into_it():
    mask = np.zeros((300, 300), bool)
    mask[20:280, 20:280] = True
    mask[30:270, 30:270] = False
    mask[145:150, 145:150] = True
    assert label_mask(mask, downsample=32, mpp=0.243).is_itc.size == 1


@pytest.mark.parametrize(("gap", "n"), [(8, 1), (9, 2)])
def test_annotations_closer_than_75_um_merge(gap, n):
    """Growth of less than 4.82 px from both sides: 8 empty pixels are bridged, 9 + 1 are not."""
    mask = np.zeros((60, 120), bool)
    mask[10:50, 10:50] = True
    mask[10:50, 50 + gap : 100] = True
    assert label_mask(mask, downsample=32, mpp=0.243).is_itc.size == n


def test_lesions_that_touch_at_a_corner_are_one():
    # 100 µm pixels: no growth reaches a neighbour (75 / 200 px).
    mask = np.eye(4, dtype=bool)
    assert label_mask(mask, downsample=100, mpp=1).is_itc.size == 1


def test_itc_are_found_by_the_major_axis_strictly_below_275_um():
    # Pixels of 25 µm; growth of 1.5 px. A grown line of n pixels is n + 2 long, 3 wide.
    for n in range(5, 12):
        mask = np.zeros((9, 30), bool)
        mask[4, 5 : 5 + n] = True
        found = label_mask(mask, downsample=25, mpp=1)
        assert bool(found.is_itc[0]) == (found.major_axis_um[0] < 275)
    assert label_mask(np.pad([[True]], 9), downsample=25, mpp=1).n_itc == 1


def test_a_mask_without_tumour_has_no_lesion_and_one_of_tumour_only_has_one():
    empty = label_mask(np.zeros((5, 6), bool), downsample=32, mpp=0.243)
    full = label_mask(np.ones((50, 60), bool), downsample=32, mpp=0.243)
    assert (empty.has_tumour, empty.n_lesions) == (False, 0)
    assert (full.has_tumour, full.n_lesions) == (True, 1)
    assert label_mask(np.zeros((0, 0), bool), downsample=32, mpp=0.243).windows == ()


def test_a_label_is_looked_up_by_floor():
    mask = np.zeros((40, 50), bool)
    mask[39, 49] = True
    found = label_mask(mask, downsample=32, mpp=7.0)  # no growth: 75 / 448 px
    x, y = np.array([50 * 32 - 1, 49 * 32, 49 * 32 - 1]), np.array([40 * 32 - 1, 39 * 32, 39 * 32])
    assert found.label_at(x, y).tolist() == [1, 1, 0]
    assert found.label_at(np.array([10**9]), np.array([0])).tolist() == [0]


@pytest.mark.parametrize("seed", range(8))
def test_polygons_give_the_same_lesions_as_their_mask(seed, oracle):
    random = np.random.default_rng(seed)
    corners = random.integers(0, 300, (12, 2)) * 32
    sizes = random.integers(1, 40, (12, 2)) * 32
    boxes = [shapely.box(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    tumour = shapely.union_all(boxes[:10]).difference(shapely.union_all(boxes[10:]))
    y, x = np.mgrid[0:400, 0:400] + 0.5
    labels, itc = oracle.published_lesions(shapely.contains_xy(tumour, x * 32, y * 32), 32, 0.243)
    found = label_polygons(tumour, mpp=0.243)
    points = np.random.default_rng(seed).integers(0, 400 * 32, (3000, 2))
    assert np.array_equal(found.is_itc, itc)
    assert np.array_equal(
        found.label_at(points[:, 0], points[:, 1]), labels[points[:, 1] // 32, points[:, 0] // 32]
    )


def test_exclusions_are_cut_before_the_growth(tmp_path):
    """A gap that an exclusion cuts is grown over again if narrow, and kept if wide."""

    def square(x0, x1):
        return [[x0, 0], [x1, 0], [x1, 3200], [x0, 3200]]

    def lesions(x0, x1):
        path = tmp_path / "a.json"
        content = {
            "positive": [{"name": "a", "vertices": square(0, 6400)}],
            "negative": [{"name": "b", "vertices": square(x0, x1)}],
        }
        path.write_text(json.dumps(content))
        return label_polygons(read_annotation(path).tumour, mpp=0.243)

    narrow, wide = lesions(3200, 3200 + 8 * 32), lesions(3200, 3200 + 12 * 32)
    assert (narrow.n_lesions, wide.n_lesions) == (1, 2)
    assert wide.label_at(np.array([3200 + 6 * 32]), np.array([1600])).tolist() == [0]


def test_the_slides_edge_cuts_the_growth():
    tumour = shapely.MultiPolygon([shapely.box(0, 0, 3200, 3200)])
    within = label_polygons(tumour, mpp=0.243, slide_size=(3210, 3200))
    beyond = label_polygons(tumour, mpp=0.243)
    assert [w.labels.shape for w in within.windows] == [(100, 101)]
    assert beyond.label_at(np.array([3300]), np.array([10])).tolist() == [1]
    assert within.label_at(np.array([3209]), np.array([3199])).tolist() == [1]


@pytest.mark.parametrize("far", [4e6, 1e8])
def test_a_polygon_far_larger_than_the_slide_costs_what_the_slide_does(far):
    """Its own box was drawn: 14.6 GiB of it."""
    tumour = shapely.MultiPolygon([shapely.box(-far, 1600, far, far)])
    found = label_polygons(tumour, mpp=0.243, slide_size=(3200, 6400))
    assert [w.labels.shape for w in found.windows] == [(200 - 44, 100)]  # 45 rows less growth
    same = label_polygons(
        shapely.MultiPolygon([shapely.box(0, 1600, 3200, 6400)]), mpp=0.243, slide_size=(3200, 6400)
    )
    np.testing.assert_array_equal(found.windows[0].labels, same.windows[0].labels)


@pytest.mark.parametrize("downsample", [32.0, 1e-9])
def test_without_a_slides_size_there_is_a_limit(downsample):
    tumour = shapely.MultiPolygon([shapely.box(0, 0, 4e6, 4e6)])
    with pytest.raises(ExtentError, match="more than can be drawn"):
        label_polygons(tumour, mpp=0.243, downsample=downsample)


def test_the_limit_is_of_all_windows_together(monkeypatch):
    monkeypatch.setattr("wsi_pipeline.evaluation.lesions.MAX_GRID_PX", 2 * 120 * 120)
    apart = [shapely.box(x, 0, x + 3200, 3200) for x in (0, 32_000, 64_000)]
    label_polygons(shapely.MultiPolygon(apart[:2]), mpp=0.243)
    with pytest.raises(ExtentError, match="more than can be drawn"):
        label_polygons(shapely.MultiPolygon(apart), mpp=0.243)


def test_a_large_lesion_is_measured_without_a_list_of_its_pixels():
    """Rows and columns of all pixels took 3.7 GB and most of the time at the limit."""
    side = 1500 * 32
    tracemalloc.start()
    try:
        found = label_polygons(shapely.MultiPolygon([shapely.box(0, 0, side, side)]), mpp=0.25)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * 1510**2  # bytes; it was 54 per pixel of the grid
    assert found.centre == pytest.approx(np.full((1, 2), side / 2), abs=3 * 32)


@pytest.mark.parametrize("seed", range(3))
def test_centres_are_the_means_of_the_pixels(seed):
    found = label_mask(blobs(seed, (300, 200), 12), downsample=32, mpp=0.25)
    image = whole_image(found, (300, 200))
    assert len(found.centre) == image.max() > 1
    for number, centre in enumerate(found.centre, start=1):
        rows, columns = np.nonzero(image == number)
        expected = ((columns.mean() + 0.5) * 32, (rows.mean() + 0.5) * 32)
        assert centre == pytest.approx(expected, rel=1e-12)


def test_lesions_are_numbered_row_by_row_wherever_their_windows_are():
    mask = np.zeros((400, 400), bool)
    for row, col in ((300, 10), (10, 300), (12, 20), (200, 200)):
        mask[row : row + 3, col : col + 3] = True
    found = label_mask(mask, downsample=32, mpp=0.243)
    assert found.label_at(
        np.array([301, 21, 201, 11]) * 32, np.array([11, 13, 201, 301]) * 32
    ).tolist() == [1, 2, 3, 4]


def test_an_empty_polygon_set_is_a_normal_slide():
    found = label_polygons(shapely.MultiPolygon(), mpp=0.243)
    assert not found.has_tumour
    assert not no_lesions(mpp=0.243).has_tumour


@pytest.mark.parametrize(("downsample", "mpp"), [(0, 0.243), (32, 0), (-1, 1), (np.nan, 1)])
def test_a_scale_that_is_none_is_refused(downsample, mpp):
    with pytest.raises(EvaluationError, match="positive numbers"):
        label_mask(np.ones((3, 3), bool), downsample=downsample, mpp=mpp)


@pytest.mark.parametrize("name", ["Tumor_001", "Tumor_003", "Tumor_064", "Tumor_011"])
def test_real_polygons_give_the_published_answer(name, oracle):
    path = real_data(f"annotations/camelyon16/{name}.json")
    tumour = read_annotation(path).tumour
    found = label_polygons(tumour, mpp=0.243)
    shape = tuple(int(v / 32) + 8 for v in (tumour.bounds[3], tumour.bounds[1 + 1]))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    shapely.prepare(tumour)
    mask = shapely.contains_xy(tumour, x * 32, y * 32)
    labels, itc = oracle.published_lesions(mask, 32, 0.243)
    image = whole_image(found, shape)
    # A polygon too small for any pixel's centre is kept here and lost there; it is an ITC.
    assert found.n_lesions == np.count_nonzero(~itc)
    assert np.array_equal(image[labels > 0] > 0, np.ones(np.count_nonzero(labels), bool))
    assert found.n_itc >= np.count_nonzero(itc)
