"""Annotation files: what each format holds, and what is wrong with bad ones."""

import gzip
import json
import math

import numpy as np
import pytest
import shapely

from tests.helpers.annotation_files import (
    asap,
    asap_polygon,
    closed,
    collection,
    feature,
    polygon,
    square,
)
from tests.helpers.real_data import DATA, real_data
from tiling.annotation.formats.asap_xml import write_asap_xml
from tiling.annotation.reading import check_annotation_fits, read_annotation
from tiling.errors import AnnotationError

CAMELYON = "annotations/camelyon16"
CAMELYON_FILES = sorted(p.stem for p in (DATA / CAMELYON).glob("*.json")) or ["absent"]


@pytest.fixture
def read(tmp_path):
    """Write content to a file of the given name and read it as an annotation."""

    def _read(content, name="slide_7.xml"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return read_annotation(path)

    return _read


class TestAsap:
    @pytest.mark.parametrize(
        "group", ["Tumor", "tumor", "TUMOUR", "_0", "_1", "metastases", "Metastasis"]
    )
    def test_tumour_groups_are_tumour(self, read, group):
        annotation = read(asap(asap_polygon(group, square(5, 7)), groups=[(group, "None")]))

        assert annotation.tumour.bounds == (5, 7, 15, 17)
        assert annotation.notes == ()

    @pytest.mark.parametrize("group", ["_2", "Exclusion", "exclusion"])
    def test_exclusions_are_cut_out(self, read, group):
        annotation = read(
            asap(
                asap_polygon("_0", square(0, 0, 100)),
                asap_polygon(group, square(40, 40, 10)),
                groups=[("_0", "None"), (group, "None")],
            )
        )

        assert annotation.tumour.area == 10_000 - 100
        assert not annotation.tumour.contains(shapely.Point(45, 45))

    @pytest.mark.parametrize("group", ["normal", "Normal tissue", "Stroma", "non-tumour"])
    def test_other_tissue_is_neither_and_noted(self, read, group):
        annotation = read(asap(asap_polygon(group, square(0, 0)), groups=[(group, "None")]))

        assert annotation.lesions == ()
        assert annotation.notes == (f"not tumour by their group: {group}",)

    def test_groups_within_groups_take_the_meaning_of_the_nearest_that_has_one(self, read):
        groups = [("inner", "middle"), ("middle", "Exclusion"), ("Exclusion", "Tumor")]
        annotation = read(
            asap(
                asap_polygon("Tumor", square(0, 0, 100)),
                asap_polygon("inner", square(40, 40, 10)),
                groups=[*groups, ("Tumor", "None")],
            )
        )

        assert annotation.tumour.area == 9_900

    def test_a_group_of_unknown_name_is_tumour_with_a_note(self, read):
        annotation = read(
            asap(
                asap_polygon("Non-small cell carcinoma", square(0, 0)),
                groups=[("Non-small cell carcinoma", "None")],
            )
        )

        assert annotation.tumour.area == 100
        assert "group taken as tumour" in annotation.notes[0]
        assert "Non-small cell carcinoma" in annotation.notes[0]

    def test_groups_in_a_ring_end(self, read):
        annotation = read(asap(asap_polygon("a", square(0, 0)), groups=[("a", "b"), ("b", "a")]))

        assert annotation.tumour.area == 100

    def test_a_group_that_is_not_declared_counts_by_its_name_with_a_note(self, read):
        annotation = read(asap(asap_polygon("Tumor", square(0, 0)), groups=[]))

        assert annotation.tumour.area == 100
        assert annotation.notes == ("used as a group but not declared as one: Tumor",)

    def test_vertices_follow_their_order_not_their_place(self, read):
        points = square(0, 0)
        shuffled = [points[i] for i in (2, 0, 3, 1)]
        annotation = read(asap(asap_polygon("Tumor", shuffled, orders=[2, 0, 3, 1])))

        assert annotation.tumour.area == 100
        assert annotation.notes == ()

    def test_without_order_vertices_follow_their_place(self, read):
        text = asap(asap_polygon("Tumor", square(0, 0))).replace('Order="1"', "")

        assert read(text).tumour.area == 100

    def test_tenth_vertex_comes_after_the_ninth(self, read):
        """Order is a number, not a word."""
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        points = [(100 + 50 * math.cos(a), 100 + 50 * math.sin(a)) for a in angles]
        reversed_file = asap_polygon("Tumor", points[::-1], orders=range(11, -1, -1))

        assert read(asap(reversed_file)).tumour.area == pytest.approx(3 * 50**2)

    def test_decimals_with_a_comma(self, read):
        points = [("0,5", "0,5"), ("10,5", "0,5"), ("10,5", "10,5"), ("0,5", "10,5")]

        assert read(asap(asap_polygon("Tumor", points))).tumour.bounds == (0.5, 0.5, 10.5, 10.5)

    def test_splines_and_rectangles_are_polygons(self, read):
        annotation = read(
            asap(
                asap_polygon("Tumor", square(0, 0), kind="Spline", name="soft"),
                asap_polygon("Tumor", square(50, 0), kind="Rectangle"),
                asap_polygon("Tumor", [(100, 0), (110, 10)], kind="Rectangle"),
            )
        )

        assert [lesion.area for lesion in annotation.lesions] == [100, 100, 100]
        assert annotation.notes == ("taken as the polygon through the points of a spline: soft",)

    @pytest.mark.parametrize("kind", ["Dot", "PointSet", "Measurement"])
    def test_points_are_ignored_with_a_note(self, read, kind):
        annotation = read(asap(asap_polygon("Tumor", [(1, 1)], kind=kind, name="spot")))

        assert annotation.lesions == ()
        assert annotation.notes == (f"ignored, as a {kind} has no area: spot",)

    def test_no_polygon_is_no_tumour(self, read):
        assert read(asap()).lesions == ()

    def test_a_flat_polygon_is_skipped_with_a_note(self, read):
        annotation = read(asap(asap_polygon("Tumor", [(0, 0), (5, 5), (9, 9)], name="flat")))

        assert annotation.lesions == ()
        assert annotation.notes == ("skipped, as they enclose no area: flat",)

    def test_a_crossed_outline_is_repaired_with_a_note(self, read):
        crossed = [(0, 0), (10, 10), (10, 0), (0, 10)]
        annotation = read(asap(asap_polygon("Tumor", crossed, name="tie")))

        assert annotation.tumour.area == 50
        assert annotation.notes == ("repaired, as their outlines cross or touch themselves: tie",)

    def test_many_repaired_polygons_make_one_short_note(self, read):
        crossed = [(0, 0), (10, 10), (10, 0), (0, 10)]
        polygons = [asap_polygon("Tumor", crossed, name=f"p{i}") for i in range(40)]

        (note,) = read(asap(*polygons)).notes

        assert note.endswith("p0, p1, p2, p3, p4 and 35 more")


class TestGeoJson:
    @pytest.mark.parametrize("suffix", [".geojson", ".json"])
    @pytest.mark.parametrize(
        "wrap", [collection, lambda f: [f], lambda f: f], ids=["collection", "list", "feature"]
    )
    def test_every_way_that_qupath_wraps_features(self, read, wrap, suffix):
        content = wrap(feature(polygon(square(3, 4)), "Tumor", objectType="annotation"))

        annotation = read(content, f"slide{suffix}")

        assert annotation.tumour.bounds == (3, 4, 13, 14)
        assert annotation.notes == ()

    def test_a_bare_geometry_is_tumour(self, read):
        assert read(polygon(square(0, 0)), "s.geojson").tumour.area == 100

    def test_holes_and_many_parts(self, read):
        parts = {
            "type": "MultiPolygon",
            "coordinates": [
                [closed(square(0, 0, 100)), closed(square(40, 40)), closed(square(70, 70))],
                [closed(square(200, 0))],
            ],
        }

        annotation = read(collection(feature(parts, "Tumor")), "s.geojson")

        assert [lesion.area for lesion in annotation.lesions] == [9_800, 100]

    def test_geometry_collections_give_their_areas(self, read):
        mixed = {
            "type": "GeometryCollection",
            "geometries": [polygon(square(0, 0)), {"type": "Point", "coordinates": [1, 2]}],
        }

        annotation = read(collection(feature(mixed, "Tumor", name="mix")), "s.geojson")

        assert annotation.tumour.area == 100
        assert annotation.notes == ("ignored, as a Point has no area: mix",)

    @pytest.mark.parametrize(
        "classification",
        [{"name": "Tumor"}, {"names": ["Tumor", "Positive"]}, {"name": "Tumor: Positive"}, "Tumor"],
    )
    def test_tumour_classes_are_tumour(self, read, classification):
        content = collection(feature(polygon(square(0, 0)), classification=classification))

        annotation = read(content, "s.geojson")

        assert annotation.tumour.area == 100
        assert annotation.notes == ()

    def test_features_without_properties_are_tumour(self, read):
        content = {"type": "Feature", "geometry": polygon(square(0, 0)), "properties": None}

        assert read(content, "s.geojson").tumour.area == 100

    @pytest.mark.parametrize("name", ["Ignore*", "Region*", "Stroma", "Normal", "Immune cells"])
    def test_other_classes_are_not(self, read, name):
        annotation = read(collection(feature(polygon(square(0, 0)), name)), "s.geojson")

        assert annotation.lesions == ()
        assert annotation.notes == (f"not tumour by their class: {name}",)

    def test_excluded_classes_are_cut_out(self, read):
        content = collection(
            feature(polygon(square(10, 10)), "Exclusion"),
            feature(polygon(square(0, 0, 100)), "Tumor"),
        )

        assert read(content, "s.geojson").tumour.area == 9_900

    def test_an_unknown_class_is_tumour_with_a_note(self, read):
        annotation = read(collection(feature(polygon(square(0, 0)), "Gleason 4")), "s.geojson")

        assert annotation.tumour.area == 100
        assert "Gleason 4" in annotation.notes[0]

    @pytest.mark.parametrize(
        "extra", [{"objectType": "detection"}, {"objectType": "cell"}, {"objectType": "tile"}]
    )
    def test_what_a_command_made_is_no_annotation(self, read, extra):
        annotation = read(collection(feature(polygon(square(0, 0)), "Odd", **extra)), "s.geojson")

        assert annotation.lesions == ()
        assert len(annotation.notes) == 1
        assert "not drawn by a person" in annotation.notes[0]

    def test_old_qupath_says_the_kind_in_the_id(self, read):
        old = feature(polygon(square(0, 0)), "Tumor")
        drawn, found = {**old, "id": "PathAnnotationObject"}, {**old, "id": "PathDetectionObject"}

        assert read(collection(drawn), "a.geojson").tumour.area == 100
        assert read(collection(found), "b.geojson").lesions == ()

    def test_a_third_coordinate_and_a_byte_order_mark_do_no_harm(self, read):
        points = [[x, y, 0] for x, y in closed(square(0, 0))]
        content = collection(feature({"type": "Polygon", "coordinates": [points]}, "Tumor"))

        annotation = read(b"\xef\xbb\xbf" + json.dumps(content).encode(), "s.geojson")

        assert annotation.tumour.area == 100

    @pytest.mark.parametrize("content", [[], collection()])
    def test_no_feature_is_no_tumour(self, read, content):
        assert read(content, "s.geojson").lesions == ()


class TestCamelyonJson:
    def test_lists_define_the_meaning_and_names_are_only_ids(self, read):
        content = {
            "positive": [
                {"name": "_0", "vertices": square(0, 0, 100)},
                {"name": "_2", "vertices": square(200, 0, 10)},
            ],
            "negative": [{"name": "Annotation 0", "vertices": square(40, 40, 10)}],
        }

        annotation = read(content, "s.json")

        assert [lesion.area for lesion in annotation.lesions] == [9_900, 100]
        assert annotation.notes == ()

    def test_negative_alone_is_a_normal_slide(self, read):
        content = {"positive": [], "negative": [{"name": "a", "vertices": square(0, 0)}]}

        assert read(content, "s.json").lesions == ()

    @pytest.mark.parametrize("content", [{"positive": {}}, {"positive": [3]}, {"negative": [{}]}])
    def test_what_is_no_list_of_polygons_is_refused(self, read, content):
        with pytest.raises(AnnotationError, match=r"s\.json: (positive|negative)"):
            read(content, "s.json")

    @pytest.mark.parametrize("name", CAMELYON_FILES)
    def test_real_files_agree_with_shapely_and_negatives_are_cut(self, name):
        path = real_data(f"{CAMELYON}/{name}.json")
        content = json.loads(path.read_text())
        raw = {
            key: [shapely.Polygon(entry["vertices"]) for entry in content[key]]
            for key in ("positive", "negative")
        }
        drawn, cut = (shapely.union_all([p.buffer(0) for p in raw[key]]) for key in raw)
        valid = shapely.union_all([shapely.make_valid(p) for p in raw["positive"]])
        expected = valid.difference(
            shapely.union_all([shapely.make_valid(p) for p in raw["negative"]])
        )

        annotation = read_annotation(path)

        assert annotation.tumour.is_valid
        assert annotation.tumour.area == pytest.approx(expected.area, rel=5e-4)
        assert annotation.tumour.area >= drawn.difference(cut).area * (1 - 1e-9)  # all lobes
        assert annotation.tumour.intersection(cut).area == pytest.approx(0, abs=10)
        assert bool(annotation.lesions) == path.stem.startswith("Tumor")
        assert sum(p.area for p in annotation.lesions) == pytest.approx(annotation.tumour.area)
        if all(p.is_valid for p in raw["positive"]) and not raw["negative"]:
            assert annotation.tumour.area == pytest.approx(sum(p.area for p in raw["positive"]))


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;">]><ASAP_Annotations>&c;</ASAP_Annotations>'
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    "<ASAP_Annotations>&a;</ASAP_Annotations>"
)
TWO = [[0, 0], [1, 1]]
WHOLE = asap(asap_polygon("Tumor", square(0, 0)))


