"""A run of 10,000 tiny slides, from their files to the report: time and memory of each step.

Draws slides of 640 x 64 px (copies of a few files with other bytes at their end, so that each has a
digest of its own) and runs `slides`, `plan`, `tile` (coordinates, as a job array of some tasks, one
after the other), `collect`, `evaluate` and `report` as processes. Score files are not predicted but
drawn, on the coordinates of the stores and through the functions that `predict` uses. For each
step: seconds from start to end, processor seconds and the largest memory of the command and its
processes together, and the most files open in one process. Between two sizes, the growth is the
exponent p of N^p in processor seconds: 1 is linear, 2 quadratic. `evaluate` works on the fifth of
the slides in test and the fifth in val.

    python benchmarks/ten_thousand.py
    python benchmarks/ten_thousand.py --tasks 40 --run 1             # a tenth of the time
    python benchmarks/ten_thousand.py --slides 100 200 --strace      # counts system calls, slower
"""

import argparse
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from plan_cost import COMMAND, draw_cohort, draw_tiny

from tiling.files import write_json
from tiling.store import PatchStore
from tiling.store_files import finish_store, read_attributes, read_table, write_table
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.contracts import Scores
from wsi_pipeline.inference.scores import write_scores
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import JOB_ARRAYS
from wsi_pipeline.run.state import mark_finished, mark_shard

