"""What `status` shows of a run that is being written: by the marks, and the logs of processes."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.helpers.waiting_stage import SLIDES, Wait, let_go, make_run, work
from tiling.processes import read_start
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.image_folder import ImageEntry, write_images
from wsi_pipeline.config.reading import Config
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run import activity
from wsi_pipeline.run.runner import Options, run_stage
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.state import mark_shard
from wsi_pipeline.stages.status import find_status
from wsi_pipeline.stages.status_text import as_plain, describe

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return make_run(tmp_path)


def status(run: RunFolder) -> dict:
    return as_plain(find_status(run))


def counts(run: RunFolder, stage: str = "tile") -> dict[str, int]:
    """Count the units of a stage in each state that any is in."""
    [found] = [one for one in status(run)["stages"] if one["stage"] == stage]
    names = ("done", "running", "failed", "missing", "out_of_date")
    assert sum(found[f"n_{name}"] for name in names) == found["n"]
    return {name: found[f"n_{name}"] for name in names if found[f"n_{name}"]}


def start(folder: Path, shard: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.helpers.waiting_stage", str(folder), shard]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def wait_until(is_so) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_tasks_of_an_array_one_of_them_killed(run, tmp_path):
    """They are listed while they work; the killed one as stopped, until its part is done again."""
    tasks = [start(tmp_path, "0/2"), start(tmp_path, "1/2")]
    try:
        wait_until(lambda: counts(run) == {"running": 2, "missing": 2})
        found = status(run)["processes"]
        assert {one["pid"] for one in found} == {task.pid for task in tasks}
        assert {one["host"] for one in found} == {platform.node()}
        assert {one["shard"]: one["working_on"][0]["slide_id"] for one in found} == {
            "0/2": "s0",
            "1/2": "s1",
        }
        let_go(tmp_path, "s1")
        wait_until(lambda: counts(run) == {"done": 1, "running": 2, "missing": 1})

        tasks[0].kill()
        tasks[0].wait()
        assert counts(run) == {"done": 1, "running": 1, "missing": 2}
        assert status(run)["arrays"] == [
            {"stage": "tile", "count": 2, "n_ended": 0}
            | {"running": [1], "stopped": [0], "not_begun": []}
        ]
        stopped, alive = sorted(status(run)["processes"], key=lambda one: one["shard"])
        assert (stopped["state"], stopped["pid"]) == ("stopped", tasks[0].pid)
        assert stopped["working_on"][0]["slide_id"] == "s0"
        assert (alive["state"], alive["n_ended"]) == ("running", 1)
        lines = describe(find_status(run))
        assert "stopped without finishing: 1 process" in lines
        assert "tile: array of 2 tasks: 0 ended, 1 running, 1 stopped (0)" in lines
        assert any(re.search(r"0/2.*0 of 2 ended.*working on s0$", line) for line in lines)

        let_go(tmp_path, *SLIDES)
        assert tasks[1].wait(60) == 0
        assert [one["state"] for one in status(run)["processes"]] == ["stopped"]
        work(tmp_path, options=Options(shard=Shard(0, 2)))
        assert counts(run) == {"done": 4}
        assert status(run)["processes"] == status(run)["arrays"] == []
    finally:
        for task in tasks:
            task.kill()
            task.wait()


def test_an_interrupted_command_is_named_until_another_one_does_its_work(run, tmp_path):
    let_go(tmp_path, *SLIDES)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, interrupt=True)
    [stopped] = status(run)["processes"]
    assert stopped["state"] == "stopped"
    assert counts(run) == {"missing": 4}
    work(tmp_path)
    assert status(run)["processes"] == []
    assert counts(run) == {"done": 4}


def test_finished_slides_of_other_settings_are_out_of_date_until_they_are_rebuilt(run, tmp_path):
    """They were counted as done while the command that rebuilds them is at work."""
    let_go(tmp_path, *SLIDES)
    work(tmp_path)
    config = replace(Config(), seed=7)
    tasks = [Wait(s, tmp_path, "e", interrupt=s == "s2") for s in SLIDES]
    with pytest.raises(KeyboardInterrupt):
        run_stage("tile", run, tasks, config, Options(quiet=True))
    assert counts(run) == {"done": 2, "missing": 1, "out_of_date": 1}
    assert "tile: out of date: s3" in describe(find_status(run))
    work(tmp_path, config=config, made_of="e")
    assert counts(run) == {"done": 4}


def test_settings_that_were_given_up_leave_nothing_out_of_date(run, tmp_path):
    """The marks agree with the settings of the last command, which had nothing to do."""
    let_go(tmp_path, *SLIDES)
    work(tmp_path)
    tasks = [Wait(s, tmp_path, "e", interrupt=s == "s1") for s in SLIDES]
    with pytest.raises(KeyboardInterrupt):
        run_stage("tile", run, tasks, replace(Config(), seed=7), Options(quiet=True))
    assert counts(run) == {"done": 1, "missing": 1, "out_of_date": 2}
    work(tmp_path)  # s0 and s1 are rebuilt
    assert counts(run) == {"done": 4}


def log_done(run: RunFolder, unit: Unit, fingerprint: str) -> None:
    """Leave the mark and the log of a finished unit."""
    with (
        activity.log_stage(run, unit.stage, n_units=1, settings="") as log,
        activity.log_unit(run, unit, log.name) as end,
    ):
        unit.mark(run, "done").parent.mkdir(parents=True, exist_ok=True)
        unit.mark(run, "done").write_text("{}")
        end("done", fingerprint)
    time.sleep(0.002)  # times in a log are of milliseconds


def test_scores_are_out_of_date_once_their_patches_are_others(run):
    for slide in SLIDES:
        log_done(run, Unit("tile", slide), "a" * 16)
        log_done(run, Unit("predict", slide, "vgg16"), slide)
    assert counts(run, "predict") == {"done": 4}
    log_done(run, Unit("tile", "s1"), "a" * 16)  # rebuilt, since it was damaged: as before
    assert counts(run, "predict") == {"done": 4}
    log_done(run, Unit("tile", "s2"), "b" * 16)
    assert counts(run, "predict") == {"done": 3, "out_of_date": 1}
    log_done(run, Unit("train", "", "vgg16"), "c" * 16)
    log_done(run, Unit("heatmap", "s0", "vgg16"), "d" * 16)
    assert counts(run, "predict") == {"out_of_date": 4}
    assert counts(run, "heatmap") == {"out_of_date": 1, "missing": 3}  # of old scores


def test_nothing_is_written(run, tmp_path):
    let_go(tmp_path, *SLIDES)
    (tmp_path / "s0.bad").touch()
    work(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.path.rglob("*")}
    assert counts(run) == {"done": 3, "failed": 1}
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.path.rglob("*")} == before


def test_a_log_has_no_path_and_no_message(run, tmp_path):
    """A message may contain what a file is called, or who is on a slide's label."""
    let_go(tmp_path, *SLIDES)
    (tmp_path / "s0.bad").touch()
    work(tmp_path)
    [log] = run.logs.glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["begin", "start", "failed", *["start", "done"] * 3, "end"]
    assert str(tmp_path) not in log.read_text()
    assert "Doe" not in log.read_text()
    assert [line["slide_id"] for line in lines if line["event"] == "done"] == ["s1", "s2", "s3"]
    assert all(line["seconds"] >= 0 and line["host"] for line in lines if "seconds" in line)


