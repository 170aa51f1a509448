"""CAMELYON16 detection files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.contracts import Detections
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.detections import (
    read_detection_file,
    write_detections,
)


def read(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_detection_file(path)


@settings(max_examples=30)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=6
    )
)
def test_what_is_written_is_read_back(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("d") / "a.csv"
    p, x, y = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    write_detections(path, Detections(np.array(x, int), np.array(y, int), np.array(p, float)))
    again = read_detection_file(path).detections
    assert (again.scores.tolist(), again.x.tolist(), again.y.tolist()) == (p, x, y)


@pytest.mark.parametrize(
    "text",
    [
        "0.5,1,2\n1,3,4\n",
        "prob,x,y\n0.5,1,2\n1,3,4\n",
        "\ufeffprob,x,y\r\n0.5,1,2\r\n\r\n1.0,3,4",
        "Confidence,X coordinate,Y coordinate\n0.5,1.0,2.0\n1,3,4\n",
        "x,y,probability\n1,2,0.5\n3,4,1\n",
        " 0.5, 1 , 2\n1,3,4",
    ],
    ids=["bare", "header", "bom-crlf-blank", "other-names", "other-order", "blanks"],
)
def test_a_header_is_optional(tmp_path, text):
    found = read(tmp_path, text).detections
    assert found.scores.tolist() == [0.5, 1.0]
    assert found.x.tolist() == [1, 3]
    assert found.y.tolist() == [2, 4]


@pytest.mark.parametrize("text", ["", "\n\n", "prob,x,y\n"])
def test_an_empty_file_holds_no_detections(tmp_path, text):
    assert read(tmp_path, text).detections.x.size == 0


def test_scores_keep_float64(tmp_path):
    assert read(tmp_path, "0.1000000000000001,1,2").detections.scores[0] == 0.1000000000000001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,1,2\n1.5,1,2", r"a\.csv, line 2: prob '1.5' is not a number from 0 to 1"),
        ("nan,1,2", "line 1: prob 'nan'"),
        ("0.5,1,2\n\n\nhigh,1,2", "line 4: prob 'high'"),
        ("0.5,left,2", "line 1: x 'left' is not a position"),
        ("0.5,1,inf", "line 1: y 'inf'"),
        ("0.5,1e300,2", "line 1: x '1e300'"),
        ("0.5,1_0,2", "line 1: x '1_0'"),
        ("0.5,1", "line 1: 2 fields, expected 3"),
        ("0.5;1;2", "line 1: '0.5;1;2' is neither a detection nor a header"),
        ("prob,x\n0.5,1", "line 1: 'prob,x' is neither"),
        ("a,b,c\n0.5,1,2", "line 1: 'a,b,c' is neither"),
        ("1200,3400,0.9", "line 1: prob '1200'"),
        (b"\xff\xfe\x00", "not a CSV file in UTF-8"),
        ('"0.5,1,2', "not a CSV file in UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_named_by_file_and_line(tmp_path, text, message):
    with pytest.raises(EvaluationError, match=message):
        read(tmp_path, text)


def test_the_last_pixel_is_on_the_slide_and_the_next_is_not(tmp_path):
    found = read(tmp_path, "prob,x,y\n0.5,99,49\n0.5,100,49\n")
    found.on_slide((101, 50))
    with pytest.raises(EvaluationError, match=r"a\.csv, line 3: .* x 100, y 49 lies outside"):
        found.on_slide((100, 50))


def test_without_a_size_only_negative_positions_are_outside(tmp_path):
    read(tmp_path, "0.5,99999,49").on_slide(None)
    with pytest.raises(EvaluationError, match=r"line 1: .*level-0 pixels, from 0"):
        read(tmp_path, "0.5,3,-1").on_slide(None)
