"""Runs in a real Slurm of one node: what is killed, requeued or lost, and equal results."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.slides import tissue, write_slide
from tests.helpers.slurm import Slurm, run_slurm, why_no_slurm
from tests.helpers.tiny_cohort import contents, write_config
from wsi_pipeline.cli.app import main

ROOT = Path(__file__).parents[3]
PROGRAM = f"{shlex.quote(sys.executable)} -c 'from wsi_pipeline.cli.app import entry; entry()'"
CLUSTER = """
cluster: {gpus: 0, cores: 1, memory: 2GiB, tasks: 3, setup: ["PATH=%s:$PATH"]}
"""
SH = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(why_no_slurm() is not None, reason=f"no Slurm here: {why_no_slurm()}"),
]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    """One Slurm for all tests; `wsi-pipeline` is this source, in jobs and in commands."""
    programs = tmp_path_factory.mktemp("programs")
    program = programs / "wsi-pipeline"
    program.write_text(f'#!/bin/sh\nexec {PROGRAM} "$@"\n')
    program.chmod(0o755)
    with run_slurm(tmp_path_factory.mktemp("slurm") / "node") as running:
        for name, value in (("PYTHONPATH", str(ROOT)), ("OMP_NUM_THREADS", "1")):
            running.environment[name] = value
        running.environment["MPLBACKEND"] = "Agg"
        running.put_first(programs)
        yield running


def shell(slurm: Slurm, script: str, folder: Path) -> str:
    """Run shell commands in a folder, and return what they print."""
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env=slurm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout


def data(run: Path) -> dict[str, bytes]:
    """Everything a run wrote but pictures, pages, and records of how it ran."""
    return {
        name: content
        for name, content in contents(run).items()
        if not name.endswith((".png", ".html"))
        and not name.startswith((".state/", "jobs/", "figures/"))
        and not any(part.endswith(".part") for part in Path(name).parts)  # of a killed worker
        and name not in ("run.json", "slides.csv")
    }


def logs(run: Path, name: str) -> str:
    return "".join(path.read_text() for path in sorted(run.glob(f"jobs/logs/wsi-{name}*.out")))


def is_at_work(run: Path, n: int) -> bool:
    """Whether so many slides are being tiled: their stores have scratch names."""
    stores = run.glob("tiles/.*.zarr.*.part")  # not their pictures
    return len({path.name.partition(".zarr.")[0] for path in stores}) >= n


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Three slides that take several seconds each, one that is broken, and a plain run on them."""
    folder = tmp_path_factory.mktemp("large") / "a folder"
    (folder / "data").mkdir(parents=True)
    for number in range(3):
        write_slide(folder / f"data/s{number}.tif", [tissue(2672, 2672, seed=number)])
    (folder / "data/broken.tif").write_bytes(b"no slide")
    rows = ["slide", "s0.tif", "s1.tif", "s2.tif", "broken.tif"]
    (folder / "data/manifest.csv").write_text("\n".join(rows) + "\n")
    config = write_config(folder, folder / "data", folder / "plain")
    assert main(["run", str(config), "--set", "stages=[tile]", "--quiet"]) == 3
    return folder


def write_own_config(slurm: Slurm, large: Path, run: Path, *more: str) -> Path:
    run.parent.mkdir(exist_ok=True)
    path = write_config(run.parent, large / "data", run)
    text = path.read_text() + "stages: [tile]\n" + CLUSTER % slurm.programs
    path.write_text(text.replace("tasks: 3", "tasks: 4") + "".join(more))
    return path


def test_the_commands_of_the_page_give_what_a_plain_run_gives(slurm, finished, tmp_path):
    """The recipe of docs/cluster.md as it is, with a small data set and model."""
    folder = tmp_path / "a folder"
    shutil.copytree(finished / "data", folder)
    write_config(folder, Path(), Path("run")).rename(folder / "my.yaml")
    stages = "\nstages: [tile, train, predict, heatmap, evaluate]"
    cluster = CLUSTER % slurm.programs
    (folder / "my.yaml").write_text((folder / "my.yaml").read_text() + stages + cluster)
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    recipe, after, rerun = (
        SH.findall(page.partition(title)[2])[0]
        for title in ("## All stages\n", "### Slides that fail\n", "### Time limits")
    )
    printed = shell(slurm, recipe, folder)
    numbers = dict(re.findall(r"^(\w+) (\d+)$", printed, re.MULTILINE))
    names = ["tile", "collect_tile", "train", "predict", "heatmap", "evaluate", "collect"]
    assert list(numbers) == names
    states = slurm.wait(list(numbers.values()))
    assert {state for of in states.values() for state in of} == {"COMPLETED"}
    assert [len(states[numbers[name]]) for name in names] == [3, 1, 1, 3, 3, 1, 1]
    plain = {n: b for n, b in data(finished / "run").items() if not n.startswith("exports")}
    assert data(folder / "run") == plain

    assert "heatmap patchnet: 4 of 4 slides done" in shell(slurm, after.splitlines()[0], folder)
    [again] = re.findall(r"\d+$", shell(slurm, rerun, folder), re.MULTILINE)
    assert slurm.wait([again]) == {again: ["COMPLETED"]}  # one task of the array
    assert "tile: 0 done, 2 kept from before" in logs(folder / "run", f"tile-{again}_1")
    assert data(folder / "run") == plain


