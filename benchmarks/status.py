"""`status` as a process: how time and memory grow with slides and tasks of an array.

Draws run folders of N slides as `tile` and an array of N/10 tasks of `predict` leave them half-way:
marks and logs alone, since `status` opens nothing else. A tenth of the tasks are running on other
machines. Processor seconds, with a warm file cache.

python benchmarks/status.py [--slides 1000 10000]
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tiling.files import write_json
from wsi_pipeline.cohort.manifest import write_manifest
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.state import mark_shard

RESULT = Path(__file__).parent / "results" / "status.json"
COMMAND = [sys.executable, "-c", "from wsi_pipeline.cli.app import entry; entry()"]
MODEL = "drawn"
PER_TASK = 10  # slides
SECONDS = 60.0  # of a slide


def draw_run(folder: Path, n_slides: int) -> None:
    """Draw marks and logs: all slides tiled, half of them scored by tasks of an array."""
    run = RunFolder(folder)
    ids = [f"slide_{number:05d}" for number in range(n_slides)]
    folder.mkdir()
    write_manifest(run.manifest, [SlideEntry(s, folder / f"{s}.tif", s) for s in ids])
    write_json(
        folder / "run.json",
        {"seed": 0, "stages": {name: {"config": {}} for name in ("tile", "predict")}},
    )
    run.logs.mkdir()
    for stage, model, n_done in (("tile", "", n_slides), ("predict", MODEL, n_slides // 2)):
        units = [Unit(stage, slide, model) for slide in ids]
        units[0].mark(run, "done").parent.mkdir(parents=True)
        for unit in units[:n_done]:
            write_mark(unit.mark(run, "done"))
        n_tasks = n_slides // PER_TASK
        for task in range(n_tasks if stage == "tile" else n_tasks * 6 // 10):
            draw_log(run, units[task * PER_TASK : (task + 1) * PER_TASK], n_done, task, n_tasks)


def write_mark(path: Path) -> None:
    """Write a mark as small as one is."""
    path.write_text('{"fingerprint": "0123456789abcdef", "files": {}, "sha256": {}}\n')


def draw_log(run: RunFolder, units: list[Unit], n_done: int, task: int, n_tasks: int) -> None:
    """Draw the log of a task, which is running if its slides are not done."""
    begun = time.time() - SECONDS * PER_TASK
    has_ended = (task + 1) * PER_TASK <= n_done
    mark_shard(run, units[0].stage, task, n_tasks, settings="s", ended=has_ended)
    stage, model = units[0].stage, units[0].model
    names = {"stage": stage, **({"model": model} if model else {})}
    host = f"node{task % 100:03d}"
    lines = [
        {"event": "begin", "time": iso(begun), "stage": stage, "host": host, "pid": 100 + task}
        | {"pids": "", "started": 1, "job": "4711", "array_task": str(task)}
        | {"shard": f"{task}/{n_tasks}", "worker_of": None, "units": PER_TASK, "settings": "s"}
    ]
    for number, unit in enumerate(units):
        at = begun + SECONDS * number
        lines.append({"event": "start", "time": iso(at), **names, "slide_id": unit.slide_id})
        if not has_ended:
            break
        lines.append(
            {"event": "done", "time": iso(at + SECONDS), **names}
            | {"slide_id": unit.slide_id, "seconds": SECONDS, "host": host}
            | {"fingerprint": "0123456789abcdef"}
        )
    if has_ended:
        lines.append({"event": "end", "time": iso(begun + SECONDS * PER_TASK)})
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    name = f"{stage}.{task}-of-{n_tasks}.{host}-{100 + task}-0123abcd.jsonl"
    (run.logs / name).write_text(text)


def iso(at: float) -> str:
    """Write a time as a log does."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def measure(folder: Path, *more: str) -> tuple[float, str]:
    """Return the least processor seconds of three, and the output."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*COMMAND, "status", str(folder), *more], check=True, capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(times), done.stdout


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, nargs="+", default=[1000, 10_000])
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for n_slides in parser.parse_args().slides:
            folder = Path(scratch) / str(n_slides)
            draw_run(folder, n_slides)
            seconds, printed = measure(folder)
            plain = measure(folder, "--json")[0]
            rows.append(
                {"slides": n_slides, "tasks": n_slides // PER_TASK}
                | {"seconds": round(seconds, 2), "json_seconds": round(plain, 2)}
            )
            print(rows[-1], f"{len(printed.splitlines())} lines printed", flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    write_json(RESULT, {"machine": platform.processor(), "peak_mib": round(peak), "rows": rows})
    print(printed)


if __name__ == "__main__":
    main()
