"""What holds for annotations of every format: no class, no area, any encoding."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.annotation_files import (
    asap,
    asap_polygon,
    closed,
    collection,
    feature,
    imagescope,
    layer,
    polygon,
    region,
    square,
)
from tiling.annotation.formats.text import decode_text
from tiling.annotation.formats.xml import parse_xml
from tiling.annotation.reading import read_annotation
from tiling.errors import AnnotationError


def as_asap(pieces):
    drawn = [asap_polygon(group or "None", ring, name=name) for name, group, ring in pieces]
    groups = [(group, "None") for group in dict.fromkeys(g for _, g, _ in pieces if g)]
    return "s.xml", asap(*drawn, groups=groups)


def as_imagescope(pieces):
    return "s.xml", imagescope(
        *(layer(region(ring), name=group or "", number=name) for name, group, ring in pieces)
    )


def as_qupath(pieces):
    return "s.geojson", collection(
        *(feature(polygon(ring), group, name=name) for name, group, ring in pieces)
    )


def as_tiatoolbox(pieces):
    return "s.geojson", collection(
        *(
            feature(polygon(ring), name=name, **({"type": group} if group else {}))
            for name, group, ring in pieces
        )
    )


FORMATS = [as_asap, as_imagescope, as_qupath, as_tiatoolbox]
every_format = pytest.mark.parametrize("write", FORMATS, ids=lambda f: f.__name__)
ROI, TUMOUR = ("1", None, square(0, 0, 100)), ("2", "Tumor", square(20, 20, 10))


@pytest.fixture
def read(tmp_path):
    def _read(named, **options):
        name, content = named
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        (tmp_path / name).write_bytes(content)
        return read_annotation(tmp_path / name, **options)

    return _read


# ------------------------------------------------------------ without class


@every_format
def test_beside_classes_an_annotation_without_one_is_a_region(read, write):
    """It was tumour in GeoJSON (the whole region of interest), and normal in ASAP."""
    annotation = read(write([ROI, TUMOUR]))

    assert annotation.tumour.area == 100
    (note,) = annotation.notes
    assert note.startswith("annotations without class taken as regions, not as tumour")
    assert "unclassified=tumour" in note


@every_format
def test_if_nothing_has_a_class_all_is_tumour(read, write):
    annotation = read(write([ROI, ("2", None, square(200, 0, 10))]))

    assert annotation.tumour.area == 10_100
    (note,) = annotation.notes
    assert note.startswith("annotations without class taken as tumour")
    assert "unclassified=region" in note


@every_format
@pytest.mark.parametrize(("unclassified", "area"), [("tumour", 10_000), ("region", 100)])
def test_a_setting_decides_otherwise(read, write, unclassified, area):
    both = read(write([ROI, TUMOUR]), unclassified=unclassified)
    alone = read(write([ROI]), unclassified=unclassified)

    assert both.tumour.area == area
    assert alone.tumour.area == (10_000 if unclassified == "tumour" else 0)
    assert not any("taken as" in note for note in both.notes + alone.notes)


@every_format
def test_a_class_that_is_no_tumour_shows_that_classes_are_in_use(read, write):
    annotation = read(write([ROI, ("2", "Stroma", square(20, 20, 10))]))

    assert annotation.lesions == ()
    assert any("taken as regions" in note for note in annotation.notes)


@every_format
def test_an_exclusion_is_cut_out_of_what_has_no_class_only_where_that_is_tumour(read, write):
    pieces = [ROI, ("2", "Exclusion", square(20, 20, 10))]

    assert read(write(pieces)).tumour.area == 0
    assert read(write(pieces), unclassified="tumour").tumour.area == 9_900


@every_format
@pytest.mark.parametrize("word", ["None", "none", " ", "Unclassified"])
def test_words_for_no_class_are_no_class(read, write, word):
    assert read(write([("1", word, square(0, 0))])).tumour.area == 100
    assert read(write([("1", word, square(0, 0)), TUMOUR])).tumour.area == 100
    assert read(write([("1", word, square(50, 50)), TUMOUR])).lesions[0].bounds[0] == 20


@every_format
def test_excluding_the_word_none_cuts_it_out(read, write):
    pieces = [("1", "None", square(22, 22, 2)), TUMOUR]

    assert read(write(pieces), exclude=["None"]).tumour.area == 96


@every_format
def test_one_note_however_many_annotations(read, write):
    pieces = [(str(i), None, square(20 * i, 0)) for i in range(30)]

    (note,) = read(write(pieces)).notes

    assert note.endswith(" and 25 more")


def test_a_group_that_is_declared_but_not_used_is_no_class(read):
    annotation = read(("s.xml", asap(asap_polygon("None", square(0, 0)))))  # declares Tumor

    assert annotation.tumour.area == 100


def test_the_root_of_groups_gives_its_groups_no_meaning(read):
    named = ("s.xml", asap(asap_polygon("Gleason 4", square(0, 0)), groups=[("Gleason 4", "None")]))

    assert read(named, exclude=["None"]).tumour.area == 100


def test_without_the_attribute_there_is_no_group(read):
    text = asap(asap_polygon("X", square(0, 0))).replace('PartOfGroup="X"', "")

    assert read(("s.xml", text)).tumour.area == 100


def test_classes_of_detected_cells_make_their_region_no_tumour(read):
    """https://github.com/DIAGNijmegen/pathology-whole-slide-data/issues/51."""
    content = collection(
        feature(polygon(square(0, 0, 100)), objectType="annotation"),
        feature(polygon(square(5, 5)), "Tumor", objectType="cell"),
    )

    assert read(("s.geojson", content)).lesions == ()