def test_a_command_with_nothing_to_do_leaves_no_log(run, tmp_path):
    let_go(tmp_path, *SLIDES)
    work(tmp_path)
    before = sorted(run.logs.iterdir())
    work(tmp_path)
    assert sorted(run.logs.iterdir()) == before


def write_log(run: RunFolder, *, age_s: float = 0.0, more=(), **about) -> None:
    """Write the log of a process that works on s0."""
    at = datetime.fromtimestamp(time.time() - 60, UTC).isoformat()
    begin = {"event": "begin", "time": at, "stage": "tile", "host": "elsewhere", "pid": 5}
    begin |= {"pids": "", "started": 1, "shard": None, "units": 4, **about}
    working = {"event": "start", "time": at, "stage": "tile", "slide_id": "s0"}
    run.logs.mkdir(exist_ok=True)
    path = run.logs / f"tile.{len(list(run.logs.iterdir()))}.jsonl"
    path.write_text("\n".join([json.dumps(begin), json.dumps(working), *more]))
    os.utime(path, (time.time() - age_s,) * 2)


@pytest.mark.parametrize(("age_s", "state"), [(100, "running"), (1000, "stopped")])
def test_a_process_of_another_machine_is_judged_by_its_last_sign_of_life(run, age_s, state):
    write_log(run, age_s=age_s)
    [found] = status(run)["processes"]
    assert found["state"] == state
    assert counts(run) == ({"running": 1, "missing": 3} if state == "running" else {"missing": 4})