class TestBadFiles:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("s.xml", "", "is empty"),
            ("s.xml", "  \n", "is empty"),
            ("s.geojson", b"", "is empty"),
            ("s.xml", WHOLE[:200], "not well-formed XML"),
            ("s.xml", "no markup", "not well-formed XML"),
            ("s.xml", b"\xff\xfe\x00\x01garbage", "not well-formed XML"),
            ("s.xml", BOMB, "XML entities"),
            ("s.xml", OUTSIDE, "XML entities"),
            ("s.xml", "<annotations/>", "a root <Annotations>.: found a root <annotations>"),
            ("s.xml", asap(asap_polygon("Tumor", [["nan", 0], *TWO])), "not a position on a slide"),
            (
                "s.xml",
                asap(asap_polygon("Tumor", [["1e999", 0], *TWO])),
                "not a position on a slide",
            ),
            (
                "s.xml",
                asap(asap_polygon("Tumor", [["1e30", 0], *TWO])),
                "not a position on a slide",
            ),
            ("s.xml", asap(asap_polygon("Tumor", [["", 0], *TWO])), "X='', which is not a number"),
            ("s.xml", asap(asap_polygon("Tumor", [["1.000,5", 0], *TWO])), "is not a number"),
            ("s.xml", WHOLE.replace('Y="0"', ""), "a Coordinate without Y"),
            ("s.xml", WHOLE.replace('Order="1"', 'Order="x"'), "Order='x', which is not a number"),
            ("s.json", "{", "not well-formed JSON"),
            ("s.json", b"\x80\x81", "not well-formed JSON"),
            ("s.json", "3", "is neither CAMELYON JSON .* nor GeoJSON .*: found 3; export GeoJSON"),
            ("s.json", {"rois": []}, r"found keys \['rois'\]"),
            ("s.json", {"type": "Topology"}, "has type 'Topology'"),
            ("s.json", [1, 2], "item 0 has type None"),
            ("s.json", {"type": "FeatureCollection"}, "must have a list of features"),
            ("s.json", feature({"type": "Polygon", "coordinates": 5}), "needs a list"),
            ("s.json", feature(polygon([[math.nan, 0], *TWO])), "not a position on a slide"),
            ("s.json", feature(polygon([["1", 0], *TWO])), "'1' is not a number"),
            ("s.json", feature(polygon([[True, 0], *TWO])), "True is not a number"),
            ("s.json", feature(polygon([[1], *TWO])), "not a pair of numbers"),
            ("s.json", feature(polygon([[10**400, 0], *TWO])), "not a pair of numbers"),
            ("s.json", {"type": "Feature", "geometry": None, "properties": 3}, "must be an object"),
            ("s.json", '{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
            ("s.txt", "x", "has no suffix of an annotation"),
            ("s", "x", "has no suffix of an annotation"),
            ("s.xml.gz", b"no gzip", "cannot be read"),
            ("s.xml.gz", gzip.compress(WHOLE.encode(), mtime=0)[:60], "cannot be read"),
        ],
    )
    def test_the_error_names_the_file_and_the_cause(self, read, name, content, message):
        with pytest.raises(AnnotationError, match=message) as caught:
            read(content, name)

        assert str(caught.value).startswith(f"{name}: ")

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        (tmp_path / "folder.xml").mkdir()
        for name in ("absent.xml", "folder.xml"):
            with pytest.raises(AnnotationError, match=f"{name}: cannot be read"):
                read_annotation(tmp_path / name)

    def test_a_file_too_large_is_not_parsed(self, read, monkeypatch):
        monkeypatch.setattr("tiling.annotation.formats.text.MAX_BYTES", 100)

        with pytest.raises(AnnotationError, match="too much for the annotation"):
            read(gzip.compress(WHOLE.encode(), mtime=0), "s.xml.gz")

    def test_gzipped_files_are_read(self, read):
        assert read(gzip.compress(WHOLE.encode(), mtime=0), "s.xml.gz").tumour.area == 100


