"""Labels of tiles: the rules, tile by tile against shapely."""

import dataclasses
import time

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.real_data import real_data
from tiling.annotation import overlaps
from tiling.annotation.labels import label_tiles
from tiling.annotation.reading import read_annotation
from tiling.contracts import Annotation, TileConfig
from tiling.errors import AnnotationError, GridError
from tiling.geometry import inner_squares, resolve_geometry
from tiling.grid import tile_coords
from tiling.polygons import assemble_annotation, repair_polygon

LECTURE = TileConfig(target_mpp=0.172, patch_px=512, inner_px=256)


def annotate(*areas):
    return assemble_annotation(areas, [])


def label(coords, annotation, *, slide_label=None, mpp=None, config=LECTURE, **changes):
    config = dataclasses.replace(config, **changes)
    geometry = resolve_geometry(config, slide_mpp=mpp or (config.target_mpp, config.target_mpp))
    return label_tiles(
        np.array(coords),
        geometry=geometry,
        annotation=annotation,
        slide_label=slide_label,
        config=config,
    )


def one_label(area, **kwargs):
    return int(label([[0, 0]], annotate(area), **kwargs).label[0])


def pixel(x, y):
    return shapely.box(x, y, x + 1, y + 1)


class TestInnerRule:
    @pytest.mark.parametrize(
        ("x", "y", "expected"),
        [
            (128, 128, 1),
            (383, 383, 1),
            (128, 383, 1),
            (256, 256, 1),
            (127, 128, 0),
            (128, 127, 0),
            (384, 383, 0),
            (383, 384, 0),
            (127, 127, 0),
            (384, 384, 0),
            (0, 0, 0),
        ],
    )
    def test_one_pixel_decides(self, x, y, expected):
        assert one_label(pixel(x, y)) == expected

    def test_tumour_in_the_outer_ring_only_is_negative(self):
        ring = shapely.box(0, 0, 512, 512).difference(shapely.box(128, 128, 384, 384))

        result = label([[0, 0]], annotate(ring))

        assert result.label.tolist() == [0]
        assert result.tumour.tolist() == [0.0]
        assert result.lesion_pairs.shape == (0, 2)

    def test_tumour_over_all_of_the_tile_is_positive(self):
        result = label([[0, 0]], annotate(shapely.box(-10, -10, 600, 600)))

        assert result.label.tolist() == [1]
        assert result.tumour.tolist() == [1.0]

    def test_a_square_in_a_hole_of_the_tumour_is_negative(self):
        holed = shapely.box(-500, -500, 1000, 1000).difference(shapely.box(100, 100, 400, 400))

        assert one_label(holed) == 0

    def test_tiles_are_measured_in_their_own_frame(self):
        annotation = annotate(shapely.box(1000, 2000, 1100, 2100))

        result = label([[0, 0], [700, 1700], [1000, 2000]], annotation)

        assert result.label.tolist() == [0, 1, 0]

    def test_a_slide_scanned_finer_has_larger_squares(self):
        """At 0.086 µm/px a tile of 512 px spans 1024 level-0 px, its inner square 256 to 767."""
        kwargs = {"mpp": (0.086, 0.086)}

        assert one_label(pixel(256, 767), **kwargs) == 1
        assert one_label(pixel(255, 767), **kwargs) == 0
        assert one_label(pixel(256, 768), **kwargs) == 0


class TestOtherRules:
    @pytest.mark.parametrize(
        ("box", "expected"),
        [((250, 250, 262, 262), 1), ((256, 256, 300, 300), 1), ((257, 256, 300, 300), 0)],
        ids=["over", "at-its-corner", "beside"],
    )
    def test_the_centre_decides(self, box, expected):
        assert one_label(shapely.box(*box), label_rule="centre") == expected

    @pytest.mark.parametrize(
        ("width", "expected"),
        [(256, 1), (192, 1), (191, -1), (100, -1), (64, 0), (63, 0), (0.5, 0)],
    )
    def test_the_fraction_decides_and_between_the_bounds_is_ignored(self, width, expected):
        stripe = shapely.box(128, 0, 128 + width, 512)

        result = label(
            [[0, 0]],
            annotate(stripe),
            label_rule="fraction",
            positive_fraction=0.75,
            negative_fraction=0.25,
        )

        assert result.label.tolist() == [expected]
        assert result.tumour.tolist() == pytest.approx([width / 256])

    def test_a_fraction_exactly_at_its_bound_is_not_lost_to_rounding(self):
        for share in (0.1, 0.3, 0.7, 0.9):
            stripe = shapely.box(128, 128, 128 + 256 * share, 384)

            assert one_label(stripe, label_rule="fraction", positive_fraction=share) == 1

    def test_any_tumour_above_a_negative_bound_of_zero_is_not_negative(self):
        assert one_label(pixel(200, 200), label_rule="fraction") == -1
        assert one_label(pixel(0, 0), label_rule="fraction") == 0

    def test_lesion_pairs_do_not_depend_on_the_rule(self):
        areas = annotate(pixel(130, 130), shapely.box(250, 250, 380, 380), pixel(0, 0))
        pairs = [
            label([[0, 0], [600, 600]], areas, label_rule=rule).lesion_pairs.tolist()
            for rule in ("inner", "centre", "fraction")
        ]

        assert pairs == [[[0, 1], [0, 2]]] * 3

    def test_settings_that_contradict_each_other_are_refused(self):
        with pytest.raises(GridError, match="negative_fraction must be below"):
            one_label(pixel(0, 0), label_rule="fraction", positive_fraction=0.0)