RESULT = Path(__file__).parent / "results" / "ten_thousand.json"
SIZE_PX = (640, 64)  # such a picture is small: its drawing would take most of the time
N_CONTENTS = 8  # files with other pixels
MODEL = "drawn"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
INTERVAL_S = 0.1  # between two looks at a command's processes
# System calls that a file server answers; reads and writes of file contents are not among them.
METADATA_CALLS = (
    *("open", "openat", "stat", "newfstatat", "statx", "lstat", "access", "faccessat2"),
    *("getdents64", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("rmdir", "readlink", "readlinkat", "utimensat", "fsync", "fdatasync"),
)
CONFIG = """
input: {source}
out: {run}
stages: [tile]
tile: {{patch_px: 64, target_mpp: 0.5, store: coords}}
"""


# ------------------------------------------------------------ measure


def look_at(pid):
    """Look at a process: processor seconds, MiB, open files, children; None once it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        n_open = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError):
        return None
    found = re.search(r"VmRSS:\s+(\d+)", status)
    memory = int(found[1]) / 1024 if found else 0.0
    return (int(after_name[11]) + int(after_name[12])) * TICK_S, memory, n_open, children


def measure(*arguments):
    """Run a command and look at its processes until it ends."""
    start, cpu_by_pid, most_memory, most_open = time.perf_counter(), {}, 0.0, 0
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [COMMAND, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        while process.poll() is None:
            waiting, memory = [process.pid], 0.0
            while waiting:
                pid = waiting.pop()
                if (seen := look_at(pid)) is None:
                    continue
                cpu_by_pid[pid], own, n_open, children = seen
                memory += own
                most_open = max(most_open, n_open)
                waiting += children
            most_memory = max(most_memory, memory)
            time.sleep(INTERVAL_S)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{arguments}: {process.returncode}\n{errors.read().decode()}")
    return {
        "s": time.perf_counter() - start,
        "cpu_s": sum(cpu_by_pid.values()),
        "mib": most_memory,
        "open_files": most_open,
    }


def count_calls(*arguments):
    """Run a command under strace; how often it called each system call on metadata."""
    with tempfile.NamedTemporaryFile() as table:
        trace = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-c",
            "-o",
            table.name,
            "-e",
            f"trace={','.join(METADATA_CALLS)}",
        ]
        command = [*trace, COMMAND, *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [line.split() for line in Path(table.name).read_text().splitlines()]
    calls = {w[-1]: int(w[3]) for w in lines if w and w[-1] in METADATA_CALLS}
    return {"calls": sum(calls.values()), "by_call": calls}


# ------------------------------------------------------------ the run


def draw_slides(folder, n_slides):
    """Draw the slides; returns their manifest."""
    folder.mkdir(parents=True)
    contents = [draw_tiny(folder / "drawn.tif", seed, SIZE_PX) for seed in range(N_CONTENTS)]
    return draw_cohort(folder / "slides", n_slides, contents, ".tif")


def draw_stores(run):
    """Draw the stores of slides that are not tiled, as `tile` writes and marks them.

    They hold what the stores of some tiled slides hold.
    """
    entries = read_run_manifest(run)
    patterns = []
    for entry in entries:
        path = run.store(entry.slide_id)
        if len(patterns) < N_CONTENTS and path.is_dir():
            attributes = read_attributes(path)
            patterns.append((attributes, read_table(path, attributes), run.qc(entry.slide_id)))
    n_drawn = 0
    for number, entry in enumerate(entries):
        unit, store = Unit("tile", entry.slide_id), run.store(entry.slide_id)
        if unit.is_marked(run):
            continue
        attributes, table, picture = patterns[number % len(patterns)]
        about = {**attributes, "fingerprint": entry.slide_id, "slide_label": entry.label}
        about["slide"] = {**attributes["slide"], "slide_id": entry.slide_id}
        write_table(store, table)
        finish_store(store, about, table)
        shutil.copyfile(picture, run.qc(entry.slide_id))
        mark_finished(run, unit, "drawn", [store, run.qc(entry.slide_id)])
        n_drawn += 1
    return n_drawn


def draw_ends(run, n_tasks):
    """Record that the other tasks of the array have ended, as task 0 did."""
    folder = run.path / ".state" / "tile" / JOB_ARRAYS
    settings = json.loads((folder / f"0-of-{n_tasks}.json").read_text())["settings"]
    for task in range(n_tasks):
        mark_shard(run, "tile", task, n_tasks, settings=settings, ended=True)


def draw_scores(run):
    """Draw the score file of every tiled slide, as `predict` writes and marks it."""
    nothing = {"train_slides": [], "train_patients": [], "val_slides": [], "val_patients": []}
    rng = np.random.default_rng(0)
    for entry in read_run_manifest(run):
        store = PatchStore.open(run.store(entry.slide_id))
        values = rng.beta(2 + 2 * (entry.label or 0), 4, len(store.coords)).astype(np.float32)
        about = {"slide_id": entry.slide_id, "model": MODEL, "fingerprint": store.fingerprint}
        about |= {"checkpoint": "drawn", "trained_on": nothing}
        path = run.scores(MODEL, entry.slide_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scores(path, Scores(store.coords, values, about, {"patch_size": 64}))
        mark_finished(run, Unit("predict", entry.slide_id, MODEL), "drawn", [path])


def run_all(folder, n_slides, n_tasks, n_run, measure):
    """Run every step on a cohort; what `measure` found of each."""
    source, run = draw_slides(folder, n_slides), RunFolder(folder / "run")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(source=source, run=run.path), encoding="utf-8")
    time.sleep(1)  # what has just been written is hashed twice
    steps = {}

    def step(name, *arguments):
        steps[name] = measure(*arguments)
        print(n_slides, name, json.dumps(steps[name]), flush=True)

    def tile(name, task):
        shard = ("--shard", f"{task}/{n_tasks}", "--workers", 1, "--quiet")
        step(name, "tile", source, "--out", run.path, "--config", config, *shard)

    step("slides", "slides", source, "--quiet")
    # Of a part, as many slides are planned as are tiled; the whole list is read in either case.
    step("plan", "plan", config, "--quiet", *(("--shard", f"0/{n_tasks}") if n_run else ()))
    for task in range(n_run or n_tasks):
        tile(f"tile, task {task}", task)
    n_drawn = draw_stores(run)
    draw_ends(run, n_tasks)
    tile("tile, task 0, all finished", 0)
    draw_scores(run)
    step("collect", "collect", run.path)
    step("evaluate", "evaluate", run.path, "--quiet")
    step("report", "report", run.path, "--quiet")
    step("collect again", "collect", run.path)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return {
        "slides": n_slides,
        "stores drawn": n_drawn,
        "steps": steps,
        "files": len(files),
        "mib": sum(path.stat().st_size for path in files) / 2**20,
        "report_mib": (run.path / "report.html").stat().st_size / 2**20,
    }


def growth(results, name, key):
    """Exponent of each size's figure on the number of slides, against the size before."""
    pairs = itertools.pairwise(results)
    return [
        round(
            math.log(b["steps"][name][key] / a["steps"][name][key])
            / math.log(b["slides"] / a["slides"]),
            2,
        )
        for a, b in pairs
    ]


def main():
    """Draw, measure, print, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--slides", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--tasks", type=int, default=8, help="of the job array of tile")
    parser.add_argument(
        "--run",
        type=int,
        default=0,
        help="run so many tasks of the array alone, plan the slides of one, draw the other stores",
    )
    parser.add_argument("--strace", action="store_true", help="count system calls, not time")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    key = "calls" if arguments.strace else "cpu_s"
    results = []
    for n_slides in arguments.slides:
        with tempfile.TemporaryDirectory() as scratch:
            chosen = count_calls if arguments.strace else measure
            results.append(
                run_all(Path(scratch) / "cohort", n_slides, arguments.tasks, arguments.run, chosen)
            )
        grown = {name: growth(results, name, key) for name in results[0]["steps"]}
        write_json(
            arguments.out,
            {"benchmark": "ten_thousand", "results": results, f"growth of {key}": grown},
        )
    print(json.dumps(grown, indent=1))


if __name__ == "__main__":
    main()
