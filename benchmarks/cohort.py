"""Ten slides of 40,320 px, from files to heatmaps in one command, with a model without cost.

The command `run` with the stages tile (coordinates only), predict and heatmap, as a whole process:
imports, digests of the files, QC pictures, records and checks included. Left out: a real model,
and writing the slides. The slides are one slide with other bytes at its end, so that each has a
digest of its own but all need the same work; 4 GB of disk. Printed: seconds, processor seconds,
peak memory.

    python benchmarks/cohort.py
    python benchmarks/cohort.py --slide big.svs --slides 3 --cores 2
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "cohort.json"
SIDE, PATCH, MPP = 40_320, 512, 0.5
CONFIG = """
input: {slides}
out: {run}
stages: [tile, predict, heatmap]
tile: {{patch_px: {patch}, target_mpp: {mpp}, store: coords}}
"""


def copy_slides(slide, folder, n):
    """Copies of a slide that differ in bytes which no reader looks at."""
    folder.mkdir()
    for number in range(n):
        path = folder / f"s{number:02}{slide.suffix}"
        shutil.copyfile(slide, path)
        with path.open("ab") as file:
            file.write(number.to_bytes(8, "little"))
    return folder


def run_once(slides, checkpoint, folder):
    """Run the command once, in a folder of its own."""
    models = folder / "run" / "models" / "trivial"
    models.mkdir(parents=True)
    shutil.copyfile(checkpoint, models / "checkpoint.safetensors")
    config = folder / "config.yaml"
    text = CONFIG.format(slides=slides, run=folder / "run", patch=PATCH, mpp=MPP)
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, Path(__file__).with_name("trivial.py"), "run", config]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(part) for part in command], check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert len(list((folder / "run" / "heatmaps").rglob("*.ome.tif"))) == len(
        list(slides.iterdir())
    )
    return {"s": seconds, "cpu_s": cpu, "peak_mib": after.ru_maxrss / 1024}


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--slides", type=int, default=10)
    parser.add_argument("--cores", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    import slides
    import trivial

    from tiling.files import write_json

    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = trivial.write_checkpoint(folder / "trivial.safetensors", PATCH, MPP)
        slide = arguments.slide or slides.make_slide(folder / "bench.svs", SIDE)
        copies = copy_slides(slide, folder / "slides", arguments.slides)
        time.sleep(3)  # what has just been written is hashed twice
        for number in range(arguments.rounds):
            (folder / str(number)).mkdir()
            runs.append(run_once(copies, checkpoint, folder / str(number)))
            print(json.dumps(runs[-1]), flush=True)
    result = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    result["s_per_slide"] = result["s"] / arguments.slides
    print(json.dumps(result, indent=1))
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": platform.machine()}
    machine["python"] = platform.python_version()
    settings = {"side_px": SIDE, "patch_px": PATCH, "slides": arguments.slides}
    write_json(
        arguments.out,
        {"benchmark": "cohort", "settings": settings, "machine": machine, "results": result}
        | {"rounds": runs},
    )


if __name__ == "__main__":
    main()