TUMOUR, NOTHING = annotate(shapely.box(0, 0, 300, 300)), annotate()


class TestSlideLabels:
    @pytest.mark.parametrize(
        ("slide_label", "annotation", "expected"),
        [
            (0, None, [0, 0]),
            (1, None, [-1, -1]),
            (None, None, [-1, -1]),
            (1, TUMOUR, [1, 0]),
            (None, TUMOUR, [1, 0]),
            (0, NOTHING, [0, 0]),
            (None, NOTHING, [0, 0]),
        ],
    )
    def test_label_and_annotation_together(self, slide_label, annotation, expected):
        result = label([[0, 0], [600, 0]], annotation, slide_label=slide_label)

        assert result.label.tolist() == expected
        assert result.label.dtype == np.int8
        assert result.tumour.dtype == np.float32
        assert result.lesion_pairs.dtype == np.int64

    def test_a_normal_slide_with_tumour_is_a_contradiction(self):
        with pytest.raises(AnnotationError, match=r"labelled 0 .*holds 1 tumour area.*90000"):
            label([[0, 0]], TUMOUR, slide_label=0)

    def test_a_tumour_slide_without_tumour_is_a_contradiction_with_the_notes_of_the_file(self):
        empty = Annotation(tumour=NOTHING.tumour, lesions=(), notes=("not tumour: None",))

        with pytest.raises(AnnotationError, match=r"labelled 1 .*not tumour: None.*group Tumor"):
            label([[0, 0]], empty, slide_label=1)

    def test_a_label_that_is_none_is_refused(self):
        with pytest.raises(AnnotationError, match="got 2"):
            label([[0, 0]], None, slide_label=2)

    def test_no_tiles_have_no_labels(self):
        result = label(np.empty((0, 2), int), TUMOUR)

        assert (len(result.label), len(result.tumour)) == (0, 0)
        assert result.lesion_pairs.shape == (0, 2)


points = st.tuples(st.integers(0, 90), st.integers(0, 90))
outlines = st.lists(points, min_size=3, max_size=8)


@settings(max_examples=80)
@given(
    drawn=st.lists(outlines, min_size=1, max_size=4),
    cut=st.lists(outlines, max_size=1),
    patch=st.integers(1, 40),
    stride=st.integers(5, 40),
    data=st.data(),
)
def test_every_rule_equals_shapely_tile_by_tile(drawn, cut, patch, stride, data):
    inner = data.draw(st.integers(1, patch))
    mpp = data.draw(st.sampled_from([(1.0, 1.0), (0.5, 0.5), (0.7, 0.9)]))
    areas, holes = ([repair_polygon(np.array(o, float))[0] for o in some] for some in (drawn, cut))
    annotation = assemble_annotation(areas, holes)
    config = TileConfig(target_mpp=1.0, patch_px=patch, stride_px=stride, inner_px=inner)
    geometry = resolve_geometry(config, slide_mpp=mpp)
    coords = tile_coords(
        (120, 110),
        tile_l0=(geometry.patch_l0, geometry.patch_l0_y),
        stride_l0=(geometry.stride_l0, geometry.stride_l0_y),
        edge="pad",
    )

    result = {
        rule: label_tiles(
            coords,
            geometry=geometry,
            annotation=annotation,
            slide_label=None,
            config=dataclasses.replace(config, label_rule=rule, negative_fraction=0.1),
        )
        for rule in ("inner", "centre", "fraction")
    }

    pairs = []
    for row, square in enumerate(inner_squares(coords, geometry)):
        box = shapely.box(*square)
        share = annotation.tumour.intersection(box).area / box.area
        hit = [
            index
            for index, lesion in enumerate(annotation.lesions)
            if lesion.relate_pattern(box, "T********")  # their interiors meet
        ]
        pairs += [[row, index] for index in hit]
        assert result["inner"].label[row] == bool(hit)
        assert result["inner"].tumour[row] == pytest.approx(share, abs=1e-6)
        assert result["centre"].label[row] == annotation.tumour.covers(box.centroid)
        if min(abs(share - 0.1), abs(share - 0.5)) > 1e-9:
            assert result["fraction"].label[row] == (1 if share > 0.5 else 0 if share < 0.1 else -1)
    assert all(found.lesion_pairs.tolist() == pairs for found in result.values())


