"""Aperio ImageScope's XML: layers, regions, holes, and kinds of shapes."""

import math

import pytest
import shapely

from tests.helpers.annotation_files import imagescope, layer, region, square
from tiling.annotation.reading import read_annotation

HOLE = square(40, 40)
BIG = square(0, 0, 100)


@pytest.fixture
def read(tmp_path):
    def _read(*layers, **options):
        path = tmp_path / "s.xml"
        path.write_text(imagescope(*layers), encoding="utf-8")
        return read_annotation(path, **options)

    return _read


def test_regions_of_a_layer_are_tumour_in_level_0_pixels(read):
    annotation = read(layer(region(square(5, 7)), name="Tumor"))

    assert annotation.tumour.bounds == (5, 7, 15, 17)
    assert annotation.notes == ()


def test_layers_without_a_name_are_tumour_with_a_note(read):
    annotation = read(layer(region(BIG, number=3), number=2))

    assert annotation.tumour.area == 10_000
    assert annotation.notes[0].endswith(": layer 2, region 3")


def test_a_negative_region_is_a_hole(read):
    annotation = read(layer(region(HOLE, negative=1), region(BIG, number=2)))

    assert annotation.tumour.area == 9_900
    assert not annotation.tumour.contains(shapely.Point(45, 45))


def test_a_negative_region_is_a_hole_whatever_its_text(read):
    layers = layer(region(BIG), region(HOLE, negative=1, text="Necrosis"), name="Tumor")

    assert read(layers).tumour.area == 9_900


def test_a_negative_region_cuts_its_own_layer_only(read):
    annotation = read(
        layer(region(BIG), name="Tumor"),
        layer(region(square(20, 20, 60)), region(HOLE, negative=1), name="Stroma"),
    )

    assert annotation.tumour.area == 10_000


def test_a_hole_in_an_exclusion_is_not_excluded(read):
    annotation = read(
        layer(region(BIG), name="Tumor"),
        layer(region(square(20, 20, 60)), region(HOLE, negative=1), name="Exclusion"),
    )

    assert annotation.tumour.area == 10_000 - 3_600 + 100


def test_a_layer_of_negative_regions_only_is_cut_out_of_all(read):
    annotation = read(layer(region(BIG)), layer(region(HOLE, negative=1)))

    assert annotation.tumour.area == 9_900


def test_a_region_under_a_hole_is_skipped_with_a_note(read):
    annotation = read(layer(region(HOLE), region(BIG, negative=1, number=2), name="Tumor"))

    assert annotation.lesions == ()
    assert annotation.notes[0] == "skipped, as negative regions cover them: layer 1, region 1"


@pytest.mark.parametrize("points", [[(0, 0), (30, 20)], [(0, 0), (30, 0), (30, 20), (0, 20)]])
def test_a_rectangle_is_given_by_two_or_four_corners(read, points):
    assert read(layer(region(points, kind=1), name="Tumor")).tumour.area == 600


@pytest.mark.parametrize(
    "points",
    [
        [(10, 20), (50, 40)],
        [(50, 20), (10, 40)],
        [(10, 20), (50, 20), (50, 40), (10, 40)],
        [(30, 20), (50, 30), (30, 40), (10, 30)],
    ],
    ids=["corners", "other corners", "box", "ends of the axes"],
)
def test_an_ellipse_fills_the_bounding_box_of_its_vertices(read, points):
    tumour = read(layer(region(points, kind=2), name="Tumor")).tumour

    assert tumour.area == pytest.approx(math.pi * 20 * 10, rel=2e-3)
    assert tumour.bounds == pytest.approx((10, 20, 50, 40), abs=0.05)
    assert not tumour.contains(shapely.Point(11, 21))


def test_an_ellipse_of_many_vertices_is_its_outline(read):
    assert read(layer(region([*square(0, 0), (0, 5)], kind=2), name="Tumor")).tumour.area == 100


@pytest.mark.parametrize(
    ("kind", "word"), [(3, "arrow"), (4, "ruler"), (5, "region of type 5"), (9, "type 9")]
)
def test_arrows_and_rulers_are_ignored_with_a_note(read, kind, word):
    annotation = read(layer(region(BIG, kind=kind), region(HOLE, number=2), name="Tumor"))

    assert annotation.tumour.area == 100
    assert word in annotation.notes[0]


def test_without_a_type_a_region_is_a_polygon(tmp_path):
    """The least that scripts write: https://github.com/pjl54/WSI_handling."""
    points = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in BIG)
    text = (
        '<Annotations><Annotation LineColor="65280"><Regions><Region><Vertices>'
        f"{points}</Vertices></Region></Regions></Annotation></Annotations>"
    )
    (tmp_path / "s.xml").write_text(text)

    assert read_annotation(tmp_path / "s.xml").tumour.area == 10_000


def test_kinds_in_words_and_short_vertices_are_read(tmp_path):
    """As HALO writes them."""
    points = "".join(f'<V X="{x}" Y="{y}"/>' for x, y in BIG)
    text = (
        '<Annotations><Annotation Name="Tumor" Visible="True"><Regions>'
        f'<Region Type="Polygon" HasEndcaps="0" NegativeROA="0"><Vertices>{points}</Vertices>'
        "</Region></Regions></Annotation></Annotations>"
    )
    (tmp_path / "s.xml").write_text(text)

    assert read_annotation(tmp_path / "s.xml").tumour.area == 10_000


@pytest.mark.parametrize(
    ("name", "attributes", "text", "area"),
    [
        ("Tumor", (), "", 10_000),
        ("Stroma", (), "Tumor", 0),  # the layer comes first
        ("Layer 1", (("Description", "Stroma"),), "", 0),
        ("", (("Description", "Stroma"),), "", 0),
        ("", (("Class", "Stroma"),), "Tumor", 0),
        ("", (), "Stroma", 0),
        ("", (), "Mitosis, see below", 10_000),  # free text is no class
        ("", (("Description", "drawn at lunch"),), "", 10_000),
        ("Gleason 4", (), "", 10_000),
    ],
)
def test_where_the_class_of_a_region_is_looked_for(read, name, attributes, text, area):
    annotation = read(layer(region(BIG, text=text), name=name, attributes=attributes))

    assert annotation.tumour.area == area


def test_free_text_stays_out_of_the_notes(read):
    """A description may name a person."""
    annotation = read(layer(region(BIG, text="Dr Doe"), attributes=(("Description", "by Dr Doe"),)))

    assert not any("Doe" in note for note in annotation.notes)


def test_a_text_that_is_excluded_by_a_setting_is_a_class(read):
    layers = (layer(region(BIG), name="Tumor"), layer(region(HOLE, text="Fold"), number=2))

    assert read(*layers, exclude=["fold"]).tumour.area == 9_900


def test_coordinates_with_a_decimal_comma(read):
    points = [("0,5", "0,5"), ("10,5", "0,5"), ("10,5", "10,5"), ("0,5", "10,5")]

    assert read(layer(region(points), name="Tumor")).tumour.bounds == (0.5, 0.5, 10.5, 10.5)


def test_no_region_is_no_tumour(read):
    assert read(layer()).lesions == ()
    assert read().lesions == ()