def test_tasks_that_are_killed_requeued_and_cancelled(slurm, large, tmp_path):
    """A killed task is lost, one at its time limit continues, one that is cancelled ends."""
    run = tmp_path / "a folder/run"
    config = write_own_config(slurm, large, run)
    words = shlex.join(["wsi-pipeline", "submit", str(config), "--cluster", "slurm", "--submit"])
    submitted = shell(slurm, words, tmp_path)
    numbers = dict(re.findall(r"^(\w+) (\d+)$", submitted, re.MULTILINE))
    tile = numbers["tile"]
    slurm.until(lambda: is_at_work(run, 3), what="three slides at work")
    slurm.kill(f"{tile}_0")
    slurm.run("scancel", "--signal=USR1", "--batch", f"{tile}_1")  # as before the time limit
    slurm.run("scancel", f"{tile}_2")  # SIGTERM; SIGKILL after 30 s
    states = slurm.wait(list(numbers.values()))
    tasks = slurm.states(tile)
    assert {i: task["JobState"] for i, task in tasks.items()} == {
        "0": "FAILED",
        "1": "COMPLETED",
        "2": "CANCELLED",
        "3": "COMPLETED",  # the broken slide
    }
    assert tasks["1"]["Restarts"] == "1"
    kept = "interrupted: finished slides, epochs and stages are kept; the same command continues"
    assert [logs(run, f"tile-{tile}_{n}").count(kept) for n in range(3)] == [0, 1, 1]
    assert states[numbers["collect_tile"]] == ["CANCELLED"]
    assert slurm.states(numbers["collect"])[numbers["collect"]]["ExitCode"] == "3:0"
    assert "tile: 1 of 4 slides done, 1 failed (broken), 2 missing" in logs(run, "collect")

    slurm.run("scontrol", "requeue", f"{tile}_2")
    again = shell(
        slurm, f"cd {shlex.quote(str(run))}/jobs; sbatch --parsable --array=0 tile.sh", run
    )
    jobs = [f"{tile}_2", again.strip()]
    assert slurm.wait(jobs) == {job: ["COMPLETED"] for job in jobs}
    assert shell(slurm, f"wsi-pipeline collect {shlex.quote(str(run))} || [ $? = 3 ]", run)
    assert data(run) == data(large / "plain")
    assert not is_at_work(run, 2)  # what the killed task left; the next command removes it


def test_a_worker_of_dask_that_is_killed(slurm, large, tmp_path):
    """Its slide goes to the other worker; dask-jobqueue submits the workers as jobs."""
    run = tmp_path / "a folder/run"
    options = shlex.quote(str(slurm.programs))
    config = write_own_config(slurm, large, run)
    text = config.read_text().replace("tasks: 4", f"tasks: 4, dask: {{local_directory: {options}}}")
    config.write_text(text)
    words = ["wsi-pipeline", "run", str(config), "--dask", "slurm", "--workers", "2", "--quiet"]
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        env=slurm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as command:
        slurm.until(lambda: is_at_work(run, 2), what="two workers")
        worker = slurm.run("squeue", "-h", "-o", "%i", "--name=dask-worker").split()[0]
        slurm.run("scancel", "--signal=KILL", "--full", worker)
        printed, _ = command.communicate(timeout=200)
    assert command.returncode == 3, printed  # the broken slide
    assert "2 failed" not in printed
    assert data(run) == data(large / "plain")
    slurm.until(lambda: not slurm.run("squeue", "-h"), what="the end of the workers")


def test_arrays_with_steps_and_gaps(slurm, finished, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path, finished / "data", run)
    words = ["wsi-pipeline", "tile", str(finished / "data/manifest.csv"), "--out", str(run)]
    command = shlex.join([*words, "--config", str(config), "--quiet", "--shard"])
    array = ("sbatch", "--parsable", f"--output={tmp_path}/%a.out")
    steps = slurm.run(*array, "--array=1-5:2", "--wrap", f"{command} auto")
    gaps = slurm.run(*array, "--array=0,3", "--wrap", f"{command} auto")
    again = slurm.run(*array, "--array=7", "--wrap", f"{command} auto/1-9:2")
    assert slurm.wait([steps, gaps, again]) == {
        steps: ["COMPLETED"] * 3,
        gaps: ["FAILED"] * 2,
        again: ["COMPLETED"],
    }
    assert "it has gaps; give the range of the whole array" in (tmp_path / "0.out").read_text()
    tiles = {n: b for n, b in data(finished / "run").items() if n.startswith("tiles/s")}
    assert {n: b for n, b in data(run).items() if n.startswith("tiles/s")} == tiles