class TestWriting:
    def test_what_is_written_is_read_back_exactly(self, tmp_path):
        outline = np.array([[0.1, 0.2], [1e5 + 1 / 3, 0], [77_777.7, 123_456.789]])
        path = tmp_path / "out.xml"

        write_asap_xml(
            path,
            [('t <&> "1"', "Tumor", outline), ("x", "Exclusion", square(60_000, 20_000))],
            ["Tumor", "Exclusion"],
        )
        annotation = read_annotation(path)

        expected = shapely.Polygon(outline).difference(shapely.Polygon(square(60_000, 20_000)))
        assert annotation.tumour.equals(expected)
        assert annotation.notes == ()
        assert [entry.name for entry in tmp_path.iterdir()] == ["out.xml"]

    def test_the_file_has_the_layout_of_asap(self, tmp_path):
        import defusedxml.ElementTree

        path = tmp_path / "out.xml"
        write_asap_xml(path, [("one", "Tumor", square(1, 2))], ["Tumor", "Exclusion"])
        root = defusedxml.ElementTree.parse(path).getroot()

        drawn = root.find("Annotations/Annotation")
        assert root.tag == "ASAP_Annotations"
        assert {k: drawn.get(k) for k in ("Name", "Type", "PartOfGroup")} == {
            "Name": "one",
            "Type": "Polygon",
            "PartOfGroup": "Tumor",
        }
        assert drawn.find("Coordinates/Coordinate").attrib == {"Order": "0", "X": "1.0", "Y": "2.0"}
        groups = root.findall("AnnotationGroups/Group")
        assert [g.get("Name") for g in groups] == ["Tumor", "Exclusion"]
        assert all(g.get("PartOfGroup") == "None" for g in groups)
        assert all(g.find("Attributes") is not None for g in groups)

    def test_no_polygon_is_a_file_without_tumour(self, tmp_path):
        write_asap_xml(tmp_path / "normal.xml", [], ["Tumor"])

        assert read_annotation(tmp_path / "normal.xml").lesions == ()

    @pytest.mark.parametrize(
        ("polygons", "message"),
        [
            ([("a", "Tumour", square(0, 0))], "group 'Tumour', which is not among"),
            ([("a", "Tumor", TWO)], "2 vertices"),
            ([("a", "Tumor", [*TWO, [0, math.inf]])], "not a position"),
            ([("a\x00", "Tumor", square(0, 0))], "control characters"),
        ],
    )
    def test_what_could_not_be_read_back_is_not_written(self, tmp_path, polygons, message):
        with pytest.raises(AnnotationError, match=message):
            write_asap_xml(tmp_path / "out.xml", polygons, ["Tumor"])

        assert list(tmp_path.iterdir()) == []