@pytest.mark.parametrize("name", ["Tumor_011", "Tumor_064"])
def test_a_hundred_thousand_tiles_of_a_real_slide_take_a_second_or_two(name):
    path = real_data(f"annotations/camelyon16/{name}.json")
    annotation = read_annotation(path)
    config = TileConfig(target_mpp=0.243, patch_px=256, stride_px=128)
    x0, y0, _, _ = annotation.tumour.bounds
    grid = tile_coords((320 * 128, 320 * 128), tile_l0=256, stride_l0=128)
    coords = grid + np.array([int(x0) - 500, int(y0) - 500])
    started = time.perf_counter()

    result = label(coords, annotation, slide_label=1, config=config)

    assert len(coords) > 100_000
    assert time.perf_counter() - started < 10  # 0.4 s on a quiet core
    geometry = resolve_geometry(config, slide_mpp=(0.243, 0.243))
    chosen = np.random.default_rng(0).choice(len(coords), 60, replace=False)
    edge = np.flatnonzero((result.tumour > 0) & (result.tumour < 1))[::40]
    for row in np.concatenate([chosen, edge]):
        box = shapely.box(*inner_squares(coords[row : row + 1], geometry)[0])
        area = annotation.tumour.intersection(box).area
        assert result.tumour[row] == pytest.approx(area / box.area, abs=1e-6)
        assert result.label[row] == (area > 0)


@st.composite
def crossing_outlines(draw):
    """A ring of any points, which may cross itself, over the squares of the test."""
    numbers = st.floats(-20, 220, allow_nan=False, width=32)
    whole = st.integers(-2, 22).map(lambda n: 10.0 * n)  # also along and through squares' corners
    n = draw(st.integers(3, 24))
    kind = draw(st.sampled_from([numbers, whole]))
    return np.array(draw(st.lists(st.tuples(kind, kind), min_size=n, max_size=n)))


@pytest.mark.slow
@given(rings=st.lists(crossing_outlines(), min_size=1, max_size=4), cut=crossing_outlines())
@settings(max_examples=40)
def test_areas_cut_in_steps_are_those_of_each_square_cut_from_the_whole(rings, cut):
    """Brute force: every square against the union, by shapely alone."""
    areas = [repair_polygon(ring)[0] for ring in rings]
    annotation = assemble_annotation(areas, [repair_polygon(cut)[0]])
    coords = np.array([(x, y) for y in range(0, 200, 10) for x in range(0, 200, 10)])
    config = TileConfig(target_mpp=1.0, patch_px=20, inner_px=10, stride_px=10)
    with pytest.MonkeyPatch.context() as patch:  # so that these few vertices are cut in steps
        patch.setattr(overlaps, "FEW_VERTICES", 4)
        patch.setattr(overlaps, "FEW_BOXES", 1)
        patch.setattr(overlaps, "GROUPS", 3)
        result = label(coords, annotation, config=config)

    squares = shapely.box(*(coords + 5).T, *(coords + 15).T)
    for row, square in enumerate(squares):
        share = annotation.tumour.intersection(square).area / 100
        hit = [
            index
            for index, lesion in enumerate(annotation.lesions)
            if lesion.relate_pattern(square, "T********")
        ]
        assert result.label[row] == bool(hit)
        assert result.lesion_pairs[result.lesion_pairs[:, 0] == row, 1].tolist() == hit
        assert float(result.tumour[row]) == pytest.approx(share, abs=1e-7)  # float32's rounding


def test_areas_cut_in_steps_are_exact_to_a_billionth():
    rng = np.random.default_rng(1)
    angle = np.linspace(0, 2 * np.pi, 6000, endpoint=False)
    radius = 30_000 + 4_000 * np.cos(7 * angle) + rng.normal(scale=30, size=len(angle))
    ring = 100_000 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lesion, _ = repair_polygon(ring)
    x, y = ring[rng.choice(len(ring), 400, replace=False)].T
    boxes = shapely.box(np.floor(x) - 128, np.floor(y) - 128, np.floor(x) + 128, np.floor(y) + 128)

    areas = overlaps._clip_areas(lesion, boxes)

    whole = shapely.area(shapely.intersection(lesion, boxes))  # each from the whole outline
    np.testing.assert_allclose(areas, whole, rtol=1e-9)


@pytest.mark.slow
def test_an_outline_of_two_hundred_thousand_points_is_labelled_in_seconds():
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    radius = 30_000 + 6_000 * np.cos(5 * angle) + rng.normal(scale=2, size=len(angle))
    ring = 50_000 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    annotation = annotate(repair_polygon(ring)[0])
    config = TileConfig(target_mpp=0.25, patch_px=512, stride_px=256)
    coords = tile_coords((100_000, 100_000), tile_l0=512, stride_l0=256)
    started = time.perf_counter()

    result = label(coords, annotation, slide_label=1, config=config)

    assert len(coords) > 150_000
    assert time.perf_counter() - started < 30  # 2 s on a quiet core; 12 s and more, cut one by one
    covered = result.tumour.sum(dtype=float) * 256**2  # the inner squares tile the plane
    assert covered == pytest.approx(annotation.tumour.area, rel=1e-6)
