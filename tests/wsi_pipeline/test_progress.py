"""Plain lines, as a cluster's log file shows them."""

import pytest

from wsi_pipeline import progress
from wsi_pipeline.progress import StageProgress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_says_slides_patches_speed_and_time_left(clock, capsys):
    with StageProgress("tile", 3) as told:
        told.begin("a")
        clock[0] += 25
        told.inside(500, 2000)
        clock[0] += 75
        told.end("a", "2000 patches")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tile: a: 500 of 2000, 20 per second, about 75 s left"
    assert lines[1] == "tile: [1/3] a: 2000 patches (about 3 min left)"


def test_what_was_kept_does_not_shorten_the_time_left(clock, capsys):
    with StageProgress("tile", 100) as told:
        for number in range(98):
            told.end(str(number), "finished before, kept")
        told.begin("a")
        clock[0] += 60
        told.end("a", "done")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tile: [1/100] 0: finished before, kept"
    assert lines[-1] == "tile: [99/100] a: done (about 60 s left)"


def test_quiet_tells_failures_only(clock, capsys):
    with StageProgress("tile", 2, quiet=True) as told:
        told.begin("a")
        clock[0] += 100
        told.inside(1, 2)
        told.end("a", "done")
        told.end("b", "failed: no tissue", failed=True)
    assert capsys.readouterr().err == "tile: [2/2] b: failed: no tissue\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.4, "3 s"), (150, "2 min"), (5900, "98 min"), (9000, "2.5 h")]
)
def test_durations(seconds, said):
    assert progress._spell(seconds) == said


def test_the_time_left_is_told_for_several_workers_too(clock, capsys):
    with StageProgress("tile", 10) as told:
        told.end("kept", "finished before, kept")
        told.begin_all([str(number) for number in range(9)])
        clock[0] += 40
        for number in range(2):  # two workers, side by side
            told.end(str(number), "done")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "tile: [3/10] 1: done (about 2 min left)"  # 7 more, 20 s each