def test_a_point_with_a_class_shows_that_classes_are_in_use(read):
    dot = asap_polygon("Tumor", [(1, 1)], kind="Dot")

    assert read(("s.xml", asap(dot, asap_polygon("None", square(0, 0))))).lesions == ()


@pytest.mark.parametrize(
    ("properties", "is_tumour"),
    [
        ({"classification": "Tumor"}, True),
        ({"classification": "Stroma"}, False),
        ({"classification": {"name": "Stroma"}, "type": "Tumor"}, False),
        ({"classification": None, "type": "Stroma"}, False),
        ({"classification": {}, "class": "Stroma"}, False),
        ({"type": "Stroma"}, False),
        ({"class": "Stroma"}, False),
        ({"label": "Stroma"}, False),
        ({"type": 1}, True),  # the number of a class has no known meaning: used with a note
        ({"type": "Feature", "label": "Stroma"}, False),
    ],
)
def test_where_a_class_is_looked_for(read, properties, is_tumour):
    annotation = read(("s.geojson", collection(feature(polygon(square(0, 0)), **properties))))

    assert bool(annotation.lesions) is is_tumour
    assert not any("without class" in note for note in annotation.notes)


@pytest.mark.parametrize("kind", ["Feature", "annotation", "Polygon", "Rectangle", True, None, ""])
def test_a_kind_of_object_is_no_class(read, kind):
    content = collection(feature(polygon(square(0, 0)), type=kind))

    (note,) = read(("s.geojson", content)).notes

    assert note.startswith("annotations without class taken as tumour")


def test_camelyon_lists_need_no_class(read):
    content = {"positive": [{"name": "a", "vertices": square(0, 0)}], "negative": []}

    assert read(("s.json", content)).notes == ()


# ------------------------------------------------------------ without area

DEGENERATE = {
    "empty": [],
    "one point": [[5, 5]],
    "two points": [[0, 0], [9, 9]],
    "two points, closed": [[0, 0], [9, 9], [0, 0]],
    "one point four times": [[5, 5]] * 4,
    "on a line": [[0, 0], [5, 5], [9, 9]],
}


def as_camelyon(pieces):
    return "s.json", {"positive": [{"name": name, "vertices": ring} for name, _, ring in pieces]}


every_writer = pytest.mark.parametrize("write", [*FORMATS, as_camelyon], ids=lambda f: f.__name__)


def raw_polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


@every_writer
@pytest.mark.parametrize("ring", DEGENERATE.values(), ids=DEGENERATE)
def test_what_encloses_no_area_is_skipped_with_a_note(read, write, ring):
    """ASAP and CAMELYON JSON were refused, with all their other polygons."""
    if write in (as_qupath, as_tiatoolbox):
        name, content = write([TUMOUR])
        broken = feature(raw_polygon(ring), "Tumor", name="7")
        content["features"].append(broken)
    else:
        name, content = write([TUMOUR, ("7", "Tumor", ring)])

    annotation = read((name, content))

    assert annotation.tumour.area == 100
    (note,) = annotation.notes
    assert note.startswith("skipped, as they enclose no area: ")
    assert "7" in note


