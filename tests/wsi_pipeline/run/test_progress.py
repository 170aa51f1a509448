"""Plain lines, as a cluster's log file shows them."""

import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from wsi_pipeline.cli import app
from wsi_pipeline.run import progress
from wsi_pipeline.run.activity import Took
from wsi_pipeline.run.progress import StageProgress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_says_slides_patches_speed_and_time_left(clock, capsys):
    with StageProgress("tile", 3) as bar:
        bar.begin("a", "patch")
        clock[0] += 25
        bar.inside(500, 2000)
        clock[0] += 75
        bar.end("a", "2000 patches")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tile: a: 500 of 2000 patches, 20/s, about 75 s left"
    assert lines[1] == "tile: [1/3] a: 2000 patches (2 min per slide, about 3 min left)"


def test_what_was_kept_does_not_shorten_the_time_left(clock, capsys):
    with StageProgress("tile", 100) as bar:
        for number in range(98):
            bar.end(str(number), "finished before, kept")
        bar.begin("a", "patch")
        clock[0] += 60
        bar.end("a", "done")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tile: [1/100] 0: finished before, kept"
    assert lines[-1] == "tile: [99/100] a: done (60 s per slide, about 60 s left)"


def test_quiet_shows_failures_only(clock, capsys):
    with StageProgress("tile", 2, quiet=True) as bar:
        bar.begin("a", "patch")
        clock[0] += 100
        bar.inside(1, 2)
        bar.end("a", "done")
        bar.end("b", "failed: no tissue", failed=True)
    assert capsys.readouterr().err == "tile: [2/2] b: failed: no tissue\n"


@pytest.mark.parametrize(
    ("done", "rate"),
    [(8, "3.8 s per batch"), (90, "3.0/s"), (2, "15 s per batch"), (3000, "100/s")],
)
def test_slow_work_has_a_rate_above_zero(clock, capsys, done, rate):
    """A training of four steps a second or fewer was shown as 0/s."""
    with StageProgress("train", 1) as bar:
        bar.begin("vgg16", "batch")
        clock[0] += 30
        bar.inside(done, 4000)
    assert f"vgg16: {done} of 4000 batches, {rate}, about" in capsys.readouterr().err
    speed = SimpleNamespace(speed=done / 30, fields={"noun": "batch"})
    assert progress._SpeedColumn().render(speed).plain == rate


def test_nothing_is_left_at_the_end(clock, capsys):
    with StageProgress("train", 1) as bar:
        bar.begin("vgg16", "batch")
        clock[0] += 30
        bar.inside(130, 130)
    assert capsys.readouterr().err == "train: vgg16: 130 of 130 batches, 4.3/s\n"


def test_the_time_left_is_reported_for_several_workers_too(clock, capsys):
    with StageProgress("tile", 10) as bar:
        bar.end("kept", "finished before, kept")
        bar.begin_all([str(number) for number in range(9)])
        clock[0] += 40
        for number in range(2):  # two workers, side by side
            bar.end(str(number), "done")
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[-1] == "tile: [3/10] 1: done (20 s per slide, about 2 min left)"
    )  # 7 more, 20 s each


def test_the_bar_names_what_it_counts():
    count = progress._CountColumn()
    task = SimpleNamespace(completed=3, total=40, fields={"noun": "batch"})
    assert count.render(task).plain == "3/40 batches"
    assert count.render(SimpleNamespace(total=None)).plain == ""


def test_warnings_and_lines_of_a_second_stage_leave_the_moving_bar_whole(monkeypatch):
    """A warning was written behind the bar, on its line."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    console = Console(file=terminal, force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(progress, "_console", console)
    handler = logging.StreamHandler(app._CurrentStderr())
    with StageProgress("tile", 2) as bar:
        bar.begin("a", "patch")
        handler.emit(logging.makeLogRecord({"msg": "s1: no mpp"}))
        with StageProgress("predict", 1, in_background=True) as other:
            other.line("one slide")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", terminal.getvalue())
    lines = [re.sub(r".*\r", "", line) for line in shown.splitlines()]
    assert {"s1: no mpp", "predict: one slide"} <= {line.rstrip() for line in lines}


def test_without_a_terminal_a_line_has_seconds_machine_and_time(capsys):
    with StageProgress("tile", 1) as bar:
        bar.end("a", "2000 patches", took=Took(84.2, "node17", "2026-11-29T11:25:32.123+00:00"))
    line = "tile: [1/1] a: 2000 patches [84 s on node17, 2026-11-29T11:25:32Z]\n"
    assert capsys.readouterr().err == line
