"""Marks: what is finished, and which files of other settings go when it is made again."""

from pathlib import Path

import pytest

from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.state import clear_mark, mark_finished, unit_state

UNIT = Unit("heatmap", "s", "m")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def finish(run: RunFolder, *names: str, unit: Unit = UNIT, fingerprint: str = "f") -> list[Path]:
    """Do a unit that writes files of these names."""
    clear_mark(run, unit)
    files = [run.path / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(unit.slide_id)
    mark_finished(run, unit, fingerprint, files)
    return files


def state_files(run: RunFolder) -> list[str]:
    return sorted(path.name for path in (run.path / ".state").rglob("*") if path.is_file())


def test_files_of_other_settings_go_when_the_new_ones_are_whole(run):
    old, kept = finish(run, "maps/s.patchnet.png", "maps/s.png")
    finish(run, "maps/s.png")
    assert kept.is_file()
    assert not old.exists()
    assert state_files(run) == ["s.done.json"]


def test_files_of_other_settings_go_though_the_work_was_killed_and_changed_its_mind(run):
    """Each attempt forgot the list of the one before."""
    first, second = finish(run, "maps/s.a", "maps/s.b")
    clear_mark(run, UNIT)  # killed
    clear_mark(run, UNIT)  # killed again
    assert unit_state(run, UNIT, "f") == "missing"
    assert first.is_file()
    assert second.is_file()
    finish(run, "maps/s.c")
    assert not first.exists()
    assert not second.exists()
    assert state_files(run) == ["s.done.json"]


def test_a_kill_after_the_mark_leaves_it_finished(run):
    finish(run, "maps/s.a")
    list_of_before = '{"files": ["maps/s.a"]}'
    UNIT.mark(run, "earlier").write_text(list_of_before)
    assert unit_state(run, UNIT, "f") == "finished"
    finish(run, "maps/s.a")
    assert state_files(run) == ["s.done.json"]


def test_files_that_another_unit_has_made_since_stay(run):
    """The dense map of the slide s once had the name of the heatmap of the slide s.dense."""
    finish(run, "maps/s.dense.png", "maps/s.png")
    other = Unit("heatmap", "s.dense", "m")
    (made,) = finish(run, "maps/s.dense.png", unit=other)
    finish(run, "maps/s.png")
    assert made.read_text() == "s.dense"
    assert unit_state(run, other, "f") == "finished"


def test_files_in_another_folder_or_outside_of_the_run_stay(run):
    outside, before = finish(run, "../x/s.csv", "exports/a/s.csv")
    finish(run, "../x/s.csv.gz", "exports/b/s.csv")
    assert outside.is_file()
    assert before.is_file()
