"""Marks: digests of what was made, and what is wrong with it now."""

import hashlib
import json

import pytest

from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.marks import Mark, is_inside, read_mark, read_names, write_mark
from wsi_pipeline.run.state import (
    check_unit,
    clear_mark,
    examine_unit,
    iterate_failures,
    mark_finished,
    missing_shards,
    read_splits,
    record_damage,
    record_splits,
    unit_state,
    write_failures,
)

UNIT = Unit("predict", "s", "m")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run whose one unit is finished."""
    run = RunFolder(tmp_path / "run")
    path = run.scores("m", "s")
    path.parent.mkdir(parents=True)
    path.write_text("scores")
    mark_finished(run, UNIT, "f", [path])
    return run


def test_a_mark_holds_size_and_digest(run):
    mark = read_mark(UNIT.mark(run, "done"))
    assert mark is not None
    assert mark.files == {"scores/m/s.h5": 6}

    assert mark.sha256 == {"scores/m/s.h5": hashlib.sha256(b"scores").hexdigest()}
    assert examine_unit(run, UNIT, "f").state == "finished"
    assert examine_unit(run, UNIT, "g").state == "stale"


def test_a_change_that_keeps_the_size_is_noticed_and_named(run):
    run.scores("m", "s").write_text("Scores")
    found = examine_unit(run, UNIT, "f")
    assert found.state == "damaged"
    assert found.problems == ("scores/m/s.h5 has changed since it was written",)


@pytest.mark.parametrize(
    ("edit", "state", "printed"),
    [
        (lambda path: path.unlink(), "missing", "scores/m/s.h5 is missing"),
        (lambda path: path.write_text("x"), "damaged", "scores/m/s.h5 has 1 bytes, not 6"),
    ],
)
def test_a_file_that_is_gone_or_cut_is_named(run, edit, state, printed):
    edit(run.scores("m", "s"))
    found = examine_unit(run, UNIT, "f")
    assert (found.state, found.problems) == (state, (printed,))


def test_marks_of_earlier_versions_are_compared_by_size(run):
    """They have no digests, and the fingerprint that those versions computed."""
    path = UNIT.mark(run, "done")
    path.write_text(json.dumps({"fingerprint": "old", "files": {"scores/m/s.h5": 6}}))
    run.scores("m", "s").write_text("Scores")
    assert unit_state(run, UNIT, "old") == "finished"
    assert unit_state(run, UNIT, "new") == "stale"
    assert examine_unit(run, UNIT, "new", earlier_fingerprint=lambda: "old").state == "finished"


def test_the_fingerprint_of_earlier_versions_counts_for_their_marks_alone(run):
    assert examine_unit(run, UNIT, "new", earlier_fingerprint=lambda: "f").state == "stale"


def test_damage_that_a_later_stage_found_has_the_file_rebuilt(run):
    record_damage(run, run.scores("m", "s"), "heatmap", "s.h5: damaged")
    record_damage(run, run.scores("m", "s"), "heatmap", "s.h5: damaged")  # said once
    [problem] = check_unit(run, UNIT)
    assert str(problem) == "scores/m/s.h5 was found damaged by heatmap (s.h5: damaged)"
    assert unit_state(run, UNIT, "f") == "damaged"
    clear_mark(run, UNIT)
    mark_finished(run, UNIT, "f", [run.scores("m", "s")])
    assert unit_state(run, UNIT, "f") == "finished"


@pytest.mark.parametrize("name", ["tiles/s.png", "heatmaps/m/s.png", "../x.h5"])
def test_damage_of_what_no_stage_reads_is_not_recorded(run, name):
    record_damage(run, run.path / name, "heatmap", "damaged")
    assert check_unit(run, UNIT) == []


ODD = [
    "",
    "null",
    "[1, 2]",
    '"text"',
    "{}",
    '{"fingerprint": 3, "files": {}}',
    '{"fingerprint": "f", "files": ["a"]}',
    '{"fingerprint": "f", "files": {"a": "6"}}',
    '{"fingerprint": "f", "files": {"a": true}}',
    '{"fingerprint": "f", "files": {"a\\u0000": 6}}',
    '{"fingerprint": "f", "files": {}, "sha256": {"a": "0"}}',
    '{"fingerprint": "f", "files": {"a": 1}, "sha256": {"a": 0}}',
    '{"fingerprint": "f", "files": {}, "damaged": "yes"}',
    "[" * 100_000,
    "\udcff",
]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_mark_of_another_shape_is_named_and_counts_as_missing(run, caplog, text):
    path = UNIT.mark(run, "done")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert unit_state(run, UNIT, "f") == "missing"
    assert "run/.state/predict/m/s.done.json: damaged mark" in caplog.text
    assert check_unit(run, UNIT) == []
    clear_mark(run, UNIT)  # whatever is left of it
    mark_finished(run, UNIT, "f", [run.scores("m", "s")])
    assert unit_state(run, UNIT, "f") == "finished"


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_other_records_of_another_shape_stop_nothing(run, caplog, text):
    content = text.encode("utf-8", "surrogateescape")
    record_splits(run, "predict", "", "m", ["test"])
    for path in (
        UNIT.mark(run, "failed"),
        UNIT.mark(run, "earlier"),
        run.path / ".state/predict/shards/0-of-2.json",
        run.path / ".state/predict/m/asked.json",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    [row] = iterate_failures(run)
    assert (row["slide_id"], row["stage"]) == ("s", "predict")
    assert "s.failed.json: damaged record of a failure" in row["message"]
    assert write_failures(run) == 1
    assert missing_shards(run, "predict") == (0, [])
    assert "0-of-2.json: damaged record of a shard" in caplog.text
    assert read_splits(run, "predict", "", "m", ["val"]) == ["val"]
    mark_finished(run, UNIT, "f", [run.scores("m", "s")])
    assert unit_state(run, UNIT, "f") == "finished"


@pytest.mark.parametrize("splits", [None, [], ["val", "test"]])
def test_the_splits_asked_for_come_back(run, splits):
    record_splits(run, "export", "qupath", "m", splits)
    assert read_splits(run, "export", "qupath", "m", ["train"]) == splits
    assert read_splits(run, "export", "clam", "m", ["train"]) == ["train"]


@pytest.mark.parametrize(
    "name", ["../x/a.csv", "scores/../../a.csv", "/tmp/a.csv", "scores/m/../../../a.csv", ".", ""]
)
def test_a_list_that_names_files_elsewhere_has_none_of_them_removed(run, tmp_path, name):
    assert not is_inside(name)
    victim = tmp_path / "a.csv"
    victim.write_text("mine")
    (tmp_path / "x").mkdir()
    UNIT.mark(run, "earlier").write_text(json.dumps({"files": [name, str(victim), "a\0b", 7]}))
    mark_finished(run, UNIT, "f", [run.scores("m", "s")])
    assert victim.read_text() == "mine"
    assert read_names(UNIT.mark(run, "earlier")) == []


def test_a_file_that_cannot_be_read_is_a_problem_not_a_stop(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("wsi_pipeline.run.marks.digest_file", refuse)
    [problem] = check_unit(run, UNIT)
    assert str(problem) == "scores/m/s.h5 cannot be read (Permission denied)"


def test_a_mark_comes_back_as_it_was_written(tmp_path):
    mark = Mark("f", {"a": 1, "b": 2}, {"a": "0"}, ("was found damaged",))
    write_mark(tmp_path / "x.done.json", mark)
    assert read_mark(tmp_path / "x.done.json") == mark
    assert read_mark(tmp_path / "y.done.json") is None
    assert [p.name for p in tmp_path.iterdir()] == ["x.done.json"]
