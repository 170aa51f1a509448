"""Marks of a review as corrections of labels."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tiling.annotation.labels import label_tiles
from tiling.contracts import TileConfig
from tiling.geometry import inner_squares, resolve_geometry
from tiling.polygons import assemble_annotation
from wsi_pipeline.cohort.reviews import (
    Mark,
    confirm_marks,
    correct_annotation,
    correct_labels,
    find_hard_patches,
    is_corrected,
    measure_corrections,
    read_marks,
    resolve_marks,
)
from wsi_pipeline.errors import ReviewError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.review import Reviews

SIDE = 12  # px of the rasters that results are compared with
CONFIG = TileConfig(target_mpp=1.0, patch_px=4, stride_px=2, inner_px=2)
GEOMETRY = resolve_geometry(CONFIG, slide_mpp=(1.0, 1.0))
COORDS = np.array([[x, y] for y in range(0, SIDE - 3, 2) for x in range(0, SIDE - 3, 2)])
SQUARES = inner_squares(COORDS, GEOMETRY).astype(int)


class FakeStore:
    """Labels of a small grid, as `tiling.store.PatchStore` has them."""

    coords, geometry, tiling = COORDS, GEOMETRY, {"label_rule": "inner"}
    info = SimpleNamespace(size=(SIDE, SIDE))

    def __init__(self, annotation, slide_label):
        found = label_tiles(
            COORDS,
            geometry=GEOMETRY,
            annotation=annotation,
            slide_label=slide_label,
            config=CONFIG,
        )
        self.label, self.lesion_pairs = found.label, found.lesion_pairs
        self.lesion_ids = [str(i + 1) for i in range(len(annotation.lesions))] if annotation else []


def box(x0, y0, x1, y1):
    return shapely.MultiPolygon([shapely.box(x0, y0, x1, y1)])


def at(second):
    return datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)


def marks_of(*marks):
    return resolve_marks([Mark(box(*area), state, at(second)) for area, state, second in marks])


spans = st.tuples(st.integers(0, SIDE - 1), st.integers(1, SIDE)).filter(lambda s: s[0] < s[1])
boxes = st.tuples(spans, spans).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))
states = st.sampled_from(["tumour", "normal", "unsure", ""])


def paint(mask, area, value):
    x0, y0, x1, y1 = area
    mask[y0:y1, x0:x1] = value


@settings(max_examples=60)
@given(
    tumour=st.none() | st.lists(boxes, max_size=3),
    slide_label=st.sampled_from([0, 1, None]),
    marks=st.lists(st.tuples(boxes, states, st.integers(0, 3)), max_size=6),
)
def test_corrected_labels_are_those_of_a_mask_corrected_pixel_by_pixel(tumour, slide_label, marks):
    annotation = None if tumour is None else assemble_annotation([box(*b) for b in tumour], [])
    if annotation is not None:
        slide_label = slide_label and int(bool(annotation.lesions))
        slide_label = None if slide_label == 0 and annotation.lesions else slide_label
    corrections = marks_of(*marks)
    found = correct_labels(
        FakeStore(annotation, slide_label),
        slide_label=slide_label,
        annotation=annotation,
        corrections=corrections,
    )

    mask = np.zeros((SIDE, SIDE), bool)
    is_known = np.full((SIDE, SIDE), annotation is not None or slide_label == 0)
    for area in tumour or []:
        paint(mask, area, True)
    last = np.full((SIDE, SIDE), "", object)
    for area, state, _ in sorted(marks, key=lambda mark: mark[2]):  # equally late ones: the last
        if state:
            paint(last, area, state)
    for state, value in (("tumour", True), ("normal", False)):
        mask[last == state] = value
        is_known[last == state] = True
    unsure = last == "unsure"
    expected = []
    for x0, y0, x1, y1 in SQUARES.tolist():
        here = slice(y0, y1), slice(x0, x1)
        label = int(mask[here].any()) if is_known[here].all() else -1
        expected.append(-1 if unsure[here].any() else label)

    assert found.patch_labels.tolist() == expected
    pairs = {(patch, found.lesion_ids[lesion]) for patch, lesion in found.lesion_pairs.tolist()}
    if annotation is not None or slide_label == 0:
        met = {patch for patch, _ in pairs}
        assert met == {i for i, s in enumerate(SQUARES) if mask[s[1] : s[3], s[0] : s[2]].any()}
        if found.annotation is not None:
            assert found.annotation.tumour.area == mask.sum()
            assert len(found.lesion_ids) == len(found.annotation.lesions)
        if slide_label is not None:
            assert found.slide_label == int(mask.any()) or not is_corrected(annotation, corrections)
    else:
        assert not pairs
        assert found.slide_label == slide_label


def test_the_latest_mark_is_valid_and_one_without_a_time_is_the_latest():
    early, late = (
        marks_of(((0, 0, 4, 4), "tumour", 1), ((2, 0, 6, 4), "normal", 2)),
        marks_of(((0, 0, 4, 4), "tumour", 2), ((2, 0, 6, 4), "normal", 1)),
    )
    assert (early.tumour.area, early.normal.area) == (8, 16)
    assert (late.tumour.area, late.normal.area) == (16, 8)
    drawn = resolve_marks([Mark(box(0, 0, 4, 4), "tumour"), Mark(box(0, 0, 4, 4), "normal", at(3))])
    assert (drawn.tumour.area, drawn.normal.area) == (16, 0)


def test_a_mark_without_a_truth_changes_nothing_and_is_counted():
    corrections = marks_of(((0, 0, 4, 4), "", 1), ((0, 0, 2, 2), "tumour", 0))
    assert (corrections.n_marks, corrections.n_without_truth) == (1, 1)
    assert corrections.tumour.area == 4


def test_a_mark_of_a_patch_whose_label_is_right_keeps_the_annotation_as_it_is():
    """Else each mark at the edge of a lesion would add the rest of its square, or cut some off."""
    annotation = assemble_annotation([box(0, 0, 2, 12)], [])
    store = FakeStore(annotation, 1)
    tile, other = box(0, 0, 4, 4), box(2, 0, 6, 4)  # the inner squares begin 1 px further in
    assert store.label[:2].tolist() == [1, 0]
    confirmed = [Mark(tile, "tumour", at(2), "right", 0), Mark(other, "normal", at(2), "right", 1)]
    cut = Mark(box(0, 0, 12, 6), "normal", at(1), "wrong")  # an earlier region
    for marks in (confirmed, [cut, *confirmed]):
        corrections = resolve_marks(confirm_marks(marks, store, store.label))
        assert corrections.n_marks == len(marks)
        found = correct_annotation(annotation, corrections).tumour
        assert shapely.intersection(found, box(0, 0, 6, 4)).area == 8
    moved = [replace(confirmed[0], area=other), replace(confirmed[0], row=99)]
    wrong = [replace(confirmed[0], state="normal"), Mark(tile, "tumour", at(2), "right")]
    unsure = Mark(tile, "unsure", at(2), "unsure", 0)
    for mark in (*moved, *wrong, unsure):
        assert confirm_marks([mark], store, store.label) == [mark]


def test_only_area_that_is_added_or_removed_is_a_correction():
    annotation = assemble_annotation([box(0, 0, 6, 6)], [])
    confirmed = marks_of(((1, 1, 3, 3), "tumour", 0), ((6, 0, 9, 9), "normal", 0))
    assert not is_corrected(annotation, confirmed)
    corrected = marks_of(((4, 4, 8, 8), "tumour", 0), ((0, 0, 1, 6), "normal", 0))
    assert measure_corrections(annotation, corrected) == (12, 6)
    assert correct_annotation(annotation, corrected).tumour.area == 36 + 12 - 6


def feature(name, metadata, **geometry):
    ring = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
    return {
        "type": "Feature",
        "geometry": geometry or {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}, "metadata": metadata},
    }


@pytest.mark.parametrize(
    ("name", "metadata", "state"),
    [
        ("wrong", {"verdict": "wrong", "truth": "normal"}, "normal"),
        ("right", {"verdict": "right", "truth": "tumour"}, "tumour"),
        ("right", {"verdict": "wrong", "truth": "normal"}, "tumour"),  # turned around in QuPath
        ("unsure", {"verdict": "wrong", "truth": "normal"}, "unsure"),
        ("wrong", {"verdict": "unsure"}, ""),
        ("wrong", {"truth": "normal"}, "normal"),
        ("right", {}, ""),
        ("Tumor", {}, "tumour"),
        ("Normal", {}, "normal"),
        ("Stroma", {}, ""),
        ("", {}, ""),
    ],
)
def test_what_a_mark_states(tmp_path, name, metadata, state):
    path = tmp_path / "s.geojson"
    path.write_text(json.dumps([feature(name, metadata)]))  # QuPath writes bare lists, too
    [mark] = read_marks(path)
    assert (mark.state, mark.area.area) == (state, 16)


def test_marks_that_the_viewer_wrote_are_read_and_shapes_of_qupath(tmp_path):
    run = RunFolder(tmp_path)
    points = [[0, 0], [8, 0], [8, 8], [0, 8]]
    mark = {"points": points, "verdict": "wrong", "truth": "tumour"}
    Reviews(run).change("s", {"add": mark}, (100, 100))
    [mark] = read_marks(run.review("s"))
    assert mark.state == "tumour"
    assert mark.area.equals(shapely.box(0, 0, 8, 8))
    assert abs((datetime.now(UTC) - mark.time).total_seconds()) < 60

    review = json.loads(run.review("s").read_text())
    bow_tie = [[10, 0], [14, 4], [14, 0], [10, 4], [10, 0]]
    hole = [[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]
    square = feature("wrong", {})["geometry"]["coordinates"][0]
    truth = {"truth": "normal"}
    review["features"] += [
        feature("wrong", truth, type="MultiPolygon", coordinates=[[square, hole], [bow_tie]]),
        feature("wrong", truth, type="Point", coordinates=[1, 1]),
        {**feature("wrong", truth), "properties": {"objectType": "detection"}},
    ]
    run.review("s").write_text(json.dumps(review))
    _, drawn = read_marks(run.review("s"))
    assert drawn.area.area == 16 - 1 + 8


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "3",
        '{"type": "FeatureCollection"}',
        '{"type": "FeatureCollection", "features": [{"type": "x"}]}',
        '[{"type": "Feature", "properties": 3}]',
        json.dumps([feature("wrong", {}, type="Polygon", coordinates=[[["a", 1]] * 4])]),
        "[" * 100_000,
    ],
    ids=["cut", "number", "no-features", "no-feature", "properties", "position", "deep"],
)
def test_a_damaged_review_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "s 1.geojson").write_text(text)
    with pytest.raises(ReviewError, match=r"^review/s 1\.geojson: .*move it away"):
        read_marks(tmp_path / "s 1.geojson")


def test_rules_of_labels_are_those_of_the_store():
    store = FakeStore(None, 0)
    store.tiling = {"label_rule": "fraction", "positive_fraction": 0.5, "negative_fraction": 0.0}
    corrections = marks_of(((0, 0, 2, 2), "tumour", 0))  # a quarter of the first inner square
    given_labels = {"slide_label": 0, "annotation": None, "corrections": corrections}
    assert correct_labels(store, **given_labels).patch_labels[0] == -1
    store.tiling = {**store.tiling, "positive_fraction": 0.25}
    found = correct_labels(store, **given_labels)
    assert (found.patch_labels[0], found.slide_label) == (1, 1)
    empty = replace(corrections, tumour=shapely.MultiPolygon())
    unchanged = correct_labels(store, **{**given_labels, "corrections": empty})
    assert unchanged.patch_labels is store.label
    assert unchanged.annotation is None


verdicts = st.sampled_from(["right", "wrong", "unsure", ""])


@settings(max_examples=60)
@given(
    tumour=st.lists(boxes, max_size=2),
    marks=st.lists(st.tuples(boxes, states, st.integers(0, 3), verdicts), max_size=5),
)
def test_hard_patches_are_those_whose_latest_verdict_is_wrong_and_whose_label_is_right(
    tumour, marks
):
    store = FakeStore(assemble_annotation([box(*b) for b in tumour], []), None)
    hard = find_hard_patches(store, [Mark(box(*b), s, at(t), v) for b, s, t, v in marks])

    last = np.full((SIDE, SIDE), None, object)
    for area, state, _, verdict in sorted(marks, key=lambda mark: mark[2]):
        if verdict:
            paint(last, area, state if verdict == "wrong" else None)
    labels = {"tumour": [1], "normal": [0], "unsure": [], "": [0, 1], None: []}
    expected = [
        any(label in labels[state] for state in last[y0:y1, x0:x1].ravel())
        for (x0, y0, x1, y1), label in zip(SQUARES.tolist(), store.label.tolist(), strict=True)
    ]
    assert hard.tolist() == expected
