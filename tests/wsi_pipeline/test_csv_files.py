"""CSV as it is written and read: what went in comes out, and no spreadsheet runs it."""

import ast
import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsi_pipeline.csv_files import (
    format_csv,
    format_row,
    guard,
    iterate_csv,
    read_csv,
    write_csv,
    write_tables,
)
from wsi_pipeline.errors import ManifestError

ROOT = Path(__file__).parents[2]
# Whatever UTF-8 can hold; the first characters are those that formulas and our mark begin with.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.builds(
    "".join, st.lists(st.sampled_from("'=+-@\t\r\n\",;1a ＝"), max_size=8)
)
FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "-a",
    "=",
]


@given(st.lists(st.lists(texts, min_size=2, max_size=2), max_size=5))
@example([["'=1", "''=1"], ["\r", "\n"], ["", ""]])
def test_text_reads_back_as_it_was(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    write_csv(path, ("a", "=b"), rows)
    assert read_csv(path, error=ManifestError) == [
        dict(zip(("a", "=b"), r, strict=True)) for r in rows
    ]
    assert path.read_bytes().decode() == format_csv(("a", "=b"), rows)


@given(texts)
def test_only_a_number_begins_as_a_formula_does(text):
    cell = guard(text)
    if cell.startswith(tuple("=+-@\t\r\n＝＋－＠")):
        assert math.isfinite(float(cell)) or "e" in cell.lower()


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_formulas_are_written_as_text(text):
    assert guard(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["-1", "+2", "-0.5", "-1e-05", "+.5", "-3.", "0", "tumor-1", "a=b"]
)
def test_numbers_and_other_text_stay_as_they_are(text):
    assert guard(text) == text


@given(st.floats(allow_nan=False), st.integers())
def test_numbers_stay_numbers(x, n):
    cells = format_row([x, n, None]).removesuffix("\n").split(",")
    assert (float(cells[0]), int(cells[1]), cells[2]) == (x, n, "")


def test_rows_are_those_of_the_csv_module():
    """An oracle for all that needs no mark: quotes, commas, lines, empty fields."""
    import io

    rows = [("a,b", 'c"d', "e\nf"), ("", "", ""), ("",), ("é", 1, 0.1)]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    assert "".join(map(format_row, rows)) == buffer.getvalue()


def test_a_list_of_ten_thousand_lesions_is_read(tmp_path):
    """The csv module refuses fields beyond 131072 characters by default."""
    lesions = ";".join(f"annotation {n}" for n in range(10_000))
    write_csv(tmp_path / "t.csv", ["lesions"], [[lesions]])
    assert read_csv(tmp_path / "t.csv", error=ManifestError) == [{"lesions": lesions}]


def test_text_that_utf8_cannot_hold_is_written_as_its_escape(tmp_path):
    write_csv(tmp_path / "t.csv", ["message"], [["caf\udce9.svs: no such file"]])
    assert (tmp_path / "t.csv").read_text() == "message\ncaf\\udce9.svs: no such file\n"


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(ManifestError, match=r"t\.csv: not a CSV file in UTF-8"):
        list(iterate_csv(tmp_path / "t.csv", error=ManifestError))
    with pytest.raises(ManifestError, match=r"n\.csv: cannot be read \(No such file"):
        list(iterate_csv(tmp_path / "n.csv", error=ManifestError))


def test_every_csv_goes_through_one_module():
    """A writer of its own would leave formulas in place, and a reader of its own the marks."""
    found = set()
    for path in [*ROOT.glob("tiling/**/*.py"), *ROOT.glob("wsi_pipeline/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if "csv" in (*names, module):
                found.add(path.name)
    assert found == {"csv_files.py"}


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(st.tuples(texts, st.integers(-9, 9), st.floats(width=32)), max_size=4), max_size=3
    )
)
def test_tables_by_columns_are_the_rows(tmp_path_factory, tables):
    folder = tmp_path_factory.mktemp("tables")
    header = ("name", "n", "score")
    columns = [
        [[r[0] for r in t], np.array([r[1] for r in t], int), np.array([r[2] for r in t], float)]
        for t in tables
    ]
    write_tables(folder / "columns.csv", header, columns)
    rows = [(*row[:2], None if math.isnan(row[2]) else row[2]) for t in tables for row in t]
    write_csv(folder / "rows.csv", header, rows)
    assert (folder / "columns.csv").read_bytes() == (folder / "rows.csv").read_bytes()