def test_a_clock_that_is_behind_does_not_take_a_dead_process_for_alive(run):
    """Another process has just written: by the file server's clock, it is later than here."""
    write_log(run, age_s=1000)
    write_log(run, age_s=-1000, shard="1/2")
    states = {one["shard"]: one["state"] for one in status(run)["processes"]}
    assert states["1/2"] == "running"
    assert None not in states  # and the other has been taken over


@NEEDS_PROC
def test_another_process_with_the_same_number_is_not_taken_for_it(run):
    here = activity.describe_process({})
    write_log(run, **here)
    assert [one["state"] for one in status(run)["processes"]] == ["running"]
    write_log(run, **{**here, "started": here["started"] - 1})
    assert [one["state"] for one in status(run)["processes"]] == ["running", "stopped"]


@NEEDS_PROC
def test_a_process_that_has_ended_and_not_been_waited_for_is_not_alive(run):
    """A zombie has a process id, and would be shown as running for as long as its parent."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = read_start(child.pid)
    write_log(run, **{**activity.describe_process({}), "pid": child.pid, "started": started})
    assert [one["state"] for one in status(run)["processes"]] == ["running"]
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert [one["state"] for one in status(run)["processes"]] == ["stopped"]
    child.communicate()


@pytest.mark.parametrize("line", ["", "{", "[]", '{"event": "done"}', "\x00\xff", '{"time": 3}'])
def test_a_damaged_line_is_left_out(run, line):
    write_log(run, more=[line])
    (run.logs / "tile.damaged.jsonl").write_text(line)
    assert counts(run) == {"running": 1, "missing": 3}


def test_workers_are_listed_with_what_they_work_on(run):
    """A worker has a log of its own; what it was doing when the command died is not forgotten."""
    write_log(
        run,
        host="a",
        more=['{"event": "examined", "time": "2026-01-01T00:00:00+00:00", "kept": 1, "stale": []}'],
    )
    [command] = [path.name for path in run.logs.iterdir()]
    with activity.log_unit(run, Unit("tile", "s3"), command):
        found = {one["is_worker"]: one for one in status(run)["processes"]}
        assert found[True]["working_on"][0]["slide_id"] == "s3"
        assert found[True]["pid"] == os.getpid()
        assert (found[False]["n"], found[False]["n_ended"]) == (4, 1)
        assert counts(run) == {"running": 2, "missing": 2}
        os.utime(run.logs / command, (1, 1))
        [stopped] = status(run)["processes"]
        assert {unit["slide_id"] for unit in stopped["working_on"]} == {"s0", "s3"}


def test_the_end_is_expected_from_the_slides_since_the_tasks_at_work_began(run):
    now = time.time()
    done = [
        {"event": "done", "time": datetime.fromtimestamp(now - 5, UTC).isoformat(),
         "stage": "tile", "slide_id": slide, "seconds": 25, "host": "a"}
        for slide in ("s1", "s2")
    ]  # fmt: skip
    write_log(run, more=[json.dumps(line) for line in done])
    for slide in ("s1", "s2"):
        mark = Unit("tile", slide).mark(run, "done")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("{}")
    [tile] = find_status(run, now=now).stages
    assert tile.seconds == 25
    assert tile.per_hour == pytest.approx(120, rel=0.05)  # two in 60 s
    assert tile.end - now == pytest.approx(60, rel=0.05)  # two more


def test_parts_of_images(tmp_path):
    """The images of a folder are one unit, of which each task of an array does a part."""
    run = RunFolder(tmp_path)
    write_images(run.images, [ImageEntry(i, f"{i}.png", "x", 0, i, "test") for i in "ab"])
    for name in ("images.0-of-4", "images.2-of-4"):
        mark = Unit("predict", name, "cam").mark(run, "done")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("{}")
    write_log(run, stage="predict", shard="3/4", units=1, more=[json.dumps(
        {"event": "start", "time": "2026-01-01T00:00:00+00:00", "stage": "predict",
         "slide_id": "images.3-of-4", "model": "cam"})])  # fmt: skip
    found = find_status(run)
    predict = {one["stage"]: one for one in as_plain(found)["stages"]}["predict"]
    assert (predict["n_running"], predict["parts"]) == (1, {"done": 2, "of": 4})
    assert describe(found)[0].startswith("2 images, 0 unreadable")
    assert any("predict cam (2 of 4 parts)" in line for line in describe(found))


def test_scheduler_variables_name_the_job():
    environ = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    found = activity.describe_process(environ)
    assert (found["job"], found["array_task"]) == ("7", "3")
    found = activity.describe_process({"JOB_ID": "4", "SGE_TASK_ID": "undefined"})
    assert (found["job"], found["array_task"]) == ("4", None)


def test_the_command(run, tmp_path, capsys):
    assert main(["status", str(run.path)]) == 0
    assert capsys.readouterr().out.startswith("4 slides; ")
    assert main(["status", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "wsi-pipeline/status/1"
    assert main(["status", str(tmp_path)]) == 1
    assert "not a run folder" in capsys.readouterr().err


def test_every_key_of_the_json_is_documented(run):
    write_log(run)
    mark_shard(run, "tile", 0, 2, settings="", ended=True)
    found = status(run)
    page = (ROOT / "docs/status.md").read_text(encoding="utf-8")
    keys = {*found, *found["stages"][0], *found["arrays"][0], *found["processes"][0]}
    keys |= {*found["processes"][0]["working_on"][0]}
    assert not {key for key in keys if f"`{key}`" not in page}


def test_a_list_of_many_processes_is_short(run):
    for number in range(30):
        write_log(run, shard=f"{number}/30")
    lines = describe(find_status(run))
    assert len(lines) < 20
    assert "  and 20 more (--all lists them)" in lines
    assert len(describe(find_status(run), every=True)) > 30


def test_a_slide_whose_worker_was_lost_has_failed_and_is_not_running(run):
    unit = Unit("tile", "s0")
    with activity.log_stage(run, "tile", n_units=1, settings="") as log:
        write_log(run, worker_of=log.name, host=platform.node())  # it died while working on s0
        activity.log_lost(unit, log.name)
        [command] = status(run)["processes"]
        assert (command["n_ended"], command["working_on"]) == (1, [])
        assert counts(run) == {"missing": 4}


def test_a_process_that_works_touches_its_log(run, monkeypatch):
    monkeypatch.setattr(activity, "BEAT_S", 0.01)
    with activity.log_stage(run, "tile", n_units=1, settings="") as log:
        path = run.logs / log.name
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 1)
