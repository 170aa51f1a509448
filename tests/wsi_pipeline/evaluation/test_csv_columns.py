"""Columns read as arrays are the rows read one by one, or the file is not plain."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsi_pipeline.evaluation import compare_slides, csv_columns, froc_lists
from wsi_pipeline.evaluation.csv_columns import Layout, NotPlainError, read_columns
from wsi_pipeline.evaluation.detections import (
    _order_of_all_slides,
    _read_by_row,
    _read_plain,
    read_detection_file,
)
from wsi_pipeline.evaluation.froc_lists import read_lesion_names, read_slide_list
from wsi_pipeline.evaluation.tables import parse_number, read_rows

numbers = st.one_of(
    st.integers(-(10**16), 10**16).map(str),
    st.floats().map(repr),
    st.sampled_from(["", "+5", "-0", "1.", ".5", "-", "1e5", "1_0", " 1", "0x1", "12a", "1e999"]),
)
names = st.sampled_from(["a", "bb", "", "é", " c", "'=x", '"q"', "a\u2028b"])


@settings(max_examples=100)
@given(
    st.lists(st.tuples(names, numbers, numbers), min_size=1, max_size=6),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([5, 2**22]),
)
@example([("a", "1", "2"), ("", "", ""), ("a", "3", "4")], "\n", True, 5)
def test_columns_are_the_rows_or_the_file_is_not_plain(tmp_path_factory, rows, end, ends, chunk):
    path = tmp_path_factory.mktemp("columns") / "table.csv"
    text = end.join(",".join(row) for row in rows) + (end if ends else "")
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_columns, "_CHUNK_BYTES", chunk)
        try:
            found = read_columns(path, lambda _: Layout(False, (1, 2), (0,)))
        except NotPlainError:
            return
    expected = [fields for _, fields in read_rows(path)]
    got = [
        [found.names[0][code], *values]
        for code, *values in zip(found.codes[0], *found.numbers, strict=True)
    ]
    got = [row for row in got if row[0] or not np.isnan(row[1:]).all()]  # blank rows are no rows
    assert [row[0] for row in got] == [fields[0] for fields in expected]
    for row, fields in zip(got, expected, strict=True):
        parsed = [np.nan if not text else parse_number(text) for text in fields[1:]]
        np.testing.assert_array_equal(row[1:], np.array(parsed, float))
        assert (np.signbit(row[1:]) == np.signbit(np.array(parsed, float))).all()


def test_ordinary_tables_are_plain(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfslide_id,score\r\nt\xc3\xa9,0.25\r\nt\xc3\xa9,-3\r\nb,\r\n")
    found = read_columns(path, lambda fields: Layout(fields[0] == "slide_id", (1,), (0,)))
    assert found.first_line == 2
    assert found.names == [["té", "b"]]
    assert found.codes[0].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(found.numbers[0], [0.25, -3, np.nan])


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "tumor_1"]),
            st.floats(0, 1).map(repr),
            st.floats(-5, 1e6).map(repr) | st.integers(0, 10**6).map(str),
            st.integers(0, 10**6).map(str),
        ).map(list)
        | st.sampled_from([["a", "", "", ""], ["c", "", "", ""]]),
        min_size=1,
    )
)
def test_detections_by_columns_are_those_by_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("detections") / "all.csv"
    path.write_text("\n".join(",".join(row) for row in [["slide_id", "prob", "x", "y"], *rows]))
    by_column, by_row = (read(path, _order_of_all_slides) for read in (_read_plain, _read_by_row))
    np.testing.assert_array_equal(by_column.values, by_row.values)
    assert by_column.lines.tolist() == by_row.lines.tolist()
    assert by_column.names == by_row.names
    assert by_column.codes.tolist() == by_row.codes.tolist()


def test_a_row_that_only_names_its_slide_is_no_detection(tmp_path):
    """In a file of one slide it became a detection without a position."""
    path = tmp_path / "a.csv"
    path.write_text("slide_id,prob,x,y\na,,,\na,0.5,3,4\n")
    found = read_detection_file(path)
    assert found.detections.x.tolist() == [3]
    assert found.lines.tolist() == [3]
    assert found.slides == ((2, "a"),)


SLIDES = "slide_id,label,lesions\na,1,1;x y\nb,1,2\nc,0,\n"


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "b.tif", "c"]),
            st.floats(0, 1).map(repr) | st.sampled_from(["", "nan", "2"]),
            st.sampled_from(["", "", "1", "1;x y", "x y; 1;1", "2"]),
        )
    ),
    st.booleans(),
)
def test_patches_by_columns_are_those_by_row(tmp_path_factory, rows, header):
    folder = tmp_path_factory.mktemp("patches")
    (folder / "slides.csv").write_text(SLIDES)
    slides = read_slide_list(folder / "slides.csv", with_lesions=True)
    lesions = read_lesion_names(slides)
    path = folder / "patches.csv"
    head = [("slide_id", "score", "lesions")] if header else []
    path.write_text("".join(",".join(row) + "\n" for row in [*head, *rows]))
    try:
        by_column = froc_lists._read_plain_patches(path, slides, lesions)
    except NotPlainError:
        return
    by_row = froc_lists._read_patches_by_row(path, slides, lesions)
    assert list(by_column) == list(by_row)
    for slide_id, expected in by_row.items():
        np.testing.assert_array_equal(by_column[slide_id].scores, expected.scores)
        assert by_column[slide_id].pairs.tolist() == expected.pairs.tolist()


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.floats(0, 1).map(repr) | st.just(""),
            st.sampled_from(["-1", "0", "1"]),
        )
    )
)
def test_compared_patches_by_columns_are_those_by_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("patches") / "patches.csv"
    head = ("slide_id", "score", "label")
    path.write_text("".join(",".join(row) + "\n" for row in [head, *rows]))
    by_column = compare_slides._read_plain_patches(path)
    by_row = compare_slides._read_patches_by_row(path)
    assert by_column.keys() == by_row.keys()
    for slide_id, parts in by_row.items():
        for got, expected in zip(by_column[slide_id], parts, strict=True):
            assert got.tolist() == expected.tolist()
            assert got.dtype == expected.dtype