class TestFit:
    def annotation(self, read, *points):
        return read(asap(*(asap_polygon("Tumor", outline) for outline in points)))

    def test_inside_and_along_the_edge_fits(self, read):
        annotation = self.annotation(read, square(0, 0), square(90, 40))

        assert check_annotation_fits(annotation, (100, 50)) == ()

    def test_nothing_drawn_fits(self, read):
        assert check_annotation_fits(read(asap()), (100, 50)) == ()

    def test_sticking_out_is_noted_with_where(self, read):
        annotation = self.annotation(read, square(10, 10), square(95, 45))

        (note,) = check_annotation_fits(annotation, (100, 50))

        assert note == ("outside the 100 x 50 slide in part: lesion 2 (x 95 to 105, y 45 to 55)")

    @pytest.mark.parametrize("corner", [(100, 0), (300, 10), (0, 50), (-10, 0)])
    def test_wholly_outside_is_an_error_with_both_sizes(self, read, corner):
        annotation = self.annotation(read, square(10, 10), square(*corner))

        with pytest.raises(AnnotationError, match="1 of 2 lesions lie wholly outside") as caught:
            check_annotation_fits(annotation, (100, 50))

        assert f"x {corner[0]} to {corner[0] + 10}" in str(caught.value)
        assert "100 x 50" in str(caught.value)