@pytest.mark.parametrize("hole", [[], [[5, 5]], [[5, 5], [6, 6]], [[5, 5]] * 4], ids=len)
def test_a_hole_without_area_is_skipped_with_a_note(read, hole):
    content = collection(feature(raw_polygon(closed(square(0, 0)), hole), "Tumor", name="a"))

    annotation = read(("s.geojson", content))

    assert annotation.tumour.area == 100
    assert annotation.notes == ("holes skipped, as they enclose no area: a",)


@pytest.mark.parametrize("coordinates", [[], None, [[]], [[[1, 1]]]], ids=str)
@pytest.mark.parametrize("kind", ["Polygon", "MultiPolygon"])
def test_an_empty_geometry_is_skipped(read, coordinates, kind):
    if kind == "MultiPolygon" and coordinates:
        coordinates = [coordinates]
    broken = feature({"type": kind, "coordinates": coordinates}, "Tumor")

    assert read(("s.geojson", collection(broken))).lesions == ()


@every_writer
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_what_is_no_position_is_refused(read, write, bad):
    """Not skipped: something went wrong where it was written."""
    with pytest.raises(AnnotationError, match="not a position on a slide"):
        read(write([("1", "Tumor", [[bad, 0], [5, 5], [9, 0]])]))


# ------------------------------------------------------------ encodings

ACCENTED = "infiltré"
JSON_TEXT = json.dumps(
    collection(feature(polygon(square(0, 0)), ACCENTED, name="a")), ensure_ascii=False
)
XML_TEXT = asap(asap_polygon(ACCENTED, square(0, 0)), groups=[(ACCENTED, "None")])
UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
MARK = "\ufeff"  # a byte order mark, encoded by the codec that follows


@pytest.mark.parametrize("encoding", UNICODE)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.geojson", JSON_TEXT),
        ("s.xml", XML_TEXT),
        ("s.xml", XML_TEXT.replace('<?xml version="1.0"?>\n', "")),
    ],
)
def test_every_unicode_encoding_is_read(read, name, text, encoding):
    annotation = read((name, text.encode(encoding)))

    assert annotation.tumour.area == 100
    assert ACCENTED in annotation.notes[0]


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-32-le"])
def test_a_byte_order_mark_of_either_order_is_dropped(read, encoding):
    annotation = read(("s.geojson", (MARK + JSON_TEXT).encode(encoding)))

    assert ACCENTED in annotation.notes[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [("s.json", JSON_TEXT), ("s.xml", XML_TEXT), ("s.xml", XML_TEXT.split("\n", 1)[1])],
)
def test_windows_1252_is_read_with_a_note(read, name, text):
    """ImageScope and scripts on Windows declare nothing; it was called damaged."""
    annotation = read((name, text.encode("cp1252")))

    assert annotation.tumour.area == 100
    assert annotation.notes[0].startswith("read as Windows-1252, as it is not UTF-8")
    assert ACCENTED in annotation.notes[1]


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "windows-1252", "gb18030", "cp437", "utf-8"])
def test_a_declared_encoding_is_honoured_without_a_note(read, encoding):
    text = XML_TEXT.replace('version="1.0"', f'version="1.0" encoding="{encoding}"')

    (note,) = read(("s.xml", text.encode(encoding))).notes

    assert ACCENTED in note


@pytest.mark.parametrize("declared", ["utf-16", "UTF-16LE", "no-such-encoding", "rot13", "base64"])
def test_a_declared_encoding_that_it_does_not_have_does_no_harm(read, declared):
    """.NET's StringWriter declares UTF-16 on what is then saved as UTF-8."""
    text = XML_TEXT.replace('version="1.0"', f'version="1.0" encoding="{declared}"')

    assert ACCENTED in read(("s.xml", text.encode())).notes[0]


@given(st.text(st.characters(codec="utf-16"), min_size=1), st.sampled_from(UNICODE))
def test_json_text_comes_back_from_every_encoding(text, encoding):
    written = json.dumps({"a": text}, ensure_ascii=False)

    assert decode_text(written.encode(encoding)) == (written, ())


def test_entities_in_another_encoding_are_refused():
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><Annotations>&a;</Annotations>'
    for encoding in UNICODE:
        with pytest.raises(AnnotationError, match="XML entities"):
            parse_xml(bomb.encode(encoding))
