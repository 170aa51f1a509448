"""`tile` by two workers against one, as processes (`--workers`) and on Dask (`--dask local`).

Slides of real H&E (mirrored, 240 px JPEG tiles) are cut into stores of patches, each slide by one
thread, so that two workers can be twice as fast on two cores. The command around them, which is the
same for any number, is not counted. One worker is a process, too. The stores' bytes are compared.

- ``wall``: the best time of one worker over twice the best of two, both of all rounds, which take
  turns: on a shared machine the best is the least disturbed. Aim 0.85.
- ``processor``: the same of processor time, the command's and that of its busiest worker together,
  which other programs disturb less: what is lost to sending and uneven shares, without the start
  of the workers, which ``wall`` counts.
- ``loop``: the same of loops that only count: where fewer than two cores are free, the most that
  ``wall`` can be.
- ``ms_per_task``: this process's share per task that does nothing, for 1, 2 and 4 workers: what
  limits the number of workers that one command can keep busy.

    python benchmarks/workers.py
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import slides

from tiling.contracts import TileConfig
from tiling.files import write_json
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.run.cluster import map_tasks
from wsi_pipeline.run.tasks import Job, perform
from wsi_pipeline.stages.tile import TileSlide

RESULT = Path(__file__).parent / "results" / "workers.json"
AIM = 0.85
BACKENDS = {"workers": None, "dask local": "local"}


def do_nothing(number):
    """Return at once."""
    return number


def count_down(steps):
    """Keep a core busy with Python."""
    while steps:
        steps -= 1


def measured(task, *, work):
    """Do the work in a worker; its processor time."""
    start = time.process_time()
    outcome = work(task)
    assert getattr(outcome, "ok", True), outcome
    return os.getpid(), time.process_time() - start


def seconds_of(work, tasks, workers, dask):
    """Seconds for all tasks: of the clock with the start of the workers; of the processor."""
    start, own = time.perf_counter(), None
    by_worker = {}
    for _, result in map_tasks(
        partial(measured, work=work), tasks, workers=workers, apart=True, dask=dask
    ):
        worker, spent = result  # none may fail
        by_worker[worker] = spent + by_worker.get(worker, 0)
        own = own or time.process_time()
    assert len(by_worker) == workers
    return time.perf_counter() - start, time.process_time() - own + max(by_worker.values())


def tile(paths, folder, workers, dask):
    """Seconds to tile all slides into a new run, and its stores' bytes."""
    run = RunFolder(folder / "run")
    config = TileConfig(patch_px=256)
    tasks = [TileSlide(SlideEntry(p.stem, p, p.stem), config, 1, fixed=False) for p in paths]
    jobs = [Job(run, task, "", folder) for task in tasks]
    spent = seconds_of(perform, jobs, workers, dask)
    files = sorted(path for path in run.tiles.rglob("*") if path.is_file())
    content = {path.relative_to(run.path): hash(path.read_bytes()) for path in files}
    shutil.rmtree(run.path)  # written above
    return spent, content


def measure(paths, folder, rounds):
    """Best seconds of one and two workers of each kind, and of two loops."""
    spent = {(name, k): [] for name in (*BACKENDS, "loop") for k in (1, 2)}
    contents = []
    for _ in range(rounds):
        for k in (1, 2):
            for name, dask in BACKENDS.items():
                seconds, content = tile(paths, folder, k, dask)
                spent[name, k].append(seconds)
                contents.append(content)
            spent["loop", k].append(seconds_of(count_down, [5_000_000] * 4, k, None))
    assert all(content == contents[0] for content in contents)
    best = {key: [min(column) for column in zip(*v, strict=True)] for key, v in spent.items()}
    return {
        name: {
            clock: {
                "one_s": best[name, 1][i],
                "two_s": best[name, 2][i],
                "efficiency": best[name, 1][i] / best[name, 2][i] / 2,
                "rounds": [
                    a[i] / b[i] / 2 for a, b in zip(spent[name, 1], spent[name, 2], strict=True)
                ],
            }
            for i, clock in enumerate(("wall", "processor"))
        }
        for name in (*BACKENDS, "loop")
    }


def ms_per_task(dask, workers, n_tasks=200):
    """Processor time of this process for a task that does nothing, in milliseconds."""
    results = map_tasks(do_nothing, list(range(n_tasks + workers)), workers=workers, dask=dask,
                        apart=True)  # fmt: skip
    for _ in range(workers):  # all have started
        next(results)
    start = time.process_time()
    found = sum(1 for _ in results)
    return (time.process_time() - start) / found * 1000


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--side", type=int, default=4_000, help="px")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    if not slides.SOURCE.is_file():
        print(f"skipped: no {slides.SOURCE}")
        sys.exit(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [
            slides.make_slide(folder / f"s{n}.svs", asked.side, seed=10 * n)
            for n in range(asked.slides)
        ]
        result = {
            "benchmark": "workers",
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "python": platform.python_version(),
            "slides": asked.slides,
            "side_px": asked.side,
            "rounds": asked.rounds,
            "aim": AIM,
            "tile": measure(paths, folder, asked.rounds),
        }
    result["ms_per_task"] = {
        name: {k: ms_per_task(dask, k) for k in (1, 2, 4)} for name, dask in BACKENDS.items()
    }
    print(json.dumps(result, indent=1))
    write_json(asked.out, result)


if __name__ == "__main__":
    main()
