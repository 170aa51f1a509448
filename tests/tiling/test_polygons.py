"""Outlines drawn by hand become valid areas and lesions."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.polygons import assemble_annotation, repair_polygon


def ring(*points):
    return np.array(points, dtype=float)


def boxes(*bounds):
    return [shapely.box(*b) for b in bounds]


def winding_number(outline, x, y):
    """How often a closed outline goes around a point, by the angle it sweeps."""
    closed = np.concatenate([outline, outline[:1]]) - (x, y)
    angle = np.arctan2(closed[:, 1], closed[:, 0])
    turns = (np.diff(angle) + np.pi) % (2 * np.pi) - np.pi
    return round(turns.sum() / (2 * np.pi))


def test_a_bow_tie_keeps_both_lobes():
    area, repaired = repair_polygon(ring((0, 0), (10, 10), (10, 0), (0, 10)))

    assert repaired
    assert area.is_valid
    assert area.area == 50


def test_what_is_gone_around_twice_is_kept_once():
    """Even-odd filling would cut the middle out of a five-pointed star."""
    angles = 2 * np.pi * 2 * np.arange(5) / 5
    area, _ = repair_polygon(np.stack([np.cos(angles), np.sin(angles)], axis=1))

    assert area.covers(shapely.Point(0, 0))


def test_a_lobe_is_not_lost_where_the_outline_runs_along_itself():
    """`make_valid(method="structure")` drops the lower triangle; found by hypothesis."""
    area, _ = repair_polygon(ring((0, 0), (0, 1), (1, 0), (0, 2), (0, 1), (1, 0)))

    assert area.area == 1.0


def test_a_sound_outline_is_left_as_it_is():
    outline = ring((0, 0), (10, 0), (10, 10))

    area, repaired = repair_polygon(outline)

    assert not repaired
    assert area.geoms[0].equals_exact(shapely.Polygon(outline))


def test_holes_are_cut_even_from_a_mended_shell():
    shell, hole = ring((0, 0), (10, 10), (10, 0), (0, 10)), ring((1, 4), (2, 5), (1, 6))

    area, repaired = repair_polygon(shell, [hole])

    assert repaired
    assert area.area == 50 - 1


@pytest.mark.parametrize(
    "outline",
    [ring((1, 1), (1, 1), (1, 1)), ring((0, 0), (5, 5), (10, 10)), ring((0, 0), (9, 0), (0, 0))],
    ids=["point", "line", "there-and-back"],
)
def test_a_line_or_point_encloses_nothing(outline):
    area, repaired = repair_polygon(outline)

    assert area.is_empty
    assert not repaired


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=9),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), min_size=1, max_size=20),
)
def test_exactly_what_the_pen_went_around_is_kept(points, probes):
    outline = np.array(points, dtype=float)

    area, _ = repair_polygon(outline)

    assert area.is_valid
    for column, row in probes:
        x, y = column / 2 + 0.231, row / 2 + 0.173  # off the lattice, so seldom on the outline
        closed = shapely.LinearRing(np.concatenate([outline, outline[:1]]))
        if shapely.Point(x, y).distance(closed) > 1e-6:
            assert shapely.contains_xy(area, x, y) == (winding_number(outline, x, y) != 0)


def test_overlapping_tumours_are_one_lesion_and_counted_once():
    annotation = assemble_annotation(boxes((0, 0, 10, 10), (5, 0, 15, 10)), [])

    assert len(annotation.lesions) == 1
    assert annotation.tumour.area == 150


@pytest.mark.parametrize(
    ("second", "count"),
    [
        ((10, 0, 20, 10), 1),
        ((10, 10, 20, 20), 1),
        ((10.001, 0, 20, 10), 2),
        ((10.001, 10.001, 20, 20), 2),
    ],
    ids=["edge", "corner", "beside", "across"],
)
def test_touching_is_one_lesion_and_near_is_two(second, count):
    annotation = assemble_annotation(boxes((0, 0, 10, 10), second), [])

    assert len(annotation.lesions) == count
    assert annotation.tumour.is_valid


def test_a_chain_of_corners_is_one_lesion_of_several_parts():
    chain = boxes((0, 0, 1, 1), (1, 1, 2, 2), (2, 2, 3, 3), (9, 9, 10, 10))

    first, second = assemble_annotation(chain, []).lesions

    assert first.geom_type == "MultiPolygon"
    assert first.area == 3
    assert second.geom_type == "Polygon"


def test_a_vertex_on_a_slanted_edge_touches_it_despite_rounding():
    """(10/3, 1) is not exactly on the edge from (0, 0) to (10, 3) in float64."""
    left = shapely.Polygon([(0, 0), (10, 3), (0, 10)])
    right = shapely.Polygon([(10 / 3, 1), (9, 0), (9, 1)])

    assert len(assemble_annotation([left, right], []).lesions) == 1


def test_an_exclusion_can_part_one_polygon_into_two_lesions():
    annotation = assemble_annotation(boxes((0, 0, 30, 10)), boxes((10, -5, 20, 15)))

    assert [lesion.bounds for lesion in annotation.lesions] == [(0, 0, 10, 10), (20, 0, 30, 10)]


def test_an_exclusion_cuts_whatever_tumour_it_lies_on():
    annotation = assemble_annotation(boxes((0, 0, 10, 10), (0, 0, 20, 20)), boxes((2, 2, 4, 4)))

    assert annotation.tumour.area == 400 - 4
    assert len(annotation.tumour.geoms[0].interiors) == 1


def test_exclusions_that_cover_all_leave_no_tumour_and_are_noted():
    annotation = assemble_annotation(boxes((0, 0, 10, 10)), boxes((-1, -1, 11, 11)))

    assert annotation.lesions == ()
    assert annotation.tumour.is_empty
    assert "none is left" in annotation.notes[0]


def test_nothing_drawn_is_no_tumour():
    annotation = assemble_annotation([], [])

    assert (annotation.lesions, annotation.notes) == ((), ())
    assert annotation.tumour.is_empty


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 5), st.integers(1, 5)),
        min_size=1,
        max_size=8,
    )
)
def test_lesions_are_what_flood_filling_pixels_finds(corners):
    """Boxes on a lattice: touching parts are 8-connected pixels."""
    from scipy import ndimage

    pixels = np.zeros((20, 20), bool)
    for x, y, width, height in corners:
        pixels[y : y + height, x : x + width] = True
    _, count = ndimage.label(pixels, np.ones((3, 3)))
    drawn = boxes(*((x, y, x + width, y + height) for x, y, width, height in corners))

    annotation = assemble_annotation(drawn, [])

    assert len(annotation.lesions) == count
    assert sum(lesion.area for lesion in annotation.lesions) == pixels.sum()
    tops = [(lesion.bounds[1], lesion.bounds[0]) for lesion in annotation.lesions]
    assert tops == sorted(tops)


def test_the_order_of_lesions_does_not_depend_on_the_order_of_drawing():
    drawn = boxes((50, 0, 60, 5), (0, 20, 5, 25), (0, 0, 5, 5), (20, 10, 30, 15))

    forward = assemble_annotation(drawn, []).lesions
    backward = assemble_annotation(drawn[::-1], []).lesions

    assert [a.bounds for a in forward] == [b.bounds for b in backward]
    assert [a.bounds[:2] for a in forward] == [(0, 0), (50, 0), (20, 10), (0, 20)]
